"""Says what computes the experts of each layer of a model, and why."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from thermoe.integrations.experts import EXPERTS_IMPLEMENTATION, FUSED_DEVICES, why_not_fused
from thermoe.integrations.experts_held import dense_weights, expert_blocks, extra_bytes, quantised_experts


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerExperts:
    """What computes the experts of one layer when no gradients are asked for.

    Attributes:
        name: Of the experts block.
        computed_by: "fused", "fused, quantised", or a name of Transformers' own such as "grouped_mm".
        reason: Why it is not fused; None where it is.
        extra_bytes: Memory held beside the block's parameters [byte].
    """

    name: str
    computed_by: str
    reason: str | None
    extra_bytes: int


def experts_report(model: nn.Module) -> list[LayerExperts]:
    """One entry for each experts block, in layer order.

    Raises:
        UnsupportedModelError: The model has no experts blocks.
    """
    return [_entry(name, block) for name, block in expert_blocks(model).items()]


def _entry(name: str, block: Any) -> LayerExperts:
    implementation = getattr(block.config, "_experts_implementation", None)
    computed_by, reason = "fused", None
    if implementation != EXPERTS_IMPLEMENTATION:
        computed_by = str(implementation)
        reason = f'the experts implementation is {implementation}: call model.set_experts_implementation("thermoe")'
    elif quantised_experts(block) is not None:
        on_gpu = block.down_proj.device.type in FUSED_DEVICES
        computed_by = "fused, quantised" if on_gpu else "reference, quantised"
        reason = None if on_gpu else f"weights on {block.down_proj.device.type}: the kernels run on a GPU"
    else:
        reason = why_not_fused(block, block.down_proj) or dense_weights(block)[1]
        computed_by = "fused" if reason is None else "grouped_mm"
    return LayerExperts(name=name, computed_by=computed_by, reason=reason, extra_bytes=extra_bytes(block))
