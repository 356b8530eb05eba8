"""Repeating a step of work: timed one by one, or kept up for a while beside the sensors."""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

CHUNK_S = 10e-3
CHUNKS_IN_FLIGHT = 3
LEAD_CYCLES = 100_000  # some 50 us of waiting on the device, in which the host queues what is timed
LONG_S = 1e-3


class Loop(Protocol):
    """Repeats a step that needs no arguments."""

    def each(self, steps: int) -> list[float]:
        """Seconds of each of so many steps."""

    def sustain(self, seconds: float, sample: Callable[[], None]) -> tuple[int, float]:
        """Keep the device busy for `seconds`, calling `sample` about every 10 ms or after every longer step.

        Returns:
            Steps done and the seconds they took.
        """


class CpuLoop:
    """Plain calls, timed by the clock."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step
        step()

    def each(self, steps: int) -> list[float]:
        """Time each call."""
        seconds = []
        for _ in range(steps):
            start_s = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - start_s)
        return seconds

    def sustain(self, seconds: float, sample: Callable[[], None]) -> tuple[int, float]:
        """Repeat calls for a while, one at the least."""
        start_s, steps, sampled_s = time.perf_counter(), 0, 0.0
        now_s = start_s
        while now_s - start_s < seconds or not steps:
            self._step()
            steps += 1
            now_s = time.perf_counter()
            if now_s - sampled_s >= CHUNK_S:
                sample()
                sampled_s = now_s
        return steps, time.perf_counter() - start_s


class CudaLoop:
    """Work queued on the current stream, timed by events.

    Attributes:
        step_s: Rough duration of one step [s].
    """

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step
        first_s = self.time(1)
        self.step_s = self.time(1) if first_s > LONG_S else self.time(3) / 3

    def burst(self, steps: int) -> float:
        """Seconds of so many steps in a row, queued before the first begins, and then a rest as long."""
        torch.cuda._sleep(LEAD_CYCLES)
        seconds = self.time(steps)
        self.rest(seconds)
        return seconds

    @staticmethod
    def rest(seconds: float) -> None:
        """Let the device idle."""
        time.sleep(seconds)

    def time(self, steps: int) -> float:
        """Seconds of so many steps in a row."""
        first = self._mark()
        self._repeat(steps)
        last = self._mark()
        last.synchronize()
        return _seconds(first, last)

    def each(self, steps: int) -> list[float]:
        """Time each step between two events, without waiting between steps."""
        marks = [self._mark()]
        for _ in range(steps):
            self._step()
            marks.append(self._mark())
        marks[-1].synchronize()
        return [_seconds(marks[i], marks[i + 1]) for i in range(steps)]

    def sustain(self, seconds: float, sample: Callable[[], None]) -> tuple[int, float]:
        """Keep chunks of work queued ahead, so that sampling never lets the device run dry."""
        chunk = max(1, round(CHUNK_S / self.step_s))
        first, chunks, in_flight = self._mark(), 0, deque[torch.cuda.Event]()
        stop_s = time.monotonic() + seconds
        while time.monotonic() < stop_s:
            self._repeat(chunk)
            in_flight.append(self._mark())
            chunks += 1
            if len(in_flight) == CHUNKS_IN_FLIGHT:
                in_flight.popleft().synchronize()
            sample()
        last = self._mark()
        last.synchronize()
        return chunks * chunk, _seconds(first, last)

    def _repeat(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    @staticmethod
    def _mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def make_loop(step: Callable[[], object], device: torch.device) -> Loop:
    """The loop that fits the device."""
    return CudaLoop(step) if device.type == "cuda" else CpuLoop(step)


def _seconds(first: torch.cuda.Event, last: torch.cuda.Event) -> float:
    return float(first.elapsed_time(last)) / 1e3
