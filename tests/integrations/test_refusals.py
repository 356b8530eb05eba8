"""Models that cannot be attached to are refused in one clear line, before or at the first forward that shows it."""

import copy
import pickle
import types

import pytest
import torch
from tiny_models import NAMES, routers, tiny_model, token_ids
from transformers import (
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mxfp4Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import thermoe
from thermoe.errors import UnsupportedModelError
from thermoe.integrations.families import FAMILIES
from thermoe.integrations.hooks import RouterHooks, router_fields

SMALL = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def assert_refused(model, *words: str) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        RouterHooks(model)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return message


@pytest.fixture
def mixtral():
    return copy.deepcopy(tiny_model("mixtral"))


def test_a_model_without_experts() -> None:
    message = assert_refused(LlamaForCausalLM(LlamaConfig(**SMALL)), "llama", "no experts")
    assert all(family in message for family in FAMILIES)


def test_something_that_is_no_transformers_model() -> None:
    assert_refused(torch.nn.Linear(2, 2), "Linear", "no experts")


def test_an_unsupported_family_names_the_supported_ones() -> None:
    attention_only = {"attn_layer_offset": 0, "attn_layer_period": 1, "use_mamba_kernels": False}
    config = JambaConfig(**SMALL, **attention_only, num_experts=4, expert_layer_offset=0, expert_layer_period=1)
    message = assert_refused(JambaForCausalLM(config), "jamba", "not supported")
    assert all(family in message for family in FAMILIES)


@pytest.mark.parametrize("config", [{"quant_method": "awq"}, Mxfp4Config()], ids=["dict", "mxfp4"])
def test_quantised_models(config) -> None:
    model = copy.deepcopy(tiny_model("gpt_oss"))
    model.config.quantization_config = config
    assert_refused(model, "quantised", "awq" if isinstance(config, dict) else "mxfp4", "dequantize=True")


def test_replaced_kernels(mixtral) -> None:
    mixtral._use_kernels = True
    assert_refused(mixtral, "use_kernels")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("_device_mesh", object()), ("_tp_size", 2), ("_is_expert_parallel", True), ("_is_hooked", True)],
)
def test_parallel_models(mixtral, flag: str, value) -> None:
    target = mixtral if flag in ("_device_mesh", "_tp_size") else mixtral.model.layers[0].mlp.experts
    setattr(target, flag, value)
    assert_refused(mixtral, "parallelism", "one device")


def test_several_devices_and_no_weights(mixtral) -> None:
    mixtral.model.layers[1].to("meta")
    assert_refused(mixtral, "cpu, meta", "one device")
    assert_refused(mixtral.to("meta"), "no weights")


def test_every_expert_for_every_token() -> None:
    config = Qwen3MoeConfig(**SMALL, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=4)
    assert_refused(Qwen3MoeForCausalLM(config), "all 4 experts")


def test_a_supported_family_without_an_moe_layer() -> None:
    config = Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0])
    assert_refused(Qwen3MoeForCausalLM(config), "Qwen3MoeTopKRouter")


def test_layers_that_differ(mixtral) -> None:
    routers(mixtral)[1].top_k = 3
    assert_refused(mixtral, "differ", "[2, 3]")


def test_a_second_attach_even_through_another_face_of_the_model(mixtral) -> None:
    first = RouterHooks(mixtral)
    for model in (mixtral, mixtral.model):
        with pytest.raises(UnsupportedModelError, match="attached already"):
            RouterHooks(model)
    first.remove()
    second = RouterHooks(mixtral.model)
    second.remove()


@pytest.mark.parametrize("name", NAMES)
def test_bypassed_routers_are_noticed_in_the_next_forward_and_the_model_is_left_clean(name: str) -> None:
    model, ids = copy.deepcopy(tiny_model(name)), token_ids(2, 3)
    hooks = RouterHooks(model)
    with torch.no_grad():
        model(ids)
        router = routers(model)[1]
        block = next(m for m in model.modules() if router in m.children())
        block.forward = types.MethodType(lambda self, x: (x, x) if type(self).__name__ == "GptOssMLP" else x, block)
        with pytest.raises(UnsupportedModelError, match="1 of 2 routers ran") as caught:
            model(ids)
        assert "\n" not in str(caught.value)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        model(ids)
    hooks.remove()


def test_an_interrupted_forward_is_not_taken_for_a_bypass(mixtral) -> None:
    hooks = RouterHooks(mixtral)
    handle = mixtral.model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        mixtral(token_ids(2, 3))
    handle.remove()
    hooks.counters.drain()
    mixtral(token_ids(2, 3))
    assert hooks.counters.drain().num_tokens == 6


def test_a_model_moved_while_attached(mixtral) -> None:
    RouterHooks(mixtral)
    with pytest.raises(UnsupportedModelError, match="from cpu to meta"):
        mixtral.to("meta")(token_ids(2, 3).to("meta"))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("part", ["", "model", "model.layers.0.mlp.gate"])
def test_a_copy_of_an_attached_model(mixtral, copied, part: str) -> None:
    target = mixtral.get_submodule(part)
    with thermoe.attach(mixtral, telemetry="simulated") as handle:
        handle.set_strategy("baseline")
        with pytest.raises(UnsupportedModelError, match="detach first") as caught:
            copied(target)
        assert "\n" not in str(caught.value)
        assert mixtral(token_ids(2, 3)).logits.isfinite().all()
    assert copied(target)


LOGITS, WEIGHTS, IDS = torch.zeros(5, 8), torch.zeros(5, 2), torch.zeros(5, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("output", "expected"),
    [((LOGITS, WEIGHTS, IDS), (0, 1, 2)), ((IDS, WEIGHTS, LOGITS), (2, 1, 0)), ([WEIGHTS, IDS, LOGITS], (2, 0, 1))],
)
def test_router_fields_are_found_by_structure(output, expected) -> None:
    assert router_fields(output, 8) == expected


@pytest.mark.parametrize(
    "output", [LOGITS, (LOGITS,), (WEIGHTS, IDS), (LOGITS, WEIGHTS, None), (LOGITS[:, :7], WEIGHTS, IDS)]
)
def test_unknown_router_outputs_are_refused(output) -> None:
    with pytest.raises(UnsupportedModelError, match="needed logits"):
        router_fields(output, 8)
