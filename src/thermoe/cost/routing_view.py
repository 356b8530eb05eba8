"""Makes the convex view that routing uses out of the accurate prediction, and reports how far apart the two are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thermoe.cost.cases import Cases
from thermoe.cost.device_state import Conditions
from thermoe.cost.kernel_work import work_done
from thermoe.cost.law import Law
from thermoe.cost.prediction import CostArrays, Hinges, RoutingCost
from thermoe.cost.work import Work, expected_distinct_experts, work_of
from thermoe.types import FloatArray, MoEShape

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Predict = Callable[["ArrayLike", "ArrayLike"], CostArrays]
Asked = Callable[[FloatArray], Cases]
_FLOPS = Work.__slots__.index("flops")


def routing_view(
    law: Law,
    at: Conditions,
    shape: MoEShape,
    num_tokens: int,
    bits: float,
    source: str,
    accurate: Predict,
    asked: Asked,
) -> RoutingCost:
    """The convex view of an expert MLP around `num_tokens`.

    c is the secant of the prediction between the fewest and the most experts that the tokens can touch, rows that a
    kernel adds to fill its tiles among it. phi is the larger of two lines: activations read and written beside the
    weights, and arithmetic of further rows once it takes longer than touching the expert; both come from the law, times
    what the prediction says beyond it for a typical load. Where few experts with many rows each cost as much as more of
    them, as in a kernel that reads an expert once for so many rows, the prediction bends: c is then the secant beyond
    the bend, and a third line of phi takes what lies before it, if latency and energy are then nearer to the
    prediction, an expert still costs something and power is no higher. The fixed part makes the view agree with the
    prediction in the middle of the range.

    Args:
        law: Physics of the experts.
        at: Conditions.
        shape: Sizes of the layer.
        num_tokens: Tokens that are routed.
        bits: Precision of the weights [bit].
        source: What answers.
        accurate: Predicts a layer from rows and distinct experts; need not be convex.
        asked: Cases of all rows on distinct experts (B,), by the implementation that the law is of.
    """
    rows = float(num_tokens * shape.top_k)
    fewest, most = float(shape.top_k), float(min(shape.num_experts, rows))
    most = max(most, fewest + 1.0)  # one token, or as many choices as experts: look one expert further
    typical = float(np.clip(expected_distinct_experts(shape.num_experts, shape.top_k, num_tokens), fewest, most))
    ends = accurate(np.full(2, rows), np.array([fewest, most]))
    touch_s, touch_j = (float(max(0.0, e[1] - e[0]) / (most - fewest)) for e in (ends.latency_s, ends.energy_j))
    touched = np.array([fewest, typical, most])
    table = work_done(asked(touched), work_of("expert_mlp", shape, rows, touched, bits).table())
    flops_a_row = _further_flops(table[:, _FLOPS], fewest, typical, most) / rows
    phi_s, phi_j = _load_parts(law, at, shape, bits, flops_a_row, touch_s, touch_j)
    by_law, by_all = at.apply(*law.both(table[1:2])), accurate(rows, typical)
    phi_s = phi_s.scaled(float(by_all.latency_s[0] / by_law.latency_s[0]))
    phi_j = phi_j.scaled(float(by_all.energy_j[0] / by_law.energy_j[0]))
    grid = np.unique(np.round(np.linspace(fewest, most, 9)))
    exact = accurate(np.full_like(grid, rows), grid)
    straight = (_Part(touch_s, phi_s), _Part(touch_j, phi_j))
    latency, energy = _closest(straight, grid, (exact.latency_s, exact.energy_j), rows, typical)
    return RoutingCost(
        shape=shape,
        num_tokens=num_tokens,
        fixed_latency_s=latency.fixed(grid, exact.latency_s, rows, typical),
        fixed_energy_j=energy.fixed(grid, exact.energy_j, rows, typical),
        latency_s=latency.touch,
        energy_j=energy.touch,
        load_latency_s=latency.phi,
        load_energy_j=energy.phi,
        latency_distance=latency.distance(grid, exact.latency_s, rows, typical),
        energy_distance=energy.distance(grid, exact.energy_j, rows, typical),
        source=source,
    )


def _further_flops(flops: FloatArray, fewest: float, typical: float, most: float) -> float:
    """Operations of a typical load that do not come with experts, from those at three numbers of experts (3,)."""
    per_expert = max(0.0, float(flops[2] - flops[0]) / (most - fewest))
    return max(0.0, float(flops[1]) - typical * per_expert)


def _load_parts(
    law: Law, at: Conditions, shape: MoEShape, bits: float, flops: float, touch_s: float, touch_j: float
) -> tuple[Hinges, Hinges]:
    """phi for latency and energy: slopes of one row beside the weights, and of the arithmetic of one further row."""
    row = work_of("expert_mlp", shape, 1.0, 0.0, bits)
    _, _, row_bytes, rows, _, _ = (float(v) for v in row.table()[0])
    beside_s = law.latency_coef[3] * row_bytes + law.latency_coef[4] * rows
    arithmetic_s = law.latency_coef[5] * flops
    row_j = law.energy_coef[3] * row_bytes + law.energy_coef[4] * flops
    per_second_w = law.energy_coef[1] + at.static_power_w
    lines_j = np.array([row_j + per_second_w * beside_s, row_j + per_second_w * arithmetic_s])
    latency = Hinges(np.array([beside_s, arithmetic_s]), np.array([0.0, touch_s]))
    energy = Hinges(lines_j, np.array([0.0, min(touch_j, per_second_w * touch_s)]))
    return latency, energy


# A bend is worth its line if latency and energy together come nearer by this, with hardly more power.
_LEAST_GAIN, _MORE_POWER = 0.01, 1.005


@dataclass(frozen=True, slots=True)
class _Part:
    """Latency or energy of the view: c and phi."""

    touch: float
    phi: Hinges

    def additive(self, grid: FloatArray, rows: float) -> FloatArray:
        """Of all rows spread evenly over so many experts (G,)."""
        return grid * (self.touch + self.phi(rows / grid))

    def fixed(self, grid: FloatArray, exact: FloatArray, rows: float, typical: float) -> float:
        """What is left of the prediction (G,) at a typical number of experts."""
        return max(0.0, float(np.interp(typical, grid, exact - self.additive(grid, rows))))

    def view(self, grid: FloatArray, exact: FloatArray, rows: float, typical: float) -> FloatArray:
        """All of it (G,)."""
        return self.fixed(grid, exact, rows, typical) + self.additive(grid, rows)

    def distance(self, grid: FloatArray, exact: FloatArray, rows: float, typical: float) -> float:
        """Mean relative distance to the prediction (G,)."""
        return float(np.mean(np.abs(self.view(grid, exact, rows, typical) / exact - 1.0)))

    def bent(self, grid: FloatArray, exact: FloatArray, rows: float, at: int) -> "_Part":
        """With the secants of the prediction before and beyond a number of experts of the grid."""
        beyond = max(0.0, float((exact[-1] - exact[at]) / (grid[-1] - grid[at])))
        before = float(np.clip((exact[at] - exact[0]) / (grid[at] - grid[0]), 0.0, beyond))
        slope = float(self.phi.slopes[0]) + (beyond - before) * float(grid[at]) / rows
        return _Part(beyond, Hinges(np.append(self.phi.slopes, slope), np.append(self.phi.offsets, beyond - before)))


def _closest(
    straight: tuple[_Part, _Part], grid: FloatArray, exact: tuple[FloatArray, FloatArray], rows: float, typical: float
) -> tuple[_Part, _Part]:
    """Latency and energy without a bend, or with one at the same number of experts that is clearly nearer."""

    def distance(parts: tuple[_Part, _Part]) -> float:
        return sum(p.distance(grid, e, rows, typical) for p, e in zip(parts, exact, strict=True))

    def highest_w(parts: tuple[_Part, _Part]) -> float:
        latency_s, energy_j = (p.view(grid, e, rows, typical) for p, e in zip(parts, exact, strict=True))
        return float(np.max(energy_j / latency_s))

    most_w = _MORE_POWER * max(highest_w(straight), float(np.max(exact[1] / exact[0])))
    best, least = straight, distance(straight) - _LEAST_GAIN
    for at in range(1, len(grid) - 1):
        latency, energy = (p.bent(grid, e, rows, at) for p, e in zip(straight, exact, strict=True))
        bent = (latency, energy)
        if min(latency.touch, energy.touch) > 0.0 and highest_w(bent) <= most_w and distance(bent) < least:
            best, least = bent, distance(bent)
    return best
