"""Watches one source: a background thread, a bounded history, and energy windows over it."""

import logging
import math
import threading
import time
from collections import deque
from itertools import takewhile
from types import TracebackType
from typing import Any, Protocol, Self

from thermoe.errors import ConfigError, TelemetryError
from thermoe.telemetry.pressure import power_pressure, thermal_pressure
from thermoe.telemetry.source import Refreshable, TelemetrySource
from thermoe.telemetry.windows import MAX_GAP_S, EnergyWindow, WindowAccumulator
from thermoe.types import Kind, SysState

_log = logging.getLogger(__name__)


class TrajectoryPredictor(Protocol):
    """Learns from states as they come and forecasts the temperature, as `cost.ThermalPredictor` does."""

    def update(self, state: SysState) -> Any:
        """Learn from one more state."""
        ...

    def predict(self, horizon_s: float) -> Any:
        """Forecast the next `horizon_s`."""
        ...


class GpuSystemMonitor:
    """Samples a source in the background, or whenever `sample` is called.

    Nothing starts before `start()` or the `with` block. A source that fails mid-run is reported
    once through `logging`; until it recovers its states hold nothing but `None`.

    Args:
        source: What to read; the monitor does not close it.
        interval_s: Time between background samples [s].
        history: Most states kept; older ones are forgotten.
        predictor: Learns from every sample and answers `predict_thermal_trajectory`.
        temp_limit_c: Core temperature to stay under [deg C], for `thermal_pressure`; without it the
            board's own slowdown temperature counts.
        power_limit_w: Power to stay under [W], for `power_pressure`; without it the board's limit.
    """

    def __init__(
        self,
        source: TelemetrySource,
        interval_s: float = 0.1,
        history: int = 36000,
        *,
        predictor: TrajectoryPredictor | None = None,
        temp_limit_c: float | None = None,
        power_limit_w: float | None = None,
    ) -> None:
        if not (math.isfinite(interval_s) and interval_s > 0.0):
            raise ConfigError(f"sampling interval of {interval_s} s: needs a positive number; 0.1 suits most sensors")
        if history < 1:
            raise ConfigError(f"history of {history} states: needs at least 1")
        self.source = source
        self.interval_s = interval_s
        self.temp_limit_c = temp_limit_c
        self.power_limit_w = power_limit_w
        self._predictor = predictor
        self._history: deque[SysState] = deque(maxlen=history)
        self._latest: SysState | None = None
        self._windows: dict[str, WindowAccumulator] = {}
        self._failing = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def latest(self) -> SysState | None:
        """The last state, without waiting for a sensor or a lock; `None` before the first sample."""
        return self._latest

    @property
    def history(self) -> list[SysState]:
        """The kept states, oldest first."""
        with self._lock:
            return list(self._history)

    @property
    def running(self) -> bool:
        """Whether the background thread samples."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def thermal_pressure(self) -> float | None:
        """How near the last state is to its temperature limit, in [0, 1]; see `pressure.thermal_pressure`."""
        return None if self._latest is None else thermal_pressure(self._latest, self.temp_limit_c)

    @property
    def power_pressure(self) -> float | None:
        """How near the last state is to its power limit, in [0, 1]; see `pressure.power_pressure`."""
        return None if self._latest is None else power_pressure(self._latest, self.power_limit_w)

    def start(self) -> Self:
        """Take a first sample and begin sampling in the background; a second call does nothing."""
        if not self.running:
            self.sample()
            self._stop.clear()
            self._thread = threading.Thread(target=self._loop, name=f"thermoe-monitor-{self.source.name}", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """End background sampling and wait for the thread; may be called twice."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def sample(self, *, fresh: bool = False) -> SysState:
        """Read the source now, in the calling thread, and count the state everywhere.

        `fresh` also asks for readings that the source would hold for a while, such as an energy counter.
        """
        with self._lock:
            if fresh and isinstance(self.source, Refreshable):
                self.source.refresh()
            state = self._read()
            self._history.append(state)
            self._latest = state
            for window in self._windows.values():
                window.add(state)
            if self._predictor is not None:
                self._predictor.update(state)
        return state

    def mean_power_w(self, since_s: float) -> float | None:
        """Mean of the power readings later than `since_s` on the source's clock [W], else of the last one."""
        with self._lock:
            powers = [_power_w(s) for s in takewhile(lambda s: s.time_s > since_s, reversed(self._history))]
            powers = powers or ([_power_w(self._history[-1])] if self._history else [])
        known = [p for p in powers if p is not None]
        return math.fsum(known) / len(known) if known else None

    def begin_window(self, name: str = "window") -> None:
        """Open an energy window with a fresh sample; windows of different names may overlap.

        Raises:
            ConfigError: If a window of that name is open already.
        """
        if name in self._windows:
            raise ConfigError(f"energy window {name!r} is open already: end it first or use another name")
        first = self.sample(fresh=True)
        with self._lock:
            self._windows[name] = WindowAccumulator(first, max(MAX_GAP_S, 3.0 * self.interval_s))

    def end_window(self, name: str = "window") -> EnergyWindow:
        """Close an energy window with a fresh sample and sum it up.

        Raises:
            ConfigError: If no window of that name is open.
        """
        if name not in self._windows:
            raise ConfigError(f"no energy window {name!r} is open: call begin_window({name!r}) first")
        self.sample(fresh=True)
        with self._lock:
            return self._windows.pop(name).result()

    def peek_window(self, name: str = "window") -> EnergyWindow:
        """What an open energy window holds so far; it stays open.

        Raises:
            ConfigError: If no window of that name is open.
        """
        if name not in self._windows:
            raise ConfigError(f"no energy window {name!r} is open: call begin_window({name!r}) first")
        self.sample(fresh=True)
        with self._lock:
            return self._windows[name].result()

    def predict_thermal_trajectory(self, horizon_s: float) -> Any:
        """The predictor's forecast of the next `horizon_s` from the samples so far.

        Raises:
            TelemetryError: If the monitor was made without a predictor.
        """
        if self._predictor is None:
            raise TelemetryError(
                "the monitor has no thermal predictor: pass predictor=ThermalPredictor() when making it"
            )
        with self._lock:
            return self._predictor.predict(horizon_s)

    def _loop(self) -> None:
        """Sample at a fixed rate; a late sample does not make the next ones bunch up."""
        due_s = time.monotonic() + self.interval_s
        while not self._stop.wait(max(due_s - time.monotonic(), 0.0)):
            self.sample()
            due_s = max(due_s + self.interval_s, time.monotonic())

    def _read(self) -> SysState:
        try:
            state = self.source.read()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the run that is watched goes on
            if not self._failing:
                _log.warning(
                    "telemetry source %s failed (%s); its readings are None until it recovers", self.source.name, error
                )
            self._failing = True
            return self._silent_state()
        if self._failing:
            _log.info("telemetry source %s reads again", self.source.name)
        self._failing = False
        return state

    def _silent_state(self) -> SysState:
        """A state that knows only when it was; a clock that is not the machine's own stands still."""
        last_s = self._latest.time_s if self._latest is not None else 0.0
        measured = self.source.kind is Kind.MEASURED
        last_wall_s = self._latest.wall_time_s if self._latest is not None else 0.0
        return SysState(
            time_s=time.monotonic() if measured else last_s,
            wall_time_s=time.time() if measured else last_wall_s,
            source=self.source.name,
            kind=self.source.kind,
        )


def _power_w(state: SysState) -> float | None:
    """Instant power, the averaged one where there is none [W]."""
    return state.power_avg_w if state.power_w is None else state.power_w
