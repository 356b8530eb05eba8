"""Measure one case in this process: correctness, latency by events, energy by the counter and by instant power."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.errors import CostError
from thermoe.profiling.capture import CaptureError
from thermoe.profiling.case import Case
from thermoe.profiling.energy_window import EnergyFigures, hole_s, join_windows, summarise_window, wait_until_cool
from thermoe.profiling.formats import WeightCache
from thermoe.profiling.operations import INPUT_DISTRIBUTION, Operation, Setup, find_operation
from thermoe.profiling.runner import Runner, make_runner
from thermoe.types import Kind, SysState

MAX_REL_ERROR = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2, "fp8": 5e-2}
MAX_REL_ERROR_CODES = 3e-2
_BYTES_PER_S, _FLOPS_PER_S = 4e12, 6e14  # of a large GPU: only to tell long steps from short ones
FEW_TOKENS = 64  # kernels change about here, so a result is checked on both sides


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How a measurement is made.

    Attributes:
        window_s: Length of an energy window [s]; 2 at least, the counter moves every 100 ms.
        windows: Energy windows of a figure, one after the other.
        warm_up_s: Load before the first window, so that the rise of power is not counted [s].
        rounds: Timed rounds of the latency, at most.
        rounds_s: Time that they may take together, for five at the least, without the rests between them [s].
        cache_bytes: What the steps should read together, so that no cache holds it [byte].
        min_steps, max_steps: Bounds of the steps before the first is repeated; fewer where they are long.
        steps_s: What steps may take together before fewer than `min_steps` are enough [s].
        memory_bytes: Device memory that expert weights of all cases may take [byte].
        copies_bytes: Device memory that the other operands of one case may take [byte].
        cool_margin_c: A window starts at most this much warmer than the sweep did [deg C].
        max_cool_s: Longest wait for that [s].
    """

    window_s: float = 2.0
    windows: int = 2
    warm_up_s: float = 0.3
    rounds: int = 15
    rounds_s: float = 0.02
    cache_bytes: float = 300e6
    min_steps: int = 8
    max_steps: int = 96
    steps_s: float = 3e-3
    memory_bytes: float = 60e9
    copies_bytes: float = 8e9
    cool_margin_c: float = 10.0
    max_cool_s: float = 2.0


CPU_PROTOCOL = Protocol(
    rounds=10,
    rounds_s=0.2,
    cache_bytes=30e6,
    min_steps=2,
    max_steps=8,
    steps_s=10.0,
    memory_bytes=1e9,
    copies_bytes=2e8,
)


