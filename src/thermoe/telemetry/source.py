"""What every source of telemetry offers: a plain reader, with no thread and no memory of its own."""

from typing import Protocol, runtime_checkable

from thermoe.types import Kind, SysState

CLOCK_IDLE = 0x1
CLOCK_POWER_CAP = 0x4
CLOCK_HW_SLOWDOWN = 0x8
CLOCK_SW_THERMAL = 0x20
CLOCK_HW_THERMAL = 0x40
CLOCK_POWER_BRAKE = 0x80

#: Clock-event reasons (NVML bit mask) under which the same work takes longer than it could.
THROTTLE_MASK = CLOCK_POWER_CAP | CLOCK_HW_SLOWDOWN | CLOCK_SW_THERMAL | CLOCK_HW_THERMAL | CLOCK_POWER_BRAKE


class TelemetrySource(Protocol):
    """Reads one GPU (or host) at the moment it is asked.

    `read` never blocks for long and never invents a value: a silent sensor reads `None`. It raises
    `TelemetryError` only when nothing at all can be read any more.
    """

    @property
    def name(self) -> str:
        """Name that goes into `SysState.source`, such as "nvml:0"."""
        ...

    @property
    def kind(self) -> Kind:
        """Whether the values are measured, simulated or replayed."""
        ...

    def read(self) -> SysState:
        """The state now."""
        ...

    def close(self) -> None:
        """Release what the source holds; may be called twice."""
        ...


@runtime_checkable
class Refreshable(Protocol):
    """A source that may hold dear readings for a while."""

    def refresh(self) -> None:
        """Have the next read ask for all of them."""
        ...


def is_throttled(reasons: int | None) -> bool | None:
    """Whether clock-event reasons slow the GPU down; `None` where the reasons are unknown."""
    return None if reasons is None else bool(reasons & THROTTLE_MASK)
