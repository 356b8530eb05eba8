"""Test-time hardware-efficiency adaptation: targets, smoothed observations, price controller and adapter in one.

L layers, E experts.
"""

from typing import Any

import numpy as np

from thermoe.adaptation.controller import PriceController
from thermoe.adaptation.objectives import Observed, Targets, log_errors, loss_terms, state_weights, steering_error
from thermoe.adaptation.price_plan import PricePlan
from thermoe.adaptation.ttha import FEATURES, TTHAAdapter
from thermoe.types import FloatArray, MoEShape, RoutingStatistics

SMOOTHING_S = 1.0
"""Observations are averaged over about this time: sensors change every 0.1 s, and texts vary."""


class TestTimeAdaptation:
    """Moves the price and the per-expert biases so that the targets hold (R4, A1 to A4, A8).

    Args:
        shape: Sizes of the layers.
        targets: What to steer to.
        plan: Price before the first observation (feed-forward) and its bounds.
        gain: Integral gain of the price.
        adapter_weight: 0 freezes the adapter (controller alone), 1 lets it act in full.
        learning_rate, max_bias: Of the adapter.

    Attributes:
        terms: Every term of the last update (A8).
    """

    __test__ = False  # the name begins like a test class; pytest must not collect it

    def __init__(
        self,
        *,
        shape: MoEShape,
        targets: Targets,
        plan: PricePlan,
        gain: float,
        adapter_weight: float,
        learning_rate: float,
        max_bias: float,
    ) -> None:
        self.shape, self.targets, self.adapter_weight = shape, targets, adapter_weight
        self._plan, self._gain = plan, gain
        self.adapter = TTHAAdapter(shape.num_layers, shape.num_experts, max_bias=max_bias, learning_rate=learning_rate)
        self.reset()

    def reset(self) -> None:
        """Back to the initial state, bit for bit."""
        self.controller = PriceController(self._plan.start, self._plan.low, self._plan.high, self._gain)
        self.adapter.reset()
        self.bias: FloatArray = np.zeros((self.shape.num_layers, self.shape.num_experts))
        self._sums = np.zeros(4)  # smoothed period_s, tokens, latency_s, steps
        self._energy_sums = np.zeros(3)  # smoothed energy_j, and period_s and tokens of the same periods
        self.terms: dict[str, float] = {}

    def retarget(self, targets: Targets, plan: PricePlan) -> None:
        """Steer to other targets within other bounds; what was learned is kept.

        The price moves by as much as the predicted start does, so that the correction that feedback
        found stays in it. A later `reset` goes back to the new start.
        """
        price = self.price * plan.start / self._plan.start
        self.targets, self._plan = targets, plan
        self.controller.low, self.controller.high = plan.low, plan.high
        self.controller.price = float(np.clip(price, plan.low, plan.high))
        self.controller.last_error = None  # the error jumps because the target did, not the plant

    @property
    def price(self) -> float:
        """Current price."""
        return self.controller.price

    def observe(
        self,
        *,
        energy_j: float | None,
        period_s: float,
        num_tokens: int,
        num_steps: int,
        latency_s: float,
        temp_c: float | None,
    ) -> Observed:
        """Smooth one control period in; sums are kept, so that ratios are those of the whole stretch.

        A period whose energy is not known leaves power and energy unknown; they begin afresh with
        the next one that is.
        """
        keep = float(np.exp(-period_s / SMOOTHING_S))
        self._sums = keep * self._sums + np.array([period_s, num_tokens, latency_s, num_steps])
        if energy_j is None or not np.isfinite(energy_j):
            self._energy_sums = np.zeros(3)
        else:
            self._energy_sums = keep * self._energy_sums + np.array([energy_j, period_s, num_tokens])
        seconds, tokens, busy_s, steps = self._sums
        joules, joules_s, joules_tokens = self._energy_sums
        return Observed(
            power_w=float(joules / joules_s) if joules_s > 0 else None,
            temp_c=temp_c,
            latency_s=float(busy_s / steps) if steps > 0 else None,
            tokens_per_s=float(tokens / seconds) if seconds > 0 else None,
            energy_j_per_token=float(joules / joules_tokens) if joules_tokens > 0 else None,
        )

    def update(
        self,
        observed: Observed,
        statistics: RoutingStatistics,
        relative_cost: FloatArray,
        pressure: float,
        loss_task: float | None = None,
        response: float = 1.0,
    ) -> None:
        """One step of controller and adapter; records every term.

        `response`: how strongly the price acts where it is (`PriceController.update`).
        """
        errors = log_errors(observed, self.targets)
        error = steering_error(errors)
        weights = state_weights(errors)
        self.terms = loss_terms(errors, weights)
        self.terms |= {f"error_{name}": value for name, value in errors.items()}
        self.terms |= {f"weight_{name}": value for name, value in weights.items()}
        if errors:
            self.controller.update(error, response)
        step_norm = 0.0
        if self.adapter_weight > 0 and statistics.num_groups > 0:
            features, slope = self._features(statistics, relative_cost, pressure, error)
            if errors:
                step_norm = self.adapter.update(features, slope, error)
            self.bias = self.adapter_weight * self.adapter(features)
        self.terms |= {
            "price": self.price,
            "error": error,
            "adapter_step": step_norm,
            "bias_norm": float(np.abs(self.bias).max()),
        }
        if loss_task is not None:
            self.terms["loss_task"] = loss_task

    def _features(
        self, statistics: RoutingStatistics, relative_cost: FloatArray, pressure: float, error: float
    ) -> tuple[FloatArray, FloatArray]:
        """(L, E, F) features and (L, E) slope of the expected cost in each bias.

        Withholding acts on experts that some batches load and some do not: usage u (1 - u). Experts
        that carry few rows for each load are poor value for their cost.
        """
        usage = statistics.loads_per_expert / max(statistics.num_groups, 1)
        rows = statistics.tokens_per_expert / np.maximum(statistics.loads_per_expert, 1.0)
        density = rows / np.maximum(rows.mean(axis=1, keepdims=True), 1e-9)
        layers = np.linspace(-1.0, 1.0, self.shape.num_layers)[:, None]
        columns = (
            np.log(relative_cost),
            2.0 * usage - 1.0,
            np.log1p(density) - np.log(2.0),
            np.broadcast_to(layers, usage.shape),
            np.full_like(usage, np.log(self.price / self._plan.start)),
            np.full_like(usage, pressure),
            np.full_like(usage, np.clip(error, -1.0, 1.0)),
            np.ones_like(usage),
        )
        assert len(columns) == len(FEATURES)
        slope = relative_cost * usage * (1.0 - usage) / (1.0 + density)
        return np.stack(columns, axis=-1), slope

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "price": self.controller.price,
            "last_error": self.controller.last_error,
            "adapter": self.adapter.state_dict(),
            "bias": self.bias.tolist(),
            "sums": self._sums.tolist(),
            "energy_sums": self._energy_sums.tolist(),
            "terms": self.terms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, bit for bit."""
        self.controller.price, self.controller.last_error = state["price"], state["last_error"]
        self.adapter.load_state_dict(state["adapter"])
        self.bias, self._sums = np.asarray(state["bias"]), np.asarray(state["sums"])
        self._energy_sums = np.asarray(state["energy_sums"])
        self.terms = dict(state["terms"])
