"""How far a model's predictions lie from a table's measurements."""

from typing import TYPE_CHECKING, Any

import numpy as np

from thermoe.cost.as_timed import latency_as_timed
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import Observations
from thermoe.cost.sources import observations_of
from thermoe.types import FloatArray

if TYPE_CHECKING:
    from thermoe.cost.sources import Sources


def evaluate(model: KernelCostModel, data: "Sources") -> dict[str, Any]:
    """Errors of latency and energy over all rows and by operation, `{"all": {...}, "operations": {NAME: {...}}}`.

    Each holds `mape_pct`, `median_pct` and `p90_pct` of the relative error, `coverage_pct` (share of rows inside the
    90 % interval), `width_pct` (its mean half width over the prediction) and the number of `rows`; a figure that
    cannot be had is None.

    Raises:
        DataError: Nothing in the data is of an operation that is known.
    """
    groups, _ = observations_of(data)
    errors = {op: errors_of(model, observed) for op, observed in groups.items()}
    return {
        "all": summary(np.concatenate(list(errors.values()))),
        "operations": {op: summary(lines) for op, lines in errors.items()},
    }


def errors_of(model: KernelCostModel, observed: Observations) -> FloatArray:
    """Of each row: relative error [%], 1 or 0 for inside or outside the interval, half width [%]; for both (B, 6).

    Latency is that of energy windows where there are some: see `latency_as_timed`.
    """
    priced = model.predict_cases(observed.cases)
    pairs = ((latency_as_timed(model, observed, priced), observed.window_s), (priced.energy_j, observed.energy_j))
    columns = [_error(p, m, priced.log_error[:, i]) for i, (p, m) in enumerate(pairs)]
    return np.concatenate(columns, axis=1)


def summary(lines: FloatArray) -> dict[str, Any]:
    """Figures of lines of `errors_of`."""
    return {"latency": _figures(lines[:, :3]), "energy": _figures(lines[:, 3:]), "rows": len(lines)}


def _error(predicted: FloatArray, measured: FloatArray, log_error: FloatArray) -> FloatArray:
    inside = (np.abs(np.log(measured / predicted)) <= log_error).astype(np.float64)
    unknown = ~np.isfinite(measured) | ~np.isfinite(log_error)
    width = 100.0 * np.sinh(log_error)
    return np.stack([100.0 * np.abs(predicted / measured - 1.0), np.where(unknown, np.nan, inside), width], axis=1)


def _figures(lines: FloatArray) -> dict[str, float | None]:
    errors, covered, widths = (column[np.isfinite(column)] for column in lines.T)
    return {
        "mape_pct": float(errors.mean()) if errors.size else None,
        "median_pct": float(np.median(errors)) if errors.size else None,
        "p90_pct": float(np.percentile(errors, 90)) if errors.size else None,
        "coverage_pct": float(100.0 * covered.mean()) if covered.size else None,
        "width_pct": float(widths.mean()) if covered.size else None,
    }
