"""The physical law of one operation and its fit: a smooth maximum of memory, arithmetic and waiting time.

    latency = launch + ((e0 d + e1 W + e2 A + e3 R)^p + (f F)^p + (s S)^p)^(1/p)
    energy above idle = g0 + g1 latency + g2 W + g3 A + g4 F + g5 d

with d experts touched, W bytes of weights, A bytes of activations, R routed rows, F operations, S the depth of
its sums, every coefficient at least 0. The last part is what few experts cannot hide: a sum is taken step by step,
and each step waits for memory, however idle the rest of the GPU is. Both are non-decreasing and convex in
(d, W, A, R, F), as a p-norm of non-negative affine functions and a non-negative sum of convex ones; routing relies
on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from thermoe.cost.roofline import DeviceLimits, is_positive
from thermoe.cost.work import Work
from thermoe.errors import DataError
from thermoe.types import FloatArray

NUM_LATENCY, NUM_ENERGY = 7, 6
SMOOTHNESS = (1.5, 2.0, 3.0, 6.0)
# Pull towards the prior in units of relative error: keeps what the data cannot tell where physics says it is, and
# moves what it can tell by less than a per cent.
PRIOR_WEIGHT = 1e-3
# The same for all rows together, however few: a handful of short calls must not tell what a long one takes.
LEAST_PULL = 0.02
# Towards the law of other formats of the same kernel.
ALIKE_PULL = 0.1
# A coefficient may leave its prior by this factor; downwards it may vanish.
MAX_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class Law:
    """Fitted coefficients.

    Attributes:
        latency_coef: launch [s], e0 [s], e1 [s/byte], e2 [s/byte], e3 [s], f [s], s [s], (7,).
        energy_coef: g0 [J], g1 [W], g2 [J/byte], g3 [J/byte], g4 [J], g5 [J], (6,).
        smoothness: p of the maximum.
    """

    latency_coef: FloatArray
    energy_coef: FloatArray
    smoothness: float

    def latency_s(self, work: Work) -> FloatArray:
        """Latency with no power limit [s], (B,)."""
        return _latency(self.latency_coef, self.smoothness, work.table())

    def dynamic_energy_j(self, work: Work) -> FloatArray:
        """Energy above idle [J], (B,)."""
        result: FloatArray = _energy_terms(work.table(), self.latency_s(work)) @ self.energy_coef
        return result

    def both(self, table: FloatArray) -> tuple[FloatArray, FloatArray]:
        """`latency_s` and `dynamic_energy_j` of `Work.table()` (B, 6)."""
        latency_s = _latency(self.latency_coef, self.smoothness, table)
        return latency_s, _energy_terms(table, latency_s) @ self.energy_coef

    def slowed(self, factor: float) -> "Law":
        """The same where everything takes so much longer, at the same energy for what is done."""
        return Law(self.latency_coef * factor, self.energy_coef, self.smoothness)

    def later(self, seconds: float) -> "Law":
        """The same with so much more to wait before anything is done; at least nothing."""
        launch_s = max(0.0, float(self.latency_coef[0]) + seconds)
        return Law(np.append(launch_s, self.latency_coef[1:]), self.energy_coef, self.smoothness)

    def as_dict(self) -> dict[str, Any]:
        """The coefficients as JSON has them."""
        return {
            "latency_coef": self.latency_coef.tolist(),
            "energy_coef": self.energy_coef.tolist(),
            "smoothness": self.smoothness,
        }

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """Inverse of `as_dict`; `DataError` if a coefficient is missing, negative or not finite."""
        if not isinstance(values, dict):
            raise DataError(f"{where}: a law is {type(values).__name__}, needed an object")
        lists = values.get("latency_coef"), values.get("energy_coef")
        for numbers, length in zip(lists, (NUM_LATENCY, NUM_ENERGY), strict=True):
            if (
                not isinstance(numbers, list)
                or len(numbers) != length
                or not all(is_positive(n, or_zero=True) for n in numbers)
            ):
                raise DataError(f"{where}: a law needs {length} coefficients that are finite and not negative")
        smoothness = values.get("smoothness")
        if smoothness is None or not is_positive(smoothness) or float(smoothness) < 1:
            raise DataError(f"{where}: smoothness {smoothness!r} must be at least 1, or the law is not convex")
        return cls(np.array(lists[0], float), np.array(lists[1], float), float(smoothness))


def fit_law(
    work: Work,
    latency_s: FloatArray,
    dynamic_energy_j: FloatArray,
    limits: DeviceLimits,
    bits: float,
    smoothness: Sequence[float] = SMOOTHNESS,
    energy_weight: FloatArray | None = None,
    alike: Law | None = None,
) -> Law:
    """Fit the law to relative error.

    Args:
        work: Work of each row (B,).
        latency_s: Measured latency below the power limit (B,) [s].
        dynamic_energy_j: Energy above idle (B,) [J]; NaN where it was not measured.
        limits: Physics that the data is a correction to.
        bits: Precision of the weights [bit].
        smoothness: Candidates for p; the one that fits best is taken.
        energy_weight: What each row's energy counts (B,); the same for all if None.
        alike: Law of what runs nearly the same code, taken for what this data cannot tell, instead of `limits`.
    """
    table = work.table()
    prior = _prior(limits, bits)
    least_pull = LEAST_PULL
    if alike is not None:
        prior, least_pull = np.maximum(alike.latency_coef, prior / MAX_FACTOR), ALIKE_PULL
    fits = [_fit_latency(table, latency_s, prior, p, least_pull) for p in smoothness]
    _, coef, best = min(fits, key=lambda fit: fit[0])
    fitted_s = _latency(coef, best, table)
    return Law(coef, _fit_energy(table, fitted_s, dynamic_energy_j, limits, energy_weight), best)


def physical_law(limits: DeviceLimits, bits: float) -> Law:
    """The roofline in the form of a law: what is used where nothing was measured."""
    zero = 0.0
    latency = [
        limits.launch_s,
        zero,
        *[1.0 / limits.bandwidth_bytes_per_s] * 2,
        zero,
        1.0 / limits.flops_per_s(bits),
        zero,
    ]
    energy = [zero, zero, limits.joules_per_byte, limits.joules_per_byte, limits.joules_per_flop, zero]
    return Law(np.array(latency), np.array(energy), 32.0)


def _latency(coef: FloatArray, smoothness: float, table: FloatArray) -> FloatArray:
    times_s = _parallel_times(coef, table)
    longest_s = np.maximum(times_s.max(axis=1), 1e-30)
    shares = times_s / longest_s[:, None]
    result: FloatArray = coef[0] + longest_s * (shares**smoothness).sum(axis=1) ** (1.0 / smoothness)
    return result


def _parallel_times(coef: FloatArray, table: FloatArray) -> FloatArray:
    """Time of memory, of arithmetic and of waiting, which overlap [s], (B, 3)."""
    return np.array([table[:, :4] @ coef[1:5], table[:, 4] * coef[5], table[:, 5] * coef[6]]).T


def _energy_terms(table: FloatArray, latency_s: FloatArray) -> FloatArray:
    distinct, weight_bytes, row_bytes, _, flops, _ = table.T
    return np.array([np.ones_like(latency_s), latency_s, weight_bytes, row_bytes, flops, distinct]).T


def _prior(limits: DeviceLimits, bits: float) -> FloatArray:
    """Where coefficients lie if the data does not tell: a real kernel at two thirds of the roofline."""
    per_byte = 1.5 / limits.bandwidth_bytes_per_s
    return np.array([2.0 * limits.launch_s, 1e-7, per_byte, per_byte, 1e-10, 1.5 / limits.flops_per_s(bits), 1e-9])


def _fit_latency(
    table: FloatArray, latency_s: FloatArray, prior: FloatArray, smoothness: float, least_pull: float
) -> tuple[float, FloatArray, float]:
    """Cost of the misfit, coefficients (7,), smoothness."""
    from scipy.optimize import least_squares  # only here: predicting needs no scipy

    log_prior, log_latency = np.log(prior), np.log(latency_s)
    pull = max(PRIOR_WEIGHT * np.sqrt(len(latency_s)), least_pull)

    def residuals(log_coef: FloatArray) -> FloatArray:
        misfit = np.log(_latency(np.exp(log_coef), smoothness, table)) - log_latency
        return np.concatenate([misfit, pull * (log_coef - log_prior)])

    def jacobian(log_coef: FloatArray) -> FloatArray:
        slopes = _log_slopes(np.exp(log_coef), smoothness, table)
        return np.concatenate([slopes, pull * np.eye(NUM_LATENCY)])

    reach = np.log(MAX_FACTOR)
    bounds = (log_prior - reach, log_prior + reach)
    solution = least_squares(residuals, log_prior, jacobian, bounds=bounds, loss="soft_l1", f_scale=0.1, max_nfev=100)
    return float(solution.cost), np.exp(solution.x), smoothness


def _log_slopes(coef: FloatArray, smoothness: float, table: FloatArray) -> FloatArray:
    """Derivative of log latency by the log of each coefficient, (B, 7)."""
    times_s = _parallel_times(coef, table)
    latency_s = _latency(coef, smoothness, table)
    joint_s = np.maximum(latency_s - coef[0], 1e-30)
    weights = (times_s / joint_s[:, None]) ** (smoothness - 1.0)
    parts = [
        np.full((len(table), 1), coef[0]),
        weights[:, :1] * table[:, :4] * coef[1:5],
        weights[:, 1:] * times_s[:, 1:],
    ]
    result: FloatArray = np.concatenate(parts, axis=1) / latency_s[:, None]
    return result


def _fit_energy(
    table: FloatArray,
    latency_s: FloatArray,
    dynamic_energy_j: FloatArray,
    limits: DeviceLimits,
    weight: FloatArray | None,
) -> FloatArray:
    """Non-negative least squares of relative error; the roofline's figures where nothing was measured."""
    from scipy.optimize import nnls

    known = np.isfinite(dynamic_energy_j) & (dynamic_energy_j > 0)
    if not known.any():
        return np.array([0.0, 0.0, limits.joules_per_byte, limits.joules_per_byte, limits.joules_per_flop, 0.0])
    terms = _energy_terms(table, latency_s)[known] / dynamic_energy_j[known, None]
    scale = np.maximum(terms.max(axis=0), 1e-300)
    counts = np.ones(int(known.sum())) if weight is None else np.sqrt(weight[known])
    coef, _ = nnls(terms / scale * counts[:, None], counts)
    result: FloatArray = coef / scale
    return result
