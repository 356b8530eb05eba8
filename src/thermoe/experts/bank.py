"""The nested expert bank: every expert of a layer once, readable at 2, 4 or 8 bits, precision chosen at run time.

Shapes: T tokens, K experts per token, E experts, D model width, I expert width, N rows and C columns of a matrix,
G scale groups, P precisions, M experts kept in bf16 beside the bank.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError
from thermoe.experts.codes import NESTED_BITS, QuantizedMatrix
from thermoe.experts.fused import experts_of
from thermoe.experts.moments import Moments
from thermoe.experts.precisions import DENSE_BITS, precisions_of
from thermoe.experts.quantize import quantize
from thermoe.kernels.expert_mlp import (
    Activation,
    DenseMatrices,
    ExpertWeights,
    PlaneMatrices,
    dequantize,
    expert_mlp,
    unpack,
)
from thermoe.kernels.expert_mlp.checks import check_experts

_MATRICES = ("fc1", "fc2")


class ExpertBank(nn.Module):
    """Experts in nested bit planes, as buffers: they move with `.to(device)` and lie in the state dict.

    Build one with `from_weights` or `from_module`.

    Args:
        fc1, fc2: Planes of both matrices, read at 2, 4 and 8 bits.
        activation: Between the two.
        bias1_EN, bias2_ED: float32, or None.

    Raises:
        ConfigError: Planes, scales or biases that do not belong together, or hold one precision.

    Attributes:
        bits_E: (E,) int32, the precision at which each expert is read: 2, 4 or 8, and 16 for an expert that is
            kept in bf16. Kernels read it in device memory, so a captured graph sees what is written between replays.
    """

    bits_E: Tensor
    kept_slot_E: Tensor
    bias1: Tensor | None
    bias2: Tensor | None
    kept_fc1: Tensor | None
    kept_fc2: Tensor | None

    def __init__(
        self,
        fc1: PlaneMatrices,
        fc2: PlaneMatrices,
        *,
        activation: Activation = Activation.SWIGLU,
        bias1_EN: Tensor | None = None,
        bias2_ED: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.activation = Activation(activation)
        self.group_size = fc1.group_size
        for name, matrices in zip(_MATRICES, (fc1, fc2), strict=True):
            if not matrices.nested or matrices.max_bits != NESTED_BITS[-1]:
                raise ConfigError(
                    f"{name} holds {matrices.max_bits} bits of one precision: a bank needs nested 2, 4, 8"
                )
            for place, plane in enumerate(matrices.planes):
                self.register_buffer(f"{name}_plane{place}", plane)
            self.register_buffer(f"{name}_scale", matrices.scale_PEGN)
        self.register_buffer("bias1", bias1_EN)
        self.register_buffer("bias2", bias2_ED)
        if fc1.group_size != fc2.group_size:
            raise ConfigError(f"groups of {fc1.group_size} and {fc2.group_size} columns: a bank has one size")
        self._columns = {"fc1": fc1.columns, "fc2": fc2.columns}
        device = fc1.planes[0].device
        self.register_buffer("bits_E", torch.full((self.num_experts,), 8, dtype=torch.int32, device=device))
        self.register_buffer("kept_slot_E", torch.full((self.num_experts,), -1, dtype=torch.int32, device=device))
        self.register_buffer("kept_fc1", None)
        self.register_buffer("kept_fc2", None)
        check_experts(self.weights())

    @classmethod
    def from_weights(
        cls,
        experts: ExpertWeights,
        *,
        group_size: int = 128,
        moments: Moments | None = None,
        keep_bf16: Sequence[int] = (),
    ) -> Self:
        """Quantise dense weights into a bank.

        Args:
            experts: Dense: `thermoe.experts.dense_experts` makes them from (E, 2 I, D) and (E, D, I).
            group_size: Columns that share a scale: 32, 64 or a multiple of 128.
            moments: What the experts were given on calibration text. With them, errors are compensated, which
                matters most at 2 bits; without, every weight is rounded by itself.
            keep_bf16: Experts held in bf16 as well, and read so until their bits are set otherwise.

        Raises:
            ConfigError: weights that cannot be quantised, or experts to keep that the layer does not have.
        """
        if not isinstance(experts.fc1, DenseMatrices) or not isinstance(experts.fc2, DenseMatrices):
            raise ConfigError("a bank is built from dense weights: give those of the model before quantising")
        moment1 = None if moments is None else moments.fc1_moment()
        moment2 = None if moments is None else moments.fc2_moment()
        dense1, dense2 = experts.fc1.weight_ENC, experts.fc2.weight_ENC
        bank = cls(
            quantize(dense1, NESTED_BITS, group_size=group_size, moment_ECC=moment1).matrices(),
            quantize(dense2, NESTED_BITS, group_size=group_size, moment_ECC=moment2).matrices(),
            activation=experts.activation,
            bias1_EN=experts.bias1_EN,
            bias2_ED=experts.bias2_ED,
        )
        bank._keep(dense1, dense2, keep_bf16)
        return bank

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        group_size: int = 128,
        moments: Moments | None = None,
        keep_bf16: Sequence[int] = (),
    ) -> Self:
        """The bank of an experts block of Transformers, or of a list of `SimpleExpert`; see `from_weights`."""
        return cls.from_weights(experts_of(module), group_size=group_size, moments=moments, keep_bf16=keep_bf16)

    def _keep(self, fc1_END: Tensor, fc2_EDI: Tensor, kept: Sequence[int]) -> None:
        if not kept:
            return
        whole = all(isinstance(expert, int) and 0 <= expert < self.num_experts for expert in kept)
        if len(set(kept)) != len(kept) or not whole:
            raise ConfigError(
                f"experts to keep in bf16: {list(kept)}; give different ones of 0 to {self.num_experts - 1}"
            )
        chosen = torch.tensor(list(kept), device=fc1_END.device)
        self.kept_fc1, self.kept_fc2 = fc1_END[chosen].bfloat16(), fc2_EDI[chosen].bfloat16()
        self.kept_slot_E[chosen] = torch.arange(len(kept), dtype=torch.int32, device=fc1_END.device)
        self.bits_E[chosen] = DENSE_BITS

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.get_buffer("fc1_plane0").shape[0])

    @property
    def kept(self) -> list[int]:
        """Experts that are held in bf16 as well, in ascending order (waits for the device)."""
        return [int(expert) for expert in (self.kept_slot_E >= 0).nonzero().flatten().tolist()]

    def matrices(self, name: str) -> PlaneMatrices:
        """The planes of "fc1" or "fc2"."""
        _check_name(name)
        planes = tuple(self.get_buffer(f"{name}_plane{place}") for place in range(3))
        return PlaneMatrices(
            planes=planes,
            scale_PEGN=self.get_buffer(f"{name}_scale"),
            zero_PEGN=None,
            columns=self._columns[name],
            group_size=self.group_size,
        )

    def quantized(self, name: str) -> QuantizedMatrix:
        """Codes and scales of "fc1" or "fc2", unpacked: what `tune_scales` takes."""
        planes = self.matrices(name)
        return QuantizedMatrix(
            code_ENC=unpack(planes.planes, planes.columns),
            scale_PENG=planes.scale_PEGN.transpose(2, 3),
            bits=NESTED_BITS,
            group_size=self.group_size,
        )

    @torch.no_grad()
    def set_scales(self, name: str, scale_PENG: Tensor) -> None:
        """Replace the scales of "fc1" or "fc2", (P, E, N, G) as `quantized` gives them; the codes stay.

        Raises:
            ConfigError: scales of another shape, or not finite in float16.
        """
        _check_name(name)
        held = self.get_buffer(f"{name}_scale").transpose(2, 3)
        if scale_PENG.shape != held.shape:
            raise ConfigError(f"scales of shape {tuple(scale_PENG.shape)} for {name}: need {tuple(held.shape)}")
        if not bool(scale_PENG.to(held.dtype).isfinite().all()):
            raise ConfigError(f"scales for {name} that are NaN or beyond {held.dtype}: give finite ones")
        held.copy_(scale_PENG)

    def weights(self) -> ExpertWeights:
        """What the kernels read: views of this bank, with `bits_E` live."""
        return ExpertWeights(
            fc1=self.matrices("fc1"),
            fc2=self.matrices("fc2"),
            activation=self.activation,
            bias1_EN=self.bias1,
            bias2_ED=self.bias2,
            bits_E=self.bits_E,
        )

    def kept_weights(self) -> ExpertWeights | None:
        """The experts kept in bf16 as a layer of M experts; None where there are none."""
        if self.kept_fc1 is None or self.kept_fc2 is None:
            return None
        order = self.kept_slot_E.long().argsort()[-self.kept_fc1.shape[0] :]
        return ExpertWeights(
            fc1=DenseMatrices(weight_ENC=self.kept_fc1),
            fc2=DenseMatrices(weight_ENC=self.kept_fc2),
            activation=self.activation,
            bias1_EN=None if self.bias1 is None else self.bias1[order],
            bias2_ED=None if self.bias2 is None else self.bias2[order],
        )

    @torch.no_grad()
    def set_bits(self, bits: int | Sequence[int] | Tensor) -> None:
        """Precision of all experts, or of each: 2, 4, 8, and 16 where the expert is kept in bf16.

        Raises:
            ConfigError: another precision, another number of experts, or 16 for an expert that is not kept.
        """
        wanted = precisions_of(bits, self.num_experts)
        missing = sorted({expert for expert, b in enumerate(wanted) if b == DENSE_BITS} - set(self.kept))
        if missing:
            raise ConfigError(f"16 bits for experts {missing}: build the bank with keep_bf16 to have them in bf16")
        self.bits_E.copy_(torch.tensor(wanted, dtype=torch.int32))

    def split(self, ids_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Ids for the bank and for `kept_weights`; -1 where the other one serves the slot. Never waits for the host."""
        inside_TK = (ids_TK >= 0) & (ids_TK < self.num_experts)
        safe_TK = ids_TK.clamp(0, self.num_experts - 1).long()
        slot_TK = self.kept_slot_E[safe_TK].to(ids_TK.dtype)
        dense_TK = inside_TK & (slot_TK >= 0) & (self.bits_E[safe_TK] >= DENSE_BITS)
        return ids_TK.masked_fill(dense_TK, -1), slot_TK.masked_fill(~dense_TK, -1)

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """(T, D): each token through its experts at their present precision, summed by its weights."""
        dense = self.kept_weights()
        if dense is None:
            return expert_mlp(x_TD, ids_TK, weights_TK, self.weights())
        bank_ids_TK, dense_ids_TK = self.split(ids_TK)
        beside_TD = expert_mlp(x_TD.bfloat16(), dense_ids_TK, weights_TK, dense)
        return expert_mlp(x_TD, bank_ids_TK, weights_TK, self.weights()) + beside_TD.to(x_TD.dtype)

    def dense(self, name: str, bits: int | None = None) -> Tensor:
        """(E, N, C) float32 weights of "fc1" or "fc2" at one precision, or at `bits_E` if None; kept experts too."""
        _check_name(name)
        if bits not in (None, *NESTED_BITS, DENSE_BITS):
            raise ConfigError(f"{bits} bits: a bank is read at 2, 4 or 8, and kept experts at 16")
        bits_E = self.bits_E if bits is None else torch.full_like(self.bits_E, bits)
        weight = dequantize(self.matrices(name), bits_E)
        kept = self.get_buffer(f"kept_{name}") if self.kept_fc1 is not None else None
        if kept is not None:
            exact_E = (self.kept_slot_E >= 0) & (bits_E >= DENSE_BITS)
            weight[exact_E] = kept[self.kept_slot_E[exact_E].long()].float()
        return weight

    @property
    def num_bytes(self) -> int:
        """Bytes that the bank and the experts kept beside it take up in memory [byte]."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def bytes_read(self, bits: int) -> int:
        """Bytes that one expert moves when it is read at 2, 4, 8 or 16 bits: planes, scales, biases [byte].

        Raises:
            ConfigError: another precision.
        """
        if bits not in (*NESTED_BITS, DENSE_BITS):
            raise ConfigError(f"{bits} bits: a bank is read at 2, 4 or 8, and kept experts at 16")
        read = sum(b.numel() * b.element_size() for b in (self.bias1, self.bias2) if b is not None)
        for name in _MATRICES:
            matrices = self.matrices(name)
            if bits == DENSE_BITS:
                read += 2 * matrices.shape[0] * matrices.shape[1] * matrices.columns
                continue
            read += sum(plane.numel() for plane in matrices.planes[: NESTED_BITS.index(bits) + 1])
            read += 2 * matrices.scale_PEGN[0].numel()
        return read // self.num_experts


def _check_name(name: str) -> None:
    if name not in _MATRICES:
        raise ConfigError(f"matrix {name} of a bank: choose {' or '.join(_MATRICES)}")
