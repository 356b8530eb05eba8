"""The README's example runs as it stands."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def tiny_model():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=3,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=None,
    )
    return Qwen3MoeForCausalLM(config).eval()


@pytest.mark.skipif(find_spec("thermoe.integrations.transformers") is None, reason="attach is not in this revision")
def test_the_example_runs_and_leaves_the_model_as_it_was(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    model = tiny_model()
    ids = torch.randint(1, 61, (3, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 5}
    with torch.no_grad():
        before = model(ids).logits

    exec(compile(example, str(README), "exec"), {"model": model, "inputs": inputs})

    with torch.no_grad():
        after = model(ids).logits
    assert torch.equal(before, after)
    assert "energy_j_per_token" in capsys.readouterr().out
