"""Scales of groups: the least-squares fit to given codes under a moment, and the correction of the gain.

Shapes: E experts, N rows, C columns, G groups of g columns, P precisions. A moment is the second moment of
the inputs of a matrix, (E, C, C): the squared error of its outputs is `r' M r` for an error r of a row.
"""

import torch
from torch import Tensor

from thermoe.experts.codes import centred

_RIDGE = 1e-2  # holds the least-squares scales near those they start from
_FLOOR = 1e-4  # of the codes' own square: inputs that all point one way say nothing of a group that they cancel in
_GAIN_BOUNDS = (0.8, 1.25)
_TINY = 1e-30


def refitted_scales(
    through_ENC: Tensor,
    moment_ECC: Tensor,
    code_ENC: Tensor,
    bits: tuple[int, ...],
    group_size: int,
    scale_PENG: Tensor,
) -> Tensor:
    """Least-squares scales of all groups of a row at once, given the codes: (P, E, N, G).

    Args:
        through_ENC: Weights times the moment.
        moment_ECC: The moment.
        code_ENC: Codes of `bits[-1]` bits.
        bits: Precisions.
        group_size: Columns that share a scale.
        scale_PENG: Scales that the fitted ones are held near to.
    """
    padding = scale_PENG.shape[-1] * group_size - through_ENC.shape[-1]
    moment = torch.nn.functional.pad(moment_ECC, (0, padding, 0, padding))
    wished = _padded_groups(through_ENC, group_size)
    fitted = []
    for precision, b in enumerate(bits):
        places = _padded_groups(centred(code_ENC, bits[-1], b), group_size)
        right = (places * wished).sum(-1)
        left = _gram(places, moment)
        along = left.diagonal(dim1=-2, dim2=-1)
        ridge = torch.maximum(_RIDGE * along, _FLOOR * square_sum(places)) + _TINY
        left = left + torch.diag_embed(ridge)
        right = right + ridge * scale_PENG[precision]
        fitted.append(torch.linalg.solve(left, right.unsqueeze(-1)).squeeze(-1))
    return torch.stack(fitted)


def _gram(places: Tensor, moment: Tensor) -> Tensor:
    """(E, N, G, G) of `c_g' M_gh c_h`, one group of columns at a time; the moment is symmetric."""
    experts, rows, groups, group_size = places.shape
    result = places.new_empty(experts, rows, groups, groups)
    for group in range(groups):
        begin = group * group_size
        through = places[:, :, group] @ moment[:, begin : begin + group_size, begin:]
        along = (through.unflatten(-1, (-1, group_size)) * places[:, :, group:]).sum(-1)
        result[:, :, group, group:] = result[:, :, group:, group] = along
    return result


def gain_corrected(weight_ENC: Tensor, through_ENC: Tensor, value_PENC: Tensor, scale_PENG: Tensor) -> Tensor:
    """Scales multiplied, row by row, so that the error is uncorrelated with the exact output; see `gain`."""
    return scale_PENG * gain((through_ENC * weight_ENC).sum(-1), (through_ENC * value_PENC).sum(-1)).unsqueeze(-1)


def gain(exact_EN: Tensor, kept_PEN: Tensor) -> Tensor:
    """(P, E, N) factor between the exact outputs' square and their product with what the codes give.

    The scales of least error are too small: what cannot be represented is replaced by its mean, and outputs shrink
    by the share of the error. A shrunken output is the same mistake for every token and in every layer, while the
    rest of the error averages out over experts and tokens, so the shrinking costs far more perplexity.
    """
    ratio = exact_EN / kept_PEN.clamp_min(_TINY)
    return torch.where(kept_PEN > _TINY, ratio, 1.0).clamp(*_GAIN_BOUNDS)


def square_sum(values: Tensor) -> Tensor:
    """(...) squares of the last dimension, summed."""
    length: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return length.square_()


def _padded_groups(values: Tensor, group_size: int) -> Tensor:
    """(..., C) as (..., G, g), filled up with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % group_size))
    groups: Tensor = padded.unflatten(-1, (-1, group_size))
    return groups
