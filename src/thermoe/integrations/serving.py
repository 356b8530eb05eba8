"""Drives a control plane while a model serves: a thread beside a real GPU, or the digital twin after each forward.

L layers, E experts.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch

from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.figures import Totals
from thermoe.integrations.hooks import RouterHooks
from thermoe.runtime.control_plane import ControlPlane, Observation
from thermoe.telemetry import DigitalTwin, GpuSystemMonitor
from thermoe.types import FloatArray, RoutingStatistics, StepWork

_log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 1.0


class Driver(Protocol):
    """What feeds a control plane."""

    monitor: GpuSystemMonitor
    totals: Totals
    lock: AbstractContextManager[Any]
    """Held while the control plane decides and writes knobs."""

    @property
    def bits(self) -> float:
        """Weight precision that the figures are for, now [bit]."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; harmless when called again."""

    def poll(self) -> None:
        """Bring totals up to date now."""

    def begin_figures(self) -> None:
        """Count totals, and what is drawn, from now on."""

    def drawn(self) -> tuple[float, float] | None:
        """Energy [J] and time [s] since the figures began where they are known better than by sensors."""


class TwinDriver:
    """After each forward the twin does the work that was routed, in virtual time.

    Where every position is a batch of its own, each is a step, as in decoding; any other forward is one step.
    This runs on the path of a token and waits for the device; it is for machines without sensors.
    """

    def __init__(
        self,
        hooks: RouterHooks,
        plane: ControlPlane,
        twin: DigitalTwin,
        monitor: GpuSystemMonitor,
        decoder: Any,
        *,
        precision: Callable[[], float],
    ) -> None:
        self.hooks, self.plane, self.twin, self.monitor = hooks, plane, twin, monitor
        self.totals = Totals(hooks.shape)
        self.lock: AbstractContextManager[Any] = threading.RLock()
        self._decoder = decoder
        self._handle: Any = None
        self._failed = False
        self._statistics: list[RoutingStatistics] = []
        self._pending: list[tuple[StepWork, float]] = []
        self._last_s, self._last_j = self._began_s, self._began_j = twin.time_s, twin.energy_j
        self._precision = precision

    @property
    def bits(self) -> float:
        """Precision at which the twin prices steps, now [bit]: float32 counts as the bfloat16 that it stands for."""
        return min(self._precision(), 16.0)

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

    def begin_figures(self) -> None:
        """Count totals, and what the twin draws, from now on."""
        self.totals = Totals(self.hooks.shape)
        self._began_s, self._began_j = self.twin.time_s, self.twin.energy_j

    def drawn(self) -> tuple[float, float]:
        """What the twin drew: its sensors lag by up to 0.1 s, which would swamp short attachments."""
        return self.twin.energy_j - self._began_j, self.twin.time_s - self._began_s

    def _after_forward(self, module: Any, args: Any, output: Any) -> None:
        statistics = self.hooks.counters.drain()
        if statistics.num_tokens == 0:
            return
        self.totals.add(statistics)
        works = self._steps(statistics)
        latencies_s = []
        for work in works:
            latencies_s.append(self.twin.run_step(work).latency_s)
            self.monitor.sample()
        self.totals.latencies_s.extend(latencies_s)
        if self._failed:
            return
        self._statistics.append(statistics)
        self._pending += zip(works, latencies_s, strict=True)
        if self.twin.time_s - self._last_s >= self.monitor.interval_s:
            self._failed = not _survives(self._control)

    def _steps(self, statistics: RoutingStatistics) -> list[StepWork]:
        """The steps of the forward that ended, whose counts these are."""
        if self.hooks.context.scope is not UnionScope.POSITIONS:
            experts_L, rows_L = (statistics.tokens_per_expert > 0).sum(axis=1), statistics.tokens_per_expert.sum(axis=1)
            return [self._work(statistics.num_tokens, experts_L, rows_L)]
        experts_LC, rows_LC, _ = self.hooks.counters.last_forward()
        live = np.flatnonzero(rows_LC.any(axis=0))
        num_tokens = round(statistics.num_tokens / max(live.size, 1))
        return [self._work(num_tokens, experts_LC[:, column], rows_LC[:, column]) for column in live]

    def _work(self, num_tokens: int, experts_L: FloatArray, rows_L: FloatArray) -> StepWork:
        """A step of so many tokens that touches (L,) experts with (L,) routed rows."""
        return StepWork(
            shape=self.hooks.shape,
            num_tokens=num_tokens,
            distinct_experts=experts_L.tolist(),
            routed_rows=rows_L.tolist(),
            bits=self.bits,
        )

    def _control(self) -> None:
        state = self.monitor.latest
        predictions = [self.plane.cost_model.predict_step(w, self.plane.priced_as, state) for w, _ in self._pending]
        observation = Observation(
            state=state,
            statistics=merged(self._statistics),
            num_tokens=sum(s.num_tokens for s in self._statistics),
            num_steps=len(self._pending),
            latency_s=sum(latency_s for _, latency_s in self._pending),
            energy_j=self.twin.energy_j - self._last_j,
            period_s=self.twin.time_s - self._last_s,
            predicted_energy_j=sum(p.energy_j for p in predictions),
            predicted_latency_s=sum(p.latency_s for p in predictions),
        )
        self._statistics, self._pending = [], []
        self._last_s, self._last_j = self.twin.time_s, self.twin.energy_j
        with self.lock:
            self.hooks.set_knobs(self.plane.update(observation))


class ThreadDriver:
    """A thread that looks at the sensors and counters `1 / period_s` times a second and writes new knobs.

    It never holds up a forward: counters are read by a copy in stream order that only this thread
    waits for. Short pauses between forwards belong to the next observation, so that the mean power
    holds at any rate of arrivals; after `LONGEST_PAUSE_S` without a token it begins afresh.
    """

    def __init__(
        self,
        hooks: RouterHooks,
        plane: ControlPlane,
        monitor: GpuSystemMonitor,
        period_s: float = 0.1,
        *,
        precision: Callable[[], float],
    ) -> None:
        self._precision = precision
        self.hooks, self.plane, self.monitor, self.period_s = hooks, plane, monitor, max(period_s, 0.05)
        self.totals = Totals(hooks.shape)
        self.lock: AbstractContextManager[Any] = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pending: list[RoutingStatistics] = []
        self._last_s = time.monotonic()

    @property
    def bits(self) -> float:
        """Precision of the weights, now [bit]."""
        return self._precision()

    def start(self) -> None:
        """Start sampling and controlling."""
        self.monitor.start()
        self._last_s = time.monotonic()
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

    def begin_figures(self) -> None:
        """Count totals from now on; steps so far still reach the control plane."""
        with self.lock:
            self.poll()
            self.totals = Totals(self.hooks.shape)

    def drawn(self) -> None:
        """Sensors know best."""

    def _loop(self) -> None:
        while not self._stop.wait(self.period_s):
            if not _survives(self._control):
                return

    def _control(self) -> None:
        with self.lock:
            self.poll()
            state, now_s = self.monitor.latest, time.monotonic()
            last_s = self._last_s
            if not self._pending:
                if now_s - last_s > LONGEST_PAUSE_S:
                    self._last_s = now_s
                return
            statistics = merged(self._pending)
            self._pending, self._last_s = [], now_s
            power_w = self.monitor.mean_power_w(last_s)
            observation = Observation(
                state=state,
                statistics=statistics,
                num_tokens=statistics.num_tokens,
                num_steps=statistics.num_groups,
                latency_s=now_s - last_s,
                energy_j=None if power_w is None else power_w * (now_s - last_s),
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
