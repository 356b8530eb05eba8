"""Where a board is now: smoothed inputs, distance of the readings from the fit, and how past forecasts did."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

import numpy as np

from thermoe.cost.forecast_errors import HORIZONS_S, ForecastErrors, ForecastOf
from thermoe.cost.power_outlook import PowerOutlook
from thermoe.cost.thermal_fit import ThermalFit
from thermoe.cost.thermal_forecast import MOST_W, inputs, settle
from thermoe.types import FloatArray, SysState

_MIN_UPDATES = 10
_MAX_GAP_S = 5.0  # power unknown for longer than this, or than five usual intervals, is not guessed
_SETTLE_S = 3.0  # after such a gap the powers before it still act: readings are not learned from
_SOLVE_EVERY_S = 1.0
_JUDGED_FROM = 100  # updates: the errors of a fit that knows next to nothing say little of those to come
_LATE = 1.5  # a forecast is compared with a reading up to this much later than its horizon
_POWER_JUDGED = HORIZONS_S.index(2.0)  # horizon over which candidates for the power to expect are judged
_POWER_SPREAD_S = 3.0
# NVML's use of the memory is a mean that is renewed about once a second: what a reading was taken under shows later.
_TOLD_LATE_S, _TOLD_WITHIN = 1.3, 0.1
_UNSURE_S = 0.5  # and so long it acts on
_UNSURE_WEIGHT = 0.05  # of readings while it changes: next to nothing, but where it always changes they must do
_WHOLE_DEGREE_S = 0.5  # readings in whole degrees are smoothed with this time constant before a forecast starts there
_PLAUSIBLE_C, _PLAUSIBLE_W, _PLAUSIBLE_UTIL = (-60.0, 200.0), (0.0, MOST_W), (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A reading that waits until it is known how the memory was used then."""

    time_s: float
    gap_s: float
    temp_c: float
    power_w: float
    spent_j: float
    memory_util: float
    is_new: bool
    smoothed: FloatArray
    learn: bool


@dataclass(frozen=True, slots=True)
class _Outset:
    """From where a forecast could have been made: kept until it can be compared with what came."""

    time_s: float
    spent_j: float
    smoothed: FloatArray
    coefficients: FloatArray
    offset_c: float
    settled_c: float
    expected_w: float
    memory_util: float
    candidates_w: FloatArray


