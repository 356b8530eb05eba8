"""Board power of any operation from what it does in a second: one linear law for a whole database.

Energy takes seconds to measure and latency milliseconds, so most implementations and formats have few rows with
energy, or none. What a byte and an operation cost is much the same for all of them: those who were measured tell about
those who were not. Shapes: B rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from thermoe.cost.observations import Observations
from thermoe.cost.roofline import DeviceLimits
from thermoe.cost.work import work_of_cases
from thermoe.types import FloatArray

LEAST_ROWS = 12  # with energy, of all operations together
_START_S = 3e-6  # of a call, in which most of the device waits
_CODES = ("expert_mlp", "dequant_unpack_op")
ON_HOST = "host"


@dataclass(frozen=True, slots=True)
class PowerPrior:
    """Fitted coefficients.

    Attributes:
        watts: Of a device that is busy, and of each thing done at the rate of the device's limits: bytes of weights,
            bytes of activations, operations in 16 bit, in 8 bit, weights unpacked; all above idle [W], (6,).
        limits: The device.
    """

    watts: FloatArray
    limits: DeviceLimits

    def dynamic_energy_j(self, data: Observations) -> FloatArray:
        """Energy above idle, at full clock (B,) [J]; NaN for what runs on the host."""
        on_device = np.array([impl != ON_HOST for impl in data.cases.impl])
        energy_j = _rates(data, self.limits) @ self.watts * data.latency_s
        return np.where(on_device, energy_j, np.nan)


def fit_power_prior(
    groups: Iterable[Observations], dynamic_energy_j: Iterable[FloatArray], limits: DeviceLimits
) -> PowerPrior | None:
    """Fit to all rows with energy, to relative error of whole power; None where there are too few.

    Args:
        groups: Measured rows, by operation.
        dynamic_energy_j: Energy above idle, at full clock, of each (B,) [J].
        limits: The device.
    """
    from scipy.optimize import nnls  # only here: predicting needs no scipy

    rates, power_w = [], []
    for data, energy_j in zip(groups, dynamic_energy_j, strict=True):
        known = np.isfinite(energy_j) & (energy_j > 0)
        rates.append(_rates(data, limits)[known])
        power_w.append(energy_j[known] / data.latency_s[known])
    all_rates, all_w = np.concatenate(rates), np.concatenate(power_w)
    if len(all_w) < LEAST_ROWS:
        return None
    weight = 1.0 / (all_w + limits.idle_power_w)
    watts, _ = nnls(all_rates * weight[:, None], all_w * weight)
    return PowerPrior(np.asarray(watts, dtype=np.float64), limits)


def _rates(data: Observations, limits: DeviceLimits) -> FloatArray:
    """How busy the device is, and what is done in a second over what it can do (B, 6)."""
    work, bits = work_of_cases(data.cases), data.cases.bits
    is_product_of_8 = (bits == 8) if data.cases.op == "gemm" else np.zeros(len(data), dtype=np.bool_)
    unpacks = (bits < 16) if data.cases.op in _CODES else np.zeros(len(data), dtype=np.bool_)
    zero = np.zeros(len(data))
    amounts = [
        work.weight_bytes / limits.bandwidth_bytes_per_s,
        work.row_bytes / limits.bandwidth_bytes_per_s,
        np.where(is_product_of_8, zero, work.flops / limits.flops_per_s_16bit),
        np.where(is_product_of_8, work.flops / limits.flops_per_s_8bit, zero),
        np.where(unpacks, work.weight_bytes * 8.0 / bits / limits.bandwidth_bytes_per_s, zero),
    ]
    busy = data.latency_s / (data.latency_s + _START_S)
    return np.stack([busy, *(amount / data.latency_s for amount in amounts)], axis=1)
