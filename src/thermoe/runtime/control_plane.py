"""The control plane of one model: observations in, knobs out, never on the path of a token.

L layers, E experts.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoe.adaptation import PricePlan, Targets, TestTimeAdaptation, plan_price, price_response
from thermoe.adaptation.objectives import TARGET_OF_LIMIT
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.errors import ConfigError, ThermoeError
from thermoe.routing.calibration import Calibration
from thermoe.routing.router import AdaptiveRouter
from thermoe.routing.strategies import ExpertCosts, pressure
from thermoe.runtime.step_work import batch_work, least_energy_j_per_token
from thermoe.telemetry.idle import IdleFigures
from thermoe.types import (
    Budget,
    FloatArray,
    MoEShape,
    RoutingKnobs,
    RoutingStatistics,
    RoutingStrategy,
    SysState,
)

DEFAULT_BATCH = 16
"""Tokens per step assumed until the first observation says better."""


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
        bits: Weight precision at which steps are priced [bit].
        idle: What the board takes without work: limits under it are refused.

    Attributes:
        knobs: Knobs in force; None leaves the model's routing untouched.
        terms: Logged terms of the last update (A8).
        overhead_s: Host time spent in `update` so far [s].

    Raises:
        ConfigError: A setting that is unknown, or a calibration of a model of other sizes.
        BudgetError: A budget that no calibrated price, or no routing at all, can meet by prediction, or that an idle
            board exceeds.
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
        bits: float = 16.0,
        idle: IdleFigures | None = None,
    ) -> None:
        if calibration is not None and calibration.sensitivity.shape != (shape.num_layers, shape.num_experts):
            raise ConfigError(
                f"the calibration is of {calibration.sensitivity.shape} (layers, experts), the model has "
                f"{(shape.num_layers, shape.num_experts)}: calibrate this model"
            )
        self.shape, self.priced_as, self.cost_model, self.calibration = shape, priced_as, cost_model, calibration
        self.bits, self._idle = bits, idle
        self.batch_size = self._first_batch_size()
        self.cost_factor: FloatArray = np.ones((shape.num_layers, shape.num_experts))
        self.router = AdaptiveRouter(
            shape=shape,
            strategy=strategy,
            settings=settings,
            budget=budget,
            calibration=calibration,
            step_energy_j=self._step_energy_j,
        )
        self.terms: dict[str, float] = {}
        self.overhead_s = 0.0
        self._state: SysState | None = None
        self.adaptation = self._fresh_adaptation()
        self.knobs: RoutingKnobs | None = self._decide(None)

    @property
    def strategy(self) -> RoutingStrategy:
        """The strategy in force."""
        return self.router.strategy

    @property
    def budget(self) -> Budget:
        """The budget in force."""
        return self.router.budget

    def set_budget(self, budget: Budget) -> RoutingKnobs | None:
        """Hold another budget from now on; what was learned is kept. A changed limit replaces a target of the settings.

        Raises:
            BudgetError: It cannot be met; the old one stays in force.
        """
        before, terms = copy.copy(self.router), self.terms
        changed = [name for name in TARGET_OF_LIMIT if getattr(budget, name) != getattr(before.budget, name)]
        self.router.settings = before.settings | {
            key: None for name, key in TARGET_OF_LIMIT.items() if name in changed and key in before.settings
        }
        self.router.budget = budget
        try:
            if self.adaptation is not None:
                targets, plan = self._plan()
                self.adaptation.retarget(targets, plan)
            self.terms = {}  # they were of other targets
            self.knobs = self._decide(None)
        except ThermoeError:
            self.router, self.terms = before, terms
            raise
        return self.knobs

    def switch(self, strategy: RoutingStrategy, settings: Mapping[str, float] | None = None) -> RoutingKnobs | None:
        """Go on with another strategy while serving.

        Raises:
            ConfigError, BudgetError: The strategy cannot run here; the old one stays in force.
        """
        before = copy.copy(self.router), self.adaptation, self.terms
        try:
            self.router.switch(strategy, settings)
            self.adaptation = self._fresh_adaptation()
            self.terms = {}  # they were of another controller
            self.knobs = self._decide(None)
        except ThermoeError:
            self.router, self.adaptation, self.terms = before
            raise
        return self.knobs

    def set_expert_cost(self, layer: int, expert: int, factor: float) -> None:
        """Make one expert dearer or cheaper than the cost model says (placement, precision, heat)."""
        num_layers, num_experts = self.cost_factor.shape
        if not (0 <= layer < num_layers and 0 <= expert < num_experts):
            raise ConfigError(f"expert {expert} of layer {layer}: the model has {num_layers} layers x {num_experts}")
        if not (factor > 0 and np.isfinite(factor)):
            raise ConfigError(f"cost factor {factor}: needs to be finite and above 0")
        self.cost_factor[layer, expert] = factor

    def update(self, observation: Observation) -> RoutingKnobs | None:
        """One control period: adapt, then decide."""
        began = time.perf_counter()
        if observation.num_steps > 0:
            self.batch_size = max(1, round(observation.num_tokens / observation.num_steps))
        if self.adaptation is not None:
            self._adapt(self.adaptation, observation)
        self._state = observation.state
        self.knobs = self._decide(observation.statistics)
        self.overhead_s += time.perf_counter() - began
        return self.knobs

    def costs(self, state: SysState | None) -> ExpertCosts:
        """(L, E) predicted cost of touching each expert under a state."""
        view = self.cost_model.routing_cost(self.priced_as, self.batch_size, state, self.bits)
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
        response = price_response(self.calibration, adaptation.price)
        adaptation.update(observed, observation.statistics, relative, pressure(state), loss_task, response)
        self.terms = dict(adaptation.terms)
        target = adaptation.targets.first()
        if target is not None:
            self.terms["target"] = target

    def _decide(self, statistics: RoutingStatistics | None) -> RoutingKnobs | None:
        """Knobs for the last state that was seen; counters count once, when they come in."""
        if self.adaptation is not None:
            self.router.memory |= {"price": self.adaptation.price, "bias": self.adaptation.bias.tolist()}
        knobs = self.router.decide(self._state, self.costs(self._state), statistics)
        self.terms.pop("price", None)
        if knobs is not None and knobs.union and np.isfinite(knobs.price).all():
            self.terms["price"] = float(knobs.price.mean())
        return knobs

    def _fresh_adaptation(self) -> TestTimeAdaptation | None:
        """A new adaptation where the strategy adapts, at the price that prediction says meets its target."""
        if self.strategy is not RoutingStrategy.KERNEL_AWARE_TTHA:
            return None
        settings = self.router.settings
        targets, plan = self._plan()
        return TestTimeAdaptation(
            shape=self.shape,
            targets=targets,
            plan=plan,
            gain=settings["gain"] or 0.0,
            adapter_weight=settings["adapter"] or 0.0,
            learning_rate=settings["learning_rate"] or 0.0,
            max_bias=settings["max_bias"] or 0.0,
        )

    def _plan(self) -> tuple[Targets, PricePlan]:
        settings, budget = self.router.settings, self.router.budget
        targets = Targets.of(budget, settings)
        least = None if self.calibration else least_energy_j_per_token(self.cost_model, self.priced_as, self.bits)
        return targets, plan_price(targets, settings, budget, self.calibration, self._step_energy_j, self._idle, least)

    def _step_energy_j(self, distinct_experts: FloatArray) -> float:
        """Predicted energy of a step of a calibration batch that touches these experts per layer [J]."""
        num_tokens = self._first_batch_size()  # the frontier's counts belong to this size, whatever is served now
        work = batch_work(self.shape, num_tokens, distinct_experts, self.shape.top_k, self.bits)
        return self.cost_model.predict_step(work, self.priced_as).energy_j

    def _first_batch_size(self) -> int:
        return DEFAULT_BATCH if self.calibration is None else self.calibration.batch_size

    def _calibrated_loss(self, price: float) -> float | None:
        return None if self.calibration is None else float(np.log1p(self.calibration.loss_at(price) / 100.0))

    def reset(self) -> None:
        """Forget everything learned since the start."""
        if self.adaptation is not None:
            self.adaptation.reset()
        self.router.balancer.reset()
        self.router.memory = {}
        self.terms = {}
        self._state, self.batch_size = None, self._first_batch_size()
        self.knobs = self._decide(None)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: what a plane made with the same arguments and budget needs to go on."""
        return {
            "router": self.router.state_dict(),
            "adaptation": None if self.adaptation is None else self.adaptation.state_dict(),
            "batch_size": self.batch_size,
            "cost_factor": self.cost_factor.tolist(),
            "terms": dict(self.terms),
            "state": None if self._state is None else self._state.as_dict(),
            "overhead_s": self.overhead_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the knobs are again those of that moment."""
        self.router.load_state_dict(state["router"])
        if self.adaptation is not None and state["adaptation"] is not None:
            self.adaptation.load_state_dict(state["adaptation"])
        self.batch_size, self.overhead_s = int(state["batch_size"]), float(state["overhead_s"])
        self.cost_factor = np.asarray(state["cost_factor"], dtype=np.float64)
        self.terms = dict(state["terms"])
        self._state = None if state["state"] is None else SysState.from_dict(state["state"])
        self.knobs = self._decide(None)
