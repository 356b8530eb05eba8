"""Learns online how a GPU turns watts into degrees, and forecasts its temperature.

Legend: J time constants, N points of a forecast, P = J + 1 unknowns (ambient first).
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import nnls

from thermoe.errors import ConfigError, CostError
from thermoe.types import Estimate, FloatArray, Kind, SysState

#: Time constants whose mixture stands for the network; a real two-pole board lies between them [s].
TIME_CONSTANTS_S = (0.25, 0.5, 1.0, 3.0, 10.0, 30.0)
_Z90 = 1.645  # half width of a 90 % interval in standard deviations
_AMBIENT_C, _AMBIENT_SPREAD_C = 30.0, 20.0  # what is believed before the first sample
_RESISTANCE_SPREAD_C_PER_W = 0.05
_MIN_UPDATES = 10
# Successive readings err together, so they count as fewer: a reading a second is taken to be independent.
_INDEPENDENT_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """A temperature to come, with its 90 % interval.

    Attributes:
        time_s: (N,) times, by the clock of the states [s]; the first is that of the last state.
        temp_c: (N,) core temperature [deg C].
        low_c, high_c: (N,) bounds [deg C].
        kind: Always predicted.
    """

    time_s: FloatArray
    temp_c: FloatArray
    low_c: FloatArray
    high_c: FloatArray
    kind: Kind = Kind.PREDICTED


class ThermalPredictor:
    """Recursive least squares of a thermal RC network with fixed time constants.

    The temperature is modelled as ambient + sum over j of R_j times the power smoothed with time
    constant j. That is linear in the unknown ambient and resistances, so learning one more state
    costs a few dozen operations and no history is kept; resistances are held at 0 or above.

    Args:
        time_constants_s: Time constants of the network [s].
        memory_s: Time after which a reading counts 1/e [s]; lets the ambient drift.
        sensor_sd_c: Least standard deviation of a reading [deg C]; many boards report whole degrees.

    Attributes:
        ambient_c_: Temperature at zero power [deg C].
        resistance_c_per_w_: (J,) R_j [deg C/W].
        residual_sd_c_: Standard deviation of the fit [deg C].
        num_updates_: States learned from.
    """

    def __init__(
        self,
        time_constants_s: tuple[float, ...] = TIME_CONSTANTS_S,
        *,
        memory_s: float = 300.0,
        sensor_sd_c: float = 0.1,
    ) -> None:
        if not time_constants_s or min(time_constants_s) <= 0.0 or memory_s <= 0.0 or sensor_sd_c <= 0.0:
            raise ConfigError(
                f"thermal predictor with time constants {time_constants_s} s, memory {memory_s} s, sensor deviation "
                f"{sensor_sd_c} deg C: each needs to be positive"
            )
        self.time_constants_s = time_constants_s
        self.memory_s = memory_s
        self.sensor_sd_c = sensor_sd_c
        self.num_updates_ = 0
        size = len(time_constants_s) + 1
        self._tau = np.array(time_constants_s)
        self._prior = 1.0 / np.array([_AMBIENT_SPREAD_C] + [_RESISTANCE_SPREAD_C_PER_W] * (size - 1)) ** 2
        self._gram = np.zeros((size, size))
        self._moment = np.zeros(size)
        self._square = self._weight = 0.0
        self._smoothed_w: FloatArray | None = None
        self._last: tuple[float, float] | None = None  # time [s], temperature [deg C]
        self._interval_s = self._power_mean_w = self._power_var_w2 = 0.0
        self._stale = True

    def update(self, state: SysState) -> Self:
        """Learn from one more state; one without temperature or power teaches nothing.

        The power of a state is taken to have acted since the state before. Where the clock goes
        back (a new run) the smoothed powers start anew and what was learned stays.
        """
        power_w = state.power_w if state.power_w is not None else state.power_avg_w
        if state.temp_c is None or power_w is None:
            return self
        gap_s = state.time_s - self._last[0] if self._last is not None else -1.0
        if gap_s == 0.0:
            return self
        if self._smoothed_w is None or gap_s < 0.0:
            self._smoothed_w = np.full(len(self._tau), power_w)
            self._power_mean_w, self._power_var_w2 = power_w, 0.0
        else:
            self._smoothed_w = power_w + (self._smoothed_w - power_w) * np.exp(-gap_s / self._tau)
            self._track_power(power_w, gap_s)
            self._learn(self._smoothed_w, state.temp_c, gap_s)
        self._last = (state.time_s, state.temp_c)
        return self

    def predict(self, horizon_s: float, power_w: float | None = None, *, num_points: int = 21) -> Forecast:
        """The temperature over the next `horizon_s`.

        Args:
            horizon_s: How far to look [s].
            power_w: Power from now on [W]; by default the mean of the last seconds, whose spread
                then widens the interval.
            num_points: Points of the forecast, evenly spaced from now on.

        Raises:
            ConfigError: For a horizon that is not positive.
            CostError: Before enough states were learned.
        """
        if not (math.isfinite(horizon_s) and horizon_s > 0.0) or num_points < 2:
            raise ConfigError(
                f"forecast over {horizon_s} s in {num_points} points: needs a positive horizon, 2 points or more"
            )
        (last_s, last_c), smoothed_w = self._fitted()
        assumed_w = self._power_mean_w if power_w is None else power_w
        power_var_w2 = self._power_var_w2 if power_w is None else 0.0
        ahead_s = np.linspace(0.0, horizon_s, num_points)
        kept = np.exp(-ahead_s[:, None] / self._tau)
        features = np.column_stack([np.ones(num_points), assumed_w + (smoothed_w - assumed_w) * kept])
        response = ((1.0 - kept) * self.resistance_c_per_w_).sum(axis=1)
        # The last reading is known: start from it, and forget its distance from the fit as memory of it fades.
        surprise_c = last_c - float(features[0] @ self._coefficients)
        temp_c = features @ self._coefficients + surprise_c * np.exp(-ahead_s / self._tau.max())
        change = features - features[0] * np.exp(-ahead_s / self._tau.max())[:, None]
        variance = self._variance(change) + self.residual_sd_c_**2 + response**2 * power_var_w2
        half_c = _Z90 * np.sqrt(variance)
        return Forecast(time_s=last_s + ahead_s, temp_c=temp_c, low_c=temp_c - half_c, high_c=temp_c + half_c)

    def predict_thermal_impact(self, energy_j: float, duration_s: float) -> Estimate:
        """How much warmer the core is at the end of some work than it would be without it.

        Args:
            energy_j: Energy of the work beyond what is drawn without it [J].
            duration_s: Time it takes [s].

        Returns:
            Temperature difference [deg C] with its 90 % interval.

        Raises:
            ConfigError: For a duration that is not positive or an energy that is not finite.
            CostError: Before enough states were learned.
        """
        if not (math.isfinite(energy_j) and math.isfinite(duration_s) and duration_s > 0.0):
            raise ConfigError(
                f"thermal impact of {energy_j} J over {duration_s} s: needs finite energy and a positive duration"
            )
        self._fitted()
        feature = np.concatenate([[0.0], (1.0 - np.exp(-duration_s / self._tau)) * energy_j / duration_s])
        value_c = float(feature @ self._coefficients)
        half_c = _Z90 * math.sqrt(float(self._variance(feature[None, :])[0]))
        return Estimate(value_c, value_c - half_c, value_c + half_c, Kind.PREDICTED)

    def _track_power(self, power_w: float, gap_s: float) -> None:
        share = 1.0 - math.exp(-gap_s / 3.0)  # the power to expect is that of the last few seconds
        deviation_w = power_w - self._power_mean_w
        self._power_mean_w += share * deviation_w
        self._power_var_w2 = (1.0 - share) * (self._power_var_w2 + share * deviation_w**2)

    def _learn(self, smoothed_w: FloatArray, temp_c: float, gap_s: float) -> None:
        kept = math.exp(-gap_s / self.memory_s)
        feature = np.concatenate([[1.0], smoothed_w])
        target = temp_c - _AMBIENT_C  # the prior of the ambient is centred there
        self._gram = kept * self._gram + np.outer(feature, feature)
        self._moment = kept * self._moment + feature * target
        self._square = kept * self._square + target**2
        self._weight = kept * self._weight + 1.0
        self._interval_s = gap_s if self.num_updates_ == 0 else 0.95 * self._interval_s + 0.05 * gap_s
        self.num_updates_ += 1
        self._stale = True

    def _fitted(self) -> tuple[tuple[float, float], FloatArray]:
        """Solve if anything was learned since; the last (time, temperature) and the smoothed powers (J,)."""
        if self.num_updates_ < _MIN_UPDATES or self._last is None or self._smoothed_w is None:
            raise CostError(
                f"thermal predictor has learned from {self.num_updates_} states, needs {_MIN_UPDATES} "
                "with both temperature and power: sample for longer"
            )
        if self._stale:
            self._solve()
        return self._last, self._smoothed_w

    def _solve(self) -> None:
        """Non-negative resistances of least squares; the ambient enters as a difference of two non-negatives."""
        noise2 = self.sensor_sd_c**2
        precision = self._gram / noise2 + np.diag(self._prior)
        factor = np.linalg.cholesky(precision)
        target = np.linalg.solve(factor, self._moment / noise2)
        split, _ = nnls(np.column_stack([factor.T, -factor.T[:, 0]]), target)
        solution = np.concatenate([[split[0] - split[-1]], split[1:-1]])
        misfit = self._square - 2.0 * solution @ self._moment + solution @ self._gram @ solution
        self.residual_sd_c_ = max(math.sqrt(max(float(misfit), 0.0) / self._weight), self.sensor_sd_c)
        self._coefficients = solution + np.concatenate([[_AMBIENT_C], np.zeros(len(self._tau))])
        self.ambient_c_, self.resistance_c_per_w_ = float(self._coefficients[0]), solution[1:]
        repeats = max(_INDEPENDENT_S / self._interval_s, 1.0) if self._interval_s > 0.0 else 1.0
        self._covariance = np.linalg.inv(self._gram / (repeats * self.residual_sd_c_**2) + np.diag(self._prior))
        self._stale = False

    def _variance(self, features: FloatArray) -> FloatArray:
        """Variance of (N, P) features' products with the unknowns (N,) [deg C squared]."""
        variance: FloatArray = np.einsum("np,pq,nq->n", features, self._covariance, features)
        return np.maximum(variance, 0.0)
