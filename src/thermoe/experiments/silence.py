"""Says so when a sensor that has been heard falls silent while a run goes on."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

_log = logging.getLogger(__name__)


class SilenceWatch:
    """Follows the telemetry of all batches; each sensor that falls silent is told once.

    A silent sensor is no reason to stop: what rests on it is None from there on.
    """

    def __init__(self) -> None:
        self._heard: set[str] = set()
        self._told: set[str] = set()

    def look(self, arm: tuple[str, int, str], readings: Sequence[Mapping[str, Any]]) -> None:
        """Look through the readings of one batch, in the order in which they were taken."""
        for reading in readings:
            silent = {name for name, value in reading.items() if value is None}
            for name in sorted(silent & self._heard - self._told):
                workload, seed, strategy = arm
                _log.warning(
                    "sensor %s fell silent in %s, %s, seed %d: figures that rest on it are empty; the run goes on",
                    *(name, workload, strategy, seed),
                )
                self._told.add(name)
            self._heard |= reading.keys() - silent
