"""A model of counts alone: distinct experts fall smoothly with the price, and a digital twin does the work."""

import numpy as np

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.routing.calibration import Calibration, FrontierPoint
from thermoe.runtime.control_plane import ControlPlane, Observation
from thermoe.telemetry import DigitalTwin
from thermoe.types import NAMED_SHAPES, Budget, MoEShape, RoutingStatistics, RoutingStrategy, StepWork

SHAPE = MoEShape(num_layers=4, hidden_size=64, inter_size=32, num_experts=64, top_k=8)
PRICED_AS = NAMED_SHAPES["qwen3-30b-a3b"]
BATCH, OWN = 16, np.array([41.0, 43.0, 44.0, 42.0])
STEPS_PER_PERIOD = 8


def distinct_at(price):
    """(L,) mean distinct experts: what the calibration below was told, up to noise in serving."""
    return 8.0 + (OWN - 8.0) / (1.0 + np.asarray(price) / 0.01) ** 0.7


def calibration() -> Calibration:
    prices = np.geomspace(1e-3, 0.3, 9)
    points = [
        FrontierPoint(policy="priced", value=float(p), loss_pct=100 * float(p), distinct_experts=tuple(distinct_at(p)))
        for p in prices
    ]
    return Calibration(
        model_type="synthetic",
        batch_size=BATCH,
        num_tokens=10_000,
        sensitivity=np.ones((SHAPE.num_layers, SHAPE.num_experts)),
        value_power=2.0,
        protected_k0=2,
        own_distinct=OWN,
        own_perplexity=10.0,
        frontier=tuple(points),
    )


def plane(strategy="kernel_aware_ttha", *, calibrated: Calibration | None = None, budget=None, **settings):
    return ControlPlane(
        strategy=RoutingStrategy(strategy),
        shape=SHAPE,
        cost_model=KernelCostModel.shipped(),
        priced_as=PRICED_AS,
        budget=budget or Budget(),
        settings=settings,
        calibration=calibrated,
    )


class Serving:
    """Steps on the twin under the knobs of a plane, `period_s` apart where arrivals are timed."""

    def __init__(self, control: ControlPlane | None, *, period_s: float | None = None, seed: int = 0) -> None:
        self.control, self.period_s = control, period_s
        self.twin = DigitalTwin(seed=seed)
        self.rng = np.random.default_rng(seed)
        self.popularity = self.rng.gamma(2.0, size=(SHAPE.num_layers, SHAPE.num_experts))
        self.steps = 0
        self.energies_j: list[float] = []
        self.ends: list[tuple[float, float]] = []  # (time, energy) of the board after each step
        self.silent = False

    def loads(self) -> np.ndarray:
        """(L, E) which experts one step loads: fewer at a higher price, popular and favoured ones first."""
        knobs = None if self.control is None else self.control.knobs
        wanted = OWN if knobs is None else distinct_at(knobs.price)
        bias = 0.0 if knobs is None else knobs.bias
        keys = np.log(self.popularity) + bias + self.rng.gumbel(size=self.popularity.shape)
        loaded = np.zeros(keys.shape)
        for layer, count in enumerate(wanted):
            drawn = int(np.clip(round(count + self.rng.normal(0, 1.5)), 8, 64))
            loaded[layer, np.argsort(-keys[layer])[:drawn]] = 1.0
        return loaded

    def run(self, num_steps: int) -> None:
        """Steps in periods of `STEPS_PER_PERIOD`, after each of which the plane acts."""
        for _ in range(num_steps // STEPS_PER_PERIOD):
            loads = np.zeros(self.popularity.shape)
            began_s, began_j, busy_s = self.twin.time_s, self.twin.energy_j, 0.0
            for _ in range(STEPS_PER_PERIOD):
                step = self.loads()
                outcome = self.twin.run_step(
                    StepWork(
                        shape=SHAPE,
                        num_tokens=BATCH,
                        distinct_experts=step.sum(axis=1).tolist(),
                        routed_rows=[float(BATCH * SHAPE.top_k)] * SHAPE.num_layers,
                    )
                )
                loads += step
                busy_s += outcome.latency_s
                self.steps += 1
                if self.period_s is not None:
                    self.twin.wait_until(self.steps * self.period_s)
                self.energies_j.append(outcome.energy_j)
                self.ends.append((self.twin.time_s, self.twin.energy_j))
            if self.control is not None:
                self.control.update(self._observation(loads, began_s, began_j, busy_s))

    def _observation(self, loads, began_s, began_j, busy_s) -> Observation:
        tokens = BATCH * STEPS_PER_PERIOD
        return Observation(
            state=self.twin.read(),
            statistics=RoutingStatistics(
                num_groups=STEPS_PER_PERIOD,
                num_tokens=tokens,
                tokens_per_expert=loads * tokens * SHAPE.top_k / loads.sum(axis=1, keepdims=True),
                loads_per_expert=loads,
                gate_mass_kept=np.ones(SHAPE.num_layers),
                changed_slots=np.zeros(SHAPE.num_layers),
            ),
            num_tokens=tokens,
            num_steps=STEPS_PER_PERIOD,
            latency_s=busy_s,
            energy_j=None if self.silent else self.twin.energy_j - began_j,
            period_s=self.twin.time_s - began_s,
            predicted_energy_j=0.0,
            predicted_latency_s=0.0,
        )

    def j_per_token(self, first: int, last: int) -> float:
        return float(np.mean(self.energies_j[first:last])) / BATCH

    def power_w(self, first: int, last: int) -> float:
        (t0, j0), (t1, j1) = self.ends[first], self.ends[last]
        return (j1 - j0) / (t1 - t0)
