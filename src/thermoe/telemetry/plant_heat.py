"""Heat and clocks of the simulated GPU: a two-pole thermal network and the power limit.

Figures are those of one H200 unless a comment calls them an assumption.
"""

import math
from dataclasses import dataclass
from typing import Self

from thermoe.telemetry.plant import ENERGY_EXPONENT, IDLE_POWER_W, SPEED_EXPONENT

AMBIENT_C = 29.5  # 33.9 deg C at an idle power of 117 W, 55.7 at 690 W
# 0.038 deg C/W in all; "a fast part (0.5 - 1 s) and a small slow part", 36 deg C one second after 690 W ends.
FAST_C_PER_W, FAST_S = 0.035, 0.5
SLOW_C_PER_W, SLOW_S = 0.003, 8.0
# Memory: 37 deg C idle, 47 under a matrix product at 691 W, 61 while reading 4.38 TB/s at 678 W.
MEMORY_C_PER_W = 10.0 / (691.0 - 117.0)
MEMORY_REST_C = 37.0 - AMBIENT_C - MEMORY_C_PER_W * 117.0
MEMORY_C_PER_BYTE_PER_S = (61.0 - 37.0 - MEMORY_C_PER_W * (678.0 - 117.0)) / 4.38e12
MEMORY_S = 4.0  # assumption: between the two poles of the core
LEAKAGE_W_PER_C = 0.5  # assumption: under a tenth of idle power over the whole range of temperatures
# Every measured power already holds the leakage at the temperature it was measured at.
IDLE_LEAKAGE_C = AMBIENT_C + (FAST_C_PER_W + SLOW_C_PER_W) * IDLE_POWER_W
WORK_LEAKAGE_C = 52.0

POWER_LIMIT_W = 700.0
SLOWDOWN_C, SHUTDOWN_C, MEMORY_MAX_C = 89.0, 95.0, 95.0
MIN_CLOCK_RATIO = 345.0 / 1980.0  # the lowest clock seen
SLOWDOWN_CLOCK_RATIO = 0.5  # assumption: above the slowdown temperature clocks are halved


@dataclass(slots=True)
class ThermalNetwork:
    """Temperature rises over ambient of a two-pole core and a one-pole memory [deg C].

    Advanced exactly for power that is constant over an interval, so the result does not depend on
    how the interval is cut.
    """

    fast_c: float
    slow_c: float
    memory_c: float

    @classmethod
    def settled(cls, power_w: float, read_bytes_per_s: float = 0.0) -> Self:
        """The network after a long time at constant power."""
        return cls(FAST_C_PER_W * power_w, SLOW_C_PER_W * power_w, _memory_rise_c(power_w, read_bytes_per_s))

    @property
    def core_rise_c(self) -> float:
        """Core temperature over ambient [deg C]."""
        return self.fast_c + self.slow_c

    def advance(self, duration_s: float, power_w: float, read_bytes_per_s: float = 0.0) -> None:
        """Let `power_w` and `read_bytes_per_s` act for `duration_s`."""
        self.fast_c = _relax(self.fast_c, FAST_C_PER_W * power_w, duration_s / FAST_S)
        self.slow_c = _relax(self.slow_c, SLOW_C_PER_W * power_w, duration_s / SLOW_S)
        self.memory_c = _relax(self.memory_c, _memory_rise_c(power_w, read_bytes_per_s), duration_s / MEMORY_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """How fast the board may run a piece of work.

    Attributes:
        clock_ratio: Clock as a share of the highest.
        stretch: Time relative to that at the highest clock.
        dynamic_scale: Dynamic energy of the work relative to that at the highest clock.
        power_capped: Whether the power limit held the clock down.
        thermally_capped: Whether the temperature held the clock down.
    """

    clock_ratio: float
    stretch: float
    dynamic_scale: float
    power_capped: bool
    thermally_capped: bool


def operating_point(*, dynamic_w: float, static_w: float, limit_w: float, core_c: float) -> OperatingPoint:
    """The highest clock at which `static_w` and the slowed `dynamic_w` stay within `limit_w`.

    Speed goes with clock ** 0.69 and dynamic energy with clock, so dynamic power goes with the
    product; the clock never falls below its floor, even where the limit then is not held.
    """
    thermally_capped = core_c >= SLOWDOWN_C
    highest = SLOWDOWN_CLOCK_RATIO if thermally_capped else 1.0
    allowed = highest
    if dynamic_w > 0.0:
        allowed = (max(limit_w - static_w, 0.0) / dynamic_w) ** (1.0 / (SPEED_EXPONENT + ENERGY_EXPONENT))
    ratio = max(min(allowed, highest), MIN_CLOCK_RATIO)
    return OperatingPoint(
        clock_ratio=ratio,
        stretch=ratio**-SPEED_EXPONENT,
        dynamic_scale=ratio**ENERGY_EXPONENT,
        power_capped=allowed < highest,
        thermally_capped=thermally_capped,
    )


def leakage_w(core_c: float, reference_c: float) -> float:
    """Power that leaks beyond what leaked at `reference_c` [W]."""
    return LEAKAGE_W_PER_C * (core_c - reference_c)


def _memory_rise_c(power_w: float, read_bytes_per_s: float) -> float:
    return MEMORY_REST_C + MEMORY_C_PER_W * power_w + MEMORY_C_PER_BYTE_PER_S * read_bytes_per_s


def _relax(value: float, target: float, time_constants: float) -> float:
    return target + (value - target) * math.exp(-time_constants)
