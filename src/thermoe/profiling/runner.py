"""Timed execution of a workbench: a CUDA graph of all its steps, or plain calls."""

from collections.abc import Callable
from typing import Protocol

import torch

from thermoe.profiling.capture import capture_graph
from thermoe.profiling.loop import CpuLoop, CudaLoop
from thermoe.profiling.operations import Workbench

ROUND_S = 1e-3
MIN_ROUNDS = 5
FIRST_REST_S = 5e-3


class Runner(Protocol):
    """Executes all steps of a workbench, once or for a while."""

    def time_rounds(self, rounds: int, limit_s: float) -> tuple[list[float], int]:
        """Seconds per execution in each round, and the executions timed in all.

        Rounds are as many as asked for, or fewer, five at the least, where they would take longer than `limit_s`.
        """

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Keep the device busy for `seconds`, calling `sample` about every 10 ms; seconds per execution."""


class CpuRunner:
    """Plain calls, timed by the clock."""

    def __init__(self, bench: Workbench, steps: int) -> None:
        self._steps = steps
        self._loop = CpuLoop(lambda: [bench.run(step) for step in range(steps)])

    def time_rounds(self, rounds: int, limit_s: float) -> tuple[list[float], int]:
        """Time each pass over the steps."""
        first_s = self._loop.each(1)[0]
        fitting = _fitting(rounds, limit_s, first_s)
        return [seconds / self._steps for seconds in self._loop.each(fitting)], fitting * self._steps

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Repeat passes for a while."""
        passes, took_s = self._loop.sustain(seconds, sample)
        return took_s / (passes * self._steps)


class CudaRunner:
    """All steps captured in one CUDA graph, timed by events."""

    def __init__(self, bench: Workbench, steps: int) -> None:
        self._steps, self._bench = steps, bench  # a graph knows the tensors it was captured with by address alone

        def run_all() -> None:
            for step in range(steps):
                bench.run(step)

        def run_one() -> None:
            bench.run(0)

        self._loop = CudaLoop(capture_graph(run_all, run_one).replay)

    def time_rounds(self, rounds: int, limit_s: float) -> tuple[list[float], int]:
        """Time rounds of at least a millisecond, with a rest as long after each.

        So the mean power stays under the limit, and every round runs at full clock: without rests, work at the limit
        is slowed down after some tens of milliseconds, and how far depends on what ran before.
        """
        replays = max(1, round(ROUND_S / self._loop.step_s))
        self._loop.rest(FIRST_REST_S)
        first_s = self._loop.burst(replays)
        fitting, executions = _fitting(rounds, limit_s, first_s), replays * self._steps
        return [self._loop.burst(replays) / executions for _ in range(fitting)], fitting * executions

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Repeat replays for a while."""
        passes, took_s = self._loop.sustain(seconds, sample)
        return took_s / (passes * self._steps)


def make_runner(bench: Workbench, steps: int, device: torch.device) -> Runner:
    """The runner that fits the device."""
    return CudaRunner(bench, steps) if device.type == "cuda" else CpuRunner(bench, steps)


def _fitting(rounds: int, limit_s: float, round_s: float) -> int:
    return max(min(rounds, MIN_ROUNDS), min(rounds, int(limit_s / max(round_s, 1e-9))))
