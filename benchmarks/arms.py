"""The strategies as knobs, for models that have no calibration: everything is set by hand or by a search."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from thermoe.types import MoEShape, RoutingKnobs

GATE_MASS_SHARE = 0.45
TOP_P_MASS = 0.85
SKIP_RATIO = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """What is compared: a name, the knobs (None: the hooks are attached and change nothing), and its settings."""

    name: str
    knobs: RoutingKnobs | None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def union(self) -> bool:
        """Whether experts are chosen per batch."""
        return self.knobs is not None and self.knobs.union


def neutral(shape: MoEShape) -> RoutingKnobs:
    """Knobs that change nothing."""
    return RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k)


def opportunistic(shape: MoEShape, k0: int) -> Arm:
    """Load every token's first k0 experts; each token then uses its best within them (arXiv 2511.02237)."""
    return Arm(name=f"opportunistic_k0_{k0}", knobs=union_of_first(shape, k0), settings={"k0": k0})


def priced(shape: MoEShape, price: float) -> RoutingKnobs:
    """Load an expert where the squared gates of the batch are worth its price; all experts cost the same."""
    return replace(union_of_first(shape, 1), price=np.full(shape.num_layers, price))


def fixed_arms(shape: MoEShape, k0s: tuple[int, ...]) -> list[Arm]:
    """Every strategy that needs no search; the baseline is the caller's."""
    most = max(1, round(GATE_MASS_SHARE * shape.num_experts))
    layers = shape.num_layers
    gate_mass = replace(union_of_first(shape, 1), max_experts=np.full(layers, most), value_power=1.0)
    return [
        *(opportunistic(shape, k0) for k0 in k0s),
        Arm(name="gate_mass", knobs=gate_mass, settings={"max_experts": most, "k0": 1}),
        Arm(
            name="top_p",
            knobs=replace(neutral(shape), gate_mass=np.full(layers, TOP_P_MASS)),
            settings={"mass": TOP_P_MASS},
        ),
        Arm(
            name="expert_skipping",
            knobs=replace(neutral(shape), skip_ratio=np.full(layers, SKIP_RATIO)),
            settings={"ratio": SKIP_RATIO},
        ),
    ]


def kernel_aware_arms(
    shape: MoEShape, k0s: tuple[int, ...], mean_distinct: Callable[[RoutingKnobs], float], *, halvings: int = 14
) -> list[Arm]:
    """One priced arm for each k0, with as many distinct experts as the opportunistic arm has."""
    arms = []
    for k0 in k0s:
        target = mean_distinct(union_of_first(shape, k0))
        price = find_price(lambda price: mean_distinct(priced(shape, price)), target, halvings=halvings)
        settings = {"price": price, "k0": 1, "matched": f"opportunistic_k0_{k0}", "target_distinct": target}
        arms.append(Arm(name=f"kernel_aware_as_k0_{k0}", knobs=priced(shape, price), settings=settings))
    return arms


def find_price(mean_distinct: Callable[[float], float], target: float, *, halvings: int) -> float:
    """Price at which `mean_distinct`, which falls with the price, meets the target, by bisection of its logarithm."""
    low, high = math.log(1e-5), math.log(10.0)
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        if mean_distinct(math.exp(middle)) > target:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))


def union_of_first(shape: MoEShape, k0: float) -> RoutingKnobs:
    """Knobs that load every token's first k0 experts and no other: a fraction is met on average over layers."""
    layers = shape.num_layers
    before = np.floor(np.arange(layers + 1) * k0 + 1e-9).astype(np.int64)
    return replace(neutral(shape), union=True, price=np.full(layers, np.inf), protected_k0=np.diff(before))
