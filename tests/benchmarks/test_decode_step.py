"""The benchmark of a whole decode step, on a tiny model without a GPU."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.random_experts import random_quantised  # noqa: E402

from benchmarks import arms, decode_step  # noqa: E402
from thermoe.integrations.experts_held import expert_blocks, quantised_experts  # noqa: E402
from thermoe.kernels.expert_mlp import dequantize  # noqa: E402
from thermoe.types import NAMED_SHAPES  # noqa: E402


def test_the_rows_of_a_smoke_run(tmp_path):
    out = tmp_path / "step.json"
    named = "generate,graph_grouped_mm,thermoe_int4,thermoe_int4_union"
    assert decode_step.main(["--smoke", "--out", str(out), "--arms", named, "--trials", "2"]) == 0
    content = json.loads(out.read_text())
    rows = {row["arm"]: row for row in content["rows"]}
    assert list(rows) == named.split(",")
    assert {row["op"] for row in rows.values()} == {"decode_step"}
    assert [row["impl"] for row in rows.values()] == ["transformers", "transformers", "thermoe", "thermoe"]
    assert [row["dtype"] for row in rows.values()] == ["f32", "f32", "int4", "int4"]
    for row in rows.values():
        assert row["trials"] == 2
        assert row["ms_per_step"]["low"] > 0
        assert row["j_per_token"] is None  # nothing measured it
    assert rows["generate"]["distinct_experts"] is None
    assert 1 < rows["thermoe_int4_union"]["distinct_experts"]["median"] < 16
    assert rows["thermoe_int4_union"]["gate_mass_kept"]["median"] < 1


def test_unknown_arms_are_refused(tmp_path, capsys):
    assert decode_step.main(["--smoke", "--out", str(tmp_path / "x.json"), "--arms", "nothing"]) == 2
    assert "unknown arms nothing: choose from generate" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        decode_step.main(["--out", str(tmp_path / "x.json"), "--steps", "3"])


@pytest.mark.parametrize("held_as", ["int2", "int4", "int8", "fp8", "bank4"])
def test_random_codes_are_spread_like_the_weights_they_stand_for(held_as):
    model = decode_step.build_model(2, smoke=True, device=torch.device("cpu"))
    with random_quantised(model, held_as) as quantised, torch.no_grad():
        for block in expert_blocks(model).values():
            weights = quantised_experts(block).weights
            for matrices, own in ((weights.fc1, block.gate_up_proj), (weights.fc2, block.down_proj)):
                values = dequantize(matrices, weights.bits_E)
                assert values.shape == own.shape
                assert float(values.std()) == pytest.approx(float(own.std()), rel=0.15)
        assert model(torch.ones(2, 3, dtype=torch.long)).logits.isfinite().all()
        assert quantised.num_bytes > 0


@pytest.mark.parametrize("k0", [1, 4, 4.66, 5.0, 7])
def test_first_choices_that_are_no_whole_number_are_spread_over_layers(k0):
    counts = arms.union_of_first(NAMED_SHAPES["qwen3-30b-a3b"], k0).protected_k0
    assert counts.dtype.kind == "i"
    assert abs(counts.mean() - k0) < 1 / 48
    assert set(counts) <= {int(k0), int(np.ceil(k0))}
    assert all(abs(counts[:n].sum() - n * k0) <= 1 for n in range(49))
