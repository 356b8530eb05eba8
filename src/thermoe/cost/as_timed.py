"""The latency and the energy that a prediction has to be compared with, row by row."""

import numpy as np

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import Observations
from thermoe.cost.pricing import Pricing
from thermoe.types import FloatArray


def latency_as_timed(model: KernelCostModel, observed: Observations, priced: Pricing) -> FloatArray:
    """Predicted latency of each row as it was timed [s], (B,).

    An energy window lasts seconds, so the power limit counts; a latency alone was timed in short rounds at full clock.
    Where a fit saw no energy of an implementation, it took the latencies as they are, and so does this.
    """
    latency_s = priced.latency_s.copy()
    for key, rows in observed.by_key().items():
        fitted = model.operations_.get(key)
        if fitted is not None and fitted.num_energy_rows:
            alone = rows[~np.isfinite(observed.energy_j[rows])]
            latency_s[alone] = priced.full_clock_s[alone]
    return latency_s


def energy_on_board_j(model: KernelCostModel, observed: Observations, priced: Pricing) -> FloatArray:
    """Predicted energy of each row on the board that it ran on [J], (B,)."""
    return observed.boards.from_reference_j(priced.energy_j, priced.latency_s, model.limits.power_limit_w)
