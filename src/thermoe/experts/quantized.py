"""Experts whose weights are held in few bits, as modules like `SimpleExpert`.

Shapes: R routed rows, D model width, I expert width, N rows and C columns of a matrix.
"""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError
from thermoe.experts.fp8 import quantize_fp8
from thermoe.experts.quantize import quantize
from thermoe.experts.simple import ExpertKind, SimpleExpert, check_rows, checked_kind
from thermoe.experts.three_bits import pack_three_bits, unpack_three_bits
from thermoe.kernels.expert_mlp import (
    Activation,
    ExpertWeights,
    Fp8Matrices,
    Matrices,
    PlaneMatrices,
    dequantize,
    expert_mlp,
)
from thermoe.kernels.expert_mlp.planes import per_column
from thermoe.kernels.expert_mlp.reference import activate

BITS = (2, 3, 4, 8)
MIDDLE_OF_THREE_BITS = 3.5


class _CompressedExpert(nn.Module, ABC):
    """What the compressed experts share: buffers for both matrices, the MLP, and its cost."""

    def __init__(self, d_model: int, inter_size: int, kind: ExpertKind) -> None:
        super().__init__()
        self.kind = checked_kind(kind, d_model, inter_size)
        self.d_model, self.inter_size = d_model, inter_size

    @abstractmethod
    def _store(self, fc1: Tensor, fc2: Tensor) -> None:
        """Take in dense weights."""

    @abstractmethod
    def _matrices(self) -> tuple[Matrices, Matrices] | None:
        """Both matrices in the form that the fused kernel reads, where it reads them at all."""

    @abstractmethod
    def _dequantize_and_unpack(self) -> tuple[Tensor, Tensor]:
        """The two weight matrices in float32."""

    def _store_from(self, source: SimpleExpert | None, device: torch.device | str | None) -> None:
        drawn = SimpleExpert(self.d_model, self.inter_size, kind=self.kind) if source is None else source
        if drawn.kind is not self.kind or drawn.fc2.shape != (self.d_model, self.inter_size):
            raise ConfigError(
                f"source of kind {drawn.kind} and shape {tuple(drawn.fc2.shape)} for an expert of kind {self.kind} and "
                f"{(self.d_model, self.inter_size)}: give one like it"
            )
        self._store(drawn.fc1.detach().to(device), drawn.fc2.detach().to(device))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the weights that a `SimpleExpert` draws from this generator, and compresses them."""
        drawn = SimpleExpert(self.d_model, self.inter_size, kind=self.kind)
        drawn.reset_parameters(generator)
        device = next(self.buffers()).device
        self._store(drawn.fc1.detach().to(device), drawn.fc2.detach().to(device))

    def forward(self, x_RD: Tensor) -> Tensor:
        """(R, D) to (R, D), in the dtype of `x`: through the fused kernel on a GPU where it reads this format."""
        check_rows(x_RD, self.d_model)
        matrices = self._matrices() if x_RD.is_cuda else None
        return self._unfused(x_RD) if matrices is None else self._fused(x_RD, *matrices)

    def _unfused(self, x_RD: Tensor) -> Tensor:
        fc1, fc2 = (weight.to(x_RD.dtype) for weight in self._dequantize_and_unpack())
        hidden = activate(nn.functional.linear(x_RD, fc1), self._activation)
        return nn.functional.linear(hidden, fc2)

    def _fused(self, x_RD: Tensor, fc1: Matrices, fc2: Matrices) -> Tensor:
        ids_R1 = torch.zeros(x_RD.shape[0], 1, dtype=torch.int32, device=x_RD.device)
        experts = ExpertWeights(fc1=fc1, fc2=fc2, activation=self._activation)
        return expert_mlp(x_RD, ids_R1, ids_R1.float() + 1.0, experts)

    @property
    def _activation(self) -> Activation:
        return Activation.SWIGLU if self.kind is ExpertKind.SWIGLU else Activation.RELU

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales: what loading this expert moves [byte]."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @property
    def flops_per_row(self) -> int:
        """Floating-point operations of the two products for one row."""
        rows = 2 * self.inter_size if self.kind is ExpertKind.SWIGLU else self.inter_size
        return 2 * self.d_model * (rows + self.inter_size)


class QuantizedExpert(_CompressedExpert):
    """An expert in codes of 8, 4, 3 or 2 bits, with one scale in float16 for each group of columns.

    Args:
        d_model, inter_size, kind: As for `SimpleExpert`.
        bits: 8, 4, 3 or 2.
        group_size: Columns that share a scale: 32, 64 or a multiple of 128.
        device: Of codes and scales.
        source: The expert to compress; a newly drawn one if None.

    Raises:
        ConfigError: a size, a group or a number of bits that no format has.
    """

    def __init__(
        self,
        d_model: int,
        inter_size: int,
        *,
        kind: ExpertKind = ExpertKind.SWIGLU,
        bits: int = 4,
        group_size: int = 128,
        device: torch.device | str | None = None,
        source: SimpleExpert | None = None,
    ) -> None:
        super().__init__(d_model, inter_size, kind)
        if bits not in BITS:
            raise ConfigError(f"experts of {bits} bits: choose 8, 4, 3 or 2")
        self.bits, self.group_size = bits, group_size
        self._store_from(source, device)

    @classmethod
    def from_expert(cls, expert: SimpleExpert, *, bits: int = 4, group_size: int = 128) -> Self:
        """The quantised form of a plain expert, on its device."""
        return cls(*expert.fc2.shape, kind=expert.kind, bits=bits, group_size=group_size, source=expert)

    def _store(self, fc1: Tensor, fc2: Tensor) -> None:
        for name, weight in (("fc1", fc1), ("fc2", fc2)):
            matrix = quantize(weight.unsqueeze(0), self.bits, group_size=self.group_size)
            planes = pack_three_bits(matrix.code_ENC) if self.bits == 3 else matrix.matrices().planes
            for place, plane in enumerate(planes):
                self.register_buffer(f"{name}_plane{place}", plane)
            self.register_buffer(f"{name}_scale", matrix.scale_PENG.transpose(2, 3).contiguous())

    def _planes(self, name: str) -> tuple[Tensor, ...]:
        count = {2: 1, 3: 2, 4: 2, 8: 3}[self.bits]
        return tuple(self.get_buffer(f"{name}_plane{place}") for place in range(count))

    def _plane_matrices(self, name: str, columns: int) -> PlaneMatrices:
        return PlaneMatrices(
            planes=self._planes(name),
            scale_PEGN=self.get_buffer(f"{name}_scale"),
            zero_PEGN=None,
            columns=columns,
            group_size=self.group_size,
        )

    def _matrices(self) -> tuple[Matrices, Matrices] | None:
        if self.bits == 3:
            return None
        return self._plane_matrices("fc1", self.d_model), self._plane_matrices("fc2", self.inter_size)

    def _dequantize_and_unpack(self) -> tuple[Tensor, Tensor]:
        if self.bits == 3:
            return self._three_bits("fc1", self.d_model), self._three_bits("fc2", self.inter_size)
        fc1, fc2 = self._plane_matrices("fc1", self.d_model), self._plane_matrices("fc2", self.inter_size)
        return dequantize(fc1)[0], dequantize(fc2)[0]

    def _three_bits(self, name: str, columns: int) -> Tensor:
        high, low = self._planes(name)
        code = unpack_three_bits(high, low, columns)[0].float()
        scale = per_column(self.get_buffer(f"{name}_scale")[0, 0].T.float(), self.group_size, columns)
        return (code - MIDDLE_OF_THREE_BITS) * scale


class Fp8Expert(_CompressedExpert):
    """An expert in e4m3 codes, with a float32 scale for each row or each block of 128 x 128.

    Args:
        d_model, inter_size, kind: As for `SimpleExpert`.
        blocks: Scales for blocks instead of rows.
        device: Of codes and scales.
        source: The expert to compress; a newly drawn one if None.

    Raises:
        ConfigError: a size that is none, an unknown kind or a source of another shape.
    """

    def __init__(
        self,
        d_model: int,
        inter_size: int,
        *,
        kind: ExpertKind = ExpertKind.SWIGLU,
        blocks: bool = False,
        device: torch.device | str | None = None,
        source: SimpleExpert | None = None,
    ) -> None:
        super().__init__(d_model, inter_size, kind)
        self.blocks = blocks
        self._store_from(source, device)

    @classmethod
    def from_expert(cls, expert: SimpleExpert, *, blocks: bool = False) -> Self:
        """The FP8 form of a plain expert, on its device."""
        return cls(*expert.fc2.shape, kind=expert.kind, blocks=blocks, source=expert)

    def _store(self, fc1: Tensor, fc2: Tensor) -> None:
        for name, weight in (("fc1", fc1), ("fc2", fc2)):
            matrices = quantize_fp8(weight.unsqueeze(0), blocks=self.blocks)
            self.register_buffer(f"{name}_code", matrices.code_ENC)
            self.register_buffer(f"{name}_scale", matrices.scale)

    def _fp8(self, name: str) -> Fp8Matrices:
        return Fp8Matrices(code_ENC=self.get_buffer(f"{name}_code"), scale=self.get_buffer(f"{name}_scale"))

    def _matrices(self) -> tuple[Matrices, Matrices] | None:
        return self._fp8("fc1"), self._fp8("fc2")

    def _dequantize_and_unpack(self) -> tuple[Tensor, Tensor]:
        return dequantize(self._fp8("fc1"))[0], dequantize(self._fp8("fc2"))[0]
