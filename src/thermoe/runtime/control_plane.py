"""The control plane of one model: observations in, knobs out, never on the path of a token.

L layers, E experts.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoe.adaptation import Targets, TestTimeAdaptation
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.errors import BudgetError, ConfigError
from thermoe.routing.calibration import Calibration
from thermoe.routing.router import AdaptiveRouter
from thermoe.routing.strategies import ExpertCosts, pressure
from thermoe.types import (
    Budget,
    FloatArray,
    MoEShape,
    RoutingKnobs,
    RoutingStatistics,
    RoutingStrategy,
    StepWork,
    SysState,
)

DEFAULT_BATCH = 16
"""Tokens per step assumed until the first observation says better."""
PRICE_SPAN = 100.0
"""Without a calibration the price may move this far either way from where it starts."""
UNCALIBRATED_PRICE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What one control period saw.

    Attributes:
        state: Latest state of the GPU.
        statistics: Counters drained at its end.
        num_tokens, num_steps: Live tokens and steps.
        latency_s: Time the steps took [s].
        energy_j: Energy drawn in the period, idle time included [J]; None where it was not measured.
        period_s: Length of the period [s].
        predicted_energy_j, predicted_latency_s: What the cost model said of the same steps.
    """

    state: SysState | None
    statistics: RoutingStatistics
    num_tokens: int
    num_steps: int
    latency_s: float
    energy_j: float | None
    period_s: float
    predicted_energy_j: float
    predicted_latency_s: float


