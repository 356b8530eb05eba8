"""The example on the page about the expert kernels runs, and loses what rounding of random weights loses."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "expert_kernels.md"


def test_the_example_runs_in_every_format(capsys):
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    exec(compile(snippet, str(PAGE), "exec"), {})
    out = capsys.readouterr().out
    percent = [int(missed) for missed in re.findall(r"(\d+)%", out)]  # int4, fp8, the bank at 8, 4 and 2 bits
    assert percent == pytest.approx([17, 4, 4, 18, 72], abs=3)
    assert "[5, 256]" in out
