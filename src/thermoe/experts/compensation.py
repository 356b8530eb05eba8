"""Codes chosen column by column so that later columns make up for the errors of earlier ones.

Two searches over the same objective, the squared error of the outputs summed over the precisions that a code
is read at: one sweep that pushes each column's error onto the columns not yet rounded (Frantar et al. 2022,
arXiv 2210.17323, here for several precisions at once), and sweeps of coordinate descent that start from given codes.

Both go through the columns one by one, so they hold weights with the columns first: a column of all rows and
precisions lies together.

Shapes: E experts, N rows, C columns, B columns of a block, G groups, P precisions.
"""

import torch
from torch import Tensor

from thermoe.experts.codes import levels, nearest_codes

_BLOCK = 64  # columns updated at once; within a block every column at its turn
_DAMPING = 0.01  # of the mean diagonal


def compensated_codes(
    weight_ENC: Tensor,
    moment_ECC: Tensor,
    scale_PENG: Tensor,
    bits: tuple[int, ...],
    group_size: int,
    weight_P: tuple[float, ...],
) -> Tensor:
    """(E, N, C) uint8 codes from one sweep, the columns with the strongest inputs first."""
    experts, rows, columns = weight_ENC.shape
    moment = damped(moment_ECC)
    order_EC = moment.diagonal(dim1=1, dim2=2).argsort(dim=-1, descending=True)
    moment = moment.gather(1, order_EC.unsqueeze(2).expand_as(moment))
    moment = moment.gather(2, order_EC.unsqueeze(1).expand_as(moment))
    order_ECN = order_EC.unsqueeze(2).expand(-1, -1, rows)
    weight_ECN = weight_ENC.transpose(1, 2).gather(1, order_ECN)
    wished = weight_ECN.unsqueeze(2).repeat(1, 1, len(bits), 1)  # (E, C, P, N)
    scale_EGPN, group_EC = scale_PENG.permute(1, 3, 0, 2), order_EC // group_size
    push, expert_E = _push(moment), torch.arange(experts, device=moment.device)
    code = torch.empty_like(weight_ECN, dtype=torch.uint8)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        missed = wished.new_empty(experts, end - start, len(bits), rows)
        for j in range(start, end):
            scale_P = scale_EGPN[expert_E, group_EC[:, j]].unbind(1)
            code_EN = nearest_codes(wished[:, j].unbind(1), scale_P, bits, weight_P)
            torch.sub(wished[:, j], levels(code_EN, scale_P, bits).transpose(0, 1), out=missed[:, j - start])
            _spread(wished[:, j + 1 : end], missed[:, j - start], push[:, j, j + 1 : end], -1.0)
            code[:, j] = code_EN
        _spread_block(wished[:, end:], missed, push[:, start:end, end:], -1.0)
    return torch.empty_like(code).scatter_(1, order_ECN, code).transpose(1, 2)


def descended_codes(
    weight_ENC: Tensor,
    moment_ECC: Tensor,
    scale_PENG: Tensor,
    code_ENC: Tensor,
    bits: tuple[int, ...],
    group_size: int,
    weight_P: tuple[float, ...],
) -> Tensor:
    """(E, N, C) uint8 codes after each column in turn took its best code given all others."""
    experts, rows, columns = weight_ENC.shape
    moment = damped(moment_ECC)
    inverse_EC = moment.diagonal(dim1=1, dim2=2).reciprocal()
    scale_GPEN = scale_PENG.permute(3, 0, 1, 2)
    code = code_ENC.transpose(1, 2).contiguous()
    group_C = torch.arange(columns, device=code.device) // group_size
    scale_PECN = scale_PENG.permute(0, 1, 3, 2)[:, :, group_C]
    value = levels(code, scale_PECN, bits).permute(1, 2, 0, 3).contiguous()  # (E, C, P, N)
    missed = weight_ENC.transpose(1, 2).unsqueeze(2) - value
    pull = (moment @ missed.flatten(2)).view_as(value)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        moved = value.new_empty(experts, end - start, len(bits), rows)
        for j in range(start, end):
            wished = torch.addcmul(value[:, j], pull[:, j], inverse_EC[:, j].view(-1, 1, 1))
            scale_P = scale_GPEN[j // group_size]
            code_EN = nearest_codes(wished.unbind(1), scale_P, bits, weight_P)
            torch.sub(value[:, j], levels(code_EN, scale_P, bits).transpose(0, 1), out=moved[:, j - start])
            _spread(pull[:, j + 1 : end], moved[:, j - start], moment[:, j, j + 1 : end], 1.0)
            code[:, j] = code_EN
        _spread_block(pull[:, end:], moved, moment[:, start:end, end:], 1.0)
    return code.transpose(1, 2)


def damped(moment_ECC: Tensor) -> Tensor:
    """The moment with a small multiple of its mean diagonal added to the diagonal."""
    mean_E = moment_ECC.diagonal(dim1=1, dim2=2).mean(dim=-1).clamp_min(1e-30)
    return moment_ECC + torch.diag_embed((_DAMPING * mean_E).unsqueeze(-1).expand(-1, moment_ECC.shape[-1]))


def _push(moment_ECC: Tensor) -> Tensor:
    """(E, C, C) share of each column's error that every later column takes away from what it wishes for.

    Rows of the upper factor of the inverse moment over their diagonal. That factor is the inverse of the moment's
    own upper factor, which comes from the lower one of the reversed moment.
    """
    lower = torch.linalg.cholesky(moment_ECC.double().flip(1, 2))
    unit = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    upper = torch.linalg.solve_triangular(lower.flip(1, 2), unit, upper=True)
    push: Tensor = (upper / upper.diagonal(dim1=1, dim2=2).unsqueeze(-1)).float()
    return push


def _spread(onto_EBPN: Tensor, error_EPN: Tensor, share_EB: Tensor, sign: float) -> None:
    """Adds one column's error to others of its block."""
    onto_EBPN.addcmul_(error_EPN.unsqueeze(1), share_EB.unsqueeze(2).unsqueeze(3), value=sign)


def _spread_block(onto_ECPN: Tensor, error_EBPN: Tensor, share_EBC: Tensor, sign: float) -> None:
    """Adds the errors of a block to all columns behind it."""
    if onto_ECPN.shape[1]:
        onto_ECPN.flatten(2).baddbmm_(share_EBC.transpose(1, 2), error_EBPN.flatten(2), alpha=sign)
