"""Energy of a steady load from the states sampled while it ran. No torch."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from thermoe.telemetry.source import is_throttled
from thermoe.types import SysState


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
    """
    ticks = _counter_changes(states)
    inside = states[ticks[0] : ticks[-1] + 1] if len(ticks) >= 2 else states
    first, last = inside[0], inside[-1]
    power_counter_w = None
    if len(ticks) >= 2 and first.energy_j is not None and last.energy_j is not None:
        power_counter_w = (last.energy_j - first.energy_j) / (last.time_s - first.time_s)
    throttled = [t for t in (is_throttled(s.throttle_reasons) for s in inside) if t is not None]
    return WindowFigures(
        duration_s=last.time_s - first.time_s,
        power_counter_w=power_counter_w,
        power_integrated_w=_mean_power(inside),
        temp_c=_mean(s.temp_c for s in inside),
        sm_clock_mhz=_mean(s.sm_clock_mhz for s in inside),
        memory_clock_mhz=_mean(s.memory_clock_mhz for s in inside),
        power_limit_w=_mean(s.power_limit_w for s in inside),
        throttled=any(throttled) if throttled else None,
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


def _counter_changes(states: Sequence[SysState]) -> list[int]:
    energies = [s.energy_j for s in states]
    return [i for i in range(1, len(energies)) if energies[i] is not None and energies[i] != energies[i - 1]]


def _mean_power(states: Sequence[SysState]) -> float | None:
    known = [(s.time_s, s.power_w) for s in states if s.power_w is not None]
    if len(known) < 2:
        return None
    time_s, power_w = np.array(known).T
    return float(np.trapezoid(power_w, time_s) / (time_s[-1] - time_s[0]))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None
