"""Bit planes against arithmetic on single bytes in numpy, column by column as `weights.py` words it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.kernels.expert_mlp.planes import dequantize, pack, unpack
from thermoe.kernels.expert_mlp.weights import DenseMatrices, Fp8Matrices, PlaneMatrices

SIZES = [1, 127, 128, 129, 320, 2880]


def code_in_planes(planes: list[np.ndarray], row: tuple[int, int], column: int) -> int:
    """The code of one column, read byte by byte; `row` is an expert and a row."""
    expert, at = row
    chunk, rest = divmod(column, 128)
    slot, j = divmod(rest, 32)
    code = (int(planes[0][expert, chunk, at, j]) >> (2 * slot)) % 4
    if len(planes) > 1:
        code = 4 * code + (int(planes[1][expert, chunk, at, j]) >> (2 * slot)) % 4
    if len(planes) > 2:
        byte = int(planes[2][expert, 2 * chunk + slot // 2, at, j])
        code = 16 * code + (byte >> 4 if slot % 2 else byte % 16)
    return code


def random_codes(columns: int, bits: int, experts: int = 2, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(columns * 10 + bits)
    return torch.randint(2**bits, (experts, rows, columns), generator=generator, dtype=torch.uint8)


def plane_matrices(codes: torch.Tensor, bits: int, group: int, *, nested: bool, zeros: bool = False) -> PlaneMatrices:
    planes = pack(codes, bits)
    precisions = len(planes) if nested else 1
    generator = torch.Generator().manual_seed(1)
    shape = (precisions, codes.shape[0], -(-codes.shape[2] // group), codes.shape[1])
    scale = (torch.rand(shape, generator=generator) + 0.1).half()
    zero = (torch.rand(shape, generator=generator) * 2**bits).half() if zeros else None
    return PlaneMatrices(planes=planes, scale_PEGN=scale, zero_PEGN=zero, columns=codes.shape[2], group_size=group)


@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_lie_where_the_layout_says_and_come_back(columns, bits):
    codes = random_codes(columns, bits)
    planes = pack(codes, bits)
    chunks = -(-columns // 128)
    assert [p.shape for p in planes] == [(2, q, 3, 32) for q in (chunks, chunks, 2 * chunks)][: len(planes)]
    assert all(p.is_contiguous() and p.dtype == torch.uint8 for p in planes)
    arrays = [p.numpy() for p in planes]
    for column in {0, columns // 2, columns - 1, *range(0, columns, 37)}:
        assert code_in_planes(arrays, (1, 2), column) == codes[1, 2, column]
    assert torch.equal(unpack(planes, columns), codes)


@pytest.mark.parametrize("columns", [1, 129])
def test_the_first_planes_of_eight_bits_are_the_planes_of_their_top_bits(columns):
    codes = random_codes(columns, 8)
    planes = pack(codes, 8)
    assert torch.equal(unpack(planes[:1], columns), codes >> 6)
    assert torch.equal(unpack(planes[:2], columns), codes >> 4)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("columns", "group"), [(1, 32), (129, 64), (320, 128), (300, 256)])
def test_a_nested_bank_is_read_at_each_experts_own_precision(columns, group, zeros):
    codes = random_codes(columns, 8, experts=4)
    matrices = plane_matrices(codes, 8, group, nested=True, zeros=zeros)
    bits = [4, 8, 2, 4]
    got = dequantize(matrices, torch.tensor(bits, dtype=torch.int32)).double().numpy()
    for expert, b in enumerate(bits):
        p = (2, 4, 8).index(b)
        for column in {0, columns // 2, columns - 1}:
            code = int(codes[expert, 1, column]) // 2 ** (8 - b)
            scale = float(matrices.scale_PEGN[p, expert, column // group, 1])
            zero = (2**b - 1) / 2
            if matrices.zero_PEGN is not None:
                zero = float(matrices.zero_PEGN[p, expert, column // group, 1])
            assert got[expert, 1, column] == pytest.approx((code - zero) * scale, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_plain_format_is_read_with_all_its_planes(bits):
    codes = random_codes(130, bits)
    matrices = plane_matrices(codes, bits, 32, nested=False)
    assert matrices.max_bits == bits
    got = dequantize(matrices, torch.full((2,), 2, dtype=torch.int32))
    scale = matrices.scale_PEGN[0].transpose(1, 2).double().numpy()
    want = (codes.double().numpy() - (2**bits - 1) / 2) * np.repeat(scale, 32, axis=-1)[..., :130]
    np.testing.assert_array_equal(got.double().numpy(), want)


def test_two_planes_may_be_a_bank_of_two_precisions():
    matrices = plane_matrices(random_codes(64, 4), 4, 32, nested=True)
    both = dequantize(matrices, torch.tensor([2, 8], dtype=torch.int32))
    assert torch.equal(both[1], dequantize(matrices)[1])
    assert not torch.equal(both[0], dequantize(matrices)[0])


def test_fp8_scales_by_row_or_by_block():
    codes = torch.randn(2, 130, 129).to(torch.float8_e4m3fn)
    by_row = torch.rand(2, 130) + 0.5
    got = dequantize(Fp8Matrices(code_ENC=codes, scale=by_row))
    assert torch.equal(got, codes.float() * by_row[:, :, None])
    by_block = torch.rand(2, 2, 2) + 0.5
    got = dequantize(Fp8Matrices(code_ENC=codes, scale=by_block))
    for row, column in [(0, 0), (127, 128), (128, 127), (129, 128)]:
        assert got[1, row, column] == codes[1, row, column].float() * by_block[1, row // 128, column // 128]


def test_dense_weights_are_themselves_in_the_dtype_asked_for():
    weight = torch.randn(1, 2, 3).bfloat16()
    got = dequantize(DenseMatrices(weight_ENC=weight), dtype=torch.float64)
    assert got.dtype == torch.float64
    assert torch.equal(got, weight.double())


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (torch.zeros(1, 1, 4, dtype=torch.uint8), 3, "choose 2, 4 or 8"),
        (torch.zeros(1, 1, 4, dtype=torch.int32), 4, "int32"),
        (torch.zeros(1, 4, dtype=torch.uint8), 4, r"\(1, 4\)"),
        (torch.full((1, 1, 4), 16, dtype=torch.uint8), 4, "code 16 does not fit into 4 bits"),
    ],
)
def test_codes_that_cannot_be_packed_are_refused(codes, bits, message):
    with pytest.raises(ConfigError, match=message):
        pack(codes, bits)


@pytest.mark.parametrize("name", ["scale_PEGN", "zero_PEGN"])
@pytest.mark.parametrize(("columns", "rows"), [(128, 3), (32, 3), (320, 4)])
def test_values_that_lie_by_rows_are_refused(name, columns, rows):
    matrices = plane_matrices(random_codes(columns, 8, rows=rows), 8, 128, nested=True, zeros=True)
    by_rows = replace(matrices, **{name: getattr(matrices, name).transpose(2, 3).contiguous()})

    with pytest.raises(ConfigError, match=r"of the groups .* needed \(3, 2,"):
        dequantize(by_rows)


def test_planes_of_other_columns_are_refused():
    planes = pack(random_codes(128, 8), 8)
    with pytest.raises(ConfigError, match="for 129 columns"):
        unpack(planes, 129)
    with pytest.raises(ConfigError, match="for 128 columns"):
        unpack((planes[0], planes[2]), 128)
    with pytest.raises(ConfigError, match="0 bit planes"):
        unpack((), 128)
