"""Where a board is now: smoothed powers, distance of the readings from the fit, and how past forecasts did."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

import numpy as np

from thermoe.cost.forecast_errors import HORIZONS_S, ForecastErrors, ForecastOf
from thermoe.cost.power_outlook import PowerOutlook
from thermoe.cost.thermal_fit import ThermalFit
from thermoe.cost.thermal_forecast import MOST_W
from thermoe.types import FloatArray, SysState

_MIN_UPDATES = 10
_MAX_GAP_S = 5.0  # power unknown for longer than this, or than five usual intervals, is not guessed
_SETTLE_S = 3.0  # after such a gap the powers before it still act: readings are not learned from
_SOLVE_EVERY_S = 1.0
_JUDGED_FROM = 100  # updates: the errors of a fit that knows next to nothing say little of those to come
_LATE = 1.5  # a forecast is compared with a reading up to this much later than its horizon
_POWER_JUDGED = HORIZONS_S.index(2.0)  # horizon over which candidates for the power to expect are judged
_POWER_SPREAD_S = 3.0
_WHOLE_DEGREE_S = 0.5  # readings in whole degrees are smoothed with this time constant before a forecast starts there
_PLAUSIBLE_C, _PLAUSIBLE_W = (-60.0, 200.0), (0.0, MOST_W)


@dataclass(frozen=True, slots=True)
class _Outset:
    """From where a forecast could have been made: kept until it can be compared with what came."""

    time_s: float
    spent_j: float
    smoothed_w: FloatArray
    coefficients: FloatArray
    offset_c: float
    expected_w: float
    candidates_w: FloatArray


class ThermalTracker:
    """Follows a board state by state, teaches a fit, and compares its forecasts with what came.

    Args:
        tau_s: (J,) time constants of the network [s].
        fit: What learns.

    Attributes:
        time_s, smoothed_w: Time of the last state [s]; (J,) smoothed powers [W], None before the first.
        offset_c: How far the last readings are above the fit [deg C].
        power_var_w2: Variance of power over the last seconds [W squared].
        errors, outlook: Of past forecasts; the power to expect.
        whole_degrees: Whether every temperature so far was a whole number of degrees; the fit is told.
    """

    def __init__(self, tau_s: FloatArray, fit: ThermalFit) -> None:
        self._tau, self._fit = tau_s, fit
        self._slowest_s = float(tau_s.max())
        self.errors, self.outlook = ForecastErrors(), PowerOutlook()
        self.whole_degrees = True
        self.smoothed_w: FloatArray | None = None
        self.time_s = self.offset_c = self.power_var_w2 = 0.0
        self._power_w = self._power_mean_w = self._spent_j = 0.0
        self._told_s = self._solved_s = self._settled_s = -math.inf
        self._gaps_s: deque[float] = deque(maxlen=9)
        self._outsets: list[deque[_Outset]] = [deque() for _ in HORIZONS_S]

    @property
    def reading_error_c(self) -> float:
        """Half width of what one reading may be off [deg C]."""
        return 0.5 if self.whole_degrees else 1.645 * self._fit.sensor_sd_c

    def update(self, state: SysState, *, learn: bool) -> None:
        """Take in one more state; see `ThermalPredictor.update`."""
        power_w = _plausible(state.power_avg_w if state.power_w is None else state.power_w, _PLAUSIBLE_W)
        temp_c = _plausible(state.temp_c, _PLAUSIBLE_C)
        if not math.isfinite(state.time_s) or (power_w is None and temp_c is None):
            return
        if self.smoothed_w is None:
            if power_w is not None:
                self._restart(state.time_s, power_w, temp_c)
            return
        gap_s = state.time_s - self.time_s
        if gap_s == 0.0:
            return
        unknown_s = state.time_s - self._told_s
        if gap_s < 0.0 or unknown_s > self._longest_gap_s():
            if power_w is not None:  # else the power has been silent for too long to guess
                self._gaps_s.extend([gap_s] if gap_s > 0.0 else [])
                self._restart(state.time_s, power_w, temp_c)
                self._settled_s = state.time_s + _SETTLE_S
            return
        self._gaps_s.append(gap_s)
        told = power_w is not None
        self._advance(state.time_s, self._power_w if power_w is None else power_w, gap_s)
        if told:
            self._told_s = state.time_s
        if temp_c is not None:
            self._take(temp_c, gap_s, learn=learn and told and state.time_s >= self._settled_s)

    def solve(self) -> None:
        """Solve the fit and keep the forecast of the present where it was."""
        before = self._fit.coefficients_
        self._fit.solve()
        if self.smoothed_w is not None and self._fit.coefficients_ is not before:
            feature = np.concatenate([[1.0], self.smoothed_w])
            self.offset_c += float(feature @ (before - self._fit.coefficients_))
        self._solved_s = self.time_s

    def _longest_gap_s(self) -> float:
        return max(_MAX_GAP_S, 5.0 * median(self._gaps_s)) if self._gaps_s else math.inf

    def _restart(self, time_s: float, power_w: float, temp_c: float | None) -> None:
        """As if this power had been drawn for ever; what a reading says otherwise is in the offset."""
        self.smoothed_w = np.full(len(self._tau), power_w)
        self.time_s = self._told_s = time_s
        self._solved_s = -math.inf
        self._power_w = self._power_mean_w = power_w
        self.power_var_w2 = self._spent_j = self.offset_c = 0.0
        self.outlook.restart(power_w)
        for outsets in self._outsets:
            outsets.clear()
        if temp_c is not None:
            self._see_fraction(temp_c)
            self.offset_c = temp_c - self._model_c()

    def _advance(self, time_s: float, power_w: float, gap_s: float) -> None:
        assert self.smoothed_w is not None
        self.smoothed_w = power_w + (self.smoothed_w - power_w) * np.exp(-gap_s / self._tau)
        self.time_s, self._power_w = time_s, power_w
        self._spent_j += power_w * gap_s
        self.offset_c *= math.exp(-gap_s / self._slowest_s)
        self.outlook.add(power_w, gap_s)
        share, deviation_w = 1.0 - math.exp(-gap_s / _POWER_SPREAD_S), power_w - self._power_mean_w
        self._power_mean_w += share * deviation_w
        self.power_var_w2 = (1.0 - share) * (self.power_var_w2 + share * deviation_w**2)

    def _take(self, temp_c: float, gap_s: float, *, learn: bool) -> None:
        assert self.smoothed_w is not None
        self._compare(temp_c, gap_s)
        if learn:
            self._fit.learn(self.smoothed_w, temp_c, gap_s)
            if self._fit.num_updates_ >= _MIN_UPDATES and self.time_s - self._solved_s >= _SOLVE_EVERY_S:
                self.solve()
        self._see_fraction(temp_c)
        share = 1.0 - math.exp(-gap_s / _WHOLE_DEGREE_S) if self.whole_degrees else 1.0
        self.offset_c += share * (temp_c - self._model_c() - self.offset_c)
        if self._fit.num_updates_ >= _JUDGED_FROM:
            self._set_out()

    def _see_fraction(self, temp_c: float) -> None:
        if self.whole_degrees and temp_c != round(temp_c):
            self.whole_degrees = False
        if not self.whole_degrees:
            self._fit.reading_sd_c = self._fit.sensor_sd_c

    def _model_c(self) -> float:
        assert self.smoothed_w is not None
        return float(self._fit.coefficients_[0] + self.smoothed_w @ self._fit.coefficients_[1:])

    def _set_out(self) -> None:
        assert self.smoothed_w is not None
        outset = _Outset(
            self.time_s,
            self._spent_j,
            self.smoothed_w,
            self._fit.coefficients_,
            self.offset_c,
            self.outlook.expected_w,
            self.outlook.candidates_w,
        )
        for outsets in self._outsets:
            outsets.append(outset)

    def _compare(self, temp_c: float, gap_s: float) -> None:
        """Judge the forecasts that were due since the state before."""
        for horizon, (due_s, outsets) in enumerate(zip(HORIZONS_S, self._outsets, strict=True)):
            while outsets and self.time_s - outsets[0].time_s >= due_s - 1e-6:
                outset = outsets.popleft()
                span_s = self.time_s - outset.time_s
                if span_s <= _LATE * due_s:
                    self._judge(horizon, outset, span_s, temp_c)
                    if horizon == _POWER_JUDGED:
                        mean_w = (self._spent_j - outset.spent_j) / span_s
                        self.outlook.judge(outset.candidates_w, mean_w, gap_s)

    def _judge(self, horizon: int, outset: _Outset, span_s: float, temp_c: float) -> None:
        """Errors of a forecast with the power that was drawn since, with the power expected, and of that power."""
        resistance = outset.coefficients[1:]
        base_c = float(outset.coefficients[0]) + outset.offset_c * math.exp(-span_s / self._slowest_s)
        assert self.smoothed_w is not None
        expected_w = outset.expected_w + (outset.smoothed_w - outset.expected_w) * np.exp(-span_s / self._tau)
        add = self.errors.add
        add(ForecastOf.TEMP_GIVEN_POWER, horizon, temp_c - base_c - float(self.smoothed_w @ resistance))
        add(ForecastOf.TEMP, horizon, temp_c - base_c - float(expected_w @ resistance))
        add(ForecastOf.POWER, horizon, self._power_w - outset.expected_w)


def _plausible(value: float | None, span: tuple[float, float]) -> float | None:
    """The reading, or `None` for one that is not finite or beyond all reason."""
    return value if value is not None and span[0] <= value <= span[1] else None
