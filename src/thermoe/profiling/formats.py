"""Random expert weights in every format that kernels read, made on the device in their final form.

Shapes: E experts, N rows, C columns of a matrix, D model width, I expert width.
Values are normal, never zeros: power depends on them. Codes of b bits are normal values rounded, so that their bits
are as unevenly spread as those of real weights; nothing is searched or fitted, so a layer takes milliseconds.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from thermoe.kernels.expert_mlp import DenseMatrices, ExpertWeights, Fp8Matrices, Matrices, PlaneMatrices
from thermoe.kernels.expert_mlp.planes import dequantize, pack
from thermoe.profiling.case import Case
from thermoe.profiling.draw import Draw

STEP_IN_SIGMA = {2: 1.0, 4: 0.335, 8: 0.0234}  # quantisation steps that suit a normal distribution
FP8_SIGMA = 64.0  # e4m3 codes reach 448
NESTED = (2, 4, 8)
PIECE = 1 << 27  # weights that are drawn at a time: float32 values and their codes fit beside the rest


def make_experts(case: Case, device: torch.device, seed: int) -> ExpertWeights:
    """All experts of one layer, SwiGLU, in the case's format; a bank is made to be read at 8 bits."""
    E, D, I = case.num_experts, case.hidden_size, case.inter_size  # noqa: E741
    bits_E = torch.full((E,), 8, dtype=torch.int32, device=device) if case.dtype.startswith("bank") else None
    fc1, fc2 = (_matrices(case, device, 2 * seed + m, shape) for m, shape in enumerate(((E, 2 * I, D), (E, D, I))))
    return ExpertWeights(fc1=fc1, fc2=fc2, bits_E=bits_E)


def at_bits(experts: ExpertWeights, bits: float) -> ExpertWeights:
    """The same bank, read at another precision; other formats as they are."""
    if experts.bits_E is None:
        return experts
    return replace(experts, bits_E=torch.full_like(experts.bits_E, int(bits)))


def some_experts(matrices: Matrices, first: int, count: int) -> Matrices:
    """A view of neighbouring experts."""
    pick = slice(first, first + count)
    if isinstance(matrices, DenseMatrices):
        return DenseMatrices(weight_ENC=matrices.weight_ENC[pick])
    if isinstance(matrices, Fp8Matrices):
        return Fp8Matrices(code_ENC=matrices.code_ENC[pick], scale=matrices.scale[pick])
    return replace(
        matrices, planes=tuple(plane[pick] for plane in matrices.planes), scale_PENG=matrices.scale_PENG[:, pick]
    )


def one_expert(matrices: Matrices, expert: int, bits_E: Tensor | None) -> Tensor:
    """(N, C) float64: the weights that one expert's codes and scales stand for."""
    bits = None if bits_E is None else bits_E[expert : expert + 1]
    return dequantize(some_experts(matrices, expert, 1), bits, dtype=torch.float64)[0]


def num_bytes(experts: ExpertWeights) -> int:
    """Device memory of a layer [byte]."""
    return sum(tensor.numel() * tensor.element_size() for m in (experts.fc1, experts.fc2) for tensor in _tensors(m))


@dataclass(slots=True)
class WeightCache:
    """Layers that were made, kept until there is no room: many cases read the same weights.

    Attributes:
        device: Where they lie.
        limit_bytes: Most memory that they may take together [byte].
    """

    device: torch.device
    limit_bytes: float
    _held: "OrderedDict[tuple[object, ...], ExpertWeights]" = field(default_factory=OrderedDict)
    _bytes: int = 0

    def layers(self, case: Case, count: int) -> list[ExpertWeights]:
        """So many layers in the case's format, each with values of its own."""
        return [at_bits(self._layer(case, number), case.bits) for number in range(count)]

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self._bytes = 0

    def _layer(self, case: Case, number: int) -> ExpertWeights:
        stored = "bank" if case.dtype.startswith("bank") else case.dtype
        key = (stored, case.hidden_size, case.inter_size, case.num_experts, number)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        self._make_room(case)
        made = make_experts(case, self.device, seed=number)
        self._held[key] = made
        self._bytes += num_bytes(made)
        return made

    def _make_room(self, case: Case) -> None:
        wanted = held_bytes(case)
        freed = False
        while self._held and self._bytes + wanted > self.limit_bytes:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= num_bytes(oldest)
            freed = True
        if freed and self.device.type == "cuda":
            torch.cuda.empty_cache()


def held_bytes(case: Case) -> float:
    """Device memory of all experts of one layer [byte]; a bank holds 8 bits and three sets of scales."""
    if not case.dtype.startswith("bank"):
        return case.num_experts * case.expert_bytes
    D, I = case.hidden_size, case.inter_size  # noqa: E741
    return case.num_experts * (3.0 * D * I + 3.0 * (case.scale_bytes(2 * I, D) + case.scale_bytes(D, I)))


def _matrices(case: Case, device: torch.device, seed: int, shape: tuple[int, int, int]) -> Matrices:
    if case.dtype == "fp8":
        return _fp8(device, seed, shape)
    if case.group_size is None:
        return DenseMatrices(weight_ENC=Draw(device, getattr(torch, case.dtype), seed).weights(*shape))
    nested = case.dtype.startswith("bank")
    return _planes(device, seed, shape, 8 if nested else int(case.bits), case.group_size, nested=nested)


def _fp8(device: torch.device, seed: int, shape: tuple[int, int, int]) -> Matrices:
    experts, rows, columns = shape
    draw = Draw(device, torch.bfloat16, seed)
    pieces = [
        draw.normal(count, rows, columns).mul_(FP8_SIGMA).clamp_(-448, 448).to(torch.float8_e4m3fn)
        for count in _pieces(shape)
    ]
    scale_EN = _uneven(device, seed, (experts, rows)) * columns**-0.5 / FP8_SIGMA
    return Fp8Matrices(code_ENC=_joined(pieces), scale=scale_EN)


def _planes(
    device: torch.device, seed: int, shape: tuple[int, int, int], bits: int, group_size: int, *, nested: bool
) -> Matrices:
    experts, rows, columns = shape
    draw, step = Draw(device, torch.float32, seed), STEP_IN_SIGMA[bits]
    pieces = []
    for count in _pieces(shape):
        values = draw.normal(count, rows, columns)
        codes = values.div_(step).add_((2**bits - 1) / 2).round_().clamp_(0, 2**bits - 1).to(torch.uint8)
        pieces.append(pack(codes, bits))
    scale_ENG = _uneven(device, seed, (experts, rows, -(-columns // group_size))) * columns**-0.5 * step
    precisions = NESTED if nested else (bits,)
    return PlaneMatrices(
        planes=tuple(_joined(list(plane)) for plane in zip(*pieces, strict=True)),
        scale_PENG=torch.stack([scale_ENG * 2 ** (bits - b) for b in precisions]).half(),
        zero_PENG=None,
        columns=columns,
        group_size=group_size,
    )


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


def _tensors(matrices: Matrices) -> tuple[Tensor, ...]:
    if isinstance(matrices, DenseMatrices):
        return (matrices.weight_ENC,)
    if isinstance(matrices, Fp8Matrices):
        return (matrices.code_ENC, matrices.scale)
    return (*matrices.planes, matrices.scale_PENG)
