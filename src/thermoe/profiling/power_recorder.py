"""Logs the power of all GPUs beside a program that is profiled, for the join by wall clock."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from thermoe.errors import TelemetryError
from thermoe.telemetry.monitor import GpuSystemMonitor
from thermoe.telemetry.nvml import NvmlSource
from thermoe.telemetry.source import TelemetrySource

#: Time between readings [s]: boards change their figures every 100 ms, and the counter costs 4 ms of CPU time.
INTERVAL_S = 0.05
_MOST_GPUS = 64
_MOST_STATES = 1_000_000
COLUMNS = (
    "wall_time_s",
    "index",
    "uuid",
    "bus",
    "kind",
    "power_w",
    "power_avg_w",
    "energy_j",
    "temp_c",
    "sm_clock_mhz",
)


def open_all_gpus() -> list[TelemetrySource]:
    """A source for each GPU that NVML knows; none where there is no NVML."""
    sources: list[TelemetrySource] = []
    for index in range(_MOST_GPUS):
        try:
            sources.append(NvmlSource(index))
        except TelemetryError:
            break
    return sources


class PowerRecorder:
    """Records inside a `with` block and writes a CSV log when it ends, failed or not.

    Attributes:
        path: The log; `None` if there is no sensor, so that there is nothing to join.

    Args:
        path: Where the log goes.
        open_sources: Gives the GPUs to log.
        interval_s: Time between readings [s].
    """

    def __init__(
        self,
        path: Path,
        open_sources: Callable[[], Sequence[TelemetrySource]] = open_all_gpus,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.path: Path | None = None
        self._target, self._open, self._interval_s = path, open_sources, interval_s
        self._sources: list[TelemetrySource] = []
        self._monitors: list[GpuSystemMonitor] = []

    def __enter__(self) -> Self:
        self._sources = list(self._open())
        self._monitors = [GpuSystemMonitor(source, self._interval_s, _MOST_STATES) for source in self._sources]
        for monitor in self._monitors:
            monitor.sample(fresh=True)  # the log has to begin before the first kernel
            monitor.start()
        self.path = self._target if self._sources else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for monitor in self._monitors:
            monitor.stop()
            monitor.sample(fresh=True)
        if self.path is not None:
            self._write(self.path)
        for source in self._sources:
            source.close()

    def _write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for index, (source, monitor) in enumerate(zip(self._sources, self._monitors, strict=True)):
                is_nvml = isinstance(source, NvmlSource)
                uuid, bus = source.identity() if isinstance(source, NvmlSource) else (None, None)
                for state in monitor.history:
                    figures = (state.power_w, state.power_avg_w, state.energy_j, state.temp_c, state.sm_clock_mhz)
                    names = (index if is_nvml else None, uuid, bus, str(state.kind))
                    table.writerow([f"{state.wall_time_s:.6f}", *names, *figures])
