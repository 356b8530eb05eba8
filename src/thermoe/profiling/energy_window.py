"""Energy of a steady load from the states sampled while it ran. No torch."""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from thermoe.telemetry.windows import MAX_GAP_S, WindowAccumulator
from thermoe.types import SysState

_LONG_GAP = 5.0  # a gap between readings longer than so many usual ones, and than MAX_GAP_S, is a hole


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFigures:
    """What a window of steady load showed; `None` where the sensor was silent.

    Attributes:
        duration_s: Between the first and the last change of the energy counter, else of all samples [s].
        power_counter_w: Mean power by the energy counter [W].
        power_integrated_w: Mean power by the integral of instant power [W].
        temp_c: Mean core temperature [deg C].
        sm_clock_mhz, memory_clock_mhz: Mean clocks [MHz].
        power_limit_w: Enforced limit [W].
        throttled: Whether any sample named a reason that holds clocks back.
    """

    duration_s: float
    power_counter_w: float | None
    power_integrated_w: float | None
    temp_c: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_limit_w: float | None
    throttled: bool | None


def summarise_window(states: Sequence[SysState]) -> WindowFigures:
    """Figures of a steady load.

    The energy counter moves only every 100 ms or so. Power is therefore taken from the first to the last
    change that was seen, so that the counter's step is no error of the window's length.
    Where readings stopped for a while nobody knows whether the load went on: power is then unknown.
    """
    ticks = _counter_changes(states)
    inside = states[ticks[0] : ticks[-1] + 1] if len(ticks) >= 2 else states
    accumulator = WindowAccumulator(inside[0])
    for state in inside[1:]:
        accumulator.add(state)
    window = accumulator.result()
    is_whole = hole_s(states) == 0.0
    counter_j = window.energy_counter_j if len(ticks) >= 2 and is_whole and _never_falls(inside) else None
    return WindowFigures(
        duration_s=window.duration_s,
        power_counter_w=_rate(counter_j, window.duration_s),
        power_integrated_w=_rate(window.energy_integrated_j if is_whole else None, window.duration_s),
        temp_c=window.temp_mean_c,
        sm_clock_mhz=_mean(s.sm_clock_mhz for s in inside),
        memory_clock_mhz=_mean(s.memory_clock_mhz for s in inside),
        power_limit_w=_mean(s.power_limit_w for s in inside),
        throttled=window.throttled,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyFigures:
    """Energy of one execution over several windows, each time-weighted; all `None` where nothing was measured.

    Attributes:
        latency_s: Mean time of one execution while the windows ran [s].
        energy_j, energy_integrated_j: By the counter and by the integral of instant power [J].
        spread_pct: (highest - lowest) / mean of the windows' energies [%].
        windows: How many there were.
        throttled: Whether clocks were held back in any.
        power_w, temp_c, sm_clock_mhz, memory_clock_mhz, power_limit_w: Means.
    """

    latency_s: float | None = None
    energy_j: float | None = None
    energy_integrated_j: float | None = None
    spread_pct: float | None = None
    windows: int | None = None
    throttled: bool | None = None
    power_w: float | None = None
    temp_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_limit_w: float | None = None

    def as_row_fields(self) -> dict[str, float | None]:
        """The figures as a `CostRow` names them."""
        return {
            "latency_sustained_us": _scaled(self.latency_s, 1e6),
            "energy_mj": _scaled(self.energy_j, 1e3),
            "energy_integrated_mj": _scaled(self.energy_integrated_j, 1e3),
            "energy_spread_pct": self.spread_pct,
            "power_w": self.power_w,
            "power_limit_w": self.power_limit_w,
            "temp_c": self.temp_c,
            "sm_clock_mhz": self.sm_clock_mhz,
            "memory_clock_mhz": self.memory_clock_mhz,
        }


def join_windows(windows: Sequence[tuple[float, WindowFigures]]) -> EnergyFigures:
    """Figures of windows of one steady load, each with its seconds per execution; at least one window."""
    latency_s = statistics.fmean(seconds for seconds, _ in windows)
    counter_j = [_scaled(w.power_counter_w, seconds) for seconds, w in windows]
    integrated_j = [_scaled(w.power_integrated_w, seconds) for seconds, w in windows]
    by_window = [j for j in counter_j if j is not None] or [j for j in integrated_j if j is not None]
    energy_j, energy_integrated_j = _mean(counter_j), _mean(integrated_j)
    best_j = energy_j if energy_j is not None else energy_integrated_j
    throttled = [w.throttled for _, w in windows if w.throttled is not None]
    return EnergyFigures(
        latency_s=latency_s,
        energy_j=energy_j,
        energy_integrated_j=energy_integrated_j,
        spread_pct=100.0 * (max(by_window) - min(by_window)) / best_j if best_j else None,
        windows=len(windows),
        throttled=any(throttled) if throttled else None,
        power_w=_scaled(best_j, 1.0 / latency_s),
        temp_c=_mean(w.temp_c for _, w in windows),
        sm_clock_mhz=_mean(w.sm_clock_mhz for _, w in windows),
        memory_clock_mhz=_mean(w.memory_clock_mhz for _, w in windows),
        power_limit_w=_mean(w.power_limit_w for _, w in windows),
    )


def wait_until_cool(
    read: Callable[[], SysState], temp_c: float, limit_s: float, sleep: Callable[[float], None]
) -> SysState:
    """Wait until the core is no warmer than `temp_c`, `limit_s` at the most; the last state seen."""
    state = read()
    started_s = state.time_s
    while state.temp_c is not None and state.temp_c > temp_c and state.time_s - started_s < limit_s:
        sleep(0.1)
        state = read()
    return state


def hole_s(states: Sequence[SysState]) -> float:
    """Longest time without a reading, if the process was held up; 0 for readings as usual [s]."""
    gaps_s = [later.time_s - earlier.time_s for earlier, later in itertools.pairwise(states)]
    usual_s = max(MAX_GAP_S, _LONG_GAP * statistics.median(gaps_s)) if gaps_s else 0.0
    return max((gap_s for gap_s in gaps_s if gap_s > usual_s), default=0.0)


def _never_falls(states: Sequence[SysState]) -> bool:
    """Whether the energy counter was not reset in between."""
    known = [s.energy_j for s in states if s.energy_j is not None]
    return all(earlier <= later for earlier, later in itertools.pairwise(known))


def _counter_changes(states: Sequence[SysState]) -> list[int]:
    energies = [s.energy_j for s in states]
    return [i for i in range(1, len(energies)) if energies[i] is not None and energies[i] != energies[i - 1]]


def _rate(energy_j: float | None, duration_s: float) -> float | None:
    return None if energy_j is None or duration_s <= 0 else energy_j / duration_s


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None
