"""Arms of a cell: captured, checked, then timed in turn.

A step runs every layer of an arm several times over in one CUDA graph, so that no layer finds its weights in the
cache and the launch of the graph weighs little; on a CPU it is plain calls.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.kernels.cell import Cell
from benchmarks.kernels.checks import Verdict, check
from benchmarks.kernels.registry import Entry, Output, Run
from benchmarks.windows import ReadState, interleaved, measure_window
from thermoe.profiling.capture import capture_graph
from thermoe.profiling.energy_window import WindowFigures, summarise_window
from thermoe.profiling.loop import Loop, make_loop

STEP_US = 400.0  # a step takes at least about this long
ROUND_S = 0.02  # of replays, for each arm and round
MIN_REPLAYS, MAX_REPLAYS = 4, 100
UNTIMED_REPLAYS = 3
UNWRITTEN = -(2**20)


@dataclass(frozen=True, slots=True)
class Window:
    """A load kept up beside the sensors: seconds per layer, the sensors' figures and all clock-event reasons."""

    layer_s: float
    sensors: WindowFigures | None
    throttle_reasons: int | None


@dataclass(slots=True)
class Arm:
    """One entry in one format on one cell.

    Attributes:
        entry, cell, dtype, num_layers: What is measured.
        layers_per_step: Layers that a step runs, each as often as it takes to fill it.
        run: Runs one layer. A graph knows the tensors it was captured with by address alone: this keeps them.
        step: Runs them once.
        loop: Repeats steps.
        rounds_us: Median microseconds per layer of each round.
        windows: Sustained loads.
        settings: Launch configuration, where one is tried out.
    """

    entry: Entry
    cell: Cell
    dtype: str
    num_layers: int
    layers_per_step: int
    run: Run
    step: Callable[[], object]
    outputs: dict[int, Output]
    loop: Loop | None = None
    verdict: Verdict | None = None
    rounds_us: list[float] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def median_us(self) -> float:
        """Microseconds per layer, median over the rounds."""
        return statistics.median(self.rounds_us)


def prepare(entry: Entry, cell: Cell, dtype: str, num_layers: int, floor_us: float) -> Arm:
    """Build, run once plainly, and capture.

    Raises:
        UnavailableError: The implementation cannot run here.
        CaptureError: It cannot be captured.
    """
    run = entry.build(cell, dtype, num_layers)
    on_gpu = cell.device.type == "cuda"
    repeats = max(1, math.ceil(STEP_US / (max(floor_us, 2.0) * num_layers))) if on_gpu else 1
    outputs: dict[int, Output] = {}
    work = _work(run, num_layers, repeats, outputs)
    step: Callable[[], object] = work
    if on_gpu:
        run(0)
        torch.cuda.synchronize()
        step = capture_graph(work).replay
    return Arm(entry, cell, dtype, num_layers, num_layers * repeats, run, step, outputs)


def _work(run: Run, num_layers: int, repeats: int, outputs: dict[int, Output]) -> Callable[[], None]:
    kept = {0, num_layers - 1}

    def work() -> None:
        for _ in range(repeats):
            for layer in range(num_layers):
                output = run(layer)
                if layer in kept:
                    outputs[layer] = output

    return work


def verify(arm: Arm) -> Verdict:
    """Poison what the step writes, run it, and compare its first and last layer with the truth."""
    if arm.cell.device.type == "cuda":
        for output in arm.outputs.values():
            _poison(output)
    arm.step()
    verdicts = [check(arm.entry, arm.cell, arm.dtype, layer, output) for layer, output in sorted(arm.outputs.items())]
    wrong = next((v.wrong for v in verdicts if v.wrong), None)
    arm.verdict = Verdict(max(v.rel_error for v in verdicts), wrong)
    return arm.verdict


def _poison(output: Output) -> None:
    for tensor in output:
        if tensor is not None:
            tensor.fill_(float("nan") if tensor.is_floating_point() else UNWRITTEN)


def time_arms(arms: Sequence[Arm], rounds: int) -> None:
    """Time replays of all arms in turn, forwards and backwards."""
    by_name = {str(i): arm for i, arm in enumerate(arms)}
    for arm in arms:
        arm.loop = make_loop(arm.step, arm.cell.device)
    for _, name in interleaved(list(by_name), rounds):
        arm = by_name[name]
        assert arm.loop is not None
        guess_s = statistics.median(arm.loop.each(UNTIMED_REPLAYS if arm.cell.device.type == "cuda" else 1))
        replays = min(max(int(ROUND_S / max(guess_s, 1e-9)), MIN_REPLAYS), MAX_REPLAYS)
        arm.rounds_us.append(1e6 * statistics.median(arm.loop.each(replays)) / arm.layers_per_step)


def sustain_arms(arms: Sequence[Arm], seconds: float, windows: int, read: ReadState | None) -> None:
    """Keep each arm up for some seconds beside the sensors, in turn."""
    by_name = {str(i): arm for i, arm in enumerate(arms)}
    for _, name in interleaved(list(by_name), windows):
        arm = by_name[name]
        assert arm.loop is not None
        steps, took_s, states = measure_window(arm.loop, seconds, read)
        reasons = [s.throttle_reasons for s in states if s.throttle_reasons is not None]
        mask = 0
        for reason in reasons:
            mask |= reason
        arm.windows.append(
            Window(
                layer_s=took_s / steps / arm.layers_per_step,
                sensors=summarise_window(states) if states else None,
                throttle_reasons=mask if reasons else None,
            )
        )
