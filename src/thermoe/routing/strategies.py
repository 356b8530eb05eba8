"""The strategies: pure functions from state, costs, statistics and budget to knobs.

They differ in which knobs they set, not in which code the tokens run through. L layers, E experts.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from thermoe.errors import ConfigError
from thermoe.routing.calibration import Calibration, FrontierPoint, best_within
from thermoe.telemetry.pressure import power_pressure, thermal_pressure
from thermoe.types import Budget, FloatArray, MoEShape, RoutingKnobs, RoutingStatistics, RoutingStrategy, SysState

Memory = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertCosts:
    """Predicted cost of touching each expert once, under the live state.

    Attributes:
        energy_j: (L, E) [J].
        latency_s: (L, E) [s].
    """

    energy_j: FloatArray
    latency_s: FloatArray

    def relative(self, alpha: float, beta: float) -> FloatArray:
        """(L, E) alpha x energy + beta x latency, each relative to its mean: 1 on average.

        Raises:
            ConfigError: Both weights are 0.
        """
        if alpha + beta <= 0:
            raise ConfigError(f"alpha = {alpha:g} and beta = {beta:g}: at least one must be above 0")
        mixed = alpha * self.energy_j / self.energy_j.mean() + beta * self.latency_s / self.latency_s.mean()
        return np.asarray(mixed / (alpha + beta))


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyInputs:
    """What a strategy may look at.

    Attributes:
        shape: Sizes of the model's layers.
        state: Latest state of the GPU, None before the first sample.
        costs: Cost of touching each expert.
        statistics: Counters since the last decision, None before the first.
        budget: What has to hold.
        settings: The strategy's settings, complete (`resolve_settings`).
        calibration: Sensitivities and frontier of the model; None where it was not calibrated.
        step_energy_j: (L,) distinct experts -> predicted energy of one step [J].
    """

    shape: MoEShape
    state: SysState | None
    costs: ExpertCosts
    statistics: RoutingStatistics | None
    budget: Budget
    settings: dict[str, float | None]
    calibration: Calibration | None
    step_energy_j: Callable[[FloatArray], float]

    def number(self, key: str) -> float:
        """A setting that has a value."""
        value = self.settings[key]
        if value is None:
            raise ConfigError(f"setting {key} is needed here and has no value")
        return value

    def neutral(self) -> RoutingKnobs:
        """Knobs that change nothing."""
        return RoutingKnobs.neutral(self.shape.num_layers, self.shape.num_experts, self.shape.top_k)

    def per_layer(self, value: float) -> FloatArray:
        """(L,) the same value in every layer."""
        return np.full(self.shape.num_layers, value)


Strategy = Callable[[StrategyInputs, Memory], tuple[RoutingKnobs | None, Memory]]


def baseline(inputs: StrategyInputs, memory: Memory) -> tuple[RoutingKnobs | None, Memory]:
    """R1: the model's own routing, bit for bit."""
    return None, memory


def opportunistic(inputs: StrategyInputs, memory: Memory) -> tuple[RoutingKnobs | None, Memory]:
    """Opportunistic expert activation (arXiv 2511.02237): load every token's first k0, use the best k of those."""
    return _union(inputs, inputs.per_layer(inputs.number("k0"))), memory


def gate_mass(inputs: StrategyInputs, memory: Memory) -> tuple[RoutingKnobs | None, Memory]:
    """Gate-mass budget (after XShare, arXiv 2602.07265): load the experts with most gate mass, up to a share."""
    most = max(1, round(inputs.number("share") * inputs.shape.num_experts))
    knobs = _union(inputs, inputs.per_layer(inputs.number("k0")))
    max_experts = inputs.per_layer(most).astype(np.int64)
    return replace(knobs, max_experts=max_experts, value_power=1.0), memory


def expert_skipping(inputs: StrategyInputs, memory: Memory) -> tuple[RoutingKnobs | None, Memory]:
    """Expert skipping (arXiv 2402.14800): a token drops experts whose gate is far below its best."""
    return replace(inputs.neutral(), skip_ratio=inputs.per_layer(inputs.number("ratio"))), memory


def top_p(inputs: StrategyInputs, memory: Memory) -> tuple[RoutingKnobs | None, Memory]:
    """Top-p routing (arXiv 2403.07652): a token keeps its best experts up to a share of its gate mass."""
    return replace(inputs.neutral(), gate_mass=inputs.per_layer(inputs.number("mass"))), memory


def static_optimal(inputs: StrategyInputs, memory: Memory) -> tuple[RoutingKnobs | None, Memory]:
    """R2: of all policies judged in calibration, the one of least predicted energy within the quality budget.

    It is chosen once, and again only when the quality budget is changed.
    """
    max_loss_pct = _max_loss_pct(inputs)
    if memory.get("max_loss_pct") == max_loss_pct:
        return knobs_of(inputs, FrontierPoint(**memory["point"])), memory
    calibration = _calibrated(inputs, RoutingStrategy.STATIC_OPTIMAL)
    energies = [inputs.step_energy_j(np.array(p.distinct_experts)) for p in calibration.frontier]
    point = best_within(calibration.frontier, max_loss_pct, energies)
    return knobs_of(inputs, point), {"max_loss_pct": max_loss_pct, "point": asdict(point)}


