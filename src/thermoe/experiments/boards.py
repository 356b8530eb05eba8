"""Opens the telemetry that a run asked for and makes the board of each arm."""

from typing import Any

from thermoe.errors import ConfigError
from thermoe.experiments.board import Board, SensorBoard, SimulatedBoard
from thermoe.experiments.choices import OWN_SHAPE
from thermoe.experiments.config import RunConfig
from thermoe.telemetry import DigitalTwin, GpuSystemMonitor, ThermalScenario, ThermalSignalGenerator, open_source
from thermoe.types import NAMED_SHAPES, FloatArray, Kind, MoEShape
from thermoe.workloads import ArrivalProcess, Arrivals


class Boards:
    """Boards of all arms; real sensors are shared and watched in the background, twins belong to one arm each.

    Attributes:
        kind: Kind of all figures.
        priced_name, priced_as: The model whose layers every step is priced as, and its shape.

    Args:
        config: The run.
        own: Shape of the model that runs.

    Raises:
        ThermoeError: The telemetry asked for is not there.
    """

    def __init__(self, config: RunConfig, own: MoEShape) -> None:
        self._config = config
        self._scenario(seed=0)  # an unknown name is told before anything is written
        self._source: Any = None
        self._monitor: GpuSystemMonitor | None = None
        if config.telemetry == "nvml" and config.device != "cuda":
            raise ConfigError(
                "no GPU does the work of --device cpu: --telemetry nvml needs --device cuda; use --telemetry simulated"
            )
        source = open_source(config.telemetry, device="cuda" if config.device == "cuda" else "cpu")
        self.kind: Kind = source.kind
        # What is measured is the model itself, not a larger one that it stands for.
        self.priced_name = OWN_SHAPE if self.kind is Kind.MEASURED else config.priced_as
        self.priced_as = own if self.priced_name == OWN_SHAPE else NAMED_SHAPES[self.priced_name]
        if self.kind is not Kind.SIMULATED:
            self._source = source
            self._monitor = GpuSystemMonitor(source)
            if self.kind is Kind.MEASURED:
                self._monitor.start()

    def board(self, seed: int, num_steps: int, tokens_per_step: int) -> Board:
        """The board of one arm of at most `num_steps` steps; arms of one seed see the same noise and arrivals."""
        arrivals_s = self._arrivals_s(num_steps, tokens_per_step)
        if self._monitor is not None:
            return SensorBoard(self._monitor, self.kind, arrival_times_s=arrivals_s)
        twin = DigitalTwin(self.priced_as, self._scenario(seed), seed=seed)
        return SimulatedBoard(twin, arrival_times_s=arrivals_s)

    def close(self) -> None:
        """Stop watching and release the sensors."""
        if self._monitor is not None:
            self._monitor.stop()
        if self._source is not None:
            self._source.close()

    def _scenario(self, seed: int) -> ThermalScenario | None:
        name = self._config.scenario
        return None if name is None else ThermalSignalGenerator(seed).scenario(name)

    def _arrivals_s(self, num_steps: int, tokens_per_step: int) -> FloatArray | None:
        """When all tokens of each step are there: evenly spaced, so that a power target means one thing."""
        if self._config.arrival_rate == 0:
            return None
        return Arrivals(self._config.arrival_rate / tokens_per_step, process=ArrivalProcess.DETERMINISTIC).times(
            num_steps
        )
