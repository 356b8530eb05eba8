"""Least squares of a thermal RC network with fixed time constants, one reading at a time.

Legend: J time constants, N points, P = 2 J + 1 unknowns (ambient first, then R_j, then M_j).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import nnls

from thermoe.types import FloatArray

_AMBIENT_C, _AMBIENT_SPREAD_C = 30.0, 20.0  # what is believed before the first sample
_RESISTANCE_SPREAD_C_PER_W, _RELIEF_SPREAD_C = 0.05, 5.0
WHOLE_DEGREE_SD_C = 12.0**-0.5  # of what rounding to whole degrees takes away
# Successive readings err together, so they count as fewer: a reading a second is taken to be independent.
_INDEPENDENT_S = 1.0
_MOST_SUM = 1e100  # of squares of watts, however many


class ThermalFit:
    """Temperature as ambient + sum over j of R_j p_j - M_j u_j.

    p_j and u_j are board power and use of the memory, smoothed with time constant j: watts that the memory turns
    into heat warm the core less. That is linear in the unknown ambient, resistances R_j and reliefs M_j, so one more
    reading costs some hundred operations and no history is kept; R_j and M_j are held at 0 or above.

    Args:
        num_time_constants: J.
        memory_s: Time after which a reading counts 1/e [s].
        sensor_sd_c: Least standard deviation of a reading [deg C].

    Attributes:
        reading_sd_c: Standard deviation of a reading, rounding included [deg C].
        coefficients_: (P,) ambient [deg C], resistances [deg C/W] and reliefs [deg C]; a new array after every `solve`.
        residual_sd_c_: Standard deviation of the fit [deg C].
        num_updates_: Readings learned from.
    """

    def __init__(self, num_time_constants: int, *, memory_s: float, sensor_sd_c: float) -> None:
        size = 2 * num_time_constants + 1
        self.memory_s, self.sensor_sd_c = memory_s, sensor_sd_c
        self.reading_sd_c = max(sensor_sd_c, WHOLE_DEGREE_SD_C)
        self.num_updates_ = 0
        self.coefficients_ = np.zeros(size)
        self.residual_sd_c_ = sensor_sd_c
        of_each = np.repeat([_RESISTANCE_SPREAD_C_PER_W, _RELIEF_SPREAD_C], num_time_constants)
        spreads = np.concatenate([[_AMBIENT_SPREAD_C], of_each])
        self._prior = 1.0 / spreads**2
        self._gram = np.zeros((size, size))
        self._moment = np.zeros(size)
        self._covariance = np.diag(spreads**2)
        self._square = self._weight = self._interval_s = 0.0
        self._stale = True

    def learn(self, smoothed: FloatArray, temp_c: float, gap_s: float, weight: float = 1.0) -> None:
        """Count a reading taken `gap_s` after the one before, under smoothed inputs (2 J,): p_j, then -u_j."""
        kept = math.exp(-gap_s / self.memory_s)
        feature = np.concatenate([[1.0], smoothed])
        target = temp_c - _AMBIENT_C  # the prior of the ambient is centred there
        self._gram = kept * self._gram + weight * np.outer(feature, feature)
        self._moment = kept * self._moment + weight * feature * target
        self._square = kept * self._square + weight * target**2
        self._weight = kept * self._weight + weight
        self._interval_s = gap_s if self.num_updates_ == 0 else 0.95 * self._interval_s + 0.05 * gap_s
        self.num_updates_ += 1
        self._stale = True

    def solve(self) -> None:
        """Non-negative R_j and M_j of least squares; the ambient enters as a difference of two non-negatives."""
        if not self._stale:
            return
        repeats = max(_INDEPENDENT_S / self._interval_s, 1.0) if self._interval_s > 0.0 else 1.0
        noise2 = repeats * self.reading_sd_c**2
        precision = self._gram / noise2 + np.diag(self._prior)
        factor = np.linalg.cholesky(precision)
        target = np.linalg.solve(factor, self._moment / noise2)
        split, _ = nnls(np.column_stack([factor.T, -factor.T[:, 0]]), target)
        solution = np.concatenate([[split[0] - split[-1]], split[1:-1]])
        misfit = self._square - 2.0 * solution @ self._moment + solution @ self._gram @ solution
        self.residual_sd_c_ = max(math.sqrt(max(float(misfit), 0.0) / self._weight), self.sensor_sd_c)
        self.coefficients_ = solution + np.concatenate([[_AMBIENT_C], np.zeros(len(solution) - 1)])
        self._covariance = np.linalg.inv(self._gram / (repeats * self.residual_sd_c_**2) + np.diag(self._prior))
        self._stale = False

    def variance(self, features: FloatArray) -> FloatArray:
        """Variance of (N, P) features' products with the unknowns (N,) [deg C squared]."""
        variance: FloatArray = np.einsum("np,pq,nq->n", features, self._covariance, features)
        return np.maximum(variance, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """What was learned, as JSON-able values."""
        return {
            "gram": self._gram.tolist(),
            "moment": self._moment.tolist(),
            "sums": [self._square, self._weight, self._interval_s],
            "num_updates": self.num_updates_,
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Inverse of `as_dict`; takes what was saved before there were M_j, as of a memory that was never heard of.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: If the values are not those of a fit of this size.
        """
        gram, moment = np.array(values["gram"], dtype=np.float64), np.array(values["moment"], dtype=np.float64)
        sums = np.array(values["sums"], dtype=np.float64)
        more = len(self._moment) // 2
        if gram.shape == (more + 1, more + 1) and moment.shape == (more + 1,):
            gram, moment = np.pad(gram, (0, more)), np.pad(moment, (0, more))
        if gram.shape != self._gram.shape or moment.shape != self._moment.shape or sums.shape != (3,):
            raise ValueError(f"sums of {len(moment)} unknowns, needed {len(self._moment)}")
        most = max(np.abs(gram).max(), np.abs(moment).max(), np.abs(sums).max())
        if not most <= _MOST_SUM:
            raise ValueError(f"sums of {most:g}, needed {_MOST_SUM:g} at most")
        # A sum of outer products is symmetric and has no negative direction; what is damaged may have one.
        if not np.allclose(gram, gram.T) or np.linalg.eigvalsh(gram).min() < -1e-9 * max(np.trace(gram), 1.0):
            raise ValueError("sums that no readings give")
        num_updates = int(values["num_updates"])
        if num_updates < 0 or (sums < 0).any() or (num_updates > 0 and not (sums[1] > 0.0 and gram[0, 0] > 0.0)):
            raise ValueError(f"sums of {num_updates} readings that none give")
        self._gram, self._moment, self.num_updates_ = gram, moment, num_updates
        self._square, self._weight, self._interval_s = (float(v) for v in sums)
        self._stale = True
        if num_updates > 0:
            self.solve()
