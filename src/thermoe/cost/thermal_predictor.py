"""Learns online how a GPU turns watts into degrees, and forecasts its temperature.

Legend: J time constants, N points of a forecast, P = 2 J + 1 unknowns (ambient first, then R_j, then M_j).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from thermoe.cost.forecast_errors import ForecastOf
from thermoe.cost.prediction import CostPrediction
from thermoe.cost.thermal_fit import ThermalFit
from thermoe.cost.thermal_forecast import MOST_W, Course, Forecast, PlannedLoad, as_plan, follow, inputs, settle
from thermoe.cost.thermal_tracker import ThermalTracker
from thermoe.errors import ConfigError, CostError, DataError
from thermoe.types import Estimate, FloatArray, Kind, SysState

#: Time constants whose mixture stands for the network; a real two-pole board lies between them [s].
TIME_CONSTANTS_S = (0.15, 0.5, 1.0, 3.0, 10.0, 30.0)
_Z90 = 1.645  # half width of a 90 % interval in standard deviations
_MIN_UPDATES = 10
_FORMAT = "thermoe-thermal-predictor"
_LEAST, _MOST = 1e-6, 1e9  # of every setting, in its unit


class ThermalPredictor:
    """A thermal RC network learned by recursive least squares, with intervals from its own past errors.

    The temperature is ambient + sum over j of R_j p_j - M_j u_j, p_j and u_j being board power and use of the memory
    smoothed with time constant j (see `ThermalFit`): watts spent in the memory warm the core less. Without readings
    of that use it counts as 0 throughout. With them, which NVML renews about once a second, a reading of temperature
    waits 1.3 s to be learned from and judged by, and counts next to nothing if the use changed meanwhile.

    A forecast starts from the last readings. Every state is compared with what would have been forecast for it half
    a second to 8 s before, with the power that was then drawn and with the power that was expected; intervals span
    90 % of these errors, and before there are enough come from the fit alone.

    Readings that are silent, not finite or beyond all reason teach nothing. Where the clock goes back, or forward
    by more than 5 s and five usual intervals, smoothed powers start anew and what was learned stays.

    Args:
        time_constants_s: Time constants of the network [s].
        memory_s: Time after which a reading counts 1/e [s]; lets the ambient drift.
        sensor_sd_c: Least standard deviation of a reading [deg C].

    Attributes:
        ambient_c_: Temperature at zero power [deg C].
        resistance_c_per_w_, memory_relief_c_: (J,) R_j [deg C/W] and M_j [deg C].
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
        if not time_constants_s or not all(_LEAST <= v <= _MOST for v in (*time_constants_s, memory_s, sensor_sd_c)):
            raise ConfigError(
                f"thermal predictor with time constants {time_constants_s} s, memory {memory_s} s, sensor deviation "
                f"{sensor_sd_c} deg C: each needs to be positive, within {_LEAST:g} and {_MOST:g}"
            )
        self.time_constants_s, self.memory_s, self.sensor_sd_c = time_constants_s, memory_s, sensor_sd_c
        self._tau = np.array(time_constants_s)
        self._fit = ThermalFit(len(time_constants_s), memory_s=memory_s, sensor_sd_c=sensor_sd_c)
        self._now = ThermalTracker(self._tau, self._fit)

    @property
    def num_updates_(self) -> int:
        """States learned from."""
        return self._fit.num_updates_

    @property
    def ambient_c_(self) -> float:
        """Temperature at zero power [deg C]."""
        self._now.solve()
        return float(self._fit.coefficients_[0])

    @property
    def resistance_c_per_w_(self) -> FloatArray:
        """(J,) R_j [deg C/W]."""
        self._now.solve()
        return self._fit.coefficients_[1 : len(self._tau) + 1]

    @property
    def memory_relief_c_(self) -> FloatArray:
        """(J,) M_j [deg C]."""
        self._now.solve()
        return self._fit.coefficients_[len(self._tau) + 1 :]

    @property
    def residual_sd_c_(self) -> float:
        """Standard deviation of the fit [deg C]."""
        self._now.solve()
        return self._fit.residual_sd_c_

    def fit(self, states: Iterable[SysState]) -> Self:
        """Learn from recorded states, in their order; what was learned before stays."""
        for state in states:
            self.update(state)
        return self

    def update(self, state: SysState, *, learn: bool = True) -> Self:
        """Take in one more state; its power is taken to have acted since the state before.

        Args:
            state: What the sensors say. Without a temperature it moves the smoothed powers only, without a
                power the last one goes on for a while.
            learn: Whether the network may learn from it; errors of past forecasts count either way.
        """
        self._now.update(state, learn=learn)
        return self

    def predict(
        self, horizon_s: float, power_w: float | Sequence[PlannedLoad] | None = None, *, num_points: int = 21
    ) -> Forecast:
        """The temperature and power over the next `horizon_s`.

        Args:
            horizon_s: How far to look [s].
            power_w: Power from now on [W], or a plan of loads one after another; by default the power that
                recent readings let expect, whose errors then widen the interval. Use of the memory goes on as it
                was last read but for loads that plan it; the first is better told than read where it began just now.
            num_points: Points of the forecast, evenly spaced from now on.

        Raises:
            ConfigError: For a horizon that is not positive, a power that no board draws, or a plan of anything but
                `PlannedLoad`.
            CostError: Before enough states were learned.
        """
        if not (math.isfinite(horizon_s) and horizon_s > 0.0) or not isinstance(num_points, int) or num_points < 2:
            raise ConfigError(
                f"forecast over {horizon_s} s in {num_points} points: needs a positive horizon, 2 points or more"
            )
        smoothed = self._fitted()
        plan = as_plan(power_w, self._now.outlook.expected_w)
        ahead_s = np.linspace(0.0, horizon_s, num_points)
        course = follow(plan, ahead_s, smoothed, self._tau, self._now.memory_util)
        features = np.column_stack([np.ones(num_points), course.smoothed])
        faded = np.exp(-ahead_s / self._tau.max())  # how long the distance of the last reading from the fit counts
        settled_c = self._now.offset_c if plan[0].memory_util is None else self._now.settled_c
        temp_c = features @ self._fit.coefficients_ + self._now.faded_c(self._now.offset_c, settled_c, ahead_s)
        variance = self._fit.variance(features - features[0] * faded[:, None])
        low_c, high_c = self._bounds(temp_c, ahead_s, variance, course, planned=power_w is not None)
        power_low_w, power_high_w = self._power_bounds(ahead_s, course, planned=power_w is not None)
        return Forecast(
            time_s=self._now.time_s + ahead_s,
            temp_c=temp_c,
            low_c=low_c,
            high_c=high_c,
            power_w=course.power_w,
            power_low_w=power_low_w,
            power_high_w=power_high_w,
        )

    def predict_thermal_impact(self, energy_j: float, duration_s: float, *, memory_util: float = 0.0) -> Estimate:
        """How much warmer the core is at the end of some work than it would be without it.

        Args:
            energy_j: Energy of the work beyond what is drawn without it [J].
            duration_s: Time it takes [s].
            memory_util: Use of the memory beyond what it is without the work, in [-1, 1].

        Returns:
            Temperature difference [deg C] with its 90 % interval.

        Raises:
            ConfigError: For a duration that is not positive, a power that no board draws or a use that no memory has.
            CostError: Before enough states were learned.
        """
        if not (math.isfinite(duration_s) and duration_s > 0.0 and abs(energy_j) <= MOST_W * duration_s):
            raise ConfigError(
                f"thermal impact of {energy_j} J over {duration_s} s: needs a positive duration, and an energy that "
                f"makes {MOST_W:g} W at most"
            )
        if not -1.0 <= memory_util <= 1.0:
            raise ConfigError(f"thermal impact of a memory_util of {memory_util} more: needs a number from -1 to 1")
        self._fitted()
        driven = inputs(energy_j / duration_s, memory_util, len(self._tau))
        feature = np.concatenate([[0.0], settle(np.zeros(len(driven)), driven, self._tau, duration_s)])
        value_c = float(feature @ self._fit.coefficients_)
        half_c = _Z90 * math.sqrt(float(self._fit.variance(feature[None, :])[0]))
        return Estimate(value_c, value_c - half_c, value_c + half_c, Kind.PREDICTED)

    def predict_cost_impact(
        self, cost: CostPrediction, *, repeats: int = 1, base_power_w: float = 0.0, memory_util: float = 0.0
    ) -> Estimate:
        """How much warmer the core is after `repeats` executions of what a cost model predicted, back to back.

        Args:
            cost: Prediction for one execution; its energy holds what the board draws anyway.
            repeats: Executions, at least 1.
            base_power_w: Power that would be drawn without the work, as the board's idle power [W].
            memory_util: As in `predict_thermal_impact`.

        Returns:
            Temperature difference [deg C]; its interval spans those of the energy and of the thermal model.

        Raises:
            ConfigError: For fewer than 1 repeats or a base power that no board draws.
            CostError: Before enough states were learned.
        """
        if not 1 <= repeats < math.inf or not 0.0 <= base_power_w <= MOST_W:
            raise ConfigError(f"{repeats} repeats over {base_power_w} W: needs 1 or more, over 0 to {MOST_W:g} W")
        duration_s = repeats * cost.latency_s.value
        energies_j = [cost.energy_j.low, cost.energy_j.value, cost.energy_j.high]
        low, middle, high = (
            self.predict_thermal_impact(
                repeats * (cost.energy_j.value if e is None else e) - base_power_w * duration_s,
                duration_s,
                memory_util=memory_util,
            )
            for e in energies_j
        )
        return Estimate(middle.value, low.low, high.high, Kind.PREDICTED)

    def as_dict(self) -> dict[str, Any]:
        """What was learned, as JSON-able values; where the board is now is not part of it."""
        return {
            "format": _FORMAT,
            "time_constants_s": list(self.time_constants_s),
            "memory_s": self.memory_s,
            "sensor_sd_c": self.sensor_sd_c,
            "whole_degrees": self._now.whole_degrees,
            "fit": self._fit.as_dict(),
            "errors": self._now.errors.as_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `as_dict`.

        Raises:
            DataError: If the values are incomplete, damaged or of something else.
        """
        try:
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r}")
            made = cls(
                tuple(float(t) for t in values["time_constants_s"]),
                memory_s=float(values["memory_s"]),
                sensor_sd_c=float(values["sensor_sd_c"]),
            )
            made._fit.load(values["fit"])
            made._now.errors.load(values["errors"])
            made._now.whole_degrees = bool(values["whole_degrees"])
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise DataError(
                f"not a saved thermal predictor ({type(error).__name__}: {error}): take it from as_dict()"
            ) from None
        return made

    def _fitted(self) -> FloatArray:
        """Solve if anything was learned since; the smoothed powers (J,)."""
        if self.num_updates_ < _MIN_UPDATES:
            raise CostError(
                f"thermal predictor has learned from {self.num_updates_} states, needs {_MIN_UPDATES} "
                "with both temperature and power: sample for longer"
            )
        self._now.solve()
        if self._now.smoothed is None:
            raise CostError("thermal predictor was loaded but has seen no state since: give it one with update()")
        return self._now.smoothed

    def _bounds(
        self, temp_c: FloatArray, ahead_s: FloatArray, variance: FloatArray, course: Course, *, planned: bool
    ) -> tuple[FloatArray, FloatArray]:
        """Past errors where there are enough, else the spread of fit and power; widened by what is unknown anyway."""
        kept = np.exp(-ahead_s[:, None] / self._tau)
        response = (1.0 - kept) @ self.resistance_c_per_w_
        fit_c, plan_c = _Z90 * np.sqrt(variance), _Z90 * response * course.power_sd_w
        past = self._now.errors.bounds(
            ForecastOf.TEMP_GIVEN_POWER if planned else ForecastOf.TEMP, ahead_s, self._now.reading_error_c
        )
        if past is None:
            power_var_w2 = 0.0 if planned else self._now.power_var_w2
            spread_c = _Z90 * np.sqrt(self._fit.residual_sd_c_**2 + response**2 * power_var_w2)
            half_c = np.sqrt(fit_c**2 + plan_c**2 + spread_c**2)
            return temp_c - half_c, temp_c + half_c
        # Past errors hold what the fit was unsure of then: the larger of the two counts, not both.
        below_c, above_c = np.maximum(-past[0], fit_c), np.maximum(past[1], fit_c)
        return temp_c - np.hypot(below_c, plan_c), temp_c + np.hypot(above_c, plan_c)

    def _power_bounds(self, ahead_s: FloatArray, course: Course, *, planned: bool) -> tuple[FloatArray, FloatArray]:
        past = None if planned else self._now.errors.bounds(ForecastOf.POWER, ahead_s, 0.0)
        if past is None:
            half_w = _Z90 * (course.power_sd_w if planned else np.full(len(ahead_s), math.sqrt(self._now.power_var_w2)))
            return np.maximum(course.power_w - half_w, 0.0), course.power_w + half_w
        low_w, high_w = np.minimum(past[0], 0.0), np.maximum(past[1], 0.0)
        return np.maximum(course.power_w + low_w, 0.0), course.power_w + high_w
