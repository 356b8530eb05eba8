"""How far a model's predictions lie from a table's measurements."""

from typing import TYPE_CHECKING, Any

import numpy as np

from thermoe.cost.as_timed import energy_on_board_j, latency_as_timed
from thermoe.cost.fingerprints import cases_and_shapes
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import Observations
from thermoe.cost.sources import A_TABLE, observations_of
from thermoe.types import BoolArray, FloatArray

if TYPE_CHECKING:
    from thermoe.cost.sources import Sources


def evaluate(model: KernelCostModel, data: "Sources") -> dict[str, Any]:
    """Errors of latency and energy over all rows, by operation, and over rows of shapes that no fit has seen.

    `{"all": {...}, "operations": {NAME: {...}}, "unseen": {...}}`, the last only where there are such rows and others.
    Each holds `mape_pct`, `median_pct` and `p90_pct` of the relative error, `coverage_pct` (share of rows inside the
    90 % interval), `width_pct` (its mean half width over the prediction) and the number of `rows`; of these,
    `rows_in_fit` are cases that the model was fitted to, and `rows_of_seen_shapes` have at least their shape in
    common with one. A figure that cannot be had is None.

    Raises:
        DataError: Nothing in the data is of an operation that is known.
    """
    groups, gpu = observations_of(data)
    errors = {op: errors_of(model, observed) for op, observed in groups.items()}
    seen = {op: _seen(model, observed, gpu) for op, observed in groups.items()}
    lines, known = np.concatenate(list(errors.values())), np.concatenate(list(seen.values()), axis=1)
    result: dict[str, Any] = {
        "all": summary(lines) | _counts(model, known),
        "operations": {op: summary(errors[op]) | _counts(model, seen[op]) for op in groups},
    }
    is_new = ~known[1]
    if model.seen_ is not None and is_new.any() and not is_new.all():
        result["unseen"] = summary(lines[is_new]) | _counts(model, known[:, is_new])
    return result


def is_of_fit(model: KernelCostModel, gpu: str) -> bool:
    """Whether rows of this GPU, or of a table that names none, may have been in the fit."""
    return gpu == model.fitted_on_ or A_TABLE in (gpu, model.fitted_on_)


def _seen(model: KernelCostModel, observed: Observations, gpu: str) -> BoolArray:
    """Whether each row's case, and its shape, was in the fit (2, B)."""
    numbers = cases_and_shapes(observed.cases)
    if model.seen_ is None or not is_of_fit(model, gpu):
        return np.zeros(numbers.shape, dtype=np.bool_)
    return np.asarray(np.isin(numbers, model.seen_), dtype=np.bool_)


def _counts(model: KernelCostModel, seen: BoolArray) -> dict[str, int | None]:
    names = ("rows_in_fit", "rows_of_seen_shapes")
    return {n: None if model.seen_ is None else int(c) for n, c in zip(names, seen.sum(axis=1), strict=True)}


def errors_of(model: KernelCostModel, observed: Observations) -> FloatArray:
    """Of each row: relative error [%], 1 or 0 for inside or outside the interval, half width [%]; for both (B, 6).

    Latency is that of energy windows where there are some: see `latency_as_timed`.
    """
    priced = model.predict_cases(observed.cases)
    pairs = (
        (latency_as_timed(model, observed, priced), observed.window_s),
        (energy_on_board_j(model, observed, priced), observed.energy_j),
    )
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
