"""Round to nearest: the range of the codes of each group, searched, and the scales that follow by least squares.

Shapes: E experts, N rows, C columns, G groups of g columns, P precisions.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from thermoe.experts.codes import centred, nearest_codes
from thermoe.experts.scales import gain, square_sum

# Least range of the codes that is tried, over the largest weight of a group: few bits gain by cutting more off.
_LEAST_RANGE = {2: 0.5, 3: 0.5, 4: 0.7, 8: 0.8}
_TINY = 1e-30
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**17, 2**26  # weights at once: on a CPU what its cache holds of the search


def rounded(
    weight_ENC: Tensor, bits: tuple[int, ...], group_size: int, weight_P: tuple[float, ...], *, unbiased: bool
) -> tuple[Tensor, Tensor]:
    """Codes of all weights, each rounded by itself, and the scales of their groups.

    Returns:
        (E, N, C) uint8 and (P, E, N, G) float32; with `unbiased`, scales times the gain of their row.
    """
    parts = [_rounded(part, bits, group_size, weight_P, unbiased) for part in _in_rows(weight_ENC)]
    return torch.cat([code for code, _ in parts], dim=1), torch.cat([scale for _, scale in parts], dim=2)


def clipped_scales(
    weight_ENC: Tensor,
    importance_EC: Tensor | None,
    bits: tuple[int, ...],
    group_size: int,
    weight_P: tuple[float, ...],
) -> Tensor:
    """Scales that minimise the squared error of rounding to nearest, weighted by column and by precision.

    Tries ranges for the cells of the codes, group by group; for each, every precision's own scale follows by least
    squares.

    Returns:
        (P, E, N, G) float32; 0 where all weights of a group are 0.
    """
    root_EC = None if importance_EC is None else importance_EC.sqrt()
    found = []
    for part in _in_rows(weight_ENC):
        roots = [None, None] if root_EC is None else [r.unsqueeze(1) for r in in_groups(root_EC, group_size)]
        groups = in_groups(part, group_size)
        found.append(torch.cat([_searched(g, r, bits, weight_P) for g, r in zip(groups, roots, strict=False)], dim=-1))
    return torch.cat(found, dim=2)


def in_groups(values: Tensor, group_size: int) -> list[Tensor]:
    """(..., C) as (..., G, g) whole groups and, where some columns are left, (..., 1, rest)."""
    whole = values.shape[-1] - values.shape[-1] % group_size
    groups = [values[..., :whole].unflatten(-1, (-1, group_size))] if whole else []
    return [*groups, values[..., whole:].unsqueeze(-2)] if whole < values.shape[-1] else groups


def _in_rows(weight_ENC: Tensor) -> Iterator[Tensor]:
    experts, _, columns = weight_ENC.shape
    elements = _CPU_ELEMENTS if weight_ENC.device.type == "cpu" else _GPU_ELEMENTS
    for part in weight_ENC.split(max(1, elements // (experts * columns)), dim=1):
        yield part.float()


def _rounded(
    weight: Tensor, bits: tuple[int, ...], group_size: int, weight_P: tuple[float, ...], unbiased: bool
) -> tuple[Tensor, Tensor]:
    codes, scales = [], []
    kept_PEN = weight.new_zeros(len(bits), *weight.shape[:2])
    for groups in in_groups(weight, group_size):
        searched = _searched(groups, None, bits, weight_P).unsqueeze(-1)
        code = nearest_codes([groups] * len(bits), searched, bits, weight_P)
        fitted = [_fitted(centred(code, bits[-1], b), groups) for b in bits]
        kept_PEN += torch.stack([(along * scale).sum(-1) for scale, along in fitted])
        scales.append(torch.stack([scale for scale, _ in fitted]))
        codes.append(code.to(torch.uint8).flatten(-2))
    scale_PENG = torch.cat(scales, dim=-1)
    if unbiased:
        scale_PENG = scale_PENG * gain(square_sum(weight), kept_PEN).unsqueeze(-1)
    return torch.cat(codes, dim=-1), scale_PENG


def _fitted(code: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scale of least squares of each group, and the product of codes and weights that it comes from."""
    along = (code * weight).sum(-1)
    return along / square_sum(code).clamp_min(_TINY), along


def _searched(groups: Tensor, root: Tensor | None, bits: tuple[int, ...], weight_P: tuple[float, ...]) -> Tensor:
    """(P, E, N, G) scales of (E, N, G, g) weights, with the roots (E, 1, G, g) of their importance."""
    search = _Search(groups, root, bits, weight_P)
    least = _LEAST_RANGE[bits[-1]]
    for clipping in (least, (1 + least) / 2, 1.0):
        search.try_ranges(torch.full_like(search.clipping, clipping))
    for step in ((1 - least) / 4, (1 - least) / 8):
        narrower, wider = search.clipping - step, search.clipping + step
        search.try_ranges(narrower)
        search.try_ranges(wider)
    return search.scale_P


class _Search:
    """The best range of each group so far, and the scales that follow from it.

    Codes lie symmetrically around 0: sizes are rounded, signs left out.
    """

    def __init__(self, groups: Tensor, root: Tensor | None, bits: tuple[int, ...], weight_P: tuple[float, ...]) -> None:
        self._size, self._root, self._bits, self._weight_P = groups.abs(), root, bits, weight_P
        self._largest = self._size.amax(dim=-1)
        self._weighed = self._size if root is None else self._size * root
        self._least = torch.full_like(self._largest, float("inf"))
        self.clipping = torch.ones_like(self._largest)
        self.scale_P = self._largest.new_zeros(len(bits), *self._largest.shape)

    def try_ranges(self, clipping: Tensor) -> None:
        """Codes over `clipping` times the largest weight of each group; kept where they miss less."""
        cost, scales = torch.zeros_like(self._least), []
        for bits, weight in zip(self._bits, self._weight_P, strict=True):
            code = self._codes(bits, clipping)
            scale, along = _fitted(code, self._weighed)
            if self._bits == (8,):  # so little is missed that it would drown in the sums
                cost = square_sum(code.mul_(scale.unsqueeze(-1)).sub_(self._weighed))
            else:
                cost -= weight * along * scale  # what is missed, but for the squares of the weights
            scales.append(scale)
        better = cost < self._least
        self._least = torch.where(better, cost, self._least)
        self.clipping = torch.where(better, clipping, self.clipping)
        self.scale_P = torch.where(better, torch.stack(scales), self.scale_P)

    def _codes(self, bits: int, clipping: Tensor) -> Tensor:
        half = 2 ** (bits - 1)
        per_step = (half / (clipping * self._largest).clamp_min_(_TINY)).unsqueeze(-1)
        code: Tensor = (self._size * per_step).floor_().clamp_(max=half - 1).add_(0.5)
        return code if self._root is None else code.mul_(self._root)
