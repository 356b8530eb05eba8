"""Quantised copies of a model's experts: the same logits as the model with the dequantised weights written into it."""

import copy

import pytest
import torch
from tiny_models import NAMES, tiny_model, token_ids

from thermoe.errors import ConfigError, UnsupportedModelError
from thermoe.experts import MomentWatch
from thermoe.integrations.experts_held import expert_blocks, quantised_experts
from thermoe.integrations.experts_quantised import EXPERT_FORMATS, quantise_experts
from thermoe.integrations.experts_report import experts_report
from thermoe.kernels.expert_mlp import dequantize


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def with_dequantised_weights(model):
    """The model with the values of its quantised copies as weights, computed by Transformers alone."""
    weights = {name: quantised_experts(block).weights for name, block in expert_blocks(model).items()}
    plain = type(model)(copy.deepcopy(model.config)).eval()
    plain.load_state_dict(model.state_dict())
    plain.set_experts_implementation("eager")
    for name, block in expert_blocks(plain).items():
        held = weights[name]
        fc1, fc2 = dequantize(held.fc1, held.bits_E), dequantize(held.fc2, held.bits_E)
        if not block.is_concatenated:
            fc1 = torch.stack(fc1.chunk(2, dim=1), dim=2).flatten(1, 2)
        if block.is_transposed:
            fc1, fc2 = fc1.transpose(1, 2), fc2.transpose(1, 2)
        block.gate_up_proj.data, block.down_proj.data = fc1.contiguous(), fc2.contiguous()
    return plain


@pytest.mark.parametrize(
    ("name", "held_as"),
    [(name, "int4") for name in NAMES if name != "deepseek_v2_groups"] + [("gpt_oss", f) for f in EXPERT_FORMATS],
)
def test_logits_are_those_of_the_dequantised_weights(name, held_as):
    model, ids = tiny_model(name), token_ids(3, 6)
    own, implementation, state = logits(model, ids), model.config._experts_implementation, set(model.state_dict())
    with quantise_experts(model, held_as, group_size=32) as quantised:
        assert set(model.state_dict()) == state
        got = logits(model, ids)
        wanted = logits(with_dequantised_weights(model), ids)
        report = experts_report(model)
    torch.testing.assert_close(got, wanted, atol=5e-6, rtol=1e-4)
    assert not torch.allclose(got, own, atol=1e-6)
    assert {e.computed_by for e in report} == {"reference, quantised"}
    assert sum(e.extra_bytes for e in report) > 0
    assert quantised.num_bytes == 0  # nothing is held any more
    assert model.config._experts_implementation == implementation
    assert torch.equal(logits(model, ids), own)
    assert not any("_thermoe" in key for block in expert_blocks(model).values() for key in block.__dict__)


def test_progress_is_told_layer_by_layer():
    model, said = tiny_model("qwen3_moe"), []
    quantise_experts(model, "int2", group_size=32, progress=said.append).remove()
    count = len(expert_blocks(model))
    assert said == [f"experts of layer {place} of {count} as int2" for place in range(1, count + 1)]


def test_a_bank_changes_precision_in_place():
    model, ids = tiny_model("qwen3_moe"), token_ids(3, 6)
    own = logits(model, ids)
    with quantise_experts(model, "bank", group_size=32) as quantised:
        assert quantised.bits == 8
        places = [bank.bits_E.data_ptr() for bank in quantised.banks]
        far = []
        for bits in (8, 4, 2):
            quantised.set_bits(bits)
            assert quantised.bits == bits
            got = logits(model, ids)
            torch.testing.assert_close(got, logits(with_dequantised_weights(model), ids), atol=5e-6, rtol=1e-4)
            far.append(float((got - own).norm() / own.norm()))
        assert places == [bank.bits_E.data_ptr() for bank in quantised.banks]
        with pytest.raises(ConfigError, match="bits 3: give 2, 4 or 8 for"):
            quantised.set_bits(3)
    assert far[0] < far[1] < far[2]


def test_moments_of_calibration_text_make_the_outputs_closer():
    model, ids = tiny_model("mixtral"), token_ids(8, 32, seed=3)
    with MomentWatch(expert_blocks(model)) as watch:
        own = logits(model, ids)
    errors = []
    for moments in (None, watch.moments):
        with quantise_experts(model, "int2", group_size=32, moments=moments):
            errors.append(float((logits(model, ids) - own).square().mean()))
    assert errors[1] < errors[0]


def test_gradients_reach_the_router_through_quantised_experts():
    model, ids = tiny_model("qwen3_moe"), token_ids(2, 5)
    router = next(m for m in model.modules() if type(m).__name__ == "Qwen3MoeTopKRouter")
    with quantise_experts(model, "int8", group_size=32):
        (got,) = torch.autograd.grad(model(ids).logits.square().mean(), [router.weight])
        plain = with_dequantised_weights(model)
    other = next(m for m in plain.modules() if type(m).__name__ == "Qwen3MoeTopKRouter")
    (wanted,) = torch.autograd.grad(plain(ids).logits.square().mean(), [other.weight])
    assert wanted.abs().max() > 0
    torch.testing.assert_close(got, wanted, atol=1e-7, rtol=1e-3)


def test_what_cannot_be_done_is_refused_and_leaves_nothing():
    model, ids = tiny_model("olmoe"), token_ids(2, 4)
    own = logits(model, ids)
    with pytest.raises(ConfigError, match=r"int5.*choose from int2"):
        quantise_experts(model, "int5")
    with pytest.raises(ConfigError, match="groups of 48"):
        quantise_experts(model, "int4", group_size=48)
    with pytest.raises(ConfigError, match=r"moments of nowhere"):
        quantise_experts(model, "int4", moments={"nowhere": None})
    with quantise_experts(model, "int4", group_size=32) as quantised:
        with pytest.raises(ConfigError, match="already"):
            quantise_experts(model, "int8")
        with pytest.raises(ConfigError, match="one precision"):
            quantised.set_bits(4)
        with pytest.raises(UnsupportedModelError, match="copied or pickled"):
            copy.deepcopy(model)
    quantised.remove()
    assert torch.equal(logits(model, ids), own)
    with pytest.raises(UnsupportedModelError, match="Linear has no experts"):
        quantise_experts(torch.nn.Linear(2, 2), "int4")


def test_torch_compile_takes_quantised_experts_and_lets_go_of_them():
    model = tiny_model("qwen3_moe")
    block = next(iter(expert_blocks(model).values()))
    x_TD, ids_TK, weights_TK = torch.randn(5, 32), torch.randint(0, 8, (5, 3)), torch.rand(5, 3)
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
            own = compiled(x_TD, ids_TK, weights_TK)
            with quantise_experts(model, "bank", group_size=32) as quantised:
                for bits in (4, 2):
                    quantised.set_bits(bits)
                    got = compiled(x_TD, ids_TK, weights_TK)
                    torch.testing.assert_close(got, block(x_TD, ids_TK, weights_TK))
                    assert not torch.allclose(got, own, atol=1e-6)
            torch.testing.assert_close(compiled(x_TD, ids_TK, weights_TK), own)
    finally:
        torch._dynamo.reset()
