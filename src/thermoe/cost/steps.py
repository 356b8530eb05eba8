"""What a whole model step costs: all parts of all MoE layers, and the rest of the step."""

from collections.abc import Callable, Collection

from thermoe.cost.prediction import CostArrays
from thermoe.cost.step_constants import REST_ENERGY_J_PER_LAYER, REST_LATENCY_S_PER_LAYER
from thermoe.types import Kind, StepOutcome, StepWork, SysState

MOE_OPERATIONS = ("router_topk", "dispatch_combine", "expert_mlp")
_APART = ("dispatch", "combine")


def price_step(
    predict: Callable[..., CostArrays], measured: Collection[str], work: StepWork, state: SysState | None
) -> StepOutcome:
    """Sum of `predict`, as `KernelCostModel.predict_many`, over the parts of each layer, and of the rest.

    Dispatch and combine count one by one where they were measured one by one only.
    """
    is_apart = "dispatch_combine" not in measured and all(op in measured for op in _APART)
    ops = [p for op in MOE_OPERATIONS for p in (_APART if is_apart and op == "dispatch_combine" else (op,))]
    parts = [
        predict(op, work.shape, work.routed_rows, work.distinct_experts, bits=work.bits, state=state) for op in ops
    ]
    moe_s = sum(float(p.latency_s.sum()) for p in parts)
    moe_j = sum(float(p.energy_j.sum()) for p in parts)
    rest_s = REST_LATENCY_S_PER_LAYER * work.shape.num_layers
    rest_j = REST_ENERGY_J_PER_LAYER * work.shape.num_layers
    return StepOutcome(
        latency_s=moe_s + rest_s,
        energy_j=moe_j + rest_j,
        kind=Kind.PREDICTED,
        extra={"moe_latency_s": moe_s, "moe_energy_j": moe_j, "rest_latency_s": rest_s, "rest_energy_j": rest_j},
    )
