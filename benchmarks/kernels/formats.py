"""Random expert weights in every format the kernels read, and what an expert of each weighs.

Shapes: E experts, N rows, C columns of a matrix, G scale groups, D model width, I expert width.
Values are normal, never zeros: power depends on them. Codes of b bits are normal values rounded, so that their
bits are as unevenly spread as those of real weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.expert_mlp.planes import dequantize, pack
from thermoe.kernels.expert_mlp.weights import DenseMatrices, ExpertWeights, Fp8Matrices, Matrices, PlaneMatrices
from thermoe.profiling.draw import Draw
from thermoe.types import MoEShape

GROUP = 128  # columns that share a scale
BLOCK = 128  # side of an fp8 block
STEP_IN_SIGMA = {2: 1.0, 4: 0.335, 8: 0.0234}  # quantisation steps that suit a normal distribution
FP8_SIGMA = 64.0  # e4m3 codes reach 448
SCALE_BYTES = {"group": 2, "fp8": 4}

Make = Callable[[torch.device, int, tuple[int, int, int]], Matrices]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How weights lie in memory.

    Attributes:
        name: As on the command line and in the field `dtype` of a row.
        read_bits: Bits of a weight that one read takes.
        held_bits: Bits of a weight in memory; more than `read_bits` in a nested bank.
        max_rel_error: Beyond it a result is wrong; fp8 may round activations to e4m3 too.
        make: Matrices of a shape (E, N, C) from (device, seed, shape).
    """

    name: str
    read_bits: float
    held_bits: float
    max_rel_error: float
    make: Make

    def expert_bytes(self, shape: MoEShape) -> float:
        """Bytes that reading one SwiGLU expert takes, scales included [byte]."""
        return shape.expert_bytes(self.read_bits) + self._scale_bytes(shape)

    def held_bytes(self, shape: MoEShape) -> float:
        """Device memory of all experts of one layer [byte]."""
        return shape.num_experts * (shape.expert_bytes(self.held_bits) + 3.0 * self._scale_bytes(shape))

    def _scale_bytes(self, shape: MoEShape) -> float:
        D, I = shape.hidden_size, shape.inter_size  # noqa: E741
        if self.name == "bf16":
            return 0.0
        if self.name == "fp8":
            return SCALE_BYTES["fp8"] * (2.0 * I + D)
        if self.name == "fp8_block":
            return SCALE_BYTES["fp8"] * float(_ceil(2 * I, BLOCK) * _ceil(D, BLOCK) + _ceil(D, BLOCK) * _ceil(I, BLOCK))
        return SCALE_BYTES["group"] * float(2 * I * _ceil(D, GROUP) + D * _ceil(I, GROUP))


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _dense(device: torch.device, seed: int, shape: tuple[int, int, int]) -> Matrices:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return DenseMatrices(weight_ENC=Draw(device, dtype, seed).weights(*shape))


def _fp8(device: torch.device, seed: int, shape: tuple[int, int, int]) -> Matrices:
    experts, rows, columns = shape
    code_ENC = Draw(device, torch.bfloat16, seed).normal(*shape).mul_(FP8_SIGMA).clamp_(-448, 448)
    scale_EN = _uneven(device, seed, (experts, rows)) * columns**-0.5 / FP8_SIGMA
    return Fp8Matrices(code_ENC=code_ENC.to(torch.float8_e4m3fn), scale=scale_EN)


def _fp8_block(device: torch.device, seed: int, shape: tuple[int, int, int]) -> Matrices:
    experts, rows, columns = shape
    plain = _fp8(device, seed, shape)
    assert isinstance(plain, Fp8Matrices)
    scale = _uneven(device, seed, (experts, _ceil(rows, BLOCK), _ceil(columns, BLOCK))) * columns**-0.5 / FP8_SIGMA
    return Fp8Matrices(code_ENC=plain.code_ENC, scale=scale)


def _planes(bits: int, *, nested: bool) -> Make:
    def make(device: torch.device, seed: int, shape: tuple[int, int, int]) -> Matrices:
        experts, rows, columns = shape
        groups = _ceil(columns, GROUP)
        precisions = (2, 4, 8) if nested else (bits,)
        step = STEP_IN_SIGMA[bits]
        values = Draw(device, torch.float32, seed).normal(*shape)
        codes_ENC = values.div_(step).add_((2**bits - 1) / 2).round_().clamp_(0, 2**bits - 1).to(torch.uint8)
        scale_ENG = _uneven(device, seed, (experts, rows, groups)) * columns**-0.5 * step
        scale_PENG = torch.stack([scale_ENG * 2 ** (bits - b) for b in precisions]).half()
        return PlaneMatrices(
            planes=pack(codes_ENC, bits), scale_PENG=scale_PENG, zero_PENG=None, columns=columns, group_size=GROUP
        )

    return make


def _uneven(device: torch.device, seed: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed + 1)
    return torch.rand(shape, device=device, generator=generator) * 0.5 + 0.75


ROUNDING, ROUNDING_W8A8 = 1.5e-2, 5e-2
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(name="bf16", read_bits=16, held_bits=16, max_rel_error=ROUNDING, make=_dense),
        Format(name="fp8", read_bits=8, held_bits=8, max_rel_error=ROUNDING_W8A8, make=_fp8),
        Format(name="fp8_block", read_bits=8, held_bits=8, max_rel_error=ROUNDING_W8A8, make=_fp8_block),
        *(
            Format(name=f"int{b}", read_bits=b, held_bits=b, max_rel_error=ROUNDING, make=_planes(b, nested=False))
            for b in (8, 4, 2)
        ),
        *(
            Format(name=f"bank{b}", read_bits=b, held_bits=8, max_rel_error=ROUNDING, make=_planes(8, nested=True))
            for b in (8, 4, 2)
        ),
    )
}


def make_experts(name: str, shape: MoEShape, device: torch.device, seed: int) -> ExpertWeights:
    """All experts of one layer, SwiGLU, in a named format."""
    fmt = FORMATS[name]
    E, D, I = shape.num_experts, shape.hidden_size, shape.inter_size  # noqa: E741
    bits_E = None
    if name.startswith("bank"):
        bits_E = torch.full((E,), int(fmt.read_bits), dtype=torch.int32, device=device)
    fc1 = fmt.make(device, 4 * seed, (E, 2 * I, D))
    fc2 = fmt.make(device, 4 * seed + 2, (E, D, I))
    return ExpertWeights(fc1=fc1, fc2=fc2, bits_E=bits_E)


def one_expert(matrices: Matrices, expert: int, bits_E: Tensor | None) -> Tensor:
    """(N, C) float64: the weights that one expert's codes and scales stand for."""
    pick = slice(expert, expert + 1)
    bits = None if bits_E is None else bits_E[pick]
    return dequantize(_slice(matrices, pick), bits, dtype=torch.float64)[0]


def _slice(matrices: Matrices, pick: slice) -> Matrices:
    if isinstance(matrices, DenseMatrices):
        return DenseMatrices(weight_ENC=matrices.weight_ENC[pick])
    if isinstance(matrices, Fp8Matrices):
        return Fp8Matrices(code_ENC=matrices.code_ENC[pick], scale=matrices.scale[pick])
    if matrices.zero_PENG is not None:
        raise ConfigError("planes with zeros are not among the benchmarked formats: give symmetric codes")
    return PlaneMatrices(
        planes=tuple(plane[pick] for plane in matrices.planes),
        scale_PENG=matrices.scale_PENG[:, pick],
        zero_PENG=None,
        columns=matrices.columns,
        group_size=matrices.group_size,
    )
