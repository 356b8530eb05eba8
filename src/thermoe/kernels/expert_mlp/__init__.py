"""K1, K2: the MLP of the experts, fused with reading their weights at 16, 8, 4 or 2 bits.

Shapes: T tokens, K experts per token, E experts, D model width, I expert width.
"""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.dispatch import DispatchPlan
from thermoe.kernels.expert_mlp.checks import check_experts, check_plan, check_tokens
from thermoe.kernels.expert_mlp.op import expert_mlp_op, flatten
from thermoe.kernels.expert_mlp.planes import dequantize, pack, unpack
from thermoe.kernels.expert_mlp.reference import expert_mlp_reference
from thermoe.kernels.expert_mlp.weights import (
    Activation,
    DenseMatrices,
    ExpertWeights,
    Fp8Matrices,
    Matrices,
    PlaneMatrices,
)

__all__ = [
    "Activation",
    "DenseMatrices",
    "ExpertWeights",
    "Fp8Matrices",
    "Matrices",
    "PlaneMatrices",
    "dequantize",
    "expert_mlp",
    "expert_mlp_reference",
    "pack",
    "unpack",
]


def expert_mlp(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    *,
    plan: DispatchPlan | None = None,
    out_TD: Tensor | None = None,
) -> Tensor:
    """Send each token through its experts and sum their outputs by its weights.

    Accumulates in float32; between the two products the hidden values are rounded to x's dtype. A slot with an id
    outside 0..E-1 or a weight of exactly 0 contributes nothing and reads nothing. The same input gives the same
    output, bit for bit. Never waits for the host; torch.compile and CUDA graphs take it as one node. Autograd does not
    follow it: the result carries no gradient, whatever the inputs ask for.

    Args:
        x_TD: (T, D) tokens: bf16, f16 or float32; that of dense weights, if these are dense.
        ids_TK: (T, K) int32 or int64 experts.
        weights_TK: (T, K) floating-point weights.
        experts: of one layer, on the same device.
        plan: the dispatch plan of `ids_TK` and `weights_TK`, where it is there already.
        out_TD: (T, D) where the result goes, not the tokens themselves; a new tensor if None.

    Returns:
        (T, D) in x's dtype.

    Raises:
        ConfigError: shapes, dtypes, strides or devices that do not fit.
    """
    check_experts(experts)
    check_tokens(x_TD, ids_TK, weights_TK, experts)
    check_plan(plan, ids_TK, experts.num_experts)
    _check_memory(x_TD, ids_TK, weights_TK, experts, plan, out_TD)
    if out_TD is None:
        out_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    if x_TD.shape[0] == 0:
        return out_TD
    expert_mlp_op(out_TD, x_TD.contiguous(), ids_TK.contiguous(), weights_TK.contiguous(), *flatten(experts, plan))
    return out_TD


def _check_memory(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights,
    plan: DispatchPlan | None,
    out_TD: Tensor | None,
) -> None:
    fc1, fc2, extras, _ = flatten(experts, plan)
    parts = [*fc1, *fc2, *extras]
    devices = {str(tensor.device) for tensor in (x_TD, ids_TK, weights_TK, *parts)}
    if len(devices) > 1:
        raise ConfigError(f"tokens, routing and experts lie on {', '.join(sorted(devices))}: move all to one device")
    if not all(part.is_contiguous() for part in parts):
        raise ConfigError("an expert tensor is not contiguous: call contiguous() when the layer is built")
    if out_TD is x_TD:
        raise ConfigError("the output is the tokens, which are still read while it is written: give another tensor")
    if out_TD is not None and (
        out_TD.shape != x_TD.shape
        or out_TD.dtype != x_TD.dtype
        or out_TD.device != x_TD.device
        or not out_TD.is_contiguous()
    ):
        raise ConfigError(
            f"output of shape {tuple(out_TD.shape)}, {out_TD.dtype} on {out_TD.device}: needs "
            f"{tuple(x_TD.shape)}, {x_TD.dtype} on {x_TD.device}, contiguous"
        )
