"""Records the sensors of a board at 10 Hz under seeded random loads whose powers are planned beforehand."""

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from benchmarks.heat_trace import PlannedStep, Trace
from thermoe.errors import ConfigError
from thermoe.telemetry.monitor import GpuSystemMonitor
from thermoe.telemetry.nvml import NvmlSource
from thermoe.telemetry.simulated import DigitalTwin, SimulatedSource
from thermoe.types import NAMED_SHAPES, StepWork, SysState

INTERVAL_S = 0.1
IDLE = "idle"
#: Products by rows of their square matrices, copies by MiB; smaller products wait for their launches.
LOADS = ("matmul-1536", "matmul-2048", "matmul-4096", "matmul-8192", "copy-64", "copy-1024")
#: Experts that the twin reads in their place.
_TWIN_EXPERTS = dict(zip(LOADS, (4.0, 12.0, 24.0, 48.0, 80.0, 120.0), strict=True))
DUTIES = (0.25, 0.5, 0.75, 1.0)
# Instant power is the mean of some 25 ms, the core follows it within less than 100 ms: several periods fit in both.
_PERIOD_S, _BURST_S = 0.005, 0.0005
_FIND_OUT_S = 1.8  # a load runs so long to find out its power; means of the last second are of it alone then
_MEAN_OVER_S = 0.6
_SHORTEST_S, _LONGEST_S = 1.5, 6.0
_IDLE_SHARE = 0.25
_REST_S = 3.0  # before the trace begins: what came before is no part of it, but warms
_IDLE_RUNS = 3  # while powers are found out
_LEAST_S = 80.0


class Board(Protocol):
    """What can be loaded and watched."""

    def hold(self, name: str, duty: float, seconds: float) -> None:
        """Keep up a load."""
        ...

    @property
    def time_s(self) -> float:
        """Now, by the clock of the states [s]."""
        ...

    @property
    def states(self) -> list[SysState]:
        """What the sensors said so far."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the trace was recorded on."""
        ...


class GpuBoard:
    """A GPU under bursts of products and copies, watched from a thread."""

    def __init__(self, index: int) -> None:
        import torch

        from thermoe.workloads.stress_load import StressWork, make_burst

        if not torch.cuda.is_available():
            raise ConfigError("no CUDA device: run on a GPU, or take --board twin")
        self._torch, self._device = torch, torch.device("cuda", index)
        self._source = NvmlSource(index, counter_every_s=1e9)
        named = (name.split("-") for name in LOADS)
        self._bursts = {
            f"{work}-{size}": make_burst(self._device, StressWork(work), int(size), burst_s=_BURST_S)
            for work, size in named
        }
        self.monitor = GpuSystemMonitor(self._source, INTERVAL_S)

    def hold(self, name: str, duty: float, seconds: float) -> None:
        """Bursts for a share of each period."""
        from thermoe.workloads.stress_load import keep_busy

        if name == IDLE:
            time.sleep(seconds)
        else:
            keep_busy(self._bursts[name], lambda: duty, seconds, period_s=_PERIOD_S)

    @property
    def time_s(self) -> float:
        """Now, by the monotonic clock, which NVML states carry [s]."""
        return time.monotonic()

    @property
    def states(self) -> list[SysState]:
        """What the monitor saw."""
        return self.monitor.history

    def describe(self) -> dict[str, Any]:
        """GPU and versions."""
        return {"gpu": self._torch.cuda.get_device_name(self._device), "torch": self._torch.__version__}

    def close(self) -> None:
        """Stop watching."""
        self.monitor.stop()
        self._source.close()


