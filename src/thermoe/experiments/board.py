"""Where a step's time and energy come from: the digital twin, a real GPU's sensors, or a replayed log."""

import time
from dataclasses import dataclass
from typing import Any, Protocol

from thermoe.telemetry.monitor import GpuSystemMonitor
from thermoe.telemetry.simulated import DigitalTwin, SimulatedSource
from thermoe.telemetry.windows import EnergyWindow
from thermoe.types import FloatArray, Kind, StepWork, SysState

WINDOW = "batch"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFigures:
    """What one step took, by the board.

    Attributes:
        time_s: The board's clock when the step ended [s].
        latency_s: Time of the step itself [s]; None where the board cannot know.
        energy_j: Energy since the step before ended, waiting included [J].
        power_w: Mean power over the same stretch, or the sensor's last reading [W].
        state: The last sensor reading.
    """

    time_s: float
    latency_s: float | None
    energy_j: float | None
    power_w: float | None
    state: SysState | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFigures:
    """What one batch took: both estimates of its energy, and the sensors' summary.

    Attributes:
        energy_j: By the energy counter, waiting included [J].
        energy_integrated_j: By integrating the power readings [J].
        window: The sensors over the whole batch, repetitions included.
        samples: Sensor readings taken during the batch.
    """

    energy_j: float | None
    energy_integrated_j: float | None
    power_w: float | None
    window: EnergyWindow
    samples: list[SysState]


class Board(Protocol):
    """Accounts for the steps of one arm."""

    kind: Kind

    def begin(self) -> None:
        """A batch begins."""
        ...

    def before_forward(self, first_step: int) -> None:
        """A forward whose first step has this number is about to start."""
        ...

    def step(self, number: int, work: StepWork, forward_latency_s: float | None) -> StepFigures:
        """Account for one step that was computed; steps come in order."""
        ...

    def end(self, repeats: int) -> BatchFigures:
        """The batch ends; it was computed `repeats` times, and figures are those of one."""
        ...

    def elapsed_s(self) -> float:
        """Time since `begin` by the board's clock [s]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on after this batch, JSON-able."""
        ...

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        ...


class SimulatedBoard:
    """A digital twin of its own: time is virtual, energy is what the twin drew.

    The counter that the twin's sensors show lags by up to 100 ms, which would swamp short batches;
    `energy_j` is therefore the twin's own total, and the sensors give the second estimate.

    Args:
        twin: The twin that does the work.
        interval_s: Virtual time between sensor readings [s].
        arrival_times_s: When the tokens of each step have arrived; None starts steps back to back.
    """

    kind = Kind.SIMULATED

    def __init__(
        self, twin: DigitalTwin, *, interval_s: float = 0.1, arrival_times_s: FloatArray | None = None
    ) -> None:
        self.twin = twin
        self._interval_s = interval_s
        self._arrivals_s = arrival_times_s
        self._source = SimulatedSource(twin)
        self._due_s = 0.0
        self._forget()

    def _forget(self) -> None:
        """A fresh monitor for each batch, so that nothing but the twin outlives it."""
        self._monitor = GpuSystemMonitor(self._source, self._interval_s)
        self._begin_s, self._begin_j = self.twin.time_s, self.twin.energy_j

    def begin(self) -> None:
        """Open the batch's energy window."""
        self._forget()
        self._monitor.begin_window(WINDOW)
        self._due_s = self.twin.time_s + self._interval_s

    def before_forward(self, first_step: int) -> None:
        """Virtual time stands still while the host computes."""

    def step(self, number: int, work: StepWork, forward_latency_s: float | None) -> StepFigures:
        """Wait for the step's tokens, let the twin do the work, and sample as time goes by."""
        begin_s, begin_j = self.twin.time_s, self.twin.energy_j
        if self._arrivals_s is not None:
            self._wait_until(float(self._arrivals_s[number]))
        latency_s = self.twin.run_step(work).latency_s
        if self.twin.time_s >= self._due_s:
            self._sample()
        energy_j = self.twin.energy_j - begin_j
        return StepFigures(
            time_s=self.twin.time_s,
            latency_s=latency_s,
            energy_j=energy_j,
            power_w=energy_j / (self.twin.time_s - begin_s),
            state=self._monitor.latest,
        )

    def end(self, repeats: int) -> BatchFigures:
        """Close the window; the twin runs every batch once."""
        window = self._monitor.end_window(WINDOW)
        energy_j = self.twin.energy_j - self._begin_j
        return BatchFigures(
            energy_j=energy_j,
            energy_integrated_j=window.energy_integrated_j,
            power_w=energy_j / self.elapsed_s() if self.elapsed_s() > 0 else None,
            window=window,
            samples=self._monitor.history,
        )

    def elapsed_s(self) -> float:
        """Virtual time since `begin` [s]."""
        return self.twin.time_s - self._begin_s

    def state_dict(self) -> dict[str, Any]:
        """The twin's state."""
        return {"twin": self.twin.state_dict()}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on with the twin's state."""
        self.twin.load_state_dict(values["twin"])

    def _wait_until(self, time_s: float) -> None:
        while self._due_s <= time_s:
            self.twin.wait_until(self._due_s)
            self._sample()
        self.twin.wait_until(time_s)

    def _sample(self) -> None:
        self._monitor.sample()
        self._due_s = self.twin.time_s + self._interval_s


