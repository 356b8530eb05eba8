"""Opens a source by the name a user types."""

import logging
from typing import Literal

from thermoe.errors import ConfigError, TelemetryError
from thermoe.telemetry.host import HostSource
from thermoe.telemetry.nvml import NvmlSource
from thermoe.telemetry.replay import ReplaySource
from thermoe.telemetry.simulated import DigitalTwin, SimulatedSource
from thermoe.telemetry.source import TelemetrySource

_log = logging.getLogger(__name__)

#: Age of the energy counter in a source that is opened to be watched [s]; energy windows ask for it afresh.
COUNTER_EVERY_S = 2.0
_FORMS = "auto, nvml, nvml:INDEX, simulated, replay:FILE or host"


def open_source(spec: str, device: Literal["cpu", "cuda"] = "cpu") -> TelemetrySource:
    """Open a telemetry source.

    Args:
        spec: "auto", "nvml", "nvml:1", "simulated", "replay:FILE" or "host". "auto" takes NVML where the
            work runs on CUDA and NVML answers, else the digital twin.
        device: Where the work runs.

    Raises:
        ConfigError: If `spec` is none of these.
        TelemetryError: If the source that was asked for is not there.
        DataError: If the log to replay cannot be read.
    """
    name, _, argument = spec.partition(":")
    match name:
        case "auto" if not argument:
            return _open_auto(device)
        case "nvml":
            return NvmlSource(_index(argument, spec), counter_every_s=COUNTER_EVERY_S)
        case "simulated" if not argument:
            return _open_simulated()
        case "replay" if argument:
            return ReplaySource.from_file(argument)
        case "host" if not argument:
            return HostSource()
        case _:
            raise ConfigError(f"unknown telemetry source {spec!r}: choose {_FORMS}")


def _open_auto(device: str) -> TelemetrySource:
    if device != "cuda":
        return _open_simulated()
    try:
        return NvmlSource(0, counter_every_s=COUNTER_EVERY_S)
    except TelemetryError as error:
        _log.warning("telemetry auto: %s; the digital twin stands in, its figures are simulated", error)
        return _open_simulated()


def _open_simulated() -> TelemetrySource:
    return SimulatedSource(DigitalTwin())


def _index(argument: str, spec: str) -> int:
    if not argument:
        return 0
    if not argument.isdecimal():
        raise ConfigError(f"telemetry source {spec!r}: the index of a GPU is a whole number, as in nvml:1")
    return int(argument)