class TwinBoard:
    """The digital twin under decode steps that read so many experts; its readings are rounded to whole degrees."""

    def __init__(self, seed: int) -> None:
        self._twin = DigitalTwin(seed=seed)
        self._source = SimulatedSource(self._twin)
        shape = NAMED_SHAPES["qwen3-30b-a3b"]
        rows = [128.0] * shape.num_layers
        self._work = StepWork(shape=shape, num_tokens=16, distinct_experts=rows, routed_rows=rows)
        self._due_s = 0.0
        self.states: list[SysState] = []

    @property
    def time_s(self) -> float:
        """Virtual time [s]."""
        return self._twin.time_s

    def hold(self, name: str, duty: float, seconds: float) -> None:
        """Steps for a share of the time, in virtual time."""
        twin, end_s = self._twin, self._twin.time_s + seconds
        experts = _TWIN_EXPERTS.get(name, 0.0)
        work = replace(self._work, distinct_experts=[experts] * self._work.shape.num_layers)
        while twin.time_s < end_s:
            if name == IDLE:
                twin.wait_until(min(twin.time_s + INTERVAL_S / 2.0, end_s))
            else:
                latency_s = twin.run_step(work).latency_s
                twin.idle(latency_s * (1.0 / duty - 1.0))
            if twin.time_s >= self._due_s:
                state = self._source.read()
                self.states.append(replace(state, temp_c=None if state.temp_c is None else float(round(state.temp_c))))
                self._due_s += INTERVAL_S

    def describe(self) -> dict[str, Any]:
        """That it is none."""
        return {"gpu": "digital twin of an H200, rounded to whole degrees"}


@contextmanager
def open_board(name: str, index: int, seed: int) -> Iterator[Board]:
    """The board to record, watched until the block ends."""
    if name == "twin":
        yield TwinBoard(seed)
        return
    board = GpuBoard(index)
    try:
        with board.monitor:
            yield board
    finally:
        board.close()


def record(board: Board, seconds: float, seed: int) -> Trace:
    """Find out the power of every load at every duty, in random order, then run random ones for a random time each.

    A board under a power limit draws more at half of the time than half of what it draws all the time, so that no
    duty tells of another.

    Raises:
        ConfigError: If the time does not suffice to find out the powers and still hold out some loads.
    """
    if not _LEAST_S <= seconds <= 3600.0:
        raise ConfigError(f"recording of {seconds} s: needs {_LEAST_S:g} s to an hour, 140 s for loads enough")
    board.hold(IDLE, 0.0, _REST_S)
    start_s, loads, rng, before = board.time_s, list[PlannedStep](), random.Random(seed), ""
    runs = [(name, duty) for name in LOADS for duty in DUTIES] + [(IDLE, 0.0)] * _IDLE_RUNS
    rng.shuffle(runs)
    found = {(name, duty): _find_out(board, name, duty, loads) for name, duty in runs}
    while board.time_s - start_s < seconds:
        name = rng.choice([x for x in LOADS if x != before]) if rng.random() > _IDLE_SHARE or before == IDLE else IDLE
        duty = 0.0 if name == IDLE else rng.choice(DUTIES)
        power_w, memory_util = found[name, duty]
        loads.append(PlannedStep(board.time_s, name, duty, power_w, memory_util))
        board.hold(name, duty, rng.uniform(_SHORTEST_S, _LONGEST_S))
        before = name
    states = [state for state in board.states if state.time_s >= start_s]
    rates = {"interval_s": INTERVAL_S, "seconds": seconds, "seed": seed}
    return Trace(states, loads, board.describe() | rates)


def _find_out(board: Board, name: str, duty: float, loads: list[PlannedStep]) -> tuple[float, float | None]:
    """Mean power of a load [W] and its use of the memory, if the board tells."""
    loads.append(PlannedStep(board.time_s, name, duty, None))
    board.hold(name, duty, _FIND_OUT_S)
    since_s = board.time_s - _MEAN_OVER_S
    last = list(itertools.takewhile(lambda state: state.time_s > since_s, reversed(board.states)))
    averages_w = [state.power_avg_w for state in last if state.power_avg_w is not None]
    powers_w = averages_w[:1] or [state.power_w for state in last if state.power_w is not None]
    utils = [state.memory_util for state in last if state.memory_util is not None]
    if not powers_w:
        raise ConfigError(f"no reading of power under {name}: the board has no such sensor")
    return sum(powers_w) / len(powers_w), sum(utils) / len(utils) if utils else None
