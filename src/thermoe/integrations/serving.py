"""Drives a control plane while a model serves: a thread beside a real GPU, or the digital twin after each forward.

L layers, E experts.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch

from thermoe.integrations.hooks import RouterHooks
from thermoe.runtime.control_plane import ControlPlane, Observation
from thermoe.telemetry import DigitalTwin, EnergyWindow, GpuSystemMonitor
from thermoe.types import FloatArray, MoEShape, RoutingStatistics, StepWork, SysState

_log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 1.0
LATENCIES_KEPT = 100_000


class Totals:
    """Running sums over a whole attachment, from drained counters."""

    def __init__(self, shape: MoEShape) -> None:
        self.shape = shape
        self.num_tokens, self.num_groups = 0, 0
        self.loads_L: FloatArray = np.zeros(shape.num_layers)
        self.mass_sum = 0.0
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def add(self, statistics: RoutingStatistics) -> None:
        """Take in one drain."""
        self.num_tokens += statistics.num_tokens
        self.num_groups += statistics.num_groups
        self.loads_L = self.loads_L + statistics.loads_per_expert.sum(axis=1)
        self.mass_sum += float(statistics.gate_mass_kept.mean()) * statistics.num_tokens


class Driver(Protocol):
    """What feeds a control plane."""

    monitor: GpuSystemMonitor
    totals: Totals
    lock: AbstractContextManager[Any]
    """Held while the control plane decides and writes knobs."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; harmless when called again."""

    def poll(self) -> None:
        """Bring totals up to date now."""


