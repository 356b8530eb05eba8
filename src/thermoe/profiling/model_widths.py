"""How sure a fitted cost model is of a case."""

from collections.abc import Callable
from pathlib import Path

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.errors import CostError
from thermoe.profiling.case import Case
from thermoe.types import Estimate, MoEShape

UNKNOWN = 1.0  # relative width where the model has no interval


def interval_widths(path: Path) -> Callable[[Case], float]:
    """Relative width of the interval of a case's latency and energy, the wider of the two.

    Raises:
        DataError: The model's file cannot be read.
    """
    model = KernelCostModel.load(path)

    def width(case: Case) -> float:
        shape = MoEShape(
            num_layers=1,
            hidden_size=case.hidden_size,
            inter_size=case.inter_size,
            num_experts=case.num_experts,
            top_k=case.top_k,
        )
        try:
            found = model.predict(
                case.op, shape, case.routed_rows, case.distinct_experts, bits=int(case.bits), impl=case.impl
            )
        except CostError:
            return UNKNOWN
        return max(_relative(found.latency_s), _relative(found.energy_j))

    return width


def _relative(estimate: Estimate) -> float:
    if estimate.low is None or estimate.high is None or estimate.value <= 0:
        return UNKNOWN
    return (estimate.high - estimate.low) / estimate.value
