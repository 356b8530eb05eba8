"""The Python of the guide to heat runs as it is printed."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "heat.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "ThermalPredictor" in b])
def test_the_forecasts_of_the_guide_run(block, capsys):
    exec(compile(block, str(PAGE), "exec"), {"__name__": "guide"})
    assert "predicted" in capsys.readouterr().out


def test_the_guide_shows_a_forecast_and_a_load():
    assert len(BLOCKS) == 2
