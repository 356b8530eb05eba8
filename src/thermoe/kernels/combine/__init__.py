"""K4, combine: each token's expert outputs, weighted and summed."""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.combine.reference import combine_reference

__all__ = ["combine", "combine_reference"]

_IDS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def combine(y_ND: Tensor, weights_TK: Tensor, ids_TK: Tensor, num_experts: int, out_TD: Tensor | None = None) -> Tensor:
    """Sum each token's expert outputs by its weights, accumulated in float32 in the order of its slots.

    Args:
        y_ND: (T * K, D) outputs; row t * K + k belongs to slot k of token t. Rows of dropped slots are never read.
        weights_TK: (T, K) weights; 0 drops the slot.
        ids_TK: (T, K) experts; an id outside 0..E-1 drops the slot.
        num_experts: E.
        out_TD: (T, D) where the result goes, contiguous; a new tensor of y's dtype if None.

    Returns:
        (T, D).

    Raises:
        ConfigError: shapes, types or devices that do not fit.
    """
    _check(y_ND, weights_TK, ids_TK, num_experts, out_TD)
    if out_TD is None:
        out_TD = y_ND.new_empty(ids_TK.shape[0], y_ND.shape[1])
    if not y_ND.is_cuda or not ids_TK.numel():
        return out_TD.copy_(combine_reference(y_ND, weights_TK, ids_TK, num_experts))
    if out_TD.numel():
        from thermoe.kernels.combine.triton import combine_triton

        combine_triton(y_ND.contiguous(), weights_TK.contiguous(), ids_TK.contiguous(), num_experts, out_TD)
    return out_TD


def _check(y_ND: Tensor, weights_TK: Tensor, ids_TK: Tensor, num_experts: int, out_TD: Tensor | None) -> None:
    if ids_TK.ndim != 2 or weights_TK.shape != ids_TK.shape or y_ND.ndim != 2 or y_ND.shape[0] != ids_TK.numel():
        raise ConfigError(
            f"rows {tuple(y_ND.shape)}, weights {tuple(weights_TK.shape)} and ids {tuple(ids_TK.shape)}: needed "
            "(tokens * experts per token, width) and twice (tokens, experts per token)"
        )
    if ids_TK.dtype not in _IDS or not weights_TK.is_floating_point() or not y_ND.is_floating_point():
        raise ConfigError(
            f"rows of {y_ND.dtype}, weights of {weights_TK.dtype}, ids of {ids_TK.dtype}: give floats, floats, integers"
        )
    if not isinstance(num_experts, int) or num_experts < 1:
        raise ConfigError(f"num_experts = {num_experts!r}: needed a whole number, 1 or more")
    devices = {str(tensor.device) for tensor in (y_ND, weights_TK, ids_TK)}
    if len(devices) > 1:
        raise ConfigError(f"rows, weights and ids lie on {', '.join(sorted(devices))}: move all to one device")
    wanted = (ids_TK.shape[0], y_ND.shape[1])
    if out_TD is None:
        return
    fits = out_TD.shape == wanted and out_TD.device == y_ND.device and out_TD.is_contiguous()
    if not fits or not out_TD.is_floating_point():
        raise ConfigError(
            f"output of shape {tuple(out_TD.shape)}, {out_TD.dtype} on {out_TD.device}: needs {wanted}, floating point "
            f"on {y_ND.device}, contiguous"
        )
