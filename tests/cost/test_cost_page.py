"""The page on costs: its Python runs, and it names what answers as the model does."""

import re
from pathlib import Path

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.types import NAMED_SHAPES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "cost.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})
    assert "fitted: NVIDIA H200 False" in capsys.readouterr().out


def test_sources_are_named_as_predictions_name_them():
    said = re.findall(r'`source` (?:is|says) `"?(.*?)"?`', TEXT)
    by_physics = KernelCostModel().predict("expert_mlp", NAMED_SHAPES["qwen3-30b-a3b"], 128, 82).source
    assert said == [by_physics, "roofline: ..."]
    assert by_physics == "roofline: NVIDIA H200"
