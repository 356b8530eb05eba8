"""What a thermal predictor is told of the future, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thermoe.errors import ConfigError
from thermoe.types import FloatArray, Kind

MOST_W = 1e5
"""Power beyond which no board is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedLoad:
    """Board power planned for a while.

    Attributes:
        duration_s: How long [s]; the last load of a plan goes on.
        power_w: Mean board power [W].
        power_sd_w: How far the plan may be off, as a standard deviation [W].
    """

    duration_s: float
    power_w: float
    power_sd_w: float = 0.0

    def __post_init__(self) -> None:
        if not (self.duration_s > 0.0 and 0.0 <= self.power_w <= MOST_W and 0.0 <= self.power_sd_w <= MOST_W):
            raise ConfigError(
                f"planned load of {self.power_w} W within {self.power_sd_w} W for {self.duration_s} s: needs powers of "
                f"0 to {MOST_W:g} W and a positive duration"
            )


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
        smoothed_w: (N, J) powers smoothed with each time constant [W].
        power_w, power_sd_w: (N,) planned power and its standard deviation [W].
    """

    smoothed_w: FloatArray
    power_w: FloatArray
    power_sd_w: FloatArray


def follow(plan: Sequence[PlannedLoad], ahead_s: FloatArray, smoothed_w: FloatArray, tau_s: FloatArray) -> Course:
    """Carry a plan from smoothed powers (J,) to (N,) times ahead, exactly for loads that are constant in between."""
    smoothed = np.empty((len(ahead_s), len(tau_s)))
    power_w, power_sd_w = np.empty(len(ahead_s)), np.empty(len(ahead_s))
    start_s, level_w = 0.0, smoothed_w
    for load in plan:
        after = ahead_s >= start_s
        since_s = ahead_s[after] - start_s
        smoothed[after] = load.power_w + (level_w - load.power_w) * np.exp(-since_s[:, None] / tau_s)
        power_w[after], power_sd_w[after] = load.power_w, load.power_sd_w
        level_w = load.power_w + (level_w - load.power_w) * np.exp(-load.duration_s / tau_s)
        start_s += load.duration_s
    return Course(smoothed, power_w, power_sd_w)
