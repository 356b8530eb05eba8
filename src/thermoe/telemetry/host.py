"""Energy of the host's CPUs through the Zeus library (extra `zeus`)."""

import math
import time
from typing import Any

from thermoe.errors import TelemetryError
from thermoe.types import Kind, SysState

_MILLI = 1e-3


class HostSource:
    """CPU packages, and their memory where it is counted, as one source.

    `energy_j` is the sum of the counters, `power_w` its rise since the read before (`None` on the
    first). All else reads `None`.

    Raises:
        TelemetryError: If Zeus is not installed, or finds no CPU whose energy it may read.
    """

    name = "host"
    kind = Kind.MEASURED

    def __init__(self) -> None:
        self._cpus = _open_cpus()
        self._last: tuple[float, float] | None = None

    def read(self) -> SysState:
        """The counters now."""
        time_s, wall_time_s = time.monotonic(), time.time()
        energy_j = self._energy_j()
        power_w = None
        if energy_j is not None and self._last is not None:
            last_s, last_j = self._last
            power_w = (energy_j - last_j) / (time_s - last_s) if time_s > last_s and energy_j >= last_j else None
        self._last = None if energy_j is None else (time_s, energy_j)
        return SysState(
            time_s=time_s,
            wall_time_s=wall_time_s,
            source=self.name,
            kind=self.kind,
            power_w=power_w,
            energy_j=energy_j,
        )

    def close(self) -> None:
        """Let go of the counters; may be called twice. Zeus keeps its own until the program ends."""
        self._cpus = None

    def _energy_j(self) -> float | None:
        if self._cpus is None:
            raise TelemetryError("host is closed: open a new source")
        total_mj = 0.0
        for index in range(len(self._cpus)):
            reading = self._cpus.get_total_energy_consumption(index)
            total_mj += reading.cpu_mj + (reading.dram_mj or 0.0)
        return total_mj * _MILLI if math.isfinite(total_mj) else None


def _open_cpus() -> Any:
    """Zeus's CPUs, asked for directly: its ZeusMonitor would report 0 J where there are none."""
    try:
        from zeus.device.cpu import get_cpus
        from zeus.device.exception import ZeusBaseCPUError
    except ImportError as error:
        raise TelemetryError(f"CPU energy needs the Zeus library ({error}): pip install 'thermoe[zeus]'") from None
    try:
        cpus = get_cpus()
    except (ZeusBaseCPUError, OSError) as error:
        raise TelemetryError(
            f"Zeus cannot read CPU energy here ({error}): it needs RAPL and the right to read it, or the zeusd daemon"
        ) from None
    if len(cpus) == 0:
        raise TelemetryError("Zeus finds no CPU to measure here: it needs RAPL and the right to read it")
    return cpus
