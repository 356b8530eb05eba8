"""A bounded load on a device, in a process of its own, that a run under test did not cause."""

import json
import math
import re
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from thermoe.errors import ConfigError, ThermoeError
from thermoe.workloads.stress_load import StressWork

LONGEST_S = 3600.0
#: Time to import torch and reserve memory, before a load that does not begin is ended [s].
START_S = 120.0
_STOP_S = 5.0  # for the last burst to end; after that the process is killed


class StressError(ThermoeError):
    """The load could not be started, or ended by itself in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StressPlan:
    """What load, for how long.

    Attributes:
        seconds: Hard limit [s], at most an hour.
        load: Share of time in which the device is kept busy, in (0, 1]; the highest one where watts are aimed at.
        device: "cpu", "cuda" or "cuda:INDEX".
        work: Products or copies.
        size: Rows of the matrices or MiB of a copy; 0 for what fills the device.
        processors: Share of a GPU's processors aimed at, in (0, 1].
        power_w: Board power aimed at [W], by changing the share of time; None for a constant share.
    """

    seconds: float = 30.0
    load: float = 0.5
    device: str = "cpu"
    work: StressWork = StressWork.MATMUL
    size: int = 0
    processors: float = 1.0
    power_w: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.seconds <= LONGEST_S:
            raise ConfigError(f"stress for {self.seconds} s: needs a positive number of at most {LONGEST_S:g}")
        for name in ("load", "processors"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"stress {name} of {getattr(self, name)}: needs a share above 0, at most 1")
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"stress on {self.device!r}: choose cpu, cuda or cuda:INDEX")
        if self.size < 0:
            raise ConfigError(f"stress size of {self.size}: needs 0 or more")
        if self.power_w is not None and not (self.device != "cpu" and 0.0 < self.power_w < math.inf):
            raise ConfigError(f"stress of {self.power_w} W on {self.device}: watts need a GPU and a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class StressResult:
    """What a load did.

    Attributes:
        seconds, busy_s: How long it was up, and how long bursts ran [s].
        power_w: Mean board power over the last seconds [W]; None where it was not watched.
        ended: Why: "time" or "stopped".
    """

    seconds: float
    busy_s: float
    power_w: float | None
    ended: str


@dataclass(slots=True)
class Stressor:
    """Keeps a device busy from a process of its own.

    The process ends when its time is over, when `stop` is called, when this process dies (its standard input
    closes then, whatever killed this process), and by an alarm should it hang. It asks the device for work alone
    and never changes clocks or limits.

    Args:
        plan: What load.
    """

    plan: StressPlan
    _process: "subprocess.Popen[str] | None" = field(default=None, init=False)
    _result: StressResult | None = field(default=None, init=False)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> Self:
        """Start the process and wait until its load is up.

        Raises:
            ConfigError: If it was started before.
            StressError: If the load did not come up.
        """
        if self._process is not None:
            raise ConfigError("the stressor was started before: make another one")
        command = [sys.executable, "-m", "thermoe.workloads.stress_process", json.dumps(asdict(self.plan))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        watchdog = threading.Timer(START_S, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if _message(line).get("event") != "up":
            self._fail()
        return self

    def stop(self) -> StressResult:
        """End the load, if it is not over, and say what it did; may be called again.

        Raises:
            ConfigError: If it was not started.
            StressError: If it ended in an error.
        """
        return self._finish(0.0)

    def wait(self) -> StressResult:
        """Let the load run out its time; as `stop` otherwise."""
        return self._finish(self.plan.seconds + START_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _finish(self, patience_s: float) -> StressResult:
        if self._result is not None:
            return self._result
        process = self._process
        if process is None:
            raise ConfigError("the stressor was not started: call start() first")
        try:
            if patience_s > 0.0:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(patience_s)  # it writes one line alone, which no pipe is too small for
        finally:  # also when interrupted: the load must not outlive whoever asked for it
            try:
                out, err = process.communicate(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
        message = _message(out)
        if process.returncode != 0 or message.pop("event", None) != "over":
            said = err.strip().splitlines()[-1] if err.strip() else "start it again"
            raise StressError(f"the load of {self.plan.device} ended with code {process.returncode}: {said}")
        self._result = StressResult(**message)
        return self._result

    def _fail(self) -> None:
        assert self._process is not None
        _, err = self._process.communicate()
        last = err.strip().splitlines()[-1] if err.strip() else f"exit code {self._process.returncode}"
        raise StressError(f"no load on {self.plan.device}: {last}")


def _message(line: str) -> dict[str, Any]:
    """The last whole JSON object of some output; empty for none."""
    lines = line.strip().splitlines()
    try:
        message = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}
