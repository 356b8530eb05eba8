import subprocess
import sys

import pytest
import torch
from tiny_models import NAMES, tiny_model, token_ids

from thermoe.integrations.experts import EXPERTS_IMPLEMENTATION, register_experts


@pytest.mark.parametrize("name", NAMES)
def test_the_name_computes_what_grouped_mm_computes(name: str) -> None:
    model, ids = tiny_model(name), token_ids(3, 5)
    before = model.config._experts_implementation
    try:
        with torch.no_grad():
            model.set_experts_implementation("grouped_mm")
            grouped = model(ids).logits
            model.set_experts_implementation(register_experts())
            assert model.config._experts_implementation == "thermoe"
            assert torch.equal(model(ids).logits, grouped)
    finally:
        model.set_experts_implementation(before)


def test_generate_leaves_the_name_alone_in_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral")
    before, seen = model.config._experts_implementation, []
    # The swap is made for every device that is no CPU; what it looks at is the device's type.
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("meta")))
    try:
        for name in ("grouped_mm", register_experts()):
            model.set_experts_implementation(name)
            with model._optimize_model_for_decode():
                seen.append(model.config._experts_implementation)
    finally:
        model.set_experts_implementation(before)
    assert seen == ["batched_mm", EXPERTS_IMPLEMENTATION]


def test_importing_thermoe_registers_nothing() -> None:
    code = (
        "import sys, thermoe, thermoe.integrations.experts; assert 'transformers' not in sys.modules;"
        "from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as known; assert 'thermoe' not in known;"
        "thermoe.integrations.experts.register_experts(); thermoe.integrations.experts.register_experts();"
        "assert 'thermoe' in known"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
