"""Seeded scenarios, and traces of a simulated GPU under them."""

import math

import numpy as np

from thermoe.errors import ConfigError
from thermoe.telemetry.scenario import ScenarioName, ThermalScenario
from thermoe.telemetry.simulated import DigitalTwin
from thermoe.types import SysState

_SENSORS_THAT_FAIL = ("power_w", "temp_c", "energy_j", "memory_temp_c", "sm_clock_mhz", "throttle_reasons")


class ThermalSignalGenerator:
    """Makes the same scenarios and traces for the same seed, whatever was asked for before.

    Args:
        seed: Decides when and how strongly things happen.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scenario(self, name: ScenarioName | str, *, start_s: float = 5.0, duration_s: float = 60.0) -> ThermalScenario:
        """A scenario of the given name; strength and details come from the seed.

        Args:
            name: One of `ScenarioName`.
            start_s: When it begins, in virtual time [s].
            duration_s: How long it lasts [s]; may be infinite but for spikes.

        Raises:
            ConfigError: For an unknown name or impossible times.
        """
        known = self._known(name)
        endless_spikes = known is ScenarioName.SPIKE and math.isinf(duration_s)
        if not (math.isfinite(start_s) and start_s >= 0.0 and duration_s > 0.0) or endless_spikes:
            raise ConfigError(
                f"scenario {known} from {start_s} s for {duration_s} s: needs a start >= 0 and a duration > 0"
            )
        rng = np.random.default_rng([self.seed, list(ScenarioName).index(known)])
        whole = ((start_s, start_s + duration_s),)
        match known:
            case ScenarioName.IDLE:
                return ThermalScenario()
            case ScenarioName.RAMP:
                rise_s = duration_s if math.isfinite(duration_s) else 60.0
                power_w = float(rng.uniform(450.0, 550.0))
                return ThermalScenario(
                    name=known, windows=((start_s, math.inf),), rise_s=rise_s, external_power_w=power_w
                )
            case ScenarioName.SPIKE:
                spikes = _spikes(rng, start_s, duration_s)
                return ThermalScenario(name=known, windows=spikes, external_power_w=float(rng.uniform(350.0, 550.0)))
            case ScenarioName.HOT_AMBIENT:
                offset_c = float(rng.uniform(12.0, 18.0))
                return ThermalScenario(name=known, windows=whole, rise_s=10.0, ambient_offset_c=offset_c)
            case ScenarioName.EXTERNAL_LOAD:
                return ThermalScenario(name=known, windows=whole, external_power_w=float(rng.uniform(120.0, 220.0)))
            case ScenarioName.THROTTLING:
                return ThermalScenario(name=known, windows=whole, power_limit_w=float(rng.uniform(320.0, 420.0)))
            case ScenarioName.FAILING_SENSOR:
                count = int(rng.integers(1, 4))
                silent = rng.choice(_SENSORS_THAT_FAIL, size=count, replace=False)
                return ThermalScenario(name=known, windows=whole, silent_sensors=frozenset(map(str, silent)))

    def generate(
        self, scenario: ThermalScenario | ScenarioName | str, duration_s: float, interval_s: float = 0.1
    ) -> list[SysState]:
        """The states of a GPU that does no work of its own under a scenario.

        Args:
            scenario: A scenario, or the name of one.
            duration_s: Length of the trace [s].
            interval_s: Time between states [s].

        Returns:
            States at 0, `interval_s`, ... up to `duration_s`, of kind simulated.
        """
        if not (math.isfinite(duration_s) and duration_s > 0.0 and 0.0 < interval_s <= duration_s):
            raise ConfigError(
                f"trace of {duration_s} s every {interval_s} s: needs a finite duration and 0 < interval <= duration"
            )
        if not isinstance(scenario, ThermalScenario):
            scenario = self.scenario(scenario)
        twin = DigitalTwin(scenario=scenario, seed=self.seed)
        states = []
        for index in range(int(duration_s / interval_s + 1e-9) + 1):
            twin.wait_until(index * interval_s)
            states.append(twin.read())
        return states

    @staticmethod
    def _known(name: ScenarioName | str) -> ScenarioName:
        try:
            return ScenarioName(name)
        except ValueError:
            raise ConfigError(f"unknown scenario {name!r}: choose from {', '.join(ScenarioName)}") from None


def _spikes(rng: np.random.Generator, start_s: float, duration_s: float) -> tuple[tuple[float, float], ...]:
    """Bursts of 0.5 to 3 s, one to every ten seconds on average, at least one."""
    count = max(int(rng.poisson(duration_s / 10.0)), 1)
    begins = np.sort(rng.uniform(start_s, start_s + duration_s, size=count))
    lengths = rng.uniform(0.5, 3.0, size=count)
    return tuple((float(begin), float(begin + length)) for begin, length in zip(begins, lengths, strict=True))
