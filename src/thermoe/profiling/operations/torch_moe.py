"""The parts of an MoE layer in plain torch: what the operations time under the name of torch, and float64 truths.

Shapes: T tokens, k slots per token, R routed rows, E experts, D model width, I expert width.
"""

import torch
from torch import Tensor
from torch.nn import functional as nn_functional


def expert_mlp_reference(x_RD: Tensor, expert_R: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    """SwiGLU of every row by its expert, in float64; the first half of H = 2I is the gate."""
    out_RD = torch.zeros_like(x_RD, dtype=torch.float64)
    for expert in expert_R.unique():
        rows = (expert_R == expert).nonzero().squeeze(1)
        gate, up = (x_RD[rows].double() @ gate_up_EHD[expert].double().T).chunk(2, dim=-1)
        out_RD[rows] = (nn_functional.silu(gate) * up) @ down_EDI[expert].double().T
    return out_RD


def swiglu(h_RH: Tensor) -> Tensor:
    """silu(gate) * up, (R, 2I) to (R, I)."""
    gate, up = h_RH.chunk(2, dim=-1)
    return nn_functional.silu(gate) * up


def grouped_mm(x_RK: Tensor, weight_EKN: Tensor, offs_E: Tensor) -> Tensor:
    """torch's grouped matrix product under whichever name this release has."""
    if hasattr(nn_functional, "grouped_mm"):
        return nn_functional.grouped_mm(x_RK, weight_EKN, offs=offs_E)
    return torch._grouped_mm(x_RK, weight_EKN, offs=offs_E)


def grouped_linear(x_RC: Tensor, weight_ENC: Tensor, ids_R: Tensor, offs_E: Tensor) -> Tensor:
    """Each row by its expert's matrix, rows in expert order: (R, C) to (R, N)."""
    return grouped_mm(x_RC, weight_ENC.transpose(-2, -1), offs_E)


def batched_linear(x_RC: Tensor, weight_ENC: Tensor, ids_R: Tensor, offs_E: Tensor) -> Tensor:
    """The same by gathering the weights of every row."""
    return torch.bmm(weight_ENC[ids_R], x_RC.unsqueeze(-1)).squeeze(-1)


def looped_linear(x_RC: Tensor, weight_ENC: Tensor, ids_R: Tensor, offs_E: Tensor) -> Tensor:
    """The same, one expert after the other; waits for the device."""
    out_RN, start = x_RC.new_empty(x_RC.shape[0], weight_ENC.shape[1]), 0
    for expert, end in enumerate(offs_E.tolist()):
        if end > start:
            out_RN[start:end] = x_RC[start:end] @ weight_ENC[expert].T
        start = end
    return out_RN


LINEARS = {"grouped_mm": grouped_linear, "batched_mm": batched_linear, "loop": looped_linear}


def dispatch(x_TD: Tensor, ids_R: Tensor, experts_E: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in expert order (R, D), their order (R,) and the end of each expert's rows (E,)."""
    sorted_R, order_R = torch.sort(ids_R)
    offs_E = torch.searchsorted(sorted_R, experts_E, right=True, out_int32=True)
    return x_TD[order_R // top_k], order_R, offs_E


def combine(y_RD: Tensor, order_R: Tensor, gate_TK: Tensor) -> Tensor:
    """Sum each token's rows, weighted by its gates: (R, D) in expert order to (T, D)."""
    rows_RD = torch.empty_like(y_RD)
    rows_RD[order_R] = y_RD
    return (rows_RD.view(*gate_TK.shape, -1) * gate_TK.unsqueeze(-1)).sum(dim=1)
