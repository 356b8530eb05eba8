"""The process behind `Stressor`: does the work until time is over or its standard input closes."""

import json
import os
import signal
import sys
import threading
import time
from collections import deque
from typing import Any

import torch

from thermoe.errors import ConfigError, ThermoeError
from thermoe.telemetry.nvml import NvmlSource, index_of_ordinal
from thermoe.workloads.stress_load import StressWork, keep_busy, make_burst
from thermoe.workloads.stressor import START_S, StressPlan

_GRACE_S = 10.0  # after its time a process that hangs is ended by the kernel
_GAIN_PER_W = 0.0006  # share of time for each watt that is missing, ten times a second: settles in about a second
_LAST_READINGS = 20


class PowerDuty:
    """A share of time that is moved until the board draws the power aimed at.

    Args:
        source: Sensors of the board.
        power_w: Power aimed at [W].
        most: Highest share.
    """

    def __init__(self, source: Any, power_w: float, most: float) -> None:
        self._source, self._power_w, self._most = source, power_w, most
        self._duty = most / 2.0
        self._readings_w: deque[float] = deque(maxlen=_LAST_READINGS)

    @property
    def mean_power_w(self) -> float | None:
        """Mean of the last readings [W]; None before the first."""
        return sum(self._readings_w) / len(self._readings_w) if self._readings_w else None

    def __call__(self) -> float:
        """Read the power and move on; a silent sensor ends the load, which nothing would bound otherwise.

        Raises:
            ConfigError: If the power cannot be read.
        """
        state = self._source.read()
        power_w = state.power_w if state.power_w is not None else state.power_avg_w
        if power_w is None:
            raise ConfigError("power of the board cannot be read: give a share of time instead of watts")
        self._readings_w.append(power_w)
        self._duty = min(max(self._duty + _GAIN_PER_W * (self._power_w - power_w), 0.0), self._most)
        return self._duty


def main(argv: list[str]) -> int:
    """Run the plan given as JSON; 2 where it cannot be run."""
    values = json.loads(argv[0])
    plan = StressPlan(**values | {"work": StressWork(values["work"])})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent closes the input
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, START_S)
    try:
        return _run(plan)
    except (ThermoeError, RuntimeError) as error:  # torch reports a missing or full device as RuntimeError
        sys.stderr.write(str(error).splitlines()[0] + "\n")
        return 2


def _run(plan: StressPlan) -> int:
    stopped = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=(stopped,), daemon=True).start()
    device = torch.device(plan.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device: take the CPU, or install torch for CUDA")
    burst = make_burst(device, plan.work, plan.size, plan.processors)
    aim = None
    if plan.power_w is not None:
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        index = index_of_ordinal(device.index or 0, uuid)
        aim = PowerDuty(NvmlSource(index, counter_every_s=1e9), plan.power_w, plan.load)
    signal.setitimer(signal.ITIMER_REAL, plan.seconds + _GRACE_S)
    _say({"event": "up"})
    start_s = time.monotonic()
    busy_s = keep_busy(
        burst, aim or (lambda: plan.load), plan.seconds, stopped=stopped.is_set, sleep=lambda s: _sleep(stopped, s)
    )
    _say(
        {
            "event": "over",
            "seconds": round(time.monotonic() - start_s, 3),
            "busy_s": round(busy_s, 3),
            "power_w": aim.mean_power_w if aim else None,
            "ended": "stopped" if stopped.is_set() else "time",
        }
    )
    return 0


def _sleep(stopped: threading.Event, seconds: float) -> None:
    stopped.wait(seconds)


def _wait_for_end_of_input(stopped: threading.Event) -> None:
    """The parent holds the other end: it closes on stop, and when the parent dies of whatever."""
    while os.read(0, 1024):
        pass
    stopped.set()


def _say(message: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the parent is gone: nobody listens
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
