"""Opens the telemetry that a run asked for and makes the board of each arm."""

from typing import Any

from thermoe.errors import ConfigError
from thermoe.experiments.board import Board, SensorBoard, SimulatedBoard
from thermoe.experiments.choices import OWN_SHAPE
from thermoe.experiments.config import RunConfig
from thermoe.telemetry import (
    DigitalTwin,
    GpuSystemMonitor,
    ThermalScenario,
    ThermalSignalGenerator,
    idle_figures,
    open_source,
)
from thermoe.types import NAMED_SHAPES, FloatArray, Kind, MoEShape
from thermoe.workloads import ArrivalProcess, Arrivals

#: Longest wait for the tokens of one step [s]: the twin lives through it tick by tick, a real run sleeps it out.
LONGEST_WAIT_S = 600.0


class Boards:
    """Boards of all arms; real sensors are shared and watched in the background, twins belong to one arm each.

    Attributes:
        kind: Kind of all figures.
        priced_name, priced_as: The model whose layers every step is priced as, and its shape.
        idle: What the board takes without work, where that is known.

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
        if config.telemetry.partition(":")[0] == "nvml" and config.device != "cuda":
            raise ConfigError(
                f"telemetry {config.telemetry} needs device cuda, got device {config.device}, on which no GPU does the "
                "work: choose 'simulated' as telemetry"
            )
        source = open_source(config.telemetry, device="cuda" if config.device == "cuda" else "cpu")
        self.kind: Kind = source.kind
        self.idle = idle_figures(source)
        # What is measured is the model itself, not a larger one that it stands for.
        self.priced_name = OWN_SHAPE if self.kind is Kind.MEASURED else config.priced_as
        self.priced_as = own if self.priced_name == OWN_SHAPE else NAMED_SHAPES[self.priced_name]
        if self.kind is not Kind.SIMULATED:
            self._source = source
            self._monitor = GpuSystemMonitor(source)
            if self.kind is Kind.MEASURED:
                self._monitor.start()

    def board(self, seed: int, num_steps: int, tokens_per_step: int) -> Board:
        """The board of one arm of at most `num_steps` steps; arms of one seed see the same noise and arrivals.

        Raises:
            ConfigError: Tokens arrive so rarely that one step would wait longer than `LONGEST_WAIT_S`.
        """
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
        rate = self._config.arrival_rate
        wait_s = tokens_per_step / rate
        if wait_s > LONGEST_WAIT_S:
            raise ConfigError(
                f"arrival_rate = {rate:g}: a step of {tokens_per_step} tokens would wait {wait_s:.3g} s for them; "
                f"needs at least {tokens_per_step / LONGEST_WAIT_S:.3g} tokens per second here, or 0 for no waits"
            )
        return Arrivals(rate / tokens_per_step, process=ArrivalProcess.DETERMINISTIC).times(num_steps)
