"""Timed execution of a workbench: a CUDA graph of all its layers, or plain calls on a CPU."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

from thermoe.profiling.capture import capture_graph
from thermoe.profiling.operations import Workbench

ROUND_S = 1e-3
CHUNK_S = 10e-3
CHUNKS_IN_FLIGHT = 3


class Runner(Protocol):
    """Executes all layers of a workbench, once or for a while."""

    def time_rounds(self, rounds: int) -> tuple[list[float], int]:
        """Seconds per execution of one layer in each round, and the executions timed in all."""

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Keep the device busy for `seconds`, calling `sample` about every 10 ms; seconds per execution."""


class CpuRunner:
    """Plain calls, timed by the clock."""

    def __init__(self, bench: Workbench, num_layers: int) -> None:
        self._bench, self._num_layers = bench, num_layers
        self._pass()

    def time_rounds(self, rounds: int) -> tuple[list[float], int]:
        """Time each pass over the layers."""
        seconds = []
        for _ in range(rounds):
            start_s = time.perf_counter()
            self._pass()
            seconds.append((time.perf_counter() - start_s) / self._num_layers)
        return seconds, rounds * self._num_layers

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Repeat passes for a while."""
        start_s, passes = time.perf_counter(), 0
        while time.perf_counter() - start_s < seconds or not passes:
            self._pass()
            passes += 1
            sample()
        return (time.perf_counter() - start_s) / (passes * self._num_layers)

    def _pass(self) -> None:
        for layer in range(self._num_layers):
            self._bench.run(layer)


class CudaRunner:
    """All layers captured in one CUDA graph, timed by events."""

    def __init__(self, bench: Workbench, num_layers: int) -> None:
        self._num_layers = num_layers
        self._outputs: list[torch.Tensor] = []

        def run_all() -> None:
            self._outputs = [bench.run(layer) for layer in range(num_layers)]

        self._graph = capture_graph(run_all)
        self._pass_s = self._time(3) / 3

    def time_rounds(self, rounds: int) -> tuple[list[float], int]:
        """Time rounds of at least a millisecond."""
        replays = max(1, round(ROUND_S / self._pass_s))
        self._time(replays)
        executions = replays * self._num_layers
        return [self._time(replays) / executions for _ in range(rounds)], rounds * executions

    def sustain(self, seconds: float, sample: Callable[[], None]) -> float:
        """Keep chunks of work queued ahead, so that sampling never lets the device run dry."""
        replays = max(1, round(CHUNK_S / self._pass_s))
        first, chunks, in_flight = self._mark(), 0, deque[torch.cuda.Event]()
        stop_s = time.monotonic() + seconds
        while time.monotonic() < stop_s:
            self._replay(replays)
            in_flight.append(self._mark())
            chunks += 1
            if len(in_flight) == CHUNKS_IN_FLIGHT:
                in_flight.popleft().synchronize()
            sample()
        last = self._mark()
        last.synchronize()
        return _seconds(first, last) / (chunks * replays * self._num_layers)

    def _time(self, replays: int) -> float:
        first = self._mark()
        self._replay(replays)
        last = self._mark()
        last.synchronize()
        return _seconds(first, last)

    def _replay(self, replays: int) -> None:
        for _ in range(replays):
            self._graph.replay()

    @staticmethod
    def _mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(first: torch.cuda.Event, last: torch.cuda.Event) -> float:
    return float(first.elapsed_time(last)) / 1e3


def make_runner(bench: Workbench, num_layers: int, device: torch.device) -> Runner:
    """The runner that fits the device."""
    return CudaRunner(bench, num_layers) if device.type == "cuda" else CpuRunner(bench, num_layers)
