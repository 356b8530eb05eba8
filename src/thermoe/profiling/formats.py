"""Layers of random experts in the format of a case, and the cache that keeps them while they fit.

Shapes: E experts, D model width, I expert width.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from thermoe.kernels.expert_mlp import DenseMatrices, ExpertWeights, Fp8Matrices, Matrices
from thermoe.profiling.case import Case
from thermoe.profiling.random_matrices import dense_matrices, fp8_matrices, plane_matrices


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
        return fp8_matrices(device, seed, shape)
    if case.group_size is None:
        return dense_matrices(device, getattr(torch, case.dtype), seed, shape)
    nested = case.dtype.startswith("bank")
    return plane_matrices(device, seed, shape, 8 if nested else int(case.bits), case.group_size, nested=nested)


def _tensors(matrices: Matrices) -> tuple[Tensor, ...]:
    if isinstance(matrices, DenseMatrices):
        return (matrices.weight_ENC,)
    if isinstance(matrices, Fp8Matrices):
        return (matrices.code_ENC, matrices.scale)
    return (*matrices.planes, matrices.scale_PEGN)
