"""What a thermal predictor is told of the future, and what it answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thermoe.errors import ConfigError
from thermoe.types import NUMBER, FloatArray, Kind

MOST_W = 1e5
"""Power beyond which no board is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedLoad:
    """Board power and use of the memory planned for a while.

    Attributes:
        duration_s: How long [s]; the last load of a plan goes on.
        power_w: Mean board power [W].
        power_sd_w: How far the plan may be off, as a standard deviation [W].
        memory_util: Share of time in which memory is read or written, as NVML counts it, in [0, 1]; `None` as now.
    """

    duration_s: float
    power_w: float
    power_sd_w: float = 0.0
    memory_util: float | None = None

    def __post_init__(self) -> None:
        if not (self.duration_s > 0.0 and 0.0 <= self.power_w <= MOST_W and 0.0 <= self.power_sd_w <= MOST_W):
            raise ConfigError(
                f"planned load of {self.power_w} W within {self.power_sd_w} W for {self.duration_s} s: needs powers of "
                f"0 to {MOST_W:g} W and a positive duration"
            )
        if self.memory_util is not None and not 0.0 <= self.memory_util <= 1.0:
            raise ConfigError(
                f"planned load with a memory_util of {self.memory_util}: needs a share from 0 to 1, or None"
            )


def as_plan(power_w: float | Sequence[PlannedLoad] | None, expected_w: float) -> Sequence[PlannedLoad]:
    """A plan of one power for ever [W], by default the expected one; a plan stays as it is.

    Raises:
        ConfigError: For a power that no board draws, or a plan of anything but `PlannedLoad`.
    """
    if power_w is None:
        return [PlannedLoad(duration_s=math.inf, power_w=expected_w)]
    if isinstance(power_w, NUMBER):
        return [PlannedLoad(duration_s=math.inf, power_w=float(power_w))]
    plan = list(power_w)
    if not plan or not all(isinstance(load, PlannedLoad) for load in plan):
        raise ConfigError(
            f"a plan of {len(plan)} loads: needs one PlannedLoad or more, or None where nothing is planned"
        )
    return plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Temperature and power to come, with their 90 % intervals.

    Attributes:
        time_s: (N,) times, by the clock of the states [s]; the first is that of the last state.
        temp_c, low_c, high_c: (N,) core temperature and its bounds [deg C].
        power_w, power_low_w, power_high_w: (N,) board power and its bounds [W].
        kind: Always predicted.
    """

    time_s: FloatArray
    temp_c: FloatArray
    low_c: FloatArray
    high_c: FloatArray
    power_w: FloatArray
    power_low_w: FloatArray
    power_high_w: FloatArray
    kind: Kind = Kind.PREDICTED


@dataclass(frozen=True, slots=True)
class Course:
    """A plan carried through the network's poles.

    Attributes:
        smoothed: (N, 2 J) powers smoothed with each time constant [W], then minus the smoothed use of the memory.
        power_w, power_sd_w: (N,) planned power and its standard deviation [W].
    """

    smoothed: FloatArray
    power_w: FloatArray
    power_sd_w: FloatArray


def inputs(power_w: float, memory_util: float, num_time_constants: int) -> FloatArray:
    """(2 J,) what the network is driven by, ready to be smoothed: power [W], then minus the use of the memory."""
    return np.repeat([power_w, -memory_util], num_time_constants)


def settle(smoothed: FloatArray, driven: FloatArray, tau_s: FloatArray, span_s: FloatArray | float) -> FloatArray:
    """Smoothed inputs (2 J,) after `span_s` (or each of (N, 1) spans) under constant ones; `tau_s` (J,) [s]."""
    settled: FloatArray = driven + (smoothed - driven) * np.exp(-span_s / np.tile(tau_s, 2))
    return settled


def follow(
    plan: Sequence[PlannedLoad], ahead_s: FloatArray, smoothed: FloatArray, tau_s: FloatArray, memory_util: float
) -> Course:
    """Carry a plan from smoothed inputs (2 J,) to (N,) times ahead, exactly for loads that are constant in between.

    `memory_util` is what loads go on with that plan none.
    """
    course = np.empty((len(ahead_s), len(smoothed)))
    power_w, power_sd_w = np.empty(len(ahead_s)), np.empty(len(ahead_s))
    start_s, level = 0.0, smoothed
    for load in plan:
        driven = inputs(load.power_w, memory_util if load.memory_util is None else load.memory_util, len(tau_s))
        after = ahead_s >= start_s
        course[after] = settle(level, driven, tau_s, ahead_s[after, None] - start_s)
        power_w[after], power_sd_w[after] = load.power_w, load.power_sd_w
        level = settle(level, driven, tau_s, load.duration_s)
        start_s += load.duration_s
    return Course(course, power_w, power_sd_w)