class ThermalTracker:
    """Follows a board state by state, teaches a fit, and compares its forecasts with what came.

    Args:
        tau_s: (J,) time constants of the network [s].
        fit: What learns.

    Attributes:
        time_s, smoothed: Time of the last state [s]; (2 J,) smoothed inputs (see `inputs`), None before the first.
        memory_util: Last reading of the memory's use, in [0, 1]; 0 while it was never heard.
        offset_c, settled_c: How far the last readings are above the fit [deg C]; how far those were of which it is
            known how the memory was used then.
        power_var_w2: Variance of power over the last seconds [W squared].
        errors, outlook: Of past forecasts; the power to expect.
        whole_degrees: Whether every temperature so far was a whole number of degrees; the fit is told.
    """

    def __init__(self, tau_s: FloatArray, fit: ThermalFit) -> None:
        self._tau, self._fit = tau_s, fit
        self._slowest_s = float(tau_s.max())
        self.errors, self.outlook = ForecastErrors(), PowerOutlook()
        self.whole_degrees = True
        self.smoothed: FloatArray | None = None
        self.time_s = self.offset_c = self.settled_c = self.power_var_w2 = self.memory_util = 0.0
        self._power_w = self._power_mean_w = self._spent_j = 0.0
        self._told_s = self._solved_s = self._settled_s = self._renewed_s = -math.inf
        self._gaps_s: deque[float] = deque(maxlen=9)
        self._hears_memory = self._has_used = False
        self._waiting: deque[_Seen] = deque()
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
        memory_util = _plausible(state.memory_util, _PLAUSIBLE_UTIL)
        if memory_util is not None:
            if abs(memory_util - self.memory_util) > _TOLD_WITHIN:
                self._renewed_s = state.time_s
            self.memory_util, self._hears_memory = memory_util, True
        if self.smoothed is None:
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
        if self.smoothed is not None and self._fit.coefficients_ is not before:
            feature = np.concatenate([[1.0], self.smoothed])
            moved_c = float(feature @ (before - self._fit.coefficients_))
            self.offset_c += moved_c
            self.settled_c += moved_c
        self._solved_s = self.time_s

    def _longest_gap_s(self) -> float:
        return max(_MAX_GAP_S, 5.0 * median(self._gaps_s)) if self._gaps_s else math.inf

    def _restart(self, time_s: float, power_w: float, temp_c: float | None) -> None:
        """As if this power had been drawn for ever; what a reading says otherwise is in the offset."""
        self.smoothed = inputs(power_w, self.memory_util, len(self._tau))
        self.time_s = self._told_s = time_s
        self._solved_s = -math.inf
        self._power_w = self._power_mean_w = power_w
        self.power_var_w2 = self._spent_j = self.offset_c = 0.0
        self._waiting.clear()
        self._has_used = False
        self.outlook.restart(power_w)
        for outsets in self._outsets:
            outsets.clear()
        if temp_c is not None:
            self._see_fraction(temp_c)
            self.offset_c = temp_c - self._model_c(self.smoothed)
        self.settled_c = self.offset_c

    def _advance(self, time_s: float, power_w: float, gap_s: float) -> None:
        assert self.smoothed is not None
        driven = inputs(power_w, self.memory_util, len(self._tau))
        self.smoothed = settle(self.smoothed, driven, self._tau, gap_s)
        self.time_s, self._power_w = time_s, power_w
        self._spent_j += power_w * gap_s
        self.offset_c *= math.exp(-gap_s / self._slowest_s)
        self.settled_c *= math.exp(-gap_s / self._slowest_s)
        self.outlook.add(power_w, gap_s)
        share, deviation_w = 1.0 - math.exp(-gap_s / _POWER_SPREAD_S), power_w - self._power_mean_w
        self._power_mean_w += share * deviation_w
        self.power_var_w2 = (1.0 - share) * (self.power_var_w2 + share * deviation_w**2)

    def _take(self, temp_c: float, gap_s: float, *, learn: bool) -> None:
        assert self.smoothed is not None
        is_new, spent_j = 0.0 <= self.time_s - self._renewed_s < _UNSURE_S, self._spent_j
        self._waiting.append(
            _Seen(self.time_s, gap_s, temp_c, self._power_w, spent_j, self.memory_util, is_new, self.smoothed, learn)
        )
        late_s = _TOLD_LATE_S if self._hears_memory else 0.0
        while self._waiting and self.time_s - self._waiting[0].time_s >= late_s:
            seen = self._waiting.popleft()
            later = (abs(x.memory_util - seen.memory_util) for x in self._waiting)
            self._use(seen, sure=not seen.is_new and all(by <= _TOLD_WITHIN for by in later))
        self._see_fraction(temp_c)
        self.offset_c += self._share(gap_s) * (temp_c - self._model_c(self.smoothed) - self.offset_c)
        if not (self._hears_memory and self._has_used):
            self.settled_c = self.offset_c
        if self._fit.num_updates_ >= _JUDGED_FROM:
            self._set_out()

    def _use(self, seen: _Seen, *, sure: bool) -> None:
        """Judge by a reading, learn from it, and tell how far the fit is off."""
        self._has_used = True
        self._compare(seen, sure=sure)
        weight = 1.0 if sure else _UNSURE_WEIGHT
        if seen.learn:
            self._fit.learn(seen.smoothed, seen.temp_c, seen.gap_s, weight)
            if self._fit.num_updates_ >= _MIN_UPDATES and self.time_s - self._solved_s >= _SOLVE_EVERY_S:
                self.solve()
        off_c = seen.temp_c - self._model_c(seen.smoothed)
        self.settled_c += weight * self._share(seen.gap_s) * (off_c - self.settled_c)

    def _share(self, gap_s: float) -> float:
        """How much a reading moves the distance from the fit."""
        return 1.0 - math.exp(-gap_s / _WHOLE_DEGREE_S) if self.whole_degrees else 1.0

    def _see_fraction(self, temp_c: float) -> None:
        if self.whole_degrees and temp_c != round(temp_c):
            self.whole_degrees = False
        if not self.whole_degrees:
            self._fit.reading_sd_c = self._fit.sensor_sd_c

    def _model_c(self, smoothed: FloatArray) -> float:
        return float(self._fit.coefficients_[0] + smoothed @ self._fit.coefficients_[1:])

    def faded_c(self, offset_c: float, settled_c: float, span_s: FloatArray) -> FloatArray:
        """(N,) what is left of the last readings' distance from the fit after (N,) times.

        Where use of the memory is told, what may come of readings of it that are late is soon gone; where it is not,
        the caller takes all of the distance for settled.
        """
        settled: FloatArray = settled_c * np.exp(-span_s / self._slowest_s)
        return settled + (offset_c - settled_c) * np.exp(-span_s / _UNSURE_S)

    def _set_out(self) -> None:
        assert self.smoothed is not None
        outset = _Outset(
            self.time_s,
            self._spent_j,
            self.smoothed,
            self._fit.coefficients_,
            self.offset_c,
            self.settled_c,
            self.outlook.expected_w,
            self.memory_util,
            self.outlook.candidates_w,
        )
        for outsets in self._outsets:
            outsets.append(outset)

    def _compare(self, seen: _Seen, *, sure: bool) -> None:
        """Judge the forecasts that were due since the state before."""
        for horizon, (due_s, outsets) in enumerate(zip(HORIZONS_S, self._outsets, strict=True)):
            while outsets and seen.time_s - outsets[0].time_s >= due_s - 1e-6:
                outset = outsets.popleft()
                span_s = seen.time_s - outset.time_s
                if span_s > _LATE * due_s:
                    continue
                self.errors.add(ForecastOf.POWER, horizon, seen.power_w - outset.expected_w)
                if sure:
                    self._judge(horizon, outset, span_s, seen)
                if horizon == _POWER_JUDGED:
                    mean_w = (seen.spent_j - outset.spent_j) / span_s
                    self.outlook.judge(outset.candidates_w, mean_w, seen.gap_s)

    def _judge(self, horizon: int, outset: _Outset, span_s: float, seen: _Seen) -> None:
        """Errors of a forecast with the inputs that came since, and with those expected."""
        effect, ambient_c = outset.coefficients[1:], float(outset.coefficients[0])
        given_c = float(self.faded_c(outset.offset_c, outset.settled_c, np.array(span_s)))
        driven = inputs(outset.expected_w, outset.memory_util, len(self._tau))
        expected = settle(outset.smoothed, driven, self._tau, span_s)
        expected_c = float(self.faded_c(outset.offset_c, outset.offset_c, np.array(span_s)))
        above_c = seen.temp_c - ambient_c
        self.errors.add(ForecastOf.TEMP_GIVEN_POWER, horizon, above_c - given_c - float(seen.smoothed @ effect))
        self.errors.add(ForecastOf.TEMP, horizon, above_c - expected_c - float(expected @ effect))


def _plausible(value: float | None, span: tuple[float, float]) -> float | None:
    """The reading, or `None` for one that is not finite or beyond all reason."""
    return value if value is not None and span[0] <= value <= span[1] else None
