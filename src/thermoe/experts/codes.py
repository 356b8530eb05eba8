"""Integer codes of weights, what they stand for at each precision, and the choice of the best code.

Shapes: E experts, N rows, C columns, G scale groups, P precisions read from one code, `...` any.
"""

from collections.abc import Sequence
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
            scale_PEGN=self.scale_PENG.transpose(2, 3).contiguous(),
            zero_PEGN=None,
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


def centred(code: Tensor, held_bits: int, bits: int) -> Tensor:
    """(...) float32 codes of `bits`, the highest of `held_bits`, counted from their middle."""
    place = code.float()
    return (place if bits == held_bits else place.mul(2.0 ** (bits - held_bits)).floor_()) - middle(bits)


def levels(code: Tensor, scale_P: Sequence[Tensor] | Tensor, bits: tuple[int, ...]) -> Tensor:
    """(P, ...) float32: what the codes stand for at each precision, with scales (P, ...)."""
    return torch.stack([centred(code, bits[-1], b) * scale_P[p] for p, b in enumerate(bits)])


def nearest_codes(
    target_P: Sequence[Tensor] | Tensor,
    scale_P: Sequence[Tensor] | Tensor,
    bits: tuple[int, ...],
    weight_P: tuple[float, ...],
) -> Tensor:
    """The code whose values at all precisions lie nearest to their targets.

    Args:
        target_P: (P, ...) the value wished for at each precision.
        scale_P: P scales that broadcast against (...); 0 stands for a group of zeros.
        bits: One precision, (2, 4) or (2, 4, 8).
        weight_P: What a squared error at each precision costs.

    Returns:
        (...) float32 codes of `bits[-1]` bits, exactly optimal.
    """
    place_P = [target_P[p] * scale_P[p].clamp_min(_TINY).reciprocal() + middle(b) for p, b in enumerate(bits)]
    nearest = place_P[-1].round().clamp_(0, 2 ** bits[-1] - 1)
    if len(bits) == 1:
        return nearest
    step_P = [scale_P[p] * weight**0.5 for p, weight in enumerate(weight_P)]
    return _nearest_nested(place_P, step_P, nearest)


def _nearest_nested(place_P: list[Tensor], step_P: list[Tensor], nearest: Tensor) -> Tensor:
    """The best of the best codes under each choice of the two highest bits.

    What the lower bits cost is convex in the 4-bit code. So under given highest bits the best 4-bit code is the one
    nearest to `code4`, the best of all; and what all bits cost is convex in the highest ones, so that their best
    choice lies between those of `code4` and those that are best by themselves.

    Args:
        place_P: P times (...), targets counted in codes.
        step_P: Error of one code at each precision, in the root of its cost.
        nearest: (...) the code of the highest precision that is best by itself.
    """
    wished_P = [place * step for place, step in zip(place_P, step_P, strict=True)]
    code4 = nearest if len(step_P) == 2 else _best_four_bits(place_P, wished_P, step_P, nearest)
    code2 = (code4 / 4).floor_()
    cost, best = _cost_of(code2, code4, wished_P, step_P, nearest)
    away = place_P[0].round_().clamp_(0, 3).sub_(code2)
    for most in range(1, 1 + int(away.abs().max())):
        tried2 = away.clamp(-most, most).add_(code2)
        first = tried2 * 4
        tried4 = torch.minimum(torch.maximum(code4, first), first.add_(3))
        cost, best = _cheaper(cost, best, *_cost_of(tried2, tried4, wished_P, step_P, nearest))
    return best


def _best_four_bits(place_P: list[Tensor], wished_P: list[Tensor], step_P: list[Tensor], nearest: Tensor) -> Tensor:
    """(...) 4-bit codes of least cost at 4 and 8 bits together.

    That of the best 8-bit code, or one between it and the best 4-bit code: there the 8-bit code is the first or the
    last under the 4-bit one, and the cost a parabola.
    """
    cost4, cost8 = step_P[1].square(), 256 * step_P[2].square()
    share8 = cost8 / (cost4 + cost8).clamp_min_(_TINY)
    within = (nearest / 16).floor_()
    between = torch.addcmul(place_P[1], place_P[2] / 16 - place_P[1], share8)
    above = torch.maximum(between.round(), within + 1)
    below = torch.minimum(between.sub_(share8 * (15 / 16)).round_(), within - 1)
    apart = torch.maximum(torch.minimum(place_P[1].round().clamp_(0, 15), above), below)
    cost, tried = (_cost_of(None, code4, wished_P, step_P, nearest)[0] for code4 in (within, apart))
    return _cheaper(cost, within, tried, apart)[1]


def _cost_of(
    code2: Tensor | None, code4: Tensor, wished_P: list[Tensor], step_P: list[Tensor], nearest: Tensor
) -> tuple[Tensor, Tensor]:
    """(...) what these codes cost with the best lower bits under them, and the codes of all bits; see above."""
    missed = torch.addcmul(wished_P[1], code4, step_P[1], value=-1)
    cost = missed.square_()
    if code2 is not None:
        missed = torch.addcmul(wished_P[0], code2, step_P[0], value=-1)
        cost.addcmul_(missed, missed)
    if len(step_P) == 2:
        return cost, code4
    first = code4 * 16
    code8 = torch.minimum(torch.maximum(nearest, first), first.add_(15))
    missed = torch.addcmul(wished_P[2], code8, step_P[2], value=-1)
    return cost.addcmul_(missed, missed), code8


def _cheaper(cost: Tensor, code: Tensor, other_cost: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller cost and its code, element by element; without a mask, which is slow on a CPU."""
    is_other = torch.lt(other_cost, cost, out=torch.empty_like(cost))
    return torch.minimum(cost, other_cost), code.lerp(other, is_other)


def check_weights(weight_ENC: Tensor, bits: tuple[int, ...], group_size: int) -> None:
    """Refuses what cannot be quantised.

    Raises:
        ConfigError: another shape or dtype, NaN or infinite weights, bits or groups that no format has.
    """
    wide = weight_ENC.is_floating_point() and weight_ENC.element_size() >= 2
    if weight_ENC.ndim != 3 or not wide or 0 in weight_ENC.shape:
        raise ConfigError(
            f"weights of shape {tuple(weight_ENC.shape)} and {weight_ENC.dtype}: "
            "give (experts, rows, columns) of floating-point numbers of 16 bits or more"
        )
    if bits not in (*((b,) for b in PLAIN_BITS), NESTED_BITS[:2], NESTED_BITS):
        raise ConfigError(f"{bits} bits: choose 2, 3, 4 or 8, or a nested bank of 2 and 4 or of 2, 4 and 8")
    if not isinstance(group_size, int) or (group_size not in (32, 64) and (group_size < 128 or group_size % 128)):
        raise ConfigError(f"groups of {group_size!r} columns: choose 32, 64 or a multiple of 128")
    largest = max(abs(float(end)) for end in weight_ENC.detach().aminmax())  # NaN at both ends where there is one
    if not largest < _LARGEST:
        raise ConfigError(
            f"weights reach {largest:g}: float16 scales need finite weights below {_LARGEST:g}: rescale them"
        )
    least = _LEAST_STEP * 2 ** bits[-1]
    if 0 < largest < least:
        raise ConfigError(
            f"weights reach only {largest:g}: float16 scales of {bits[-1]}-bit codes lose weights below {least:g}: "
            "rescale them"
        )


_TINY = 1e-30  # keeps 0 / 0 from becoming NaN in groups of zeros
_LARGEST = 6e4
_LEAST_STEP = 3e-6  # float16 holds such a scale to 1 %
