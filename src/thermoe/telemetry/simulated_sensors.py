"""Sensors of the simulated GPU: what flows is averaged and shown anew every 100 ms."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thermoe.telemetry.plant import MAX_CLOCK_MHZ, READ_BANDWIDTH_BYTES_PER_S

TICK_S = 0.1  # power, energy and temperature of the H200 all change at this interval
_AVERAGE_TICKS = 10  # the averaged power covers about one second


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """What goes on in the board over an interval in which nothing changes.

    Attributes:
        power_w: Board power [W].
        read_bytes_per_s: Memory traffic [byte/s].
        busy: Whether a kernel runs, 0 or 1.
        clock_mhz: SM clock [MHz].
        reasons: Clock-event bit mask.
    """

    power_w: float
    read_bytes_per_s: float
    busy: float
    clock_mhz: float
    reasons: int


class SensorBank:
    """Adds up flows within a tick and holds the last tick's reading until the next."""

    def __init__(self, power_w: float, temp_c: float, memory_temp_c: float) -> None:
        self._tick = 0
        self._powers_w: deque[float] = deque([power_w], maxlen=_AVERAGE_TICKS)
        self._clear()
        self._reading = self._make_reading(power_w, 0.0, temp_c, memory_temp_c, 0.0, 0.0, MAX_CLOCK_MHZ)

    @property
    def next_tick_s(self) -> float:
        """Virtual time at which the sensors change next [s]."""
        return (self._tick + 1) * TICK_S

    def reading(self) -> dict[str, Any]:
        """Fields of `SysState` as last latched."""
        return self._reading

    def add(self, duration_s: float, flow: Flow) -> None:
        """Count a flow that lasted `duration_s` within the current tick."""
        self._span_s += duration_s
        self._energy_j += duration_s * flow.power_w
        self._bytes += duration_s * flow.read_bytes_per_s
        self._busy_s += duration_s * flow.busy
        self._cycles += duration_s * flow.clock_mhz
        self._reasons |= flow.reasons

    def latch(self, energy_j: float, temp_c: float, memory_temp_c: float) -> None:
        """End the tick: show its means, the energy counter [J] and the temperatures [deg C]."""
        span_s = self._span_s
        power_w = self._energy_j / span_s
        self._powers_w.append(power_w)
        traffic, busy, clock_mhz = self._bytes / span_s, self._busy_s / span_s, self._cycles / span_s
        self._reading = self._make_reading(power_w, energy_j, temp_c, memory_temp_c, traffic, busy, clock_mhz)
        self._tick += 1
        self._clear()

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON-able values."""
        sums = [self._span_s, self._energy_j, self._bytes, self._busy_s, self._cycles, self._reasons]
        return {"tick": self._tick, "powers_w": list(self._powers_w), "sums": sums, "reading": dict(self._reading)}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._tick = values["tick"]
        self._powers_w = deque(values["powers_w"], maxlen=_AVERAGE_TICKS)
        self._span_s, self._energy_j, self._bytes, self._busy_s, self._cycles, self._reasons = values["sums"]
        self._reading = dict(values["reading"])

    def _clear(self) -> None:
        self._span_s = self._energy_j = self._bytes = self._busy_s = self._cycles = 0.0
        self._reasons = 0

    def _make_reading(
        self,
        power_w: float,
        energy_j: float,
        temp_c: float,
        memory_temp_c: float,
        traffic: float,
        busy: float,
        clock_mhz: float,
    ) -> dict[str, Any]:
        return {
            "power_w": power_w,
            "power_avg_w": sum(self._powers_w) / len(self._powers_w),
            "energy_j": energy_j,
            "temp_c": temp_c,
            "memory_temp_c": memory_temp_c,
            "gpu_util": min(busy, 1.0),
            "memory_util": min(traffic / READ_BANDWIDTH_BYTES_PER_S, 1.0),
            "sm_clock_mhz": clock_mhz,
            "throttle_reasons": self._reasons,
        }
