"""Measure one case in this process: correctness, latency by events, energy by the counter and by instant power."""

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.errors import CostError
from thermoe.profiling.capture import CaptureError
from thermoe.profiling.case import Case
from thermoe.profiling.energy_window import WindowFigures, summarise_window, wait_until_cool
from thermoe.profiling.operations import INPUT_DISTRIBUTION, find_operation
from thermoe.profiling.runner import Runner, make_runner
from thermoe.types import Kind, SysState

MAX_REL_ERROR = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How a measurement is made.

    Attributes:
        window_s: Length of an energy window [s]; 2 at least, the counter moves every 100 ms.
        warm_up_s: Load before the window, so that the rise of power is not counted [s].
        rounds: Timed rounds of the latency.
        cache_bytes: Working set that the rotation over layers should exceed [byte].
        min_layers, max_layers: Bounds of the rotation.
        memory_bytes: Device memory that the rotation may take [byte].
        cool_margin_c: A window starts at most this much warmer than the sweep did [deg C].
        max_cool_s: Longest wait for that [s].
    """

    window_s: float = 2.0
    warm_up_s: float = 0.5
    rounds: int = 30
    cache_bytes: float = 150e6
    min_layers: int = 12
    max_layers: int = 64
    memory_bytes: float = 40e9
    cool_margin_c: float = 4.0
    max_cool_s: float = 4.0


CPU_PROTOCOL = Protocol(rounds=10, cache_bytes=30e6, min_layers=2, max_layers=8, memory_bytes=1e9)


@dataclass(slots=True)
class InProcess:
    """Measures cases on one device.

    Attributes:
        device: Where to run.
        device_key: What the rows belong to.
        read_state: Reads the device's sensors; None where there are none, then no energy is measured.
        protocol: How to measure.
        start_temp_c: Temperature when the sweep started [deg C].
        spoilt: Whether a failure left this process unable to measure any further.
    """

    device: torch.device
    device_key: DeviceKey
    read_state: Callable[[], SysState] | None
    protocol: Protocol
    start_temp_c: float | None = None
    spoilt: bool = False

    def measure(self, case: Case) -> CostRow:
        """One row.

        Raises:
            CostError: The operation's result is wrong, so that its cost would mean nothing, or its
                graph was not captured.
            RuntimeError: Whatever the device says, out of memory for one.
        """
        try:
            return self._measure(case)
        except (CaptureError, RuntimeError) as err:
            self.spoilt = isinstance(err, CaptureError) or not self._device_answers()
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
        num_layers = self._rotation(operation.layer_bytes(case), operation.resident_bytes(case))
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # the last case's weights are of other sizes
        with torch.inference_mode():
            bench = operation.build(case, self.device, num_layers)
            rel_error = bench.rel_error()
            if rel_error > MAX_REL_ERROR[case.dtype]:
                raise CostError(f"{case}: relative error {rel_error:.2g} over {MAX_REL_ERROR[case.dtype]:g}, not timed")
            runner = make_runner(bench, num_layers, self.device)
            seconds, repeats = runner.time_rounds(self.protocol.rounds)
            sustained_s, window = self._energy_window(runner) if case.energy else (None, None)
        low_us, median_us, high_us = np.percentile(np.array(seconds) * 1e6, [5, 50, 95]).tolist()
        timings = {"latency_us": median_us, "latency_low_us": low_us, "latency_high_us": high_us}
        figures: dict[str, Any] = {
            **timings,
            "spread_pct": 100.0 * (high_us - low_us) / median_us,
            "skew": bench.skew,
            "flops": operation.flops(case),
            "bytes_moved": operation.bytes_moved(case),
            "working_set_mb": operation.layer_bytes(case) * num_layers / 1e6,
            "rel_error": rel_error,
            **_window_figures(sustained_s, window),
        }
        figures = {name: _rounded(value) for name, value in figures.items()}
        return CostRow(
            device=self.device_key,
            op=case.op,
            impl=case.impl,
            dtype=case.dtype,
            hidden_size=case.hidden_size,
            inter_size=case.inter_size,
            num_experts=case.num_experts,
            top_k=case.top_k,
            tokens=case.tokens,
            routed_rows=case.routed_rows,
            active_experts=case.distinct_experts,
            repeats=repeats,
            input_distribution=INPUT_DISTRIBUTION,
            kind=Kind.MEASURED,
            throttled=window.throttled if window else None,
            **figures,
        )

    def _rotation(self, layer_bytes: float, resident_bytes: float) -> int:
        p = self.protocol
        wanted = math.ceil(p.cache_bytes / max(layer_bytes, 1.0))
        fitting = int(p.memory_bytes / max(resident_bytes, 1.0))
        return max(1, min(max(wanted, p.min_layers), p.max_layers, fitting))

    def _energy_window(self, runner: Runner) -> tuple[float | None, WindowFigures | None]:
        if self.read_state is None:
            return None, None
        read = self.read_state
        if self.start_temp_c is not None:
            wait_until_cool(read, self.start_temp_c + self.protocol.cool_margin_c, self.protocol.max_cool_s, time.sleep)
        states: list[SysState] = []
        runner.sustain(self.protocol.warm_up_s, lambda: None)
        sustained_s = runner.sustain(self.protocol.window_s, lambda: states.append(read()))
        return sustained_s, summarise_window(states)


def _window_figures(sustained_s: float | None, window: WindowFigures | None) -> dict[str, float | None]:
    if sustained_s is None or window is None:
        return {}
    counter_w, integrated_w = window.power_counter_w, window.power_integrated_w
    return {
        "latency_sustained_us": sustained_s * 1e6,
        "energy_mj": None if counter_w is None else counter_w * sustained_s * 1e3,
        "energy_integrated_mj": None if integrated_w is None else integrated_w * sustained_s * 1e3,
        "power_w": counter_w if counter_w is not None else integrated_w,
        "power_limit_w": window.power_limit_w,
        "temp_c": window.temp_c,
        "sm_clock_mhz": window.sm_clock_mhz,
        "memory_clock_mhz": window.memory_clock_mhz,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
