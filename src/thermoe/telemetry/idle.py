"""What a board takes without any work, where that is known: no routing gets below it."""

from dataclasses import dataclass

from thermoe.errors import TelemetryError
from thermoe.telemetry.simulated import DigitalTwin, SimulatedSource
from thermoe.telemetry.source import TelemetrySource
from thermoe.types import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class IdleFigures:
    """A board at rest; None where it is not known.

    Attributes:
        board: What to call it.
        power_w, temp_c: Board power [W] and core temperature [deg C].
    """

    board: str
    power_w: float | None = None
    temp_c: float | None = None


def idle_figures(source: TelemetrySource) -> IdleFigures | None:
    """The figures of the twin; of a real board the power that it draws now, if it says that nothing runs on it.

    A real board may still be warm from earlier work, so its temperature now says nothing about the lowest one; a log
    that is replayed is of other work.
    """
    if isinstance(source, SimulatedSource):
        return IdleFigures(board="the digital twin", power_w=DigitalTwin.idle_power_w, temp_c=DigitalTwin.idle_temp_c)
    if source.kind is not Kind.MEASURED:
        return None
    try:
        state = source.read()
    except TelemetryError:  # whoever goes on to watch this source says so
        return None
    if state.gpu_util != 0.0:
        return None
    return IdleFigures(board=source.name, power_w=state.power_avg_w if state.power_w is None else state.power_w)
