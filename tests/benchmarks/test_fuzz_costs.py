import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.fuzz_costs import LIMIT_S, Tally, fuzz, report, run_case

from thermoe.cost.database import CostDatabase


def test_damaged_cost_files_load_or_end_in_one_line():
    result = report(fuzz(400, seed=3), seed=3)
    assert result["escaped"] == 0, result["outcomes"]
    assert result["messages_of_several_lines"] == 0
    assert result["slowest_s"] < LIMIT_S
    assert result["outcomes"]["loaded"] > 5
    assert result["outcomes"]["DataError"] > 200


def test_what_escapes_is_seen(tmp_path, monkeypatch):
    def broken(path):
        raise OverflowError("too large")

    monkeypatch.setattr(CostDatabase, "load", broken)
    tally = Tally()
    run_case(b"{}", tmp_path / "x", tally)
    assert list(tally.outcomes) == ["escaped: OverflowError: too large"]
