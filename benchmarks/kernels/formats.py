"""Random expert weights in every format the kernels read, and what an expert of each weighs.

Shapes: E experts, N rows, C columns of a matrix, D model width, I expert width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from thermoe.kernels.expert_mlp.weights import ExpertWeights, Matrices
from thermoe.profiling.random_matrices import dense_matrices, fp8_matrices, plane_matrices
from thermoe.types import MoEShape

GROUP = 128  # columns that share a scale
BLOCK = 128  # side of an fp8 block
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
    return dense_matrices(device, torch.bfloat16 if device.type == "cuda" else torch.float32, seed, shape)


_fp8_block: Make = partial(fp8_matrices, block=BLOCK)


def _planes(bits: int, *, nested: bool) -> Make:
    return partial(_planes_of, bits, nested)


def _planes_of(bits: int, nested: bool, device: torch.device, seed: int, shape: tuple[int, int, int]) -> Matrices:
    return plane_matrices(device, seed, shape, bits, GROUP, nested=nested)


ROUNDING, ROUNDING_W8A8 = 1.5e-2, 5e-2
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(name="bf16", read_bits=16, held_bits=16, max_rel_error=ROUNDING, make=_dense),
        Format(name="fp8", read_bits=8, held_bits=8, max_rel_error=ROUNDING_W8A8, make=fp8_matrices),
        Format(
            name="fp8_block",
            read_bits=8,
            held_bits=8,
            max_rel_error=ROUNDING_W8A8,
            make=partial(fp8_matrices, block=BLOCK),
        ),
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