class TwinDriver:
    """After each forward the twin does the work that was routed, in virtual time.

    This runs on the path of a token and waits for the device; it is for machines without sensors.
    """

    def __init__(
        self, hooks: RouterHooks, plane: ControlPlane, twin: DigitalTwin, monitor: GpuSystemMonitor, decoder: Any
    ) -> None:
        self.hooks, self.plane, self.twin, self.monitor = hooks, plane, twin, monitor
        self.totals = Totals(hooks.shape)
        self.lock: AbstractContextManager[Any] = threading.RLock()
        self._decoder = decoder
        self._handle: Any = None
        self._failed = False
        self._pending: list[tuple[RoutingStatistics, StepWork, float]] = []
        self._last_s, self._last_j = twin.time_s, twin.energy_j

    def start(self) -> None:
        """Follow every forward of the decoder from now on."""
        self._handle = self._decoder.register_forward_hook(torch.compiler.disable(self._after_forward))

    def stop(self) -> None:
        """Follow no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def poll(self) -> None:
        """Nothing is outstanding: every forward is counted at once."""

    def _after_forward(self, module: Any, args: Any, output: Any) -> None:
        statistics = self.hooks.counters.drain()
        if statistics.num_tokens == 0:
            return
        self.totals.add(statistics)
        work = StepWork(
            shape=self.hooks.shape,
            num_tokens=statistics.num_tokens,
            distinct_experts=[float(n) for n in (statistics.tokens_per_expert > 0).sum(axis=1)],
            routed_rows=[float(n) for n in statistics.tokens_per_expert.sum(axis=1)],
        )
        outcome = self.twin.run_step(work)
        self.totals.latencies_s.append(outcome.latency_s)
        self.monitor.sample()
        if self._failed:
            return
        self._pending.append((statistics, work, outcome.latency_s))
        if self.twin.time_s - self._last_s >= self.monitor.interval_s:
            self._failed = not _survives(self._control)

    def _control(self) -> None:
        state = self.monitor.latest
        predictions = [self.plane.cost_model.predict_step(w, self.plane.priced_as, state) for _, w, _ in self._pending]
        observation = Observation(
            state=state,
            statistics=merged([s for s, _, _ in self._pending]),
            num_tokens=sum(w.num_tokens for _, w, _ in self._pending),
            num_steps=len(self._pending),
            latency_s=sum(latency for _, _, latency in self._pending),
            energy_j=self.twin.energy_j - self._last_j,
            period_s=self.twin.time_s - self._last_s,
            predicted_energy_j=sum(p.energy_j for p in predictions),
            predicted_latency_s=sum(p.latency_s for p in predictions),
        )
        self._pending, self._last_s, self._last_j = [], self.twin.time_s, self.twin.energy_j
        with self.lock:
            self.hooks.set_knobs(self.plane.update(observation))


class ThreadDriver:
    """A thread that looks at the sensors and counters `1 / period_s` times a second and writes new knobs.

    It never holds up a forward: counters are read by a copy in stream order that only this thread
    waits for. Short pauses between forwards belong to the next observation, so that the mean power
    holds at any rate of arrivals; after `LONGEST_PAUSE_S` without a token it begins afresh.
    """

    def __init__(
        self, hooks: RouterHooks, plane: ControlPlane, monitor: GpuSystemMonitor, period_s: float = 0.1
    ) -> None:
        self.hooks, self.plane, self.monitor, self.period_s = hooks, plane, monitor, max(period_s, 0.05)
        self.totals = Totals(hooks.shape)
        self.lock: AbstractContextManager[Any] = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pending: list[RoutingStatistics] = []
        self._last: tuple[float, float | None] = (time.monotonic(), None)

    def start(self) -> None:
        """Start sampling and controlling."""
        self.monitor.start()
        self._last = (time.monotonic(), _energy_j(self.monitor.latest))
        self._thread = threading.Thread(target=self._loop, name="thermoe-control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End both threads."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.monitor.stop()

    def poll(self) -> None:
        """Bring totals up to date now; the counts wait for the next control period."""
        with self.lock:
            statistics = self.hooks.counters.drain()
            if statistics.num_tokens > 0:
                self.totals.add(statistics)
                self._pending.append(statistics)

    def _loop(self) -> None:
        while not self._stop.wait(self.period_s):
            if not _survives(self._control):
                return

    def _control(self) -> None:
        with self.lock:
            self.poll()
            state, now_s = self.monitor.latest, time.monotonic()
            energy_j = _energy_j(state)
            last_s, last_j = self._last
            if not self._pending:
                if now_s - last_s > LONGEST_PAUSE_S:
                    self._last = (now_s, energy_j)
                return
            statistics = merged(self._pending)
            self._pending, self._last = [], (now_s, energy_j)
            observation = Observation(
                state=state,
                statistics=statistics,
                num_tokens=statistics.num_tokens,
                num_steps=statistics.num_groups,
                latency_s=now_s - last_s,
                energy_j=_difference(energy_j, last_j),
                period_s=now_s - last_s,
                predicted_energy_j=0.0,
                predicted_latency_s=0.0,
            )
            self.hooks.set_knobs(self.plane.update(observation))


def _survives(control: Callable[[], None]) -> bool:
    """Run a control period; False, with a line in the log, where it failed.

    The model goes on with the last knobs: a control plane must not take serving down.
    """
    try:
        control()
    except Exception:  # noqa: BLE001
        _log.exception("the control plane failed and stops; the last knobs stay in force")
        return False
    return True


def merged(parts: list[RoutingStatistics]) -> RoutingStatistics:
    """Several drains as one."""
    tokens = max(sum(p.num_tokens for p in parts), 1)
    return RoutingStatistics(
        num_groups=sum(p.num_groups for p in parts),
        num_tokens=sum(p.num_tokens for p in parts),
        tokens_per_expert=np.sum([p.tokens_per_expert for p in parts], axis=0),
        loads_per_expert=np.sum([p.loads_per_expert for p in parts], axis=0),
        gate_mass_kept=np.sum([p.gate_mass_kept * p.num_tokens for p in parts], axis=0) / tokens,
        changed_slots=np.sum([p.changed_slots * p.num_tokens for p in parts], axis=0) / tokens,
    )


def summary_of(driver: Driver, window: EnergyWindow, overhead: float | None) -> dict[str, Any]:
    """What a strategy's entry of summary.json holds, for an attachment; None for what it cannot know.

    `overhead` is the control plane's share of the time that passed on the host's own clock.
    """
    totals = driver.totals
    energy_j, kind = window.energy_counter_j, str(window.kind)
    if energy_j is None:
        energy_j = window.energy_integrated_j
    per_token = None if energy_j is None or totals.num_tokens == 0 else energy_j / totals.num_tokens
    groups = max(totals.num_groups, 1)
    milliseconds = 1e3 * np.array(totals.latencies_s)
    known = milliseconds.size > 0
    return {
        "perplexity": None,
        "perplexity_change_pct": None,
        "distinct_experts_mean": float(totals.loads_L.mean() / groups) if totals.num_groups else None,
        "gate_mass_mean": totals.mass_sum / totals.num_tokens if totals.num_tokens else None,
        "bits_mean": 16.0,
        "energy_j_per_token": {"value": per_token, "low": None, "high": None, "kind": kind},
        "power_w_mean": window.power_mean_w,
        "temp_c_peak": window.temp_peak_c,
        "latency_ms": {
            "mean": float(milliseconds.mean()) if known else None,
            "p90": float(np.percentile(milliseconds, 90)) if known else None,
            "p99": float(np.percentile(milliseconds, 99)) if known else None,
        },
        "tokens_per_s": totals.num_tokens / window.duration_s if window.duration_s > 0 else None,
        "routing_overhead_pct": None if overhead is None else 100.0 * overhead,
    }


def _energy_j(state: SysState | None) -> float | None:
    return None if state is None else state.energy_j


def _difference(now_j: float | None, before_j: float | None) -> float | None:
    """Energy between two readings of a counter; None where one is silent, or the counter began anew."""
    if now_j is None or before_j is None or now_j < before_j:
        return None
    return now_j - before_j