def kernel_aware(inputs: StrategyInputs, memory: Memory) -> tuple[RoutingKnobs | None, Memory]:
    """R3: load an expert only if its value to the batch is worth its predicted joules and seconds now.

    The price is the highest that calibration allows within the quality budget. `reserve` holds back
    that share of the allowance while the GPU is cool and idle and releases it with pressure.
    """
    price = inputs.settings["price"]
    if price is None:
        calibration = _calibrated(inputs, RoutingStrategy.KERNEL_AWARE)
        allowance = 1.0 - inputs.number("reserve") * (1.0 - pressure(inputs.state))
        price = calibration.price_for_loss(_max_loss_pct(inputs) * allowance)
    return priced_knobs(inputs, price), memory


def kernel_aware_ttha(inputs: StrategyInputs, memory: Memory) -> tuple[RoutingKnobs | None, Memory]:
    """R4: R3 under the price and the per-expert biases that test-time adaptation keeps in memory."""
    knobs = priced_knobs(inputs, float(memory["price"]))
    return replace(knobs, bias=knobs.bias + np.asarray(memory["bias"], dtype=np.float64)), memory


STRATEGIES: dict[RoutingStrategy, Strategy] = {
    RoutingStrategy.BASELINE: baseline,
    RoutingStrategy.STATIC_OPTIMAL: static_optimal,
    RoutingStrategy.KERNEL_AWARE: kernel_aware,
    RoutingStrategy.KERNEL_AWARE_TTHA: kernel_aware_ttha,
    RoutingStrategy.OPPORTUNISTIC: opportunistic,
    RoutingStrategy.GATE_MASS: gate_mass,
    RoutingStrategy.EXPERT_SKIPPING: expert_skipping,
    RoutingStrategy.TOP_P: top_p,
}


def priced_knobs(inputs: StrategyInputs, price: float) -> RoutingKnobs:
    """Knobs of a priced union: value = sensitivity x sum of squared gates, cost = predicted relative cost.

    Costs above the mean also lower the expert's rank, by `bias_strength` for each mean cost.
    """
    calibration = inputs.calibration
    relative = inputs.costs.relative(inputs.number("alpha"), inputs.number("beta"))
    sensitivity = np.ones_like(relative) if calibration is None else calibration.sensitivity
    protected = 1 if calibration is None else calibration.protected_k0
    knobs = _union(inputs, inputs.per_layer(min(protected, inputs.shape.top_k)))
    return replace(
        knobs,
        price=inputs.per_layer(price),
        cost=relative / sensitivity,
        bias=-inputs.number("bias_strength") * np.clip(relative - 1.0, -2.0, 2.0),
        value_power=2.0 if calibration is None else calibration.value_power,
    )


def knobs_of(inputs: StrategyInputs, point: FrontierPoint) -> RoutingKnobs:
    """The knobs of a policy that calibration judged; costs play no part in its choices."""
    if point.policy == "opportunistic":
        return _union(inputs, inputs.per_layer(point.value))
    if point.policy == "top_k":
        return replace(inputs.neutral(), top_k=inputs.per_layer(point.value).astype(np.int64))
    calibration = _calibrated(inputs, RoutingStrategy.STATIC_OPTIMAL)
    return replace(
        _union(inputs, inputs.per_layer(calibration.protected_k0)),
        price=inputs.per_layer(point.value),
        cost=1.0 / calibration.sensitivity,
        value_power=calibration.value_power,
    )


def pressure(state: SysState | None) -> float:
    """Pressure on the whole GPU in [0, 1]: the larger of thermal and power pressure, 0 where unknown."""
    if state is None:
        return 0.0
    return max(thermal_pressure(state) or 0.0, power_pressure(state) or 0.0)


def _union(inputs: StrategyInputs, protected_k0: FloatArray) -> RoutingKnobs:
    return replace(
        inputs.neutral(),
        union=True,
        price=inputs.per_layer(np.inf),
        protected_k0=np.round(protected_k0).astype(np.int64),
    )


def _max_loss_pct(inputs: StrategyInputs) -> float:
    given = inputs.budget.max_quality_loss_pct
    return inputs.number("max_quality_loss_pct") if given is None else given


def _calibrated(inputs: StrategyInputs, strategy: RoutingStrategy) -> Calibration:
    if inputs.calibration is None:
        raise ConfigError(
            f"{strategy} needs a calibration of this model: run `thermoe calibrate` and pass its file"
            + (f", or set {strategy}.price" if "price" in inputs.settings else "")
        )
    return inputs.calibration
