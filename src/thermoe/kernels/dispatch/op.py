"""The dispatch plan as a torch custom op, so that torch.compile and CUDA graphs take it as one node."""

import torch
from torch import Tensor

from thermoe.kernels.dispatch import cuda


@torch.library.custom_op("thermoe::dispatch_plan", mutates_args=(), device_types="cuda")
def dispatch_plan_op(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """`slot_N` (N,) and `offsets_E1` (E + 1,) of the plan."""
    if not cuda.supports(ids_TK, weights_TK, num_experts):
        from thermoe.kernels.dispatch.triton import dispatch_plan_triton

        return dispatch_plan_triton(ids_TK, weights_TK, num_experts)
    slot_N, offsets_E1 = _outputs(ids_TK, num_experts)
    cuda.run(ids_TK.contiguous(), weights_TK.contiguous(), slot_N, offsets_E1)
    return slot_N, offsets_E1


@dispatch_plan_op.register_fake
def _(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return _outputs(ids_TK, num_experts)


def _outputs(ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    empty = ids_TK.new_empty
    return empty(ids_TK.numel(), dtype=torch.int32), empty(num_experts + 1, dtype=torch.int32)
