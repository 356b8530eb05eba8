"""The digital twin: a simulated GPU in virtual time that answers to the work routed through it."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from thermoe.errors import ConfigError, DataError
from thermoe.telemetry import plant, plant_heat
from thermoe.telemetry.plant_heat import OperatingPoint, ThermalNetwork
from thermoe.telemetry.scenario import ThermalScenario
from thermoe.telemetry.simulated_sensors import Flow, SensorBank
from thermoe.telemetry.source import CLOCK_HW_THERMAL, CLOCK_IDLE, CLOCK_POWER_CAP
from thermoe.types import NAMED_SHAPES, Kind, MoEShape, StepOutcome, StepWork, SysState

_STATE_KEYS = ("time_s", "energy_j", "network", "sensors", "rng", "shape")


class DigitalTwin:
    """An H200 that exists only in numbers: work in, time, joules, heat and sensor readings out.

    It keeps its own clock, `time_s`, which only `run_step`, `idle` and `wait_until` move. Its sensors
    change every 100 ms of that clock and hold their value in between, as those of the real board do.

    Args:
        shape: The model whose layers all work is priced as.
        scenario: What comes from outside; none by default.
        seed: Seed of the noise.
        noise: Relative standard deviation of a step's latency and of its power.

    Attributes:
        idle_power_w, idle_temp_c: Board power [W] and core temperature [deg C] after a long time without work,
            from within or from outside.
    """

    idle_power_w: ClassVar[float] = plant.IDLE_POWER_W
    idle_temp_c: ClassVar[float] = plant_heat.IDLE_LEAKAGE_C

    def __init__(
        self,
        shape: MoEShape = NAMED_SHAPES["qwen3-30b-a3b"],
        scenario: ThermalScenario | None = None,
        seed: int = 0,
        noise: float = 0.01,
    ) -> None:
        if not (math.isfinite(noise) and 0.0 <= noise <= 0.5):
            raise ConfigError(f"noise of the twin = {noise}: needs a relative deviation between 0 and 0.5")
        self.shape = shape
        self.scenario = scenario or ThermalScenario()
        self.noise = noise
        self._rng = np.random.default_rng(seed)
        self._time_s = 0.0
        self._energy_j = 0.0
        self._network = ThermalNetwork.settled(plant.IDLE_POWER_W)
        self._sensors = SensorBank(plant.IDLE_POWER_W, self.temp_c, self.memory_temp_c)

    @property
    def time_s(self) -> float:
        """Virtual time since the twin was made [s]."""
        return self._time_s

    @property
    def energy_j(self) -> float:
        """Energy drawn so far [J], exact; the counter in `read` lags it by up to 100 ms."""
        return self._energy_j

    @property
    def temp_c(self) -> float:
        """Core temperature now [deg C]."""
        return self._ambient_c() + self._network.core_rise_c

    @property
    def memory_temp_c(self) -> float:
        """Memory temperature now [deg C]."""
        return self._ambient_c() + self._network.memory_c

    def run_step(self, work: StepWork) -> StepOutcome:
        """Do one step of work, priced on `shape`, and move the clock on by its latency.

        Returns:
            Latency and board energy of the step without other work on the board; `extra` splits
            both into experts and rest [s, J] and adds `power_w`, `sm_clock_mhz` and `external_j`.

        Raises:
            ConfigError: Where `work` cannot be counted (negative, NaN, or not one entry per layer).
        """
        if len(work.distinct_experts) != len(work.routed_rows) or len(work.distinct_experts) == 0:
            raise ConfigError(
                f"step work has {len(work.distinct_experts)} expert counts and {len(work.routed_rows)} row counts; "
                "needs as many of both, at least one"
            )
        demand = plant.step_demand(work.priced_as(self.shape))
        slowness, appetite = np.exp(self.noise * self._rng.standard_normal(2))
        full_speed_s = (demand.experts_latency_s + demand.rest_latency_s) * float(slowness)
        demanded_j = (demand.experts_energy_j + demand.rest_energy_j) * float(slowness * appetite)
        outside = self.scenario.at(self._time_s)
        static_w = plant.IDLE_POWER_W + plant_heat.leakage_w(self.temp_c, plant_heat.WORK_LEAKAGE_C)
        dynamic_w = max(demanded_j / full_speed_s - plant.IDLE_POWER_W, 0.0)
        point = plant_heat.operating_point(
            dynamic_w=dynamic_w,
            static_w=static_w + outside.external_power_w,
            limit_w=self._limit_w(outside.power_limit_w),
            core_c=self.temp_c,
        )
        latency_s = full_speed_s * point.stretch
        power_w = static_w + dynamic_w * point.dynamic_scale / point.stretch
        self._advance(
            latency_s,
            Flow(
                power_w=power_w + outside.external_power_w,
                read_bytes_per_s=demand.bytes_read / latency_s,
                busy=1.0,
                clock_mhz=plant.MAX_CLOCK_MHZ * point.clock_ratio,
                reasons=_reasons(point),
            ),
        )
        experts_time = demand.experts_latency_s / (demand.experts_latency_s + demand.rest_latency_s)
        experts_energy = demand.experts_energy_j / (demand.experts_energy_j + demand.rest_energy_j)
        energy_j = power_w * latency_s
        return StepOutcome(
            latency_s=latency_s,
            energy_j=energy_j,
            kind=Kind.SIMULATED,
            extra={
                "experts_latency_s": latency_s * experts_time,
                "rest_latency_s": latency_s * (1.0 - experts_time),
                "experts_energy_j": energy_j * experts_energy,
                "rest_energy_j": energy_j * (1.0 - experts_energy),
                "power_w": power_w,
                "sm_clock_mhz": plant.MAX_CLOCK_MHZ * point.clock_ratio,
                "external_j": outside.external_power_w * latency_s,
            },
        )

    def idle(self, duration_s: float) -> None:
        """Let `duration_s` pass without work; what comes from outside goes on."""
        if not (math.isfinite(duration_s) and duration_s >= 0.0):
            raise ConfigError(f"idle for {duration_s} s: needs a finite number of seconds, 0 or more")
        self.wait_until(self._time_s + duration_s)

    def wait_until(self, time_s: float) -> None:
        """Idle up to a virtual time; one that has passed already is no wait at all."""
        if not math.isfinite(time_s):
            raise ConfigError(f"wait until {time_s} s: needs a finite time")
        while self._time_s < time_s:
            self._advance_to(min(time_s, self._sensors.next_tick_s), self._idle_flow())

    def read(self) -> SysState:
        """What the sensors say now."""
        outside = self.scenario.at(self._time_s)
        state = SysState(
            time_s=self._time_s,
            wall_time_s=self._time_s,
            source="simulated",
            kind=Kind.SIMULATED,
            performance_state=0,
            memory_used_bytes=int(self.shape.num_layers * self.shape.num_experts * self.shape.expert_bytes()),
            power_limit_w=self._limit_w(outside.power_limit_w),
            temp_slowdown_c=plant_heat.SLOWDOWN_C,
            temp_shutdown_c=plant_heat.SHUTDOWN_C,
            temp_memory_max_c=plant_heat.MEMORY_MAX_C,
            **self._sensors.reading(),
        )
        silent: dict[str, Any] = dict.fromkeys(outside.silent_sensors)
        return replace(state, **silent) if silent else state

    def state_dict(self) -> dict[str, Any]:
        """All that changes while the twin runs, as JSON-able values."""
        network = self._network
        return {
            "time_s": self._time_s,
            "energy_j": self._energy_j,
            "network": [network.fast_c, network.slow_c, network.memory_c],
            "sensors": self._sensors.state_dict(),
            "rng": self._rng.bit_generator.state,
            "shape": _shape_key(self.shape),
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; the scenario and the noise are not part of it.

        Raises:
            DataError: If the state is incomplete or of a twin of another shape.
        """
        missing = [key for key in _STATE_KEYS if key not in values]
        if missing:
            raise DataError(f"state of the twin lacks {', '.join(missing)}: take it from DigitalTwin.state_dict()")
        if list(values["shape"]) != _shape_key(self.shape):
            raise DataError(
                f"state of a twin of shape {values['shape']}, this one has {_shape_key(self.shape)}: use the same"
            )
        self._time_s, self._energy_j = values["time_s"], values["energy_j"]
        self._network = ThermalNetwork(*values["network"])
        self._sensors.load_state_dict(values["sensors"])
        self._rng.bit_generator.state = values["rng"]

    def _ambient_c(self) -> float:
        return plant_heat.AMBIENT_C + self.scenario.at(self._time_s).ambient_offset_c

    @staticmethod
    def _limit_w(forced_w: float | None) -> float:
        return plant_heat.POWER_LIMIT_W if forced_w is None else min(forced_w, plant_heat.POWER_LIMIT_W)

    def _idle_flow(self) -> Flow:
        """Nothing runs but what comes from outside, which the power limit also holds back."""
        outside = self.scenario.at(self._time_s)
        own_w = plant.IDLE_POWER_W + plant_heat.leakage_w(self.temp_c, plant_heat.IDLE_LEAKAGE_C)
        limit_w = max(self._limit_w(outside.power_limit_w), own_w)
        wanted_w = own_w + outside.external_power_w
        reasons = CLOCK_IDLE if outside.external_power_w == 0.0 else 0
        return Flow(
            power_w=min(wanted_w, limit_w),
            read_bytes_per_s=0.0,
            busy=float(outside.external_power_w > 0.0),
            clock_mhz=plant.MAX_CLOCK_MHZ,
            reasons=CLOCK_POWER_CAP if wanted_w > limit_w else reasons,
        )

    def _advance(self, duration_s: float, flow: Flow) -> None:
        end_s = self._time_s + duration_s
        while self._time_s < end_s:
            self._advance_to(min(end_s, self._sensors.next_tick_s), flow)

    def _advance_to(self, time_s: float, flow: Flow) -> None:
        """Let a constant flow act up to `time_s`, no further than the next sensor tick."""
        duration_s = time_s - self._time_s
        self._network.advance(duration_s, flow.power_w, flow.read_bytes_per_s)
        self._energy_j += flow.power_w * duration_s
        self._time_s = time_s
        self._sensors.add(duration_s, flow)
        if time_s >= self._sensors.next_tick_s:
            self._sensors.latch(self._energy_j, self.temp_c, self.memory_temp_c)


class SimulatedSource:
    """The sensors of a `DigitalTwin`.

    Args:
        twin: The twin to read.
        realtime: Let the twin idle along with the real clock, for a live display; otherwise only
            whoever drives the twin moves its time.
    """

    name = "simulated"
    kind = Kind.SIMULATED

    def __init__(self, twin: DigitalTwin, *, realtime: bool = False) -> None:
        self.twin = twin
        self._origin_s = time.monotonic() - twin.time_s if realtime else None

    def read(self) -> SysState:
        """The twin's sensors now."""
        if self._origin_s is not None:
            self.twin.wait_until(time.monotonic() - self._origin_s)
        return self.twin.read()

    def close(self) -> None:
        """Nothing to release."""


def _reasons(point: OperatingPoint) -> int:
    return (CLOCK_POWER_CAP if point.power_capped else 0) | (CLOCK_HW_THERMAL if point.thermally_capped else 0)


def _shape_key(shape: MoEShape) -> list[int]:
    return [shape.num_layers, shape.hidden_size, shape.inter_size, shape.num_experts, shape.top_k]