@dataclass(slots=True)
class InProcess:
    """Measures cases on one device.

    Attributes:
        device: Where to run.
        device_key: What the rows belong to.
        read_state: Reads the device's sensors; None where there are none, then no energy is measured.
        protocol: How to measure.
        start_temp_c: Temperature when the sweep started [deg C].
        occasion: When that was.
        spoilt: Whether a failure left this process unable to measure any further.
    """

    device: torch.device
    device_key: DeviceKey
    read_state: Callable[[], SysState] | None
    protocol: Protocol
    start_temp_c: float | None = None
    occasion: str = ""
    spoilt: bool = False
    _weights: WeightCache | None = None
    _checked: dict[tuple[object, ...], float] = field(default_factory=dict)

    def measure(self, case: Case) -> CostRow:
        """One row.

        Raises:
            CostError: The operation's result is wrong, so that its cost would mean nothing, its graph was not
                captured, or this process was held up while energy was measured.
            RuntimeError: Whatever the device says, out of memory for one.
        """
        try:
            return self._measure(case)
        except (CaptureError, RuntimeError) as err:
            self.spoilt = isinstance(err, CaptureError) or not self._device_answers()
            if isinstance(err, torch.OutOfMemoryError) and self._weights is not None:
                self._weights.clear()
            raise

    def _device_answers(self) -> bool:
        """Whether the device still computes; after an illegal access, for one, nothing in this process does."""
        if self.device.type != "cuda":
            return True
        try:
            return float(torch.ones(1, device=self.device).sum()) == 1.0
        except RuntimeError:
            return False

    def _measure(self, case: Case) -> CostRow:
        operation = find_operation(case)
        setup = self._setup(case, operation)
        with torch.no_grad():
            bench = operation.build(case, setup)
            rel_error = self._check(case, bench.rel_error)
            runner = make_runner(bench, setup.steps, setup.device)
            seconds, repeats = runner.time_rounds(self.protocol.rounds, self.protocol.rounds_s)
            energy = self._energy(runner) if case.energy else EnergyFigures()
        low_us, median_us, high_us = np.percentile(np.array(seconds) * 1e6, [5, 50, 95]).tolist()
        figures: dict[str, float | None] = {
            "latency_us": median_us,
            "latency_low_us": low_us,
            "latency_high_us": high_us,
            "spread_pct": 100.0 * (high_us - low_us) / median_us,
            "skew": bench.skew,
            "flops": operation.flops(case),
            "bytes_moved": operation.bytes_moved(case),
            "working_set_mb": max(operation.step_bytes(case) * setup.steps / 1e6, 1e-6),
            "rel_error": rel_error,
            **energy.as_row_fields(),
        }
        rounded: dict[str, Any] = {name: _rounded(value) for name, value in figures.items()}
        return CostRow(
            device=self.device_key,
            repeats=repeats,
            input_distribution=INPUT_DISTRIBUTION,
            kind=Kind.MEASURED,
            occasion=self.occasion,
            throttled=energy.throttled,
            windows=energy.windows,
            **_case_fields(case),
            **rounded,
        )

    def _setup(self, case: Case, operation: Operation) -> Setup:
        device = torch.device("cpu") if operation.on_host else self.device
        if self._weights is None:
            self._weights = WeightCache(self.device, self.protocol.memory_bytes)
        p = self.protocol
        wanted = math.ceil(p.cache_bytes / max(operation.step_bytes(case), 1.0))
        least_s = operation.bytes_moved(case) / _BYTES_PER_S + operation.flops(case) / _FLOPS_PER_S
        fewest = max(1, min(p.min_steps, math.ceil(p.steps_s / least_s))) if least_s > 0 else p.min_steps
        steps = 1 if operation.on_host else max(fewest, min(wanted, p.max_steps))
        return Setup(
            device=device, steps=steps, weights=self._weights, cache_bytes=p.cache_bytes, memory_bytes=p.copies_bytes
        )

    def _check(self, case: Case, rel_error: Callable[[], float]) -> float | None:
        """Error of the first case of a kind; later ones run the same code on other numbers and are not checked.

        Raises:
            CostError: The result is wrong.
        """
        kind = (case.op, case.impl, case.dtype, *case.sizes, case.group_size, case.tokens > FEW_TOKENS)
        if kind in self._checked:
            return None
        found = rel_error()
        most = MAX_REL_ERROR.get(case.dtype, MAX_REL_ERROR_CODES)
        if not found <= most:
            raise CostError(f"{case}: relative error {found:.2g} over {most:g}, not timed")
        self._checked[kind] = found
        return found

    def _energy(self, runner: Runner) -> EnergyFigures:
        if self.read_state is None:
            return EnergyFigures()
        read, p = self.read_state, self.protocol
        if self.start_temp_c is not None:
            wait_until_cool(read, self.start_temp_c + p.cool_margin_c, p.max_cool_s, time.sleep)
        runner.sustain(p.warm_up_s, lambda: None)
        found = []
        for _ in range(p.windows):
            states: list[SysState] = []
            sustained_s = runner.sustain(p.window_s, lambda taken=states: taken.append(read()))  # type: ignore[misc]
            if hole_s(states):
                raise CostError(f"no reading for {hole_s(states):.1f} s of an energy window: the process was held up")
            found.append((sustained_s, summarise_window(states)))
        return join_windows(found)


def smoke_protocol(protocol: Protocol) -> Protocol:
    """The same with the shortest of everything: it shows that a case runs, not what it costs."""
    return replace(
        protocol, windows=1, warm_up_s=0.05, rounds=5, rounds_s=0.005, cache_bytes=1e6, min_steps=2, max_cool_s=0.0
    )


def _case_fields(case: Case) -> dict[str, Any]:
    return {
        "op": case.op,
        "impl": case.impl,
        "dtype": case.dtype,
        "hidden_size": case.hidden_size,
        "inter_size": case.inter_size,
        "num_experts": case.num_experts,
        "top_k": case.top_k,
        "tokens": case.tokens,
        "routed_rows": case.routed_rows,
        "active_experts": case.distinct_experts,
        "load": case.load,
        "context": case.context,
        "group_size": case.group_size,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