class ControlPlane:
    """Runs a strategy, adapts where the strategy does, and accounts for its own time.

    Args:
        strategy: The strategy to run.
        shape: Sizes of the model's MoE layers.
        cost_model: Prices experts and steps.
        priced_as: Shape whose costs stand in for the model's own.
        budget: What has to hold.
        settings: Settings of the strategy.
        calibration: Of the model, where there is one.

    Attributes:
        knobs: Knobs in force; None leaves the model's routing untouched.
        terms: Logged terms of the last update (A8).
        overhead_s: Host time spent in `update` so far [s].

    Raises:
        ConfigError: A setting that is unknown, or a target where the strategy has none.
        BudgetError: A budget that no calibrated price can meet, by prediction.
    """

    def __init__(
        self,
        *,
        strategy: RoutingStrategy,
        shape: MoEShape,
        cost_model: KernelCostModel,
        priced_as: MoEShape,
        budget: Budget,
        settings: Mapping[str, float],
        calibration: Calibration | None,
    ) -> None:
        if calibration is not None and calibration.sensitivity.shape != (shape.num_layers, shape.num_experts):
            raise ConfigError(
                f"the calibration is of {calibration.sensitivity.shape} (layers, experts), the model has "
                f"{(shape.num_layers, shape.num_experts)}: calibrate this model"
            )
        self.shape, self.priced_as, self.cost_model, self.calibration = shape, priced_as, cost_model, calibration
        self.batch_size = DEFAULT_BATCH if calibration is None else calibration.batch_size
        self.cost_factor: FloatArray = np.ones((shape.num_layers, shape.num_experts))
        self.router = AdaptiveRouter(
            shape=shape,
            strategy=strategy,
            settings=settings,
            budget=budget,
            calibration=calibration,
            step_energy_j=self._step_energy_j,
        )
        self.adaptation: TestTimeAdaptation | None = None
        self.terms: dict[str, float] = {}
        self.overhead_s = 0.0
        self._start_adaptation()
        self.knobs: RoutingKnobs | None = self._decide(None, None)

    @property
    def strategy(self) -> RoutingStrategy:
        """The strategy in force."""
        return self.router.strategy

    @property
    def budget(self) -> Budget:
        """The budget in force."""
        return self.router.budget

    def set_budget(self, budget: Budget) -> RoutingKnobs | None:
        """Hold another budget from now on; what was learned is kept.

        Raises:
            BudgetError: It cannot be met; the old one stays in force.
        """
        old = self.router.budget
        self.router.budget = budget
        try:
            if self.adaptation is None:
                self._start_adaptation()
            else:
                self.adaptation.targets = Targets.of(budget, self.router.settings)
                self._start_price(self.adaptation.targets)
            self.knobs = self._decide(None, None)
        except (BudgetError, ConfigError):
            self.router.budget = old
            raise
        return self.knobs

    def switch(self, strategy: RoutingStrategy, settings: Mapping[str, float] | None = None) -> RoutingKnobs | None:
        """Go on with another strategy while serving."""
        self.router.switch(strategy, settings)
        self._start_adaptation()
        self.knobs = self._decide(None, None)
        return self.knobs

    def set_expert_cost(self, layer: int, expert: int, factor: float) -> None:
        """Make one expert dearer or cheaper than the cost model says (placement, precision, heat)."""
        if not factor > 0:
            raise ConfigError(f"cost factor {factor}: needs to be above 0")
        self.cost_factor[layer, expert] = factor

    def update(self, observation: Observation) -> RoutingKnobs | None:
        """One control period: adapt, then decide."""
        began = time.perf_counter()
        if observation.num_steps > 0:
            self.batch_size = max(1, round(observation.num_tokens / observation.num_steps))
        if self.adaptation is not None:
            self._adapt(self.adaptation, observation)
        self.knobs = self._decide(observation.state, observation.statistics)
        self.overhead_s += time.perf_counter() - began
        return self.knobs

    def costs(self, state: SysState | None) -> ExpertCosts:
        """(L, E) predicted cost of touching each expert under a state."""
        view = self.cost_model.routing_cost(self.priced_as, self.batch_size, state)
        return ExpertCosts(energy_j=view.energy_j * self.cost_factor, latency_s=view.latency_s * self.cost_factor)

    def _adapt(self, adaptation: TestTimeAdaptation, observation: Observation) -> None:
        state = observation.state
        observed = adaptation.observe(
            energy_j=observation.energy_j,
            period_s=observation.period_s,
            num_tokens=observation.num_tokens,
            num_steps=observation.num_steps,
            latency_s=observation.latency_s,
            temp_c=None if state is None else state.temp_c,
        )
        settings = self.router.settings
        relative = self.costs(state).relative(settings["alpha"] or 0.0, settings["beta"] or 0.0)
        loss_task = self._calibrated_loss(adaptation.price)
        adaptation.update(observed, observation.statistics, relative, pressure(state), loss_task)
        self.terms = dict(adaptation.terms)
        target = next((t for t in self._targets(adaptation) if t is not None), None)
        if target is not None:
            self.terms["target"] = target

    def _decide(self, state: SysState | None, statistics: RoutingStatistics | None) -> RoutingKnobs | None:
        if self.adaptation is not None:
            self.router.memory |= {"price": self.adaptation.price, "bias": self.adaptation.bias.tolist()}
        knobs = self.router.decide(state, self.costs(state), statistics)
        if knobs is not None and knobs.union and np.isfinite(knobs.price).all():
            self.terms.setdefault("price", float(knobs.price.mean()))
        return knobs

    def _start_adaptation(self) -> None:
        """A fresh adaptation where the strategy adapts, at the price that prediction says meets its target."""
        self.adaptation = None
        settings = self.router.settings
        if self.strategy is not RoutingStrategy.KERNEL_AWARE_TTHA:
            return
        targets = Targets.of(self.router.budget, settings)
        self.adaptation = TestTimeAdaptation(
            shape=self.shape,
            targets=targets,
            start_price=self._feed_forward(targets),
            price_bounds=self._price_bounds(),
            gain=settings["gain"] or 0.0,
            adapter_weight=settings["adapter"] or 0.0,
            learning_rate=settings["learning_rate"] or 0.0,
            max_bias=settings["max_bias"] or 0.0,
        )

    def _start_price(self, targets: Targets) -> None:
        assert self.adaptation is not None
        self.adaptation.controller.price = self._feed_forward(targets)
        self.adaptation.controller.low, self.adaptation.controller.high = self._price_bounds()

    def _price_bounds(self) -> tuple[float, float]:
        """Prices the controller may use: up to the highest that was calibrated, or that the quality budget allows."""
        if self.calibration is None:
            start = self.router.settings["price"] or UNCALIBRATED_PRICE
            return start / PRICE_SPAN, start * PRICE_SPAN
        low, high = self.calibration.price_range()
        limit_pct = self.router.budget.max_quality_loss_pct
        return low, high if limit_pct is None else max(low, self.calibration.price_for_loss(limit_pct))

    def _feed_forward(self, targets: Targets) -> float:
        """The price whose predicted energy per token is the target's; the calibrated price where there is none."""
        settings, calibration = self.router.settings, self.calibration
        if settings["price"] is not None:
            return settings["price"]
        if calibration is None:
            return UNCALIBRATED_PRICE
        low, high = self._price_bounds()
        if targets.energy_j_per_token is None:
            start = calibration.price_for_loss(settings["max_quality_loss_pct"] or 0.0)
            return float(np.clip(start, low, high))
        grid = np.geomspace(low, high, 64)
        predicted = np.array([self._step_energy_j(calibration.distinct_at(p)) / self.batch_size for p in grid])
        # Prediction may be off by a tenth; only what is out of reach by more is refused.
        if predicted.min() > 1.1 * targets.energy_j_per_token:
            raise BudgetError(
                f"{targets.energy_j_per_token:.3g} J/token was asked for; the least that is predicted within the "
                f"quality budget is {predicted.min():.3g}: raise the budget or allow more quality loss"
            )
        return float(grid[int(np.argmin(np.abs(predicted - targets.energy_j_per_token)))])

    def _step_energy_j(self, distinct_experts: FloatArray) -> float:
        """Predicted energy of a step that touches these experts per layer [J]."""
        rows = [float(self.batch_size * self.shape.top_k)] * self.shape.num_layers
        work = StepWork(
            shape=self.shape,
            num_tokens=self.batch_size,
            distinct_experts=[float(d) for d in distinct_experts],
            routed_rows=rows,
        )
        return self.cost_model.predict_step(work, self.priced_as).energy_j

    def _calibrated_loss(self, price: float) -> float | None:
        return None if self.calibration is None else float(np.log1p(self.calibration.loss_at(price) / 100.0))

    @staticmethod
    def _targets(adaptation: TestTimeAdaptation) -> tuple[float | None, ...]:
        t = adaptation.targets
        return t.energy_j_per_token, t.power_w, t.temp_c, t.latency_s, t.tokens_per_s

    def reset(self) -> None:
        """Forget everything learned since the start."""
        if self.adaptation is not None:
            self.adaptation.reset()
        self.router.balancer.reset()
        self.router.memory = {}
        self.terms = {}
        self.knobs = self._decide(None, None)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: everything a later process needs to go on."""
        return {
            "router": self.router.state_dict(),
            "adaptation": None if self.adaptation is None else self.adaptation.state_dict(),
            "batch_size": self.batch_size,
            "cost_factor": self.cost_factor.tolist(),
            "terms": self.terms,
            "overhead_s": self.overhead_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave and decide anew from it."""
        self.router.load_state_dict(state["router"])
        if self.adaptation is not None and state["adaptation"] is not None:
            self.adaptation.load_state_dict(state["adaptation"])
        self.batch_size, self.overhead_s = int(state["batch_size"]), float(state["overhead_s"])
        self.cost_factor = np.asarray(state["cost_factor"], dtype=np.float64)
        self.terms = dict(state["terms"])
        self.knobs = self._decide(None, None)
