"""Timed execution of a workbench: a CUDA graph of all its layers, or plain calls on a CPU."""

from collections.abc import Callable
from typing import Protocol

import torch

from thermoe.profiling.capture import capture_graph
from thermoe.profiling.loop import CpuLoop, CudaLoop
from thermoe.profiling.operations import Workbench

ROUND_S = 1e-3


class Runner(Protocol):
    """Executes all layers of a workbench, once or for a while."""

    def time_rounds(self, rounds: int) -> tuple[list[float], int]:
        """Seconds per execution of one layer in each round, and the executions timed in all."""

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Keep the device busy for `seconds`, calling `sample` about every 10 ms; seconds per execution."""


class CpuRunner:
    """Plain calls, timed by the clock."""

    def __init__(self, bench: Workbench, num_layers: int) -> None:
        self._num_layers = num_layers
        self._loop = CpuLoop(lambda: [bench.run(layer) for layer in range(num_layers)])

    def time_rounds(self, rounds: int) -> tuple[list[float], int]:
        """Time each pass over the layers."""
        return [seconds / self._num_layers for seconds in self._loop.each(rounds)], rounds * self._num_layers

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Repeat passes for a while."""
        passes, took_s = self._loop.sustain(seconds, sample)
        return took_s / (passes * self._num_layers)


class CudaRunner:
    """All layers captured in one CUDA graph, timed by events."""

    def __init__(self, bench: Workbench, num_layers: int) -> None:
        self._num_layers = num_layers
        self._outputs: list[torch.Tensor] = []

        def run_all() -> None:
            self._outputs = [bench.run(layer) for layer in range(num_layers)]

        self._loop = CudaLoop(capture_graph(run_all).replay)

    def time_rounds(self, rounds: int) -> tuple[list[float], int]:
        """Time rounds of at least a millisecond."""
        replays = max(1, round(ROUND_S / self._loop.step_s))
        self._loop.time(replays)
        executions = replays * self._num_layers
        return [self._loop.time(replays) / executions for _ in range(rounds)], rounds * executions

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Repeat replays for a while."""
        passes, took_s = self._loop.sustain(seconds, sample)
        return took_s / (passes * self._num_layers)


def make_runner(bench: Workbench, num_layers: int, device: torch.device) -> Runner:
    """The runner that fits the device."""
    return CudaRunner(bench, num_layers) if device.type == "cuda" else CpuRunner(bench, num_layers)
