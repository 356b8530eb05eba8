"""The expert MLP in plain PyTorch, a loop over experts: the readable truth, and what runs on a CPU.

Shapes: T tokens, K experts per token, E experts, D model width, I expert width, R rows of one expert.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from thermoe.kernels.expert_mlp.planes import dequantize
from thermoe.kernels.expert_mlp.weights import (
    Activation,
    DenseMatrices,
    ExpertWeights,
    Fp8Matrices,
    Matrices,
    PlaneMatrices,
)

CLAMP, CLAMPED_SLOPE = 7.0, 1.702


def expert_mlp_reference(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Sum of each token's experts, weighted; a slot with an id outside 0..E-1 or a weight of 0 contributes nothing.

    Args:
        x_TD: (T, D) tokens.
        ids_TK, weights_TK: (T, K) experts and their weights.
        experts: of any format.
        dtype: of all arithmetic; nothing is rounded to x's dtype on the way.

    Returns:
        (T, D) of `dtype`.
    """
    out_TD = x_TD.new_zeros(x_TD.shape, dtype=dtype)
    for expert in range(experts.num_experts):
        token_R, slot_R = ((ids_TK == expert) & (weights_TK != 0)).nonzero(as_tuple=True)
        if token_R.numel():
            y_RD = one_expert(x_TD[token_R].to(dtype), expert, experts)
            out_TD.index_add_(0, token_R, y_RD * weights_TK[token_R, slot_R].to(dtype).unsqueeze(-1))
    return out_TD


def one_expert(x_RD: Tensor, expert: int, experts: ExpertWeights) -> Tensor:
    """(R, D) the MLP of one expert, in the dtype of x."""
    hidden_RI = _linear(x_RD, expert, experts.fc1, experts.bias1_EN, experts.bits_E)
    return _linear(activate(hidden_RI, experts.activation), expert, experts.fc2, experts.bias2_ED, experts.bits_E)


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """What lies between the two matrices, over the last dimension: 2 I to I where gated."""
    if not activation.gated:
        plain: Tensor = _PLAIN[activation](hidden)
        return plain
    gate, up = hidden.chunk(2, dim=-1)
    if activation is Activation.SWIGLU_CLAMPED:
        gate = gate.clamp(max=CLAMP)
        return (up.clamp(-CLAMP, CLAMP) + 1) * gate * torch.sigmoid(CLAMPED_SLOPE * gate)
    if activation is Activation.GEGLU:
        return _gelu(gate) * up
    return nn_functional.silu(gate) * up


def select_expert(matrices: Matrices, expert: int) -> Matrices:
    """The same format with one expert alone (views)."""
    one = slice(expert, expert + 1)
    if isinstance(matrices, DenseMatrices):
        return DenseMatrices(weight_ENC=matrices.weight_ENC[one])
    if isinstance(matrices, Fp8Matrices):
        return Fp8Matrices(code_ENC=matrices.code_ENC[one], scale=matrices.scale[one])
    zero_PEGN = None if matrices.zero_PEGN is None else matrices.zero_PEGN[:, one]
    planes = tuple(plane[one] for plane in matrices.planes)
    return replace(matrices, planes=planes, scale_PEGN=matrices.scale_PEGN[:, one], zero_PEGN=zero_PEGN)


def _linear(x_RC: Tensor, expert: int, matrices: Matrices, bias_EN: Tensor | None, bits_E: Tensor | None) -> Tensor:
    bits = None if bits_E is None or not isinstance(matrices, PlaneMatrices) else bits_E[expert : expert + 1]
    weight_NC = dequantize(select_expert(matrices, expert), bits, dtype=x_RC.dtype)[0]
    bias_N = None if bias_EN is None else bias_EN[expert].to(x_RC.dtype)
    return nn_functional.linear(x_RC, weight_NC, bias_N)


def _gelu(x: Tensor) -> Tensor:
    return nn_functional.gelu(x, approximate="tanh")


_PLAIN: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: nn_functional.relu,
    Activation.GELU: _gelu,
    Activation.SILU: nn_functional.silu,
}
