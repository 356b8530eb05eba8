"""Options that a benchmark cannot run with end in one line and code 2, before anything is measured."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import __main__ as table
from benchmarks import decode_step, moe_stack


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (table.main, ["--shapes", ""], "names none"),
        (table.main, ["--jobs", "0"], "--jobs 0"),
        (table.main, ["--seconds", "nan"], "--seconds nan"),
        (decode_step.main, ["--formats", "float4"], "float4"),
        (decode_step.main, ["--arms", "float4"], "unknown arms float4"),
        (decode_step.main, ["--trials", "0"], "--trials 0"),
        (moe_stack.main, ["--tokens", "0"], "--tokens 0"),
        (moe_stack.main, ["--batches", "0"], "--batches 0"),
        (moe_stack.main, ["--trials", "0"], "--trials 0"),
        (moe_stack.main, ["--seconds", "nan"], "--seconds nan"),
    ],
)
def test_options_out_of_range(tmp_path, capsys, main, words, said):
    smoke = [] if main is table.main else ["--smoke"]
    out = tmp_path / "out"
    assert main([*smoke, *words, "--out", str(out)]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not out.exists()


def test_files_and_folders_that_cannot_be_written(tmp_path, capsys):
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert table.main(["--out", str(tmp_path)]) == 2
    assert decode_step.main(["--smoke", "--out", str(tmp_path)]) == 2
    assert moe_stack.main(["--smoke", "--out", str(taken)]) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert taken.read_text() == "mine"
