"""Rows as series of a figure: what belongs to one line, what it is called, and at most as many as can be told apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from thermoe.analysis.costs.names import shape_name
from thermoe.analysis.style import Look
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import cases_of_rows
from thermoe.cost.rows import CostRow
from thermoe.cost.work import OPERATIONS, expected_distinct_experts

MOST_SERIES = 7
RANDOM_WITHIN = 0.15
"""How far the touched experts may lie from what random routing touches, as a share."""
# Okabe and Ito's colours in an order in which neighbours differ in lightness too; a marker each.
LOOKS = tuple(
    Look(color, marker, "-")
    for color, marker in zip(
        ("#2a86c8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8a8d91", "#a39322"), "osD^vPX", strict=True
    )
)


@dataclass(frozen=True, slots=True)
class Value:
    """A figure of a row with the ends of its spread, None where unknown."""

    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Quantity:
    """Latency or energy of rows: a label, the value of a row, the value and half width of a prediction."""

    label: str
    of: Callable[[CostRow], tuple[float, float | None, float | None] | None]
    column: int

    def predicted(self, model: KernelCostModel, rows: Sequence[CostRow]) -> tuple[list[float], list[float]]:
        """Value and logarithmic half width of each row's prediction."""
        priced = model.predict_cases(cases_of_rows(rows[0].op, list(rows)))
        values = (priced.latency_s * 1e6, priced.energy_j * 1e3)[self.column]
        return values.tolist(), priced.log_error[:, self.column].tolist()


def latency_of(row: CostRow) -> tuple[float, float | None, float | None]:
    """Median latency with the 5th and 95th percentile of the rounds [us]."""
    return row.latency_us, row.latency_low_us, row.latency_high_us


def energy_of(row: CostRow) -> tuple[float, float | None, float | None] | None:
    """Energy with half the span of its windows to either side [mJ]."""
    if row.energy_mj is None:
        return None
    half = (row.energy_spread_pct or 0.0) / 200.0 * row.energy_mj
    return row.energy_mj, row.energy_mj - half or None, row.energy_mj + half or None


LATENCY = Quantity("latency [µs]", latency_of, 0)
ENERGY = Quantity("energy [mJ]", energy_of, 1)


def quantities(rows: Sequence[CostRow]) -> list[Quantity]:
    """Latency, and energy where at least one row has it."""
    return [LATENCY, ENERGY] if any(r.energy_mj is not None for r in rows) else [LATENCY]


def can_predict(model: KernelCostModel | None, row: CostRow) -> bool:
    """Whether a model was fitted to a row's operation, implementation and format."""
    return model is not None and row.op in OPERATIONS and (row.op, row.impl, row.dtype) in model.operations_


def grouped(
    rows: Sequence[CostRow], key: Callable[[CostRow], str], x_of: Callable[[CostRow], float]
) -> tuple[dict[str, list[CostRow]], int]:
    """Series by name, in the order of x, and how many there were beyond `MOST_SERIES`.

    Those with most places come first, and with most energies among equals; each shape once before one comes again.
    Series with a single place are left out.
    """
    found: dict[str, list[CostRow]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    places = {name: len({x_of(r) for r in mine}) for name, mine in found.items()}
    joules = {name: sum(r.energy_mj is not None for r in mine) for name, mine in found.items()}
    names = sorted((n for n in found if places[n] > 1), key=lambda n: (-places[n], -joules[n], -len(found[n]), n))
    first = {shape_name(found[name][0]): name for name in reversed(names)}.values()
    names.sort(key=lambda n: n not in first)
    return {n: sorted(found[n], key=x_of) for n in names[:MOST_SERIES]}, max(0, len(names) - MOST_SERIES)


def at_random(rows: Sequence[CostRow]) -> list[CostRow]:
    """Rows that touch about as many experts as random routing would, their load not skewed."""
    return [r for r in rows if r.load == "random" and _off_random(r) <= RANDOM_WITHIN]


def _off_random(row: CostRow) -> float:
    wished = float(expected_distinct_experts(row.num_experts, row.top_k, row.tokens))
    return abs(float(np.exp(abs(np.log(row.active_experts / max(wished, 1.0)))) - 1.0))
