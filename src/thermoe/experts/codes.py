"""Integer codes of weights, what they stand for at each precision, and the choice of the best code.

Shapes: E experts, N rows, C columns, G scale groups, P precisions read from one code, `...` any.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.expert_mlp import PlaneMatrices, pack
from thermoe.kernels.expert_mlp.planes import per_column

NESTED_BITS = (2, 4, 8)
PLAIN_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedMatrix:
    """Codes and scales: `weight = (code of b bits - (2**b - 1) / 2) * scale`.

    Attributes:
        code_ENC: (E, N, C) uint8 of `bits[-1]` bits; a lower precision reads its highest bits.
        scale_PENG: (P, E, N, G) float16.
        bits: Precisions, ascending; one for a plain format.
        group_size: Columns that share a scale.
    """

    code_ENC: Tensor
    scale_PENG: Tensor
    bits: tuple[int, ...]
    group_size: int

    def weights(self, bits: int | None = None) -> Tensor:
        """(E, N, C) float32 at one of the precisions; the highest if None."""
        wanted = self.bits[-1] if bits is None else bits
        if wanted not in self.bits:
            raise ConfigError(f"{wanted} bits of codes that hold {self.bits}: choose one of these")
        scale_ENC = per_column(self.scale_PENG[self.bits.index(wanted)].float(), self.group_size, self.columns)
        return (truncated(self.code_ENC, self.bits[-1], wanted).float() - middle(wanted)) * scale_ENC

    def matrices(self) -> PlaneMatrices:
        """The bit planes that kernels read; 3 bits have no such form."""
        return PlaneMatrices(
            planes=pack(self.code_ENC, self.bits[-1]),
            scale_PENG=self.scale_PENG.contiguous(),
            zero_PENG=None,
            columns=self.columns,
            group_size=self.group_size,
        )

    @property
    def columns(self) -> int:
        """C."""
        return self.code_ENC.shape[-1]


def middle(bits: int) -> float:
    """The code that would stand for 0: half way between two codes."""
    return float(2**bits - 1) / 2


def truncated(code: Tensor, held_bits: int, bits: int) -> Tensor:
    """The highest `bits` of codes of `held_bits`."""
    return code >> (held_bits - bits)


def levels(code: Tensor, scale_P: Tensor, bits: tuple[int, ...]) -> Tensor:
    """(P, ...) float32: what the codes stand for at each precision, with scales (P, ...)."""
    values = [(truncated(code, bits[-1], b).float() - middle(b)) * scale_P[p] for p, b in enumerate(bits)]
    return torch.stack(values)


def nearest_codes(target_P: Tensor, scale_P: Tensor, bits: tuple[int, ...], weight_P: tuple[float, ...]) -> Tensor:
    """The code whose values at all precisions lie nearest to their targets.

    Args:
        target_P: (P, ...) the value wished for at each precision.
        scale_P: (P, ...) scales; 0 stands for a group of zeros.
        bits: One precision, (2, 4) or (2, 4, 8).
        weight_P: What a squared error at each precision costs.

    Returns:
        (...) uint8 codes of `bits[-1]` bits, exactly optimal.
    """
    place_P = [target_P[p] / scale_P[p].clamp_min(_TINY) + middle(b) for p, b in enumerate(bits)]
    if len(bits) == 1:
        return place_P[0].round().clamp(0, 2 ** bits[0] - 1).to(torch.uint8)
    cost_P = [weight * scale_P[p].square() for p, weight in enumerate(weight_P)]
    # Every 4-bit code is tried with the best 8-bit code under it; the 2-bit code follows from it.
    code4 = torch.arange(16, device=target_P.device, dtype=target_P.dtype).view(-1, *[1] * (target_P.ndim - 1))
    cost = cost_P[0] * (place_P[0] - torch.div(code4, 4, rounding_mode="floor")).square()
    cost = cost + cost_P[1] * (place_P[1] - code4).square()
    if len(bits) == 2:
        return cost.argmin(dim=0).to(torch.uint8)
    code8 = torch.minimum(torch.maximum(place_P[2].round(), 16 * code4), 16 * code4 + 15)
    best = (cost + cost_P[2] * (place_P[2] - code8).square()).argmin(dim=0, keepdim=True)
    return code8.gather(0, best).squeeze(0).to(torch.uint8)


def check_weights(weight_ENC: Tensor, bits: tuple[int, ...], group_size: int) -> None:
    """Refuses what cannot be quantised.

    Raises:
        ConfigError: another shape or dtype, NaN or infinite weights, bits or groups that no format has.
    """
    if weight_ENC.ndim != 3 or not weight_ENC.is_floating_point() or 0 in weight_ENC.shape:
        raise ConfigError(
            f"weights of shape {tuple(weight_ENC.shape)} and {weight_ENC.dtype}: "
            "give (experts, rows, columns) of floating-point numbers"
        )
    if bits not in (*((b,) for b in PLAIN_BITS), NESTED_BITS[:2], NESTED_BITS):
        raise ConfigError(f"{bits} bits: choose 2, 3, 4 or 8, or a nested bank of 2 and 4 or of 2, 4 and 8")
    if group_size not in (32, 64) and (group_size < 128 or group_size % 128):
        raise ConfigError(f"groups of {group_size} columns: choose 32, 64 or a multiple of 128")
    largest = float(weight_ENC.detach().abs().max())
    if not largest < _LARGEST:  # also where it is NaN
        raise ConfigError(
            f"weights reach {largest:g}: float16 scales need finite weights below {_LARGEST:g}: rescale them"
        )


_TINY = 1e-30  # keeps 0 / 0 from becoming NaN in groups of zeros
_LARGEST = 6e4
