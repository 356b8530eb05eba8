"""How far a model's predictions lie from a table's measurements."""

from typing import TYPE_CHECKING, Any

import numpy as np

from thermoe.cost.database import CostDatabase
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import group_database, group_table
from thermoe.cost.work import OPERATIONS
from thermoe.errors import DataError
from thermoe.types import Estimate, FloatArray

if TYPE_CHECKING:
    import pandas as pd


def evaluate(model: KernelCostModel, data: "CostDatabase | pd.DataFrame") -> dict[str, Any]:
    """Errors of latency and energy over all rows and by operation, `{"all": {...}, "operations": {NAME: {...}}}`.

    Each holds `mape_pct`, `median_pct` and `p90_pct` of the relative error, `coverage_pct` (share of rows inside the
    90 % interval) and the number of `rows`; a figure that cannot be had is None.

    Raises:
        DataError: Nothing in the data is of an operation the model knows.
    """
    is_database = isinstance(data, CostDatabase)
    groups = group_database(data, tuple(OPERATIONS)) if isinstance(data, CostDatabase) else group_table(data)
    errors: dict[str, list[tuple[float, float, float, float]]] = {}
    for (op, impl, bits), observed in groups.items():
        chosen = impl if (op, impl, bits) in model.operations_ else None
        for i in range(len(observed)):
            rows, distinct = float(observed.routed_rows[i]), float(observed.distinct_experts[i])
            predicted = model.predict(op, observed.shape(i), rows, distinct, bits=bits, impl=chosen)
            measured_s = float(observed.window_s[i] if is_database else observed.latency_s[i])
            line = (*_error(predicted.latency_s, measured_s), *_error(predicted.energy_j, float(observed.energy_j[i])))
            errors.setdefault(op, []).append(line)
    if not errors:
        raise DataError(f"no row of {', '.join(OPERATIONS)} to compare with")
    by_operation = {op: _summary(np.array(lines)) for op, lines in errors.items()}
    return {
        "all": _summary(np.array([line for lines in errors.values() for line in lines])),
        "operations": by_operation,
    }


def _error(predicted: Estimate, measured: float) -> tuple[float, float]:
    """Relative error [%], and 1 or 0 for inside or outside the interval; NaN where unknown."""
    if not np.isfinite(measured):
        return float("nan"), float("nan")
    inside = float("nan")
    if predicted.low is not None and predicted.high is not None:
        inside = float(predicted.low <= measured <= predicted.high)
    return 100.0 * abs(predicted.value / measured - 1.0), inside


def _summary(lines: FloatArray) -> dict[str, Any]:
    return {
        "latency": _figures(lines[:, 0], lines[:, 1]),
        "energy": _figures(lines[:, 2], lines[:, 3]),
        "rows": len(lines),
    }


def _figures(errors_pct: FloatArray, inside: FloatArray) -> dict[str, float | None]:
    errors, covered = errors_pct[np.isfinite(errors_pct)], inside[np.isfinite(inside)]
    return {
        "mape_pct": float(errors.mean()) if errors.size else None,
        "median_pct": float(np.median(errors)) if errors.size else None,
        "p90_pct": float(np.percentile(errors, 90)) if errors.size else None,
        "coverage_pct": float(100.0 * covered.mean()) if covered.size else None,
    }
