"""The dispatch plan in plain PyTorch.

Shapes: T tokens, K experts per token, N = T * K slots (slot n = t * K + k), E experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DispatchPlan:
    """Slots in the order in which grouped execution computes them.

    Attributes:
        slot_N: (N,) int32 slots in order of expert, by slot within an expert, dropped slots last.
        offsets_E1: (E + 1,) int32: expert e computes `slot_N[offsets_E1[e] : offsets_E1[e + 1]]`; the last entry is
            the number of slots that are not dropped.
    """

    slot_N: Tensor
    offsets_E1: Tensor


def dispatch_plan_reference(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> DispatchPlan:
    """Same contract as `dispatch_plan`."""
    ids_N = ids_TK.flatten().long()
    dropped_N = (weights_TK.flatten() == 0) | (ids_N < 0) | (ids_N >= num_experts)
    group_N = ids_N.masked_fill(dropped_N, num_experts)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=ids_TK.device)
    counts.scatter_add_(0, group_N, torch.ones_like(group_N))
    offsets_E1 = counts.cumsum(0) - counts
    return DispatchPlan(slot_N=group_N.argsort(stable=True).int(), offsets_E1=offsets_E1.int())
