"""Bad input to the small operations: each is refused in one error of the project's own, or gives a right result."""

import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.kernels.add_norm import add_norm
from thermoe.kernels.combine import combine
from thermoe.kernels.decode_attention import HeadNorms, decode_attention
from thermoe.kernels.dispatch import dispatch_plan
from thermoe.kernels.few_linear import few_linear
from thermoe.kernels.rotary import rotary

INT, FP8 = torch.int32, torch.float8_e4m3fn
IDS_TK, WEIGHTS_TK, Y_ND = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2), torch.ones(6, 8)


def _refused(operation, said, *arguments, **options):
    with pytest.raises(ConfigError, match=said):
        operation(*arguments, **options)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.uint64, torch.float32])
def test_ids_of_another_type(dtype):
    ids_TK = IDS_TK.to(dtype)
    _refused(dispatch_plan, "needed integers", ids_TK, WEIGHTS_TK, 4)
    _refused(combine, "give floats, floats, integers", Y_ND, WEIGHTS_TK, ids_TK, 4)


@pytest.mark.parametrize("number", [0, -1, 2.5, "4", None])
def test_numbers_of_experts_that_are_none(number):
    _refused(dispatch_plan, "needed 1 to", IDS_TK, WEIGHTS_TK, number)
    _refused(combine, "num_experts", Y_ND, WEIGHTS_TK, IDS_TK, number)


def test_more_experts_than_a_plan_can_hold():
    _refused(dispatch_plan, "needed 1 to 32768 experts", IDS_TK, WEIGHTS_TK, 2**62)
    assert dispatch_plan(IDS_TK, WEIGHTS_TK, 1 << 15).offsets_E1[-1] == 6


def test_sums_into_whole_numbers_are_refused_and_no_slots_give_zeros():
    for dtype in (torch.int32, torch.bool):
        _refused(combine, "floating point", Y_ND, WEIGHTS_TK, IDS_TK, 4, torch.empty(3, 8, dtype=dtype))
    out_TD = torch.full((3, 8), float("nan"))
    assert not combine(Y_ND[:0], WEIGHTS_TK[:, :0], IDS_TK[:, :0], 4, out_TD).any()


def test_linear_operands():
    x, w = torch.ones(3, 8), torch.ones(4, 8)
    _refused(few_linear, "int32, torch.int32: needed one floating", x.to(INT), [w.to(INT)])
    _refused(few_linear, "floating-point dtype of 16 bits", x.to(FP8), [w.to(FP8)])
    _refused(few_linear, "float32, torch.float16", x, [w.half()])
    _refused(few_linear, "cpu, meta", x, [w.to("meta")])
    _refused(few_linear, "strides", x, [torch.ones(8, 4).t()])
    _refused(few_linear, "kernel 'fast'", x, [w], kernel="fast")
    assert few_linear(x[:, :0].contiguous(), [w[:, :0].contiguous()]).tolist() == [[0.0] * 4] * 3


def test_norm_operands():
    x, w = torch.ones(3, 8), torch.ones(8)
    _refused(add_norm, "int32", x.to(INT), None, w.to(INT), 1e-6)
    _refused(add_norm, "complex64", x.to(torch.complex64), None, w.to(torch.complex64), 1e-6)
    _refused(add_norm, "float8", x.to(FP8), x.to(FP8), w.to(FP8), 1e-6)
    _refused(add_norm, "meta", x, x.to("meta"), w, 1e-6)
    _refused(add_norm, "meta", x, None, w.to("meta"), 1e-6)
    for eps in (-1.0, float("nan")):
        _refused(add_norm, "eps", x, None, w, eps)
    assert add_norm(x[:0], None, w, 0.0)[1].shape == (0, 8)


def test_rotary_operands():
    q, k, cos = torch.ones(2, 4, 3, 8), torch.ones(2, 2, 3, 8), torch.ones(2, 3, 8)
    _refused(rotary, "int32", q.to(INT), k, cos, cos)
    _refused(rotary, "int32", q, k.to(INT), cos, cos)
    _refused(rotary, "int32", q, k, cos.to(INT), cos)
    _refused(rotary, "meta", q, k.to("meta"), cos, cos)
    _refused(rotary, "meta", q, k, cos.to("meta"), cos.to("meta"))
    assert rotary(q[:0], k[:0], cos[:0], cos[:0])[0].shape == (0, 4, 3, 8)


def _attention(batch=2, groups=2, length=6, width=8, heads=4, **changes):
    keys = torch.ones(batch, groups, length, width)
    given = {
        "qkv_BN": torch.randn(batch, (heads + 2 * groups) * width, generator=torch.Generator().manual_seed(0)),
        "cos_BW": torch.ones(batch, width),
        "sin_BW": torch.zeros(batch, width),
        "keys_BGLW": keys,
        "values_BGLW": keys.clone(),
        "place_1": torch.tensor([3]),
        "mask_BL": torch.zeros(batch, length),
        "num_heads": heads,
        "scale": 0.3,
    }
    return decode_attention(**(given | changes))


@pytest.mark.parametrize("place", [6, -1, 2**40])
def test_places_outside_the_cache(place):
    _refused(_attention, rf"place \[{place}\] in a cache of 6", place_1=torch.tensor([place]))


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("place", {"place_1": torch.tensor([3], dtype=torch.int32)}),
        ("place", {"place_1": torch.tensor(3)}),
        ("place", {"place_1": torch.tensor([3, 4])}),
        ("place", {"place_1": torch.tensor([3], device="meta")}),
        ("positive multiple", {"num_heads": 0}),
        ("positive multiple", {"num_heads": -2}),
        ("positive multiple", {"num_heads": 4.0}),
        ("none of the last three 0", {"groups": 0}),
        ("none of the last three 0", {"length": 0}),
        ("none of the last three 0", {"width": 0}),
        ("bool", {"mask_BL": torch.ones(2, 6, dtype=torch.bool)}),
        ("int64", {"mask_BL": torch.zeros(2, 6, dtype=torch.int64)}),
        ("meta", {"mask_BL": torch.zeros(2, 6, device="meta")}),
        ("int32", {"cos_BW": torch.ones(2, 8, dtype=INT), "sin_BW": torch.ones(2, 8, dtype=INT)}),
        ("meta", {"norms": HeadNorms(torch.ones(8, device="meta"), torch.ones(8), 1e-6)}),
        ("float16, torch.float32", {"qkv_BN": torch.ones(2, 64).half()}),
        ("strides", {"mask_BL": torch.zeros(6, 2).t()}),
        ("counts", {"counts": torch.zeros(1, dtype=INT)}),
        ("counts", {"counts": torch.zeros(4)}),
    ],
)
def test_attention_operands(said, changes):
    _refused(_attention, said, **changes)


def test_attention_of_no_sequence_and_of_a_row_that_sees_nothing():
    assert _attention(batch=0).shape == (0, 32)
    assert torch.equal(
        _attention(mask_BL=torch.full((2, 6), float("-inf"))), _attention(mask_BL=torch.full((2, 6), -1e30))
    )
