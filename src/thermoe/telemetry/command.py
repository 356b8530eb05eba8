"""`thermoe monitor`: the sensors of one GPU, live in the terminal."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields

from rich.console import Console
from rich.live import Live
from rich.table import Table

from thermoe.errors import ConfigError
from thermoe.telemetry.opening import open_source
from thermoe.telemetry.replay import ReplaySource
from thermoe.telemetry.simulated import DigitalTwin, SimulatedSource
from thermoe.telemetry.source import TelemetrySource
from thermoe.types import SysState

_UNITS = {"c": "deg C", "w": "W", "j": "J", "mhz": "MHz", "bytes": "byte", "util": "of 1", "speed": "of 1"}
_NOT_SENSORS = ("time_s", "wall_time_s", "source", "kind")


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """Show the sensors of one GPU, until interrupted.

    Attributes:
        telemetry: Where readings come from: auto, nvml, nvml:INDEX, simulated, replay:FILE or host. "auto" takes
            the GPU where there is one and the idle digital twin otherwise.
        interval_s: Time between two readings [s].
        seconds: Stop after this long [s].
        once: Print one reading and stop.
    """

    telemetry: str = "auto"
    interval_s: float = 0.5
    seconds: float | None = None
    once: bool = False

    def __post_init__(self) -> None:
        for name, value in (("interval-s", self.interval_s), ("seconds", self.seconds)):
            if value is not None and not 0.0 < value < float("inf"):
                raise ConfigError(f"--{name} {value}: needs a positive number of seconds")

    def execute(self) -> int:
        """Show readings; 0 when the time is over or a replayed log ends."""
        source = _open(self.telemetry)
        console = Console()
        try:
            if self.once:
                console.print(reading_table(source.read()))
            else:
                with Live(console=console, auto_refresh=False) as live:
                    for state in self._readings(source):
                        live.update(reading_table(state), refresh=True)
        finally:
            source.close()
        return 0

    def _readings(self, source: TelemetrySource) -> Iterator[SysState]:
        stop_s = time.monotonic() + (float("inf") if self.seconds is None else self.seconds)
        for _ in range(len(source)) if isinstance(source, ReplaySource) else itertools.count():
            yield source.read()
            left_s = stop_s - time.monotonic()
            if left_s <= 0.0:
                return
            time.sleep(min(self.interval_s, left_s))


def reading_table(state: SysState) -> Table:
    """One reading, a row for each sensor; a silent one says so."""
    table = Table("sensor", "reading", "unit", title=f"{state.source} ({state.kind})", title_justify="left")
    table.columns[1].justify = "right"
    for field in fields(state):
        if field.name in _NOT_SENSORS:
            continue
        value = getattr(state, field.name)
        unit = _UNITS.get(field.name.rpartition("_")[2], "")
        table.add_row(field.name, *(("silent", "") if value is None else (_number(field.name, value), unit)))
    return table


def _number(name: str, value: float) -> str:
    if name == "throttle_reasons":
        return hex(int(value))
    return f"{value:d}" if isinstance(value, int) else f"{value:.2f}"


def _open(spec: str) -> TelemetrySource:
    source = open_source(spec, device="cuda")
    if isinstance(source, SimulatedSource):
        return SimulatedSource(DigitalTwin(), realtime=True)  # nobody gives this twin work: let it follow the clock
    return source
