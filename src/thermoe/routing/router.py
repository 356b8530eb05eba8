"""One router that runs every strategy, can switch while it serves, and masks experts when the GPU is hot.

L layers, E experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from thermoe.errors import ConfigError
from thermoe.routing.calibration import Calibration
from thermoe.routing.load_balancer import ExpertLoadBalancer
from thermoe.routing.settings import resolve_settings
from thermoe.routing.strategies import STRATEGIES, ExpertCosts, Memory, StrategyInputs
from thermoe.types import (
    BoolArray,
    Budget,
    FloatArray,
    MoEShape,
    RoutingKnobs,
    RoutingStatistics,
    RoutingStrategy,
    SysState,
)

MASK_RANGE_C = 10.0
"""Over this many degrees above `mask_above_c` the share of masked experts rises to its maximum."""
MAX_MASKED_SHARE = 0.5


class AdaptiveRouter:
    """Turns states and counters into knobs by the strategy in force.

    Args:
        shape: Sizes of the model's layers.
        strategy: The strategy to begin with.
        settings: Its settings; the rest takes the defaults.
        budget: What has to hold; may be replaced at any time.
        calibration: Of the model, where there is one.
        step_energy_j: (L,) distinct experts -> predicted energy of a step [J].

    Attributes:
        memory: What the strategy remembers between decisions; adaptation may write to it.
    """

    def __init__(
        self,
        *,
        shape: MoEShape,
        strategy: RoutingStrategy,
        settings: Mapping[str, float],
        budget: Budget,
        calibration: Calibration | None,
        step_energy_j: Callable[[FloatArray], float],
    ) -> None:
        self.shape, self.budget, self.calibration = shape, budget, calibration
        self._step_energy_j = step_energy_j
        self.memory: Memory = {}
        self.switch(strategy, settings)

    def switch(self, strategy: RoutingStrategy, settings: Mapping[str, float] | None = None) -> None:
        """Go on with another strategy; its memory starts afresh.

        Raises:
            ConfigError: A setting that is unknown, out of its range, or of more experts than a token has.
        """
        resolved, first_choices = resolve_settings(strategy, settings or {}), (settings or {}).get("k0", 0)
        if first_choices > self.shape.top_k:  # the default is for any model, and then means all of a token's choices
            raise ConfigError(f"setting {strategy}.k0 = {first_choices!r}: a token has {self.shape.top_k} experts")
        self.settings, self.strategy = resolved, strategy
        self.memory = {}
        rate = self.settings.get("balance_rate") or 0.0
        self.balancer = ExpertLoadBalancer(self.shape.num_layers, self.shape.num_experts, rate=rate)

    def decide(
        self, state: SysState | None, costs: ExpertCosts, statistics: RoutingStatistics | None
    ) -> RoutingKnobs | None:
        """Knobs for what is known now; None leaves the model's routing untouched."""
        knobs, self.memory = STRATEGIES[self.strategy](self.inputs(state, costs, statistics), self.memory)
        if knobs is None:
            return None
        if statistics is not None:
            self.balancer.update(statistics)
        if self.balancer.rate > 0:
            knobs = replace(knobs, bias=knobs.bias + self.balancer.bias)
        mask_above_c = self.settings.get("mask_above_c")
        if mask_above_c is not None and state is not None and state.temp_c is not None:
            knobs = replace(knobs, allowed=self._cool_enough(state.temp_c - mask_above_c))
        return knobs

    def inputs(
        self, state: SysState | None, costs: ExpertCosts, statistics: RoutingStatistics | None
    ) -> StrategyInputs:
        """What the strategy is shown."""
        return StrategyInputs(
            shape=self.shape,
            state=state,
            costs=costs,
            statistics=statistics,
            budget=self.budget,
            settings=self.settings,
            calibration=self.calibration,
            step_energy_j=self._step_energy_j,
        )

    def _cool_enough(self, excess_c: float) -> BoolArray:
        """(L, E) experts still allowed when the core is `excess_c` above the masking temperature.

        The least used of late go first; never so many that a token could not fill its top-k.
        """
        shape = self.shape
        share = MAX_MASKED_SHARE * min(max(excess_c / MASK_RANGE_C, 0.0), 1.0)
        masked = min(int(share * shape.num_experts), shape.num_experts - shape.top_k)
        allowed = np.ones((shape.num_layers, shape.num_experts), dtype=np.bool_)
        if masked > 0:
            load = self.balancer.load
            usage = np.zeros(allowed.shape) if load is None else load
            least_used = np.argsort(usage, axis=1, kind="stable")[:, :masked]
            np.put_along_axis(allowed, least_used, values=False, axis=1)
        return allowed

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: strategy, memory, balancer."""
        return {"strategy": str(self.strategy), "memory": self.memory, "balancer": self.balancer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the strategy must be the same."""
        assert state["strategy"] == str(self.strategy), "state of another strategy"
        self.memory = dict(state["memory"])
        self.balancer.load_state_dict(state["balancer"])
