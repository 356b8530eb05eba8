"""What a forward pass left behind, and the interface of everything that can run a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from thermoe.types import FloatArray, MoEShape, RoutingKnobs, RoutingStatistics
from thermoe.workloads import Batch

LastForward = dict[int, tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """One forward pass; its tensors stay on the device until `counts` is called.

    Attributes:
        num_steps: Positions that count as a step of their own (C).
        tokens_per_step: Tokens computed in one step.
        results_per_step: Tokens scored or generated in one step.
        last: Per layer (C,) distinct experts, routed rows and gate mass kept.
        nll_C: (C,) negative log-likelihood summed over the rows [nat]; None where nothing is scored.
        latency_s: Asks for the time the forward took [s]; waits for the device.
    """

    num_steps: int
    tokens_per_step: int
    results_per_step: int
    last: LastForward
    nll_C: Tensor | None
    latency_s: Callable[[], float]

    def counts(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(L, C) distinct experts, routed rows and gate mass kept (waits for the device)."""
        stacked = torch.stack([torch.stack(self.last[layer]) for layer in range(len(self.last))])
        values: FloatArray = np.asarray(stacked.cpu().double().numpy())
        return values[:, 0], values[:, 1], values[:, 2]

    def nll(self) -> FloatArray | None:
        """(C,) negative log-likelihood [nat] (waits for the device)."""
        return None if self.nll_C is None else np.asarray(self.nll_C.cpu().double().numpy())


class Watcher(Protocol):
    """Told of every forward of a batch."""

    def before_forward(self) -> None:
        """A forward is about to start."""
        ...

    def after_forward(self, forward: Forward) -> None:
        """A forward has been launched; knobs set now act from the next one on."""
        ...


class Runner(Protocol):
    """Runs batches of one workload on one model.

    Attributes:
        shape: Sizes of the model's MoE layers.
        bits: Weight precision [bit].
    """

    shape: MoEShape
    bits: float

    def steps_of(self, batch: Batch) -> tuple[int, int]:
        """Steps that this batch will take, and tokens of one step."""
        ...

    def run(self, batch: Batch, watcher: Watcher, positions: int | None) -> None:
        """Run one batch with at most `positions` positions a forward; None leaves the choice to the runner."""
        ...

    def set_knobs(self, knobs: RoutingKnobs | None) -> None:
        """Knobs from the next forward on; None is the model's own routing."""
        ...

    def drain(self) -> RoutingStatistics:
        """Counters since the last call."""
        ...

    def routing_s(self) -> float | None:
        """Host time spent in the routing hooks since the last call [s]; None where there are none."""
        ...

    def close(self) -> None:
        """Leave the model as it was found."""
        ...


class Stopwatch:
    """Clocks one forward: CUDA events on a GPU, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> Callable[[], Callable[[], float]]:
        """Begin; call the result to stop, and what that returns for the seconds."""
        if self._device.type != "cuda":
            return _host_clock()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()

        def stop() -> Callable[[], float]:
            end.record()

            def seconds() -> float:
                end.synchronize()
                return float(begin.elapsed_time(end)) * 1e-3

            return seconds

        return stop


def _host_clock() -> Callable[[], Callable[[], float]]:
    from time import perf_counter

    begin_s = perf_counter()

    def stop() -> Callable[[], float]:
        took_s = perf_counter() - begin_s
        return lambda: took_s

    return stop
