"""Energy of a stretch of time, estimated twice: from the energy counter and from the power readings."""

from dataclasses import dataclass

from thermoe.telemetry.source import is_throttled
from thermoe.types import Kind, SysState

#: A hole in the power readings longer than this leaves the integral unknown, unless told otherwise [s].
MAX_GAP_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyWindow:
    """What happened between two readings; `None` is what the sensors did not tell.

    Attributes:
        duration_s: Time between the first and the last reading, by the source's clock [s].
        energy_counter_j: Difference of the energy counter [J].
        energy_integrated_j: Integral of the instant power, of the averaged power where there is no
            instant one [J]; unknown if the power readings have a hole that is too long to bridge.
        disagreement_pct: Integral relative to the counter, minus one [%].
        power_mean_w: Integrated energy over duration [W]; the counter's where there is no integral.
        power_peak_w: Highest power reading [W].
        temp_mean_c: Mean core temperature over the readings [deg C].
        temp_peak_c: Highest core temperature read [deg C].
        throttled: Whether clocks were held down in any reading.
        num_samples: Readings in the window, first and last included.
        kind: Kind of the source.
    """

    duration_s: float
    energy_counter_j: float | None
    energy_integrated_j: float | None
    disagreement_pct: float | None
    power_mean_w: float | None
    power_peak_w: float | None
    temp_mean_c: float | None
    temp_peak_c: float | None
    throttled: bool | None
    num_samples: int
    kind: Kind


class WindowAccumulator:
    """Adds up readings one by one in constant memory; `result` may be asked at any time.

    Args:
        first: The reading that opens the window.
        max_gap_s: Longest hole in the power readings that is bridged [s].
    """

    def __init__(self, first: SysState, max_gap_s: float = MAX_GAP_S) -> None:
        self._max_gap_s = max_gap_s
        self._first = self._last = first
        self._num_samples = 0
        self._power_time_s = first.time_s
        self._power_w: float | None = None
        self._integral_j = 0.0
        self._has_hole = False
        self._power_peak_w: float | None = None
        self._temp_sum_c = 0.0
        self._num_temps = 0
        self._temp_peak_c: float | None = None
        self._throttled: bool | None = None
        self.add(first)

    def add(self, state: SysState) -> None:
        """Count one more reading; one older than the last is ignored."""
        if state.time_s < self._last.time_s:
            return
        self._last = state
        self._num_samples += 1
        power_w = state.power_w if state.power_w is not None else state.power_avg_w
        if power_w is not None:
            self._integrate_to(state.time_s, power_w)
            self._power_peak_w = power_w if self._power_peak_w is None else max(self._power_peak_w, power_w)
        if state.temp_c is not None:
            self._temp_sum_c += state.temp_c
            self._num_temps += 1
            self._temp_peak_c = state.temp_c if self._temp_peak_c is None else max(self._temp_peak_c, state.temp_c)
        throttled = is_throttled(state.throttle_reasons)
        if throttled is not None:
            self._throttled = bool(self._throttled) or throttled

    def result(self) -> EnergyWindow:
        """The window from the first reading to the last."""
        duration_s = self._last.time_s - self._first.time_s
        counter_j = self._counter_j()
        integrated_j = self._integrated_j()
        known_j = integrated_j if integrated_j is not None else counter_j
        disagreement = None
        if counter_j is not None and integrated_j is not None and counter_j > 0.0:
            disagreement = 100.0 * (integrated_j / counter_j - 1.0)
        return EnergyWindow(
            duration_s=duration_s,
            energy_counter_j=counter_j,
            energy_integrated_j=integrated_j,
            disagreement_pct=disagreement,
            power_mean_w=known_j / duration_s if known_j is not None and duration_s > 0.0 else None,
            power_peak_w=self._power_peak_w,
            temp_mean_c=self._temp_sum_c / self._num_temps if self._num_temps else None,
            temp_peak_c=self._temp_peak_c,
            throttled=self._throttled,
            num_samples=self._num_samples,
            kind=self._first.kind,
        )

    def _integrate_to(self, time_s: float, power_w: float) -> None:
        """Trapezoid from the last known power; before the first known one its value is held."""
        before_w = power_w if self._power_w is None else self._power_w
        gap_s = time_s - self._power_time_s
        self._has_hole |= gap_s > self._max_gap_s
        self._integral_j += 0.5 * (before_w + power_w) * gap_s
        self._power_time_s, self._power_w = time_s, power_w

    def _counter_j(self) -> float | None:
        first, last = self._first.energy_j, self._last.energy_j
        if first is None or last is None or last < first:
            return None  # a counter that fell was reset: what it lost is unknown
        return last - first

    def _integrated_j(self) -> float | None:
        tail_s = self._last.time_s - self._power_time_s
        if self._power_w is None or self._has_hole or tail_s > self._max_gap_s:
            return None
        return self._integral_j + self._power_w * tail_s
