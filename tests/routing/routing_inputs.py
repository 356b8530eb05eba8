"""Inputs of strategies and tensors for the routing kernel, small enough to check by hand."""

import numpy as np
import torch

from thermoe.kernels.route import Routing, route
from thermoe.routing.calibration import Calibration, FrontierPoint
from thermoe.routing.settings import resolve_settings
from thermoe.routing.strategies import STRATEGIES, ExpertCosts, StrategyInputs
from thermoe.runtime.knobs import DeviceKnobs
from thermoe.types import Budget, MoEShape, RoutingKnobs, RoutingStatistics, RoutingStrategy, SysState

SHAPE = MoEShape(num_layers=3, hidden_size=8, inter_size=4, num_experts=12, top_k=4)


def calibration(shape=SHAPE, sensitivity=None) -> Calibration:
    """Three priced policies, two opportunistic ones and one top-k, with round figures."""

    def point(policy, value, loss, distinct):
        return FrontierPoint(policy=policy, value=value, loss_pct=loss, distinct_experts=(distinct,) * shape.num_layers)

    return Calibration(
        model_type="tiny",
        batch_size=16,
        num_tokens=4096,
        sensitivity=np.ones((shape.num_layers, shape.num_experts)) if sensitivity is None else sensitivity,
        value_power=2.0,
        protected_k0=1,
        own_distinct=np.full(shape.num_layers, 10.0),
        own_perplexity=11.0,
        frontier=(
            point("priced", 0.1, 4.0, 5.0),
            point("priced", 0.001, 0.2, 9.0),
            point("priced", 0.01, 1.0, 8.0),
            point("opportunistic", 3.0, 0.5, 8.5),
            point("opportunistic", 2.0, 2.0, 6.0),
            point("top_k", 3.0, 1.5, 7.0),
        ),
    )


def inputs(
    strategy: RoutingStrategy,
    *,
    shape=SHAPE,
    energy_j=None,
    state: SysState | None = None,
    calibrated: Calibration | None = None,
    budget: Budget | None = None,
    step_energy_j=lambda distinct: float(distinct.sum()),
    **settings: float,
) -> StrategyInputs:
    ones = np.ones((shape.num_layers, shape.num_experts))
    return StrategyInputs(
        shape=shape,
        state=state,
        costs=ExpertCosts(energy_j=ones if energy_j is None else energy_j, latency_s=ones),
        statistics=None,
        budget=budget or Budget(),
        settings=resolve_settings(strategy, settings),
        calibration=calibrated,
        step_energy_j=step_energy_j,
    )


def knobs(strategy: RoutingStrategy, memory=None, **given) -> RoutingKnobs:
    """What the strategy decides."""
    decided, _ = STRATEGIES[strategy](inputs(strategy, **given), memory or {})
    assert decided is not None
    return decided


def logits(num_tokens=9, shape=SHAPE, seed=0) -> torch.Tensor:
    return 2.0 * torch.randn(num_tokens, shape.num_experts, generator=torch.Generator().manual_seed(seed))


def routed(decided: RoutingKnobs, logits_TE: torch.Tensor, layer: int = 0) -> Routing:
    """One batch of tokens through the reference kernel under the knobs of one layer."""
    return route(
        logits_TE,
        logits_TE.softmax(-1),
        DeviceKnobs(decided, "cpu").layer(layer),
        top_k=SHAPE.top_k,
    )


def loaded(routing: Routing) -> set[int]:
    assert routing.loaded_CE is not None
    return set(routing.loaded_CE[0].nonzero().flatten().tolist())


def statistics(tokens_per_expert, num_groups=10, loads=None) -> RoutingStatistics:
    rows = np.asarray(tokens_per_expert, dtype=np.float64)
    return RoutingStatistics(
        num_groups=num_groups,
        num_tokens=int(rows.sum(axis=1).max()),
        tokens_per_expert=rows,
        loads_per_expert=np.minimum(rows, num_groups) if loads is None else np.asarray(loads, dtype=np.float64),
        gate_mass_kept=np.ones(rows.shape[0]),
        changed_slots=np.zeros(rows.shape[0]),
    )
