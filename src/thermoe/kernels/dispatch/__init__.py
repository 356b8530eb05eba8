"""The dispatch plan: which slots each expert computes, in one permutation."""

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.dispatch.reference import DispatchPlan, dispatch_plan_reference

__all__ = ["DispatchPlan", "dispatch_plan", "dispatch_plan_reference"]

MOST_EXPERTS = 1 << 15
"""Beyond it a block of the plan does not fit a Triton program."""
_IDS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def dispatch_plan(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> DispatchPlan:
    """Order the slots by expert, stable within an expert, dropped slots last; never waits for the host.

    A slot is dropped when its weight is exactly 0 or its id is outside 0..num_experts - 1. The same
    input gives the same plan, bit for bit, on every device.

    Args:
        ids_TK: (T, K) integer expert ids.
        weights_TK: (T, K) weights of the slots, floating point.
        num_experts: number of experts (E), 1 to `MOST_EXPERTS`.

    Raises:
        ConfigError: shapes, types or devices that do not fit.
    """
    _check(ids_TK, weights_TK, num_experts)
    if not ids_TK.is_cuda:
        return dispatch_plan_reference(ids_TK, weights_TK, num_experts)
    from thermoe.kernels.dispatch.op import dispatch_plan_op

    slot_N, offsets_E1 = dispatch_plan_op(ids_TK, weights_TK, num_experts)
    return DispatchPlan(slot_N=slot_N, offsets_E1=offsets_E1)


def _check(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> None:
    if ids_TK.ndim != 2 or weights_TK.shape != ids_TK.shape:
        raise ConfigError(
            f"dispatch plan of ids {tuple(ids_TK.shape)} and weights {tuple(weights_TK.shape)}: "
            "needed two of one shape (tokens, experts per token)"
        )
    if ids_TK.dtype not in _IDS or not weights_TK.is_floating_point():
        raise ConfigError(
            f"dispatch plan of {ids_TK.dtype} ids and {weights_TK.dtype} weights: "
            "needed integers and floating-point numbers"
        )
    if ids_TK.device != weights_TK.device:
        raise ConfigError(
            f"dispatch plan of ids on {ids_TK.device} and weights on {weights_TK.device}: move both to one device"
        )
    whole = isinstance(num_experts, int)
    if not whole or not 1 <= num_experts <= MOST_EXPERTS or ids_TK.numel() >= 2**31:
        raise ConfigError(
            f"dispatch plan of {ids_TK.numel()} slots for {num_experts!r} experts: needed 1 to {MOST_EXPERTS} experts "
            "and fewer than 2**31 slots"
        )
