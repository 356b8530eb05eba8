"""Disturbances that come from outside the work: weather, neighbours, operators and broken sensors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

from thermoe.errors import ConfigError
from thermoe.types import SysState


class ScenarioName(StrEnum):
    """The scenarios `ThermalSignalGenerator` can make."""

    IDLE = "idle"
    RAMP = "ramp"
    SPIKE = "spike"
    HOT_AMBIENT = "hot_ambient"
    EXTERNAL_LOAD = "external_load"
    THROTTLING = "throttling"
    FAILING_SENSOR = "failing_sensor"


#: Fields of `SysState` that a scenario may silence.
SENSOR_FIELDS = frozenset(f.name for f in fields(SysState)) - {"time_s", "wall_time_s", "source", "kind"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Disturbance:
    """What a scenario does at one instant.

    Attributes:
        ambient_offset_c: Added to the ambient temperature [deg C].
        external_power_w: Power of other work on the same board [W].
        power_limit_w: Power limit set from outside [W]; `None` leaves the board's own.
        silent_sensors: Fields of `SysState` that read `None`.
    """

    ambient_offset_c: float = 0.0
    external_power_w: float = 0.0
    power_limit_w: float | None = None
    silent_sensors: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class ThermalScenario:
    """A disturbance that comes and goes, as a function of virtual time alone.

    Its level is 0 outside `windows`, rises linearly within `rise_s` at the start of each and falls
    as fast after its end. Ambient and external power follow the level; the power limit and the
    silence of sensors hold while the level is above zero.

    Attributes:
        name: Name of the scenario.
        windows: (start, end) of each disturbance in virtual time [s]; the end may be infinite.
        rise_s: Time from nothing to the full disturbance [s].
        ambient_offset_c: Ambient temperature added at full level [deg C].
        external_power_w: External power at full level [W].
        power_limit_w: Power limit forced while the disturbance lasts [W].
        silent_sensors: Fields of `SysState` that are silent while it lasts.
    """

    name: ScenarioName = ScenarioName.IDLE
    windows: Sequence[tuple[float, float]] = ()
    rise_s: float = 0.0
    ambient_offset_c: float = 0.0
    external_power_w: float = 0.0
    power_limit_w: float | None = None
    silent_sensors: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = sorted(self.silent_sensors - SENSOR_FIELDS)
        if unknown:
            raise ConfigError(f"scenario silences {', '.join(unknown)}: choose from {', '.join(sorted(SENSOR_FIELDS))}")
        if self.rise_s < 0 or any(end <= start for start, end in self.windows):
            raise ConfigError(
                f"scenario windows {list(self.windows)}, rise {self.rise_s} s: each needs start < end, rise >= 0"
            )
        if self.power_limit_w is not None and self.power_limit_w <= 0:
            raise ConfigError(
                f"scenario power limit {self.power_limit_w} W: needs a positive number, or None to leave it"
            )

    def level(self, time_s: float) -> float:
        """How much of the disturbance is present at `time_s`, in [0, 1]."""
        return max((self._level_of(start, end, time_s) for start, end in self.windows), default=0.0)

    def at(self, time_s: float) -> Disturbance:
        """The disturbance at `time_s` [s]."""
        level = self.level(time_s)
        present = level > 0.0
        return Disturbance(
            ambient_offset_c=level * self.ambient_offset_c,
            external_power_w=level * self.external_power_w,
            power_limit_w=self.power_limit_w if present else None,
            silent_sensors=self.silent_sensors if present else frozenset(),
        )

    def _level_of(self, start: float, end: float, time_s: float) -> float:
        if self.rise_s == 0.0:
            return float(start <= time_s < end)
        rising = (time_s - start) / self.rise_s
        falling = 1.0 - (time_s - end) / self.rise_s
        return min(max(min(rising, falling), 0.0), 1.0)