class SensorBoard:
    """A running monitor on a real GPU, or on a replayed log: time is real, energy is per batch.

    Args:
        monitor: Shared by all arms; it must be running.
        kind: Measured or replayed; a replayed log knows nothing of this work's latency.
        arrival_times_s: When the tokens of each step have arrived, since the arm's first batch.
    """

    def __init__(self, monitor: GpuSystemMonitor, kind: Kind, *, arrival_times_s: FloatArray | None = None) -> None:
        self.kind = kind
        self._monitor = monitor
        self._arrivals_s = arrival_times_s
        self._first_step: int | None = None
        self._begin_s = 0.0

    def begin(self) -> None:
        """Open the batch's energy window."""
        self._first_step = None
        self._begin_s = time.monotonic()
        self._monitor.begin_window(WINDOW)
        latest = self._monitor.latest
        self._opened_s = latest.time_s if latest is not None else 0.0

    def before_forward(self, first_step: int) -> None:
        """Wait until the tokens of the step have arrived, counted from the batch's first step."""
        if self.kind is Kind.REPLAYED:
            self._monitor.sample()  # a log has no clock of its own that would move meanwhile
        if self._arrivals_s is None:
            return
        if self._first_step is None:
            self._first_step = first_step
        offset_s = float(self._arrivals_s[first_step] - self._arrivals_s[self._first_step])
        time.sleep(max(self._begin_s + offset_s - time.monotonic(), 0.0))

    def step(self, number: int, work: StepWork, forward_latency_s: float | None) -> StepFigures:
        """Latency as clocked around the forward; energy is known per batch only."""
        state = self._monitor.latest
        return StepFigures(
            time_s=time.monotonic(),
            latency_s=forward_latency_s if self.kind is Kind.MEASURED else None,
            energy_j=None,
            power_w=None if state is None else state.power_w,
            state=state,
        )

    def end(self, repeats: int) -> BatchFigures:
        """Close the window and share its energy among the repetitions."""
        window = self._monitor.end_window(WINDOW)
        samples = [s for s in self._monitor.history if s.time_s >= self._opened_s]
        return BatchFigures(
            energy_j=None if window.energy_counter_j is None else window.energy_counter_j / repeats,
            energy_integrated_j=None if window.energy_integrated_j is None else window.energy_integrated_j / repeats,
            power_w=window.power_mean_w,
            window=window,
            samples=samples,
        )

    def elapsed_s(self) -> float:
        """Real time since `begin` [s]."""
        return time.monotonic() - self._begin_s

    def state_dict(self) -> dict[str, Any]:
        """Sensors have no state to go on from."""
        return {}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Nothing to load."""
