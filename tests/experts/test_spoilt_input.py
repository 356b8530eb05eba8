"""Bad input to experts, quantisers and banks: one clear error, or a right result, never silent garbage."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from thermoe.errors import ConfigError, DataError, UnsupportedModelError
from thermoe.experts import (
    ExpertBank,
    Fp8Expert,
    Moments,
    QuantizedExpert,
    SimpleExpert,
    compressed,
    dense_experts,
    experts_of,
    load_bank,
    make_experts,
    quantize,
    save_bank,
)
from thermoe.experts.three_bits import pack_three_bits, unpack_three_bits
from thermoe.kernels.expert_mlp import dequantize

EYE = torch.eye(64).repeat(2, 1, 1)
NAMED = "thermoe.expert_bank"


def _drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _refused(said, operation, *arguments, error=ConfigError, **options):
    with pytest.raises(error, match=said):
        operation(*arguments, **options)


@pytest.mark.parametrize("bits", [2, 4, 8, (2, 4, 8)])
@pytest.mark.parametrize("signs", [[1.0], [1.0, -1.0], [3.0, -1.0, 0.25, -2.0]])
def test_inputs_that_all_point_one_way_leave_finite_weights(bits, signs):
    direction = torch.tensor(signs).repeat(64 // len(signs))
    moment = torch.outer(direction, direction).repeat(2, 1, 1)
    weight = _drawn(2, 32, 64)
    got = quantize(weight, bits, group_size=32, moment_ECC=moment).weights()
    assert got.isfinite().all()
    assert (got - weight).norm() < 0.5 * weight.norm()


def test_moments_of_any_size_mean_the_same():
    weight, moment = _drawn(2, 8, 64), EYE.clone()
    moment[:, 0, 1] = moment[:, 1, 0] = 0.5
    want = quantize(weight, 4, group_size=32, moment_ECC=moment).weights()
    for factor, dtype in ((1e38, torch.float32), (1e300, torch.float64), (1e-25, torch.float32)):
        got = quantize(weight, 4, group_size=32, moment_ECC=moment.to(dtype) * factor).weights()
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3)


def test_moments_that_are_none():
    weight, crossed = _drawn(2, 8, 64), EYE.clone()
    crossed[:, 0, 1] = crossed[:, 1, 0] = 5.0
    _refused("direction with a negative square", quantize, weight, 4, moment_ECC=crossed)
    _refused("negative square", quantize, weight, 4, moment_ECC=-EYE)
    _refused("complex", quantize, weight, 4, moment_ECC=EYE.to(torch.complex64))


def test_weights_and_settings_that_no_format_holds():
    weight = _drawn(2, 8, 64)
    for bits, size in ((8, 1e-5), (4, 1e-6), (2, 1e-7), ((2, 4, 8), 1e-5)):
        _refused("reach only", quantize, weight * size, bits)
    assert not quantize(torch.zeros(1, 2, 32), 4).weights().any()
    _refused("16 bits or more", quantize, weight.to(torch.float8_e4m3fn), 4)
    for size in (32.0, "32", None):
        _refused("groups of", quantize, weight, 4, group_size=size)
    for cost in (-1.0, float("nan"), float("inf")):
        _refused("costs of errors", quantize, weight, (2, 4), nested_weight={2: cost})
    _refused("costs of errors", quantize, weight, (2, 4), nested_weight={2: 0.0, 4: 0.0})


def test_planes_and_bits_that_do_not_belong_together():
    codes = torch.zeros(2, 3, 40, dtype=torch.uint8)
    high, low = pack_three_bits(codes)
    _refused("1-bit plane", unpack_three_bits, high, low[:, :1], 40)
    _refused("1-bit plane", unpack_three_bits, high, low.int(), 40)
    nested = quantize(_drawn(2, 8, 64), (2, 4, 8)).matrices()
    _refused("bits of shape", dequantize, nested, torch.tensor([2, 4, 8]))
    _refused("bits of shape", dequantize, nested, torch.tensor([2, 4], device="meta"))


def test_formats_are_known_by_their_names_and_others_refused():
    expert = SimpleExpert(32, 64)
    assert compressed(expert, "dense") is expert
    assert compressed(expert, "int2").bits == 2
    assert compressed(expert, "fp8_blocks").blocks
    _refused("expert format float4", compressed, expert, "float4")
    _refused("expert format float4", make_experts, 32, 64, ["int4", "float4"])


@pytest.mark.parametrize("kind", [SimpleExpert, QuantizedExpert, Fp8Expert])
def test_experts_of_no_kind_or_size_and_rows_that_do_not_fit(kind):
    _refused("of kind tanh", kind, 32, 64, kind="tanh")
    for size in (0, -1, 2.5, "32"):
        _refused("1 or more", kind, size, 64)
    expert = kind(32, 64)
    assert expert(torch.ones(0, 32)).shape == (0, 32)
    for rows in (torch.ones(2, 31), torch.ones(2, 32).int(), torch.tensor(1.0)):
        _refused(r"needs \(rows, 32\)", expert, rows)
    if kind is not SimpleExpert:
        for source in (SimpleExpert(16, 64), SimpleExpert(32, 64, kind="relu")):
            _refused("source of kind", kind, 32, 64, source=source)


def test_dense_layers_whose_parts_differ():
    fc1, fc2 = _drawn(2, 128, 32), _drawn(2, 32, 64)
    assert dense_experts(fc1, fc2, activation="swiglu").activation.gated
    _refused("activation tanh", dense_experts, fc1, fc2, activation="tanh")
    _refused("one floating-point dtype", dense_experts, fc1, fc2.half())
    _refused("one floating-point dtype", dense_experts, fc1.int(), fc2.int())
    _refused("expert weights of shapes", dense_experts, fc1, torch.tensor(1.0))
    _refused("bias of shape", dense_experts, fc1, fc2, bias1_EN=torch.zeros(2, 3))
    _refused("bias of shape", dense_experts, fc1, fc2, bias2_ED=torch.zeros(1, 32))
    for other in (SimpleExpert(16, 64), SimpleExpert(32, 64, dtype=torch.float16)):
        experts = torch.nn.ModuleList([SimpleExpert(32, 64), other])
        _refused("shapes and dtypes", experts_of, experts, error=UnsupportedModelError)


def test_moments_of_other_tokens():
    moments = Moments(dense_experts(_drawn(2, 128, 32), _drawn(2, 32, 64)))
    ids_TK, weights_TK = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    _refused("tokens", moments.add, torch.ones(3, 31), ids_TK, weights_TK)
    _refused("tokens", moments.add, torch.ones(3, 32), ids_TK[:2], weights_TK[:2])
    _refused("tokens", moments.add, torch.ones(3, 32), ids_TK, weights_TK[:2])
    assert not moments.rows_E.any()


@pytest.fixture(scope="module")
def bank():
    return ExpertBank.from_weights(dense_experts(_drawn(2, 128, 32), _drawn(2, 32, 64)), group_size=32, keep_bf16=[1])


def test_banks_of_unequal_parts(bank):
    fc1, fc2 = bank.matrices("fc1"), bank.matrices("fc2")
    _refused("one size", ExpertBank, fc1, quantize(_drawn(2, 32, 64), (2, 4, 8), group_size=64).matrices())
    _refused("matrices of shapes", ExpertBank, fc1, quantize(_drawn(3, 32, 64), (2, 4, 8), group_size=32).matrices())
    _refused("scales of the first", ExpertBank, replace(fc1, scale_PEGN=fc1.scale_PEGN[:2]), fc2)
    _refused("bias of the first", ExpertBank, fc1, fc2, bias1_EN=torch.zeros(2, 3))


def test_precisions_scales_and_names_that_a_bank_does_not_have(bank):
    for bits in ([4.5, 4], None, ["a", "b"], "48", 4.5, [[4], [4]], True):
        _refused("give 2, 4, 8 or 16", bank.set_bits, bits)
    scale_PENG = bank.quantized("fc1").scale_PENG
    for bits in (3, -1, 0):
        _refused(f"{bits} bits", bank.dense, "fc1", bits)
    for name in ("fc3", "bias1"):
        for operation in (bank.matrices, bank.dense, bank.quantized):
            _refused(f"matrix {name} of a bank", operation, name)
        _refused(f"matrix {name} of a bank", bank.set_scales, name, scale_PENG)
    for factor in (float("nan"), float("inf")):
        _refused("finite", bank.set_scales, "fc1", scale_PENG * factor)
    _refused("finite", bank.set_scales, "fc1", torch.full(scale_PENG.shape, 1e6))
    experts = dense_experts(_drawn(2, 128, 32), _drawn(2, 32, 64))
    _refused("experts to keep", ExpertBank.from_weights, experts, keep_bf16=[0.5])


def _changed(tensors, described):
    """Files that are whole, and do not hold together."""
    for name in tensors:
        yield {n: t for n, t in tensors.items() if n != name}, described
    scale, kept, slots = tensors["fc1_scale"], tensors["kept_fc1"], tensors["kept_slot_E"]
    for name, other in (
        ("fc1_scale", scale[:1].contiguous()),
        ("fc1_scale", scale.float()),
        ("fc1_scale", scale * float("nan")),
        ("fc1_plane0", tensors["fc1_plane0"].view(torch.int8)),
        ("bits_E", torch.full((5,), 4, dtype=torch.int32)),
        ("bits_E", torch.tensor(4, dtype=torch.int32)),
        ("bits_E", torch.full((2,), 3, dtype=torch.int32)),
        ("bits_E", torch.full((2,), 16, dtype=torch.int32)),
        ("kept_slot_E", torch.full_like(slots, 99)),
        ("kept_slot_E", slots[:1].contiguous()),
        ("kept_fc1", kept[:, :3].contiguous()),
        ("kept_fc1", kept.float()),
        ("bias1", torch.zeros(3)),
    ):
        yield {**tensors, name: other}, described
    for name, other in (
        ("columns", [1]),
        ("columns", {"fc1": 32}),
        ("columns", {"fc1": 31, "fc2": 64}),
        ("columns", {"fc1": 32, "fc2": "64"}),
        ("group_size", "32"),
        ("group_size", 0),
        ("group_size", 64),
        ("activation", "tanh"),
        ("version", 1),
    ):
        yield tensors, described | {name: other}


def test_files_that_do_not_hold_together(bank, tmp_path):
    good, spoilt = tmp_path / "good", tmp_path / "spoilt"
    save_bank(bank, good)
    with safe_open(str(good), framework="pt") as file:
        described = json.loads(file.metadata()[NAMED])
    tensors = load_file(good)
    assert load_bank(good).kept == [1]
    count = 0
    for changed, said in _changed(tensors, described):
        save_file(changed, str(spoilt), metadata={NAMED: json.dumps(said)})
        _refused("expert bank", load_bank, spoilt, error=DataError)
        count += 1
    assert count == len(tensors) + 22
    for text in ("{", "[]", "3", "null"):
        save_file(tensors, str(spoilt), metadata={NAMED: text})
        _refused("no expert bank", load_bank, spoilt, error=DataError)
    for path in (tmp_path, tmp_path / "none" / "file"):
        _refused("cannot be written", save_bank, bank, path, error=DataError)
