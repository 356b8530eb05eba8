"""Scales of groups: the clipping search, the least-squares fit to given codes, and the correction of the gain.

Shapes: E experts, N rows, C columns, G groups of g columns, P precisions. A moment is the second moment of
the inputs of a matrix, (E, C, C): the squared error of its outputs is `r' M r` for an error r of a row.
"""

import torch
from torch import Tensor

from thermoe.experts.codes import middle, truncated

_CLIPPING = torch.linspace(0.45, 1.05, 25).tolist()  # range of the codes over the largest weight of a group
_RIDGE = 1e-2  # holds the least-squares scales near those they start from
_GAIN_BOUNDS = (0.8, 1.25)
_TINY = 1e-30


def clipped_scales(
    weight_ENC: Tensor, importance_EC: Tensor, bits: tuple[int, ...], group_size: int, weight_P: tuple[float, ...]
) -> Tensor:
    """Scales that minimise the squared error of rounding to nearest, weighted by column and by precision.

    Tries a grid of ranges for the cells of the codes; for each, every precision's own scale follows by least
    squares.

    Returns:
        (P, E, N, G) float32; 0 where all weights of a group are 0.
    """
    weight = in_groups(weight_ENC, group_size)
    importance = in_groups(importance_EC, group_size).unsqueeze(1)
    largest = weight.abs().amax(dim=-1)
    held, cells = bits[-1], min(bits[-1], 4) if len(bits) > 1 else bits[-1]
    best = torch.full_like(largest, float("inf"))
    scale_P = largest.new_zeros(len(bits), *largest.shape)
    for clipping in _CLIPPING:
        step = (clipping * largest / 2 ** (cells - 1) / 2 ** (held - cells)).clamp_min(_TINY).unsqueeze(-1)
        code = (weight / step + 2 ** (held - 1)).floor().clamp(0, 2**held - 1).to(torch.uint8)
        cost, tried = torch.zeros_like(best), []
        for precision, b in enumerate(bits):
            centred = truncated(code, held, b).float() - middle(b)
            scale = (importance * centred * weight).sum(-1) / (importance * centred.square()).sum(-1).clamp_min(_TINY)
            error = weight - centred * scale.unsqueeze(-1)
            cost += weight_P[precision] * (importance * error.square()).sum(-1)
            tried.append(scale)
        better = cost < best
        best = torch.where(better, cost, best)
        scale_P = torch.where(better, torch.stack(tried), scale_P)
    return scale_P


def refitted_scales(
    weight_ENC: Tensor, moment_ECC: Tensor, code_ENC: Tensor, bits: tuple[int, ...], group_size: int, scale_PENG: Tensor
) -> Tensor:
    """Least-squares scales of all groups of a row at once, given the codes: (P, E, N, G)."""
    groups = scale_PENG.shape[-1]
    padding = groups * group_size - weight_ENC.shape[-1]
    moment = torch.nn.functional.pad(moment_ECC, (0, padding, 0, padding))
    wished = in_groups(weight_ENC @ moment_ECC, group_size)
    fitted = []
    for precision, b in enumerate(bits):
        centred = in_groups(truncated(code_ENC, bits[-1], b).float() - middle(b), group_size)
        right = (centred * wished).sum(-1)
        left = _gram(centred, moment)
        diagonal = left.diagonal(dim1=-2, dim2=-1)
        ridge = _RIDGE * diagonal + _TINY
        left = left + torch.diag_embed(ridge)
        right = right + ridge * scale_PENG[precision]
        fitted.append(torch.linalg.solve(left, right.unsqueeze(-1)).squeeze(-1))
    return torch.stack(fitted)


def _gram(centred: Tensor, moment: Tensor) -> Tensor:
    """(E, N, G, G) of `c_g' M_gh c_h`, one group of columns at a time."""
    experts, rows, groups, group_size = centred.shape
    result = centred.new_empty(experts, rows, groups, groups)
    for group in range(groups):
        columns = slice(group * group_size, (group + 1) * group_size)
        through = (centred[:, :, group] @ moment[:, columns]).view(experts, rows, groups, group_size)
        result[:, :, group] = (through * centred).sum(-1)
    return result


def gain_corrected(weight_ENC: Tensor, moment_ECC: Tensor | None, value_PENC: Tensor, scale_PENG: Tensor) -> Tensor:
    """Scales multiplied, row by row, so that the error is uncorrelated with the exact output.

    The scales of least error are too small: what cannot be represented is replaced by its mean, and outputs shrink
    by the share of the error. A shrunken output is the same mistake for every token and in every layer, while the
    rest of the error averages out over experts and tokens, so the shrinking costs far more perplexity.
    """
    through = weight_ENC if moment_ECC is None else weight_ENC @ moment_ECC
    exact_EN = (through * weight_ENC).sum(-1)
    kept_PEN = (through * value_PENC).sum(-1)
    usable = kept_PEN > _TINY
    gain = torch.where(usable, exact_EN / kept_PEN.clamp_min(_TINY), 1.0).clamp(*_GAIN_BOUNDS)
    return scale_PENG * gain.unsqueeze(-1)


def in_groups(values: Tensor, group_size: int) -> Tensor:
    """(..., C) as (..., G, g), filled up with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % group_size))
    groups: Tensor = padded.unflatten(-1, (-1, group_size))
    return groups
