"""Codes chosen column by column so that later columns make up for the errors of earlier ones.

Two searches over the same objective, the squared error of the outputs summed over the precisions that a code
is read at: one sweep that pushes each column's error onto the columns not yet rounded (Frantar et al. 2022,
arXiv 2210.17323, here for several precisions at once), and sweeps of coordinate descent that start from given codes.

Shapes: E experts, N rows, C columns, G groups, P precisions.
"""

import torch
from torch import Tensor

from thermoe.experts.codes import levels, nearest_codes
from thermoe.kernels.expert_mlp.planes import per_column

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
    _, rows, columns = weight_ENC.shape
    moment = damped(moment_ECC.double())
    order_EC = moment.diagonal(dim1=1, dim2=2).argsort(dim=-1, descending=True)
    moment = moment.gather(1, order_EC.unsqueeze(2).expand_as(moment))
    moment = moment.gather(2, order_EC.unsqueeze(1).expand_as(moment))
    order_ENC = order_EC.unsqueeze(1).expand(-1, rows, -1)
    scale = per_column(scale_PENG, group_size, columns)
    scale = scale.gather(3, order_ENC.expand_as(scale))
    wished = weight_ENC.gather(2, order_ENC).expand(len(bits), -1, -1, -1).clone()
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True).float()
    code = torch.empty_like(weight_ENC, dtype=torch.uint8)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = wished.new_empty(*wished.shape[:3], end - start)
        for j in range(start, end):
            code[..., j] = nearest_codes(wished[..., j], scale[..., j], bits, weight_P)
            missed = wished[..., j] - levels(code[..., j], scale[..., j], bits)
            errors[..., j - start] = missed / spread[:, j, j].unsqueeze(-1)
            wished[..., j:end] -= errors[..., j - start].unsqueeze(-1) * spread[:, j, j:end].unsqueeze(1)
        wished[..., end:] -= errors @ spread[:, start:end, end:]
    return torch.empty_like(code).scatter_(2, order_ENC, code)


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
    columns = weight_ENC.shape[-1]
    moment = damped(moment_ECC)
    scale = per_column(scale_PENG, group_size, columns)
    value = levels(code_ENC, scale, bits)
    pull = (weight_ENC - value) @ moment
    code = code_ENC.clone()
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        moved = value.new_empty(*value.shape[:3], end - start)
        for j in range(start, end):
            wished = value[..., j] + pull[..., j] / moment[:, j, j].unsqueeze(-1)
            code[..., j] = nearest_codes(wished, scale[..., j], bits, weight_P)
            moved[..., j - start] = value[..., j] - levels(code[..., j], scale[..., j], bits)
            pull[..., start:end] += moved[..., j - start].unsqueeze(-1) * moment[:, j, start:end].unsqueeze(1)
        pull[..., end:] += moved @ moment[:, start:end, end:]
    return code


def damped(moment_ECC: Tensor) -> Tensor:
    """The moment with a small multiple of its mean diagonal added to the diagonal."""
    mean_E = moment_ECC.diagonal(dim1=1, dim2=2).mean(dim=-1).clamp_min(1e-30)
    return moment_ECC + torch.diag_embed((_DAMPING * mean_E).unsqueeze(-1).expand(-1, moment_ECC.shape[-1]))
