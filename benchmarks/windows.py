"""Energy windows of several arms, interleaved, and their summary."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thermoe.profiling.energy_window import WindowFigures, summarise_window
from thermoe.profiling.loop import Loop
from thermoe.types import SysState

ReadState = Callable[[], SysState]
READ_EVERY_S = 0.02
WARM_UP_S = 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One window of one arm.

    Attributes:
        arm: Name of the arm.
        trial: Pass over all arms; odd passes run them in reverse.
        position: Place of the window in the whole sequence.
        steps: Steps in the window.
        window_s: Time of these steps, by events on a GPU [s].
        ms_per_step: Sustained latency [ms].
        tokens_per_s: Tokens per second.
        distinct_experts: Mean over layers and steps; None where nothing counted them.
        gate_mass_kept: Share of the model's own gate mass, mean over layers.
        sensors_s: Time between the first and the last reading that count [s].
        power_counter_w, power_integrated_w: Mean power by the energy counter and by instant power [W].
        j_per_token, j_per_token_integrated: Energy per token by either [J].
        disagreement_pct: The second relative to the first, minus one [%].
        temp_c: Mean core temperature [deg C].
        sm_clock_mhz, memory_clock_mhz: Mean clocks [MHz].
        power_limit_w: Enforced power limit [W].
        throttled: Whether anything held the clocks down.
        throttle_reasons: All clock-event reasons seen, as a bit mask.
    """

    arm: str
    trial: int
    position: int
    steps: int
    window_s: float
    ms_per_step: float
    tokens_per_s: float
    distinct_experts: float | None
    gate_mass_kept: float | None
    sensors_s: float | None = None
    power_counter_w: float | None = None
    power_integrated_w: float | None = None
    j_per_token: float | None = None
    j_per_token_integrated: float | None = None
    disagreement_pct: float | None = None
    temp_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_limit_w: float | None = None
    throttled: bool | None = None
    throttle_reasons: int | None = None

    def as_dict(self) -> dict[str, object]:
        """All fields by name."""
        return asdict(self)


class Sampler:
    """Reads the sensors when asked, but not more often than every 20 ms: a reading takes about a millisecond."""

    def __init__(self, read: ReadState | None) -> None:
        self._read, self._due_s = read, 0.0
        self.states: list[SysState] = []

    def __call__(self) -> None:
        """Read if it is time."""
        if self._read is not None and time.monotonic() >= self._due_s:
            self.states.append(self._read())
            self._due_s = time.monotonic() + READ_EVERY_S


def interleaved(names: Sequence[str], trials: int) -> list[tuple[int, str]]:
    """(trial, arm) in the order of measurement: forwards and backwards in turn, so that drift cancels."""
    return [(trial, name) for trial in range(trials) for name in (names[::-1] if trial % 2 else names)]


def measure_window(
    loop: Loop, seconds: float, read: ReadState | None, before: Callable[[], object] = lambda: None
) -> tuple[int, float, list[SysState]]:
    """Warm up, call `before` (counters start anew there), then keep the load up beside the sensors.

    Returns:
        Steps, their seconds, and the states that were read.
    """
    loop.sustain(min(WARM_UP_S, seconds), lambda: None)
    before()
    sampler = Sampler(read)
    steps, took_s = loop.sustain(seconds, sampler)
    return steps, took_s, sampler.states


def sensor_figures(states: Sequence[SysState], s_per_token: float) -> dict[str, Any]:
    """Fields of a `Sample` that come from the sensors; nothing where there are none."""
    if not states:
        return {}
    figures: WindowFigures = summarise_window(states)
    counter_w, integrated_w = figures.power_counter_w, figures.power_integrated_w
    reasons = [s.throttle_reasons for s in states if s.throttle_reasons is not None]
    mask = 0
    for reason in reasons:
        mask |= reason
    return {
        "sensors_s": figures.duration_s,
        "power_counter_w": counter_w,
        "power_integrated_w": integrated_w,
        "j_per_token": None if counter_w is None else counter_w * s_per_token,
        "j_per_token_integrated": None if integrated_w is None else integrated_w * s_per_token,
        "disagreement_pct": change_pct(integrated_w, counter_w),
        "temp_c": figures.temp_c,
        "sm_clock_mhz": figures.sm_clock_mhz,
        "memory_clock_mhz": figures.memory_clock_mhz,
        "power_limit_w": figures.power_limit_w,
        "throttled": figures.throttled,
        "throttle_reasons": mask if reasons else None,
    }


def change_pct(value: float | None, reference: float | None) -> float | None:
    """Change from the reference [%]; None where either is unknown."""
    return None if value is None or not reference else 100.0 * (value / reference - 1.0)


def spread(values: Sequence[float | None], digits: int = 6) -> dict[str, float] | None:
    """Median, lowest and highest of the known values; None where there are none."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    figures = {"median": statistics.median(known), "low": min(known), "high": max(known)}
    return {name: float(f"{value:.{digits}g}") for name, value in figures.items()}


def summarise_arm(samples: Sequence[Sample], references: Mapping[int, Sample]) -> dict[str, Any]:
    """Figures of one arm over its trials; changes are paired with the reference arm of the same trial."""
    pairs = [(s, references[s.trial]) for s in samples]
    return {
        "trials": len(samples),
        "ms_per_step": spread([s.ms_per_step for s in samples]),
        "j_per_token": spread([s.j_per_token for s in samples]),
        "j_per_token_integrated": spread([s.j_per_token_integrated for s in samples]),
        "disagreement_pct": spread([s.disagreement_pct for s in samples]),
        "power_w": spread([s.power_counter_w for s in samples]),
        "distinct_experts": spread([s.distinct_experts for s in samples]),
        "gate_mass_kept": spread([s.gate_mass_kept for s in samples]),
        "temp_c": spread([s.temp_c for s in samples]),
        "sm_clock_mhz": spread([s.sm_clock_mhz for s in samples]),
        "throttled_windows": sum(bool(s.throttled) for s in samples),
        "change_pct": {
            "ms_per_step": spread([change_pct(s.ms_per_step, r.ms_per_step) for s, r in pairs]),
            "j_per_token": spread([change_pct(s.j_per_token, r.j_per_token) for s, r in pairs]),
            "j_per_token_integrated": spread(
                [change_pct(s.j_per_token_integrated, r.j_per_token_integrated) for s, r in pairs]
            ),
        },
    }


def windows_line(sample: Sample) -> str:
    """A window in a line of text."""
    joules = "" if sample.j_per_token is None else f", {1e3 * sample.j_per_token:.2f} mJ/token"
    also = "" if sample.j_per_token_integrated is None else f" ({1e3 * sample.j_per_token_integrated:.2f} integrated)"
    power = "" if sample.power_counter_w is None else f", {sample.power_counter_w:.0f} W"
    experts = "" if sample.distinct_experts is None else f", {sample.distinct_experts:.1f} experts"
    return f"trial {sample.trial} {sample.arm}: {sample.ms_per_step:.3f} ms{experts}{joules}{also}{power}"
