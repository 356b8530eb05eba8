"""A small share of `python -m benchmarks.fuzz_parsers`, whose 10,000 cases have a committed result."""

import json
from pathlib import Path

import pytest
from benchmarks.fuzz_parsers import BASES, SAMPLES, run_cases

RESULT = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "fuzz-parsers.json"


@pytest.mark.parametrize("kind", BASES)
def test_mutated_files_end_in_a_table_or_an_error_of_ours(kind):
    found = run_cases([(kind, seed) for seed in range(12)])
    assert found["failures"] == []
    assert sum(found["outcomes"].values()) == 12


def test_the_committed_run_is_whole():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert result["cases"] >= 10_000
    assert sum(result["outcomes"].values()) == result["cases"]
    assert result["failures"] == []
    assert result["peak_mb"] < 1024
    assert result["slowest_s"] < result["limit_s"]
    assert {name.split(":")[0] for name in result["outcomes"]} == {*BASES, *SAMPLES}
