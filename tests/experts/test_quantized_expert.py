"""Compressed experts against float64 arithmetic on weights read bit by bit."""

import numpy as np
import pytest
import torch
from expert_inputs import heavy_weights

from thermoe.errors import ConfigError
from thermoe.experts import (
    ExpertFormat,
    ExpertKind,
    Fp8Expert,
    QuantizedExpert,
    SimpleExpert,
    compressed,
    make_experts,
)
from thermoe.experts.three_bits import pack_three_bits, unpack_three_bits


def expert_of(d_model, inter_size, kind=ExpertKind.SWIGLU):
    expert = SimpleExpert(d_model, inter_size, kind=kind)
    expert.reset_parameters(torch.Generator().manual_seed(3))
    return expert


def in_float64(x, fc1, fc2, kind):
    hidden = x.double().numpy() @ fc1.double().numpy().T
    if kind is ExpertKind.RELU:
        hidden = np.maximum(hidden, 0)
    else:
        gate, up = np.split(hidden, 2, axis=1)
        hidden = gate / (1 + np.exp(-gate)) * up
    return hidden @ fc2.double().numpy().T


@pytest.mark.parametrize("columns", [1, 127, 129, 2880])
def test_three_bits_lie_in_a_two_bit_and_a_one_bit_plane(columns):
    codes = torch.randint(8, (2, 3, columns), generator=torch.Generator().manual_seed(columns), dtype=torch.uint8)
    high, low = pack_three_bits(codes)
    chunks = -(-columns // 128)
    assert high.shape == (2, chunks, 3, 32)
    assert low.shape == (2, 3, 16 * chunks)
    for column in {0, columns // 2, columns - 1}:
        chunk, rest = divmod(column, 128)
        two = (int(high[1, chunk, 2, rest % 32]) >> (2 * (rest // 32))) % 4
        one = (int(low[1, 2, 16 * chunk + rest % 16]) >> (rest // 16)) % 2
        assert 2 * two + one == codes[1, 2, column]
    assert torch.equal(unpack_three_bits(high, low, columns), codes)


@pytest.mark.parametrize("kind", list(ExpertKind))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("d_model", "inter_size"), [(1, 1), (129, 70)])
def test_forward_is_the_formula_on_the_dequantised_weights(kind, bits, d_model, inter_size):
    expert = expert_of(d_model, inter_size, kind)
    quantized = QuantizedExpert.from_expert(expert, bits=bits, group_size=32)
    x = torch.randn(5, d_model, generator=torch.Generator().manual_seed(1))
    fc1, fc2 = quantized._dequantize_and_unpack()
    np.testing.assert_allclose(quantized(x).numpy(), in_float64(x, fc1, fc2, kind), rtol=2e-4, atol=1e-4)
    allowed = {2: 0.5, 3: 0.25, 4: 0.12, 8: 0.01}[bits]  # relative error of the weights
    for held, weight in ((fc1, expert.fc1.detach()), (fc2, expert.fc2.detach())):
        assert float((held - weight).norm() / weight.norm()) < allowed
    assert float(fc1.detach().abs().max()) > 0.05


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_fused_path_computes_what_the_visible_one_does(bits):
    quantized = QuantizedExpert.from_expert(expert_of(130, 60), bits=bits, group_size=64)
    x = torch.randn(3, 130, generator=torch.Generator().manual_seed(1))
    matrices = quantized._matrices()
    assert matrices is not None
    torch.testing.assert_close(quantized._fused(x, *matrices), quantized._unfused(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [False, True])
def test_fp8_expert(blocks):
    expert = expert_of(140, 130)
    held = Fp8Expert.from_expert(expert, blocks=blocks)
    x = torch.randn(4, 140, generator=torch.Generator().manual_seed(1))
    fc1, fc2 = held._dequantize_and_unpack()
    assert float(((fc1 - expert.fc1).norm() / expert.fc1.norm()).detach()) < 0.04
    np.testing.assert_allclose(held(x).numpy(), in_float64(x, fc1, fc2, expert.kind), rtol=2e-4, atol=1e-4)
    codes = 2 * 130 * 140 + 140 * 130
    scales = 4 * (3 * 2 + 2 * 2) if blocks else 4 * (260 + 140)
    assert held.num_bytes == codes + scales


@pytest.mark.parametrize(("bits", "code_bytes"), [(8, 128 + 0), (4, 64), (3, 48), (2, 32)])
def test_bytes_are_codes_and_scales(bits, code_bytes):
    expert = QuantizedExpert(128, 32, bits=bits, group_size=128)
    assert expert.num_bytes == (64 + 128) * (code_bytes + 2)  # 128 rows of fc2 hold 32 columns in a whole chunk
    assert expert.flops_per_row == SimpleExpert(128, 32).flops_per_row


def test_a_seed_means_the_weights_of_the_plain_expert():
    plain, quantized = SimpleExpert(48, 40), QuantizedExpert(48, 40, bits=8, group_size=32)
    plain.reset_parameters(torch.Generator().manual_seed(5))
    quantized.reset_parameters(torch.Generator().manual_seed(5))
    torch.testing.assert_close(quantized._dequantize_and_unpack()[0], plain.fc1.detach(), rtol=0, atol=0.01)


def test_weights_travel_in_the_state_dict():
    first, second = (QuantizedExpert(40, 24, bits=3, group_size=32) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 40)
    assert torch.equal(first(x), second(x))


def test_a_layer_of_several_formats():
    formats = list(ExpertFormat)
    experts = make_experts(64, 32, formats, group_size=32)
    assert [type(e).__name__ for e in experts[:3]] == ["SimpleExpert", "Fp8Expert", "Fp8Expert"]
    assert [e.bits for e in experts[3:]] == [8, 4, 3, 2]
    for expert in experts:
        expert.reset_parameters(torch.Generator().manual_seed(0))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        outputs = [expert(x) for expert in experts]
    errors = [float((y - outputs[0]).norm() / outputs[0].norm()) for y in outputs]
    by_format = dict(zip(formats, errors, strict=True))
    ordered = [by_format[f] for f in ("int8", "int4", "int3", "int2")]
    assert ordered == sorted(ordered)
    assert 0 < by_format["fp8"] < by_format["int2"] < 1.0
    sizes = [e.num_bytes for e in experts]
    assert sizes[0] > sizes[3] > sizes[4] > sizes[5] > sizes[6]


def test_dense_stays_the_expert_itself():
    expert = expert_of(8, 4)
    assert compressed(expert, ExpertFormat.DENSE) is expert


def test_unknown_formats_and_bits_are_refused():
    with pytest.raises(ConfigError, match="int5"):
        make_experts(8, 4, ["int5"])
    with pytest.raises(ConfigError, match="without experts"):
        make_experts(8, 4, [])
    with pytest.raises(ConfigError, match="experts of 5 bits"):
        QuantizedExpert(8, 4, bits=5)
    expert = expert_of(8, 4)
    with torch.no_grad():
        expert.fc1[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="nan"):
        QuantizedExpert.from_expert(expert)


def test_outliers_do_not_drown_their_neighbours():
    weight = heavy_weights(1, 1, 64)[0]
    weight[0, 5] = 2.0  # forty times its neighbours
    expert = SimpleExpert(64, 1, kind=ExpertKind.RELU)
    with torch.no_grad():
        expert.fc1.copy_(weight)
    held = QuantizedExpert.from_expert(expert, bits=4, group_size=32)._dequantize_and_unpack()[0]
    other_group = slice(32, 64)
    error = (held[0, other_group] - weight[0, other_group]).norm() / weight[0, other_group].norm()
    assert float(error) < 0.15
