"""Energy of a steady load from the states sampled while it ran. No torch."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from thermoe.telemetry.windows import WindowAccumulator
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
    accumulator = WindowAccumulator(inside[0])
    for state in inside[1:]:
        accumulator.add(state)
    window = accumulator.result()
    counter_j = window.energy_counter_j if len(ticks) >= 2 else None
    return WindowFigures(
        duration_s=window.duration_s,
        power_counter_w=_rate(counter_j, window.duration_s),
        power_integrated_w=_rate(window.energy_integrated_j, window.duration_s),
        temp_c=window.temp_mean_c,
        sm_clock_mhz=_mean(s.sm_clock_mhz for s in inside),
        memory_clock_mhz=_mean(s.memory_clock_mhz for s in inside),
        power_limit_w=_mean(s.power_limit_w for s in inside),
        throttled=window.throttled,
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


def _rate(energy_j: float | None, duration_s: float) -> float | None:
    return None if energy_j is None or duration_s <= 0 else energy_j / duration_s


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None
