"""K1, K2: the MLP of the experts, fused with reading their weights at 16, 8, 4 or 2 bits.

Shapes: T tokens, K experts per token, E experts, D model width, I expert width.
"""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.dispatch import DispatchPlan
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

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
    output, bit for bit. Never waits for the host; torch.compile and CUDA graphs take it as one node.

    Args:
        x_TD: (T, D) tokens: bf16, f16 or float32; that of dense weights, if these are dense.
        ids_TK: (T, K) int32 or int64 experts.
        weights_TK: (T, K) floating-point weights.
        experts: of one layer, on the same device.
        plan: the dispatch plan of `ids_TK` and `weights_TK`, where it is there already.
        out_TD: (T, D) where the result goes; a new tensor if None.

    Returns:
        (T, D) in x's dtype.

    Raises:
        ConfigError: shapes, dtypes, strides or devices that do not fit.
    """
    _check(x_TD, ids_TK, weights_TK, experts, out_TD)
    if out_TD is None:
        out_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    if x_TD.shape[0] == 0:
        return out_TD
    expert_mlp_op(out_TD, x_TD.contiguous(), ids_TK.contiguous(), weights_TK.contiguous(), *flatten(experts, plan))
    return out_TD


def _check(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights, out_TD: Tensor | None) -> None:
    if x_TD.ndim != 2 or x_TD.shape[1] != experts.d_model:
        raise ConfigError(f"tokens of shape {tuple(x_TD.shape)}: these experts need (tokens, {experts.d_model})")
    if x_TD.dtype not in _DTYPES:
        raise ConfigError(f"tokens of {x_TD.dtype}: give bfloat16, float16 or float32")
    dense = [m.weight_ENC.dtype for m in (experts.fc1, experts.fc2) if isinstance(m, DenseMatrices)]
    if any(dtype != x_TD.dtype for dtype in dense):
        raise ConfigError(f"tokens of {x_TD.dtype} for weights of {dense[0]}: give both the same dtype")
    if ids_TK.ndim != 2 or ids_TK.shape[0] != x_TD.shape[0] or weights_TK.shape != ids_TK.shape or not ids_TK.shape[1]:
        raise ConfigError(
            f"ids of shape {tuple(ids_TK.shape)} and weights of shape {tuple(weights_TK.shape)} for "
            f"{x_TD.shape[0]} tokens: both must be (tokens, experts per token)"
        )
    if ids_TK.dtype not in (torch.int32, torch.int64) or not weights_TK.is_floating_point():
        raise ConfigError(f"ids of {ids_TK.dtype} and weights of {weights_TK.dtype}: give integers and floats")
    wanted1 = experts.inter_size * (2 if experts.activation.gated else 1)
    if experts.fc1.shape[1] != wanted1 or experts.fc2.shape[:2] != (experts.num_experts, experts.d_model):
        raise ConfigError(
            f"matrices of shapes {experts.fc1.shape} and {experts.fc2.shape} with {experts.activation}: the first "
            f"needs {wanted1} rows for {experts.inter_size} columns of the second"
        )
    _check_memory(x_TD, ids_TK, weights_TK, experts, out_TD)


def _check_memory(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights, out_TD: Tensor | None
) -> None:
    fc1, fc2, extras, _ = flatten(experts, None)
    parts = [*fc1, *fc2, *extras]
    devices = {str(tensor.device) for tensor in (x_TD, ids_TK, weights_TK, *parts)}
    if len(devices) > 1:
        raise ConfigError(f"tokens, routing and experts lie on {', '.join(sorted(devices))}: move all to one device")
    if not all(part.is_contiguous() for part in parts):
        raise ConfigError("an expert tensor is not contiguous: call contiguous() when the layer is built")
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
