"""Random expert weights in the forms that kernels read, made on the device in their final form.

Shapes: E experts, N rows, C columns of a matrix.
Values are normal, never zeros: power depends on them. Codes of b bits are normal values rounded, so that their bits
are as unevenly spread as those of real weights; nothing is searched or fitted, and large layers repeat their first
experts at other addresses, so a layer takes milliseconds.
"""

from dataclasses import replace

import torch
from torch import Tensor

from thermoe.kernels.expert_mlp import DenseMatrices, Fp8Matrices, Matrices, PlaneMatrices
from thermoe.kernels.expert_mlp.planes import dequantize, pack
from thermoe.profiling.draw import Draw

STEP_IN_SIGMA = {2: 1.0, 4: 0.335, 8: 0.0234}  # quantisation steps that suit a normal distribution
FP8_SIGMA = 64.0  # e4m3 codes reach 448
NESTED = (2, 4, 8)
PIECE = 1 << 27  # weights that are drawn: float32 values and their codes fit beside the rest


def dense_matrices(device: torch.device, dtype: torch.dtype, seed: int, shape: tuple[int, int, int]) -> DenseMatrices:
    """Matrices (E, N, C) whose products with unit inputs have unit outputs."""
    return DenseMatrices(weight_ENC=Draw(device, dtype, seed).weights(*shape))


def fp8_matrices(device: torch.device, seed: int, shape: tuple[int, int, int], block: int | None = None) -> Fp8Matrices:
    """Codes in e4m3 with a scale per row, or per block of that many rows and columns."""
    experts, rows, columns = shape
    draw = Draw(device, torch.bfloat16, seed)
    counts = _pieces(shape)
    first = draw.normal(counts[0], rows, columns).mul_(FP8_SIGMA).clamp_(-448, 448).to(torch.float8_e4m3fn)
    pieces = [first[:count] for count in counts]
    places = (experts, rows) if block is None else (experts, -(-rows // block), -(-columns // block))
    return Fp8Matrices(code_ENC=_joined(pieces), scale=_uneven(device, seed, places) * columns**-0.5 / FP8_SIGMA)


def plane_matrices(
    device: torch.device, seed: int, shape: tuple[int, int, int], bits: int, group_size: int, *, nested: bool
) -> PlaneMatrices:
    """Bit planes with a scale per row and group of columns; nested: codes of 8 bits that are read at 2, 4 or 8."""
    experts, rows, columns = shape
    draw, step = Draw(device, torch.float32, seed), STEP_IN_SIGMA[bits]
    counts = _pieces(shape)
    values = draw.normal(counts[0], rows, columns)
    codes = values.div_(step).add_((2**bits - 1) / 2).round_().clamp_(0, 2**bits - 1).to(torch.uint8)
    first = pack(codes, bits)
    pieces = [[plane[:count] for plane in first] for count in counts]
    scale_EGN = _uneven(device, seed, (experts, -(-columns // group_size), rows)) * columns**-0.5 * step
    precisions = NESTED if nested else (bits,)
    return PlaneMatrices(
        planes=tuple(_joined(list(plane)) for plane in zip(*pieces, strict=True)),
        scale_PEGN=torch.stack([scale_EGN * 2 ** (bits - b) for b in precisions]).half(),
        zero_PEGN=None,
        columns=columns,
        group_size=group_size,
    )


def some_experts(matrices: Matrices, first: int, count: int) -> Matrices:
    """A view of neighbouring experts."""
    pick = slice(first, first + count)
    if isinstance(matrices, DenseMatrices):
        return DenseMatrices(weight_ENC=matrices.weight_ENC[pick])
    if isinstance(matrices, Fp8Matrices):
        return Fp8Matrices(code_ENC=matrices.code_ENC[pick], scale=matrices.scale[pick])
    return replace(
        matrices, planes=tuple(plane[pick] for plane in matrices.planes), scale_PEGN=matrices.scale_PEGN[:, pick]
    )


def one_expert(matrices: Matrices, expert: int, bits_E: Tensor | None) -> Tensor:
    """(N, C) float64: the weights that one expert's codes and scales stand for."""
    bits = None if bits_E is None else bits_E[expert : expert + 1]
    return dequantize(some_experts(matrices, expert, 1), bits, dtype=torch.float64)[0]


def _pieces(shape: tuple[int, int, int]) -> list[int]:
    """Experts of each piece."""
    experts, rows, columns = shape
    most = max(1, PIECE // (rows * columns))
    return [min(most, experts - start) for start in range(0, experts, most)]


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _uneven(device: torch.device, seed: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed + 1)
    return torch.rand(shape, device=device, generator=generator) * 0.5 + 0.75
