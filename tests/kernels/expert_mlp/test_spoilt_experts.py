"""Experts and plans whose tensors do not belong together: a kernel would read past an end, or bytes as another type."""

from dataclasses import replace

import pytest
import torch
from mlp_cases import FORMATS, Case, drawn

from thermoe.errors import ConfigError
from thermoe.experts import ExpertBank, quantize
from thermoe.kernels.dispatch import DispatchPlan, dispatch_plan
from thermoe.kernels.expert_mlp import DenseMatrices, ExpertWeights, expert_mlp


def _spoilt_layers():
    _, _, _, experts = drawn(Case(biases=True))
    bias1_EN, bias2_ED = experts.bias1_EN, experts.bias2_ED
    for name, bias in (("first", bias1_EN), ("second", bias2_ED)):
        field = "bias1_EN" if name == "first" else "bias2_ED"
        for other in (bias[:, :1], bias[:1], torch.cat([bias, bias]), bias.bfloat16(), bias.double(), bias.flatten()):
            yield f"bias of the {name} matrix", replace(experts, **{field: other.contiguous()})
    yield "activation 'swiglu'", replace(experts, activation="swiglu")
    yield "first matrix of shape", replace(experts, fc1=DenseMatrices(weight_ENC=torch.zeros(128, 96)))
    yield "second matrix is Tensor", replace(experts, fc2=experts.fc2.weight_ENC)
    mixed = DenseMatrices(weight_ENC=experts.fc2.weight_ENC.bfloat16())
    yield "float32.*bfloat16", replace(experts, fc2=mixed)


def _spoilt_bits():
    _, _, _, experts = drawn(Case(format="bank8"))
    for bits_E in (experts.bits_E.long(), experts.bits_E.float(), experts.bits_E[:2], experts.bits_E.unsqueeze(1)):
        yield "bits of the experts", replace(experts, bits_E=bits_E)
    yield "bits of the experts", replace(experts, bits_E=experts.bits_E[0])


def _spoilt_fp8():
    for held_as in ("fp8-channel", "fp8-block"):
        _, _, _, experts = drawn(Case(format=held_as))
        code, scale = experts.fc1.code_ENC, experts.fc1.scale
        scales = [scale.half(), scale.double(), scale[:1], scale[:, :0], scale[:, 0], torch.cat([scale, scale], dim=1)]
        for other in scales:
            yield "scales of the first matrix", replace(experts, fc1=replace(experts.fc1, scale=other.contiguous()))
        for other in (code.float().to(torch.float8_e5m2), code.view(torch.uint8)):
            yield "codes of the first matrix", replace(experts, fc1=replace(experts.fc1, code_ENC=other))


def _spoilt_planes():
    for held_as in ("int4-zeros", "bank8"):
        _, _, _, experts = drawn(Case(format=held_as))
        scale, planes = experts.fc1.scale_PEGN, experts.fc1.planes
        scales = [scale.float(), scale[..., :1], scale[:, :, :1], scale[:, :1], scale[0], torch.cat([scale] * 2, -1)]
        for other in [*scales, *([scale[:2]] if held_as == "bank8" else [])]:
            yield "scales of the first", replace(experts, fc1=replace(experts.fc1, scale_PEGN=other.contiguous()))
        for size in (0, 16, -32, 100):
            yield f"groups of {size}", replace(experts, fc1=replace(experts.fc1, group_size=size))
        yield "scales of the first", replace(experts, fc1=replace(experts.fc1, group_size=128))
        yield "0 bit planes", replace(experts, fc1=replace(experts.fc1, planes=()))
        short = (*planes[:-1], planes[-1][:, :, :5].contiguous())
        yield "plane of shape", replace(experts, fc1=replace(experts.fc1, planes=short))
        signed = tuple(plane.view(torch.int8) for plane in planes)
        yield "int8", replace(experts, fc1=replace(experts.fc1, planes=signed))
    _, _, _, experts = drawn(Case(format="int4-zeros"))
    for other in (experts.fc1.zero_PEGN.float(), experts.fc1.zero_PEGN[..., :1].contiguous()):
        yield "zeros of the first", replace(experts, fc1=replace(experts.fc1, zero_PEGN=other))


@pytest.mark.parametrize(("said", "experts"), [*_spoilt_layers(), *_spoilt_bits(), *_spoilt_fp8(), *_spoilt_planes()])
def test_refuses_tensors_that_do_not_belong_together(said, experts):
    x_TD, ids_TK, weights_TK, _ = drawn(Case())
    with pytest.raises(ConfigError, match=said):
        expert_mlp(x_TD, ids_TK, weights_TK, experts)


def test_refuses_the_plan_of_another_routing():
    x_TD, ids_TK, weights_TK, experts = drawn(Case())
    good = dispatch_plan(ids_TK, weights_TK, 5)
    assert expert_mlp(x_TD, ids_TK, weights_TK, experts, plan=good).shape == x_TD.shape
    for slot_N, offsets_E1, said in (
        (good.slot_N[:-1], good.offsets_E1, "slots of the plan"),
        (good.slot_N.long(), good.offsets_E1, "slots of the plan"),
        (good.slot_N, good.offsets_E1[:-1], "offsets of the plan"),
        (good.slot_N, good.offsets_E1.long(), "offsets of the plan"),
        (good.slot_N.to("meta"), good.offsets_E1, "one device"),
    ):
        with pytest.raises(ConfigError, match=said):
            expert_mlp(x_TD, ids_TK, weights_TK, experts, plan=DispatchPlan(slot_N=slot_N, offsets_E1=offsets_E1))


@pytest.mark.parametrize("held_as", FORMATS)
def test_takes_what_the_formats_promise(held_as):
    x_TD, ids_TK, weights_TK, experts = drawn(Case(format=held_as, biases=True))
    assert expert_mlp(x_TD, ids_TK, weights_TK, experts).isfinite().all()


def test_what_holds_experts_but_is_none_of_the_kernels_says_what_to_pass():
    x_TD, ids_TK, weights_TK, experts = drawn(Case())
    dense = ExpertWeights(fc1=experts.fc1, fc2=experts.fc2)
    bank = ExpertBank.from_weights(dense, group_size=32)
    planes = quantize(experts.fc1.weight_ENC, 4, group_size=32)
    for given, said in (
        (bank, r"type ExpertBank: needs ExpertWeights, give bank\.weights\(\)"),
        (torch.nn.ModuleList(), r"type ModuleList: needs ExpertWeights, give thermoe\.experts\.experts_of"),
        (planes, "type QuantizedMatrix: needs ExpertWeights, as ExpertWeights"),
        (experts.fc1.weight_ENC, "type Tensor: needs ExpertWeights"),
        (None, "type NoneType: needs ExpertWeights"),
        (replace(dense, fc1=planes), r"first matrix is QuantizedMatrix: .* quantize\(\.\.\.\)\.matrices\(\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            expert_mlp(x_TD, ids_TK, weights_TK, given)
    assert expert_mlp(x_TD, ids_TK, weights_TK, bank.weights()).shape == x_TD.shape
