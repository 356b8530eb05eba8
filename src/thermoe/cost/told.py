"""What `thermoe fit` and `thermoe costs eval` say, as tables."""

from typing import Any

import numpy as np

from thermoe.cost.fitted import FittedLaw
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.text_table import text_table

_NONE = "-"


def fit_table(model: KernelCostModel) -> str:
    """A line for each law that was fitted: its rows, what it misses on rows left out, what corrects it."""
    learners = {op: "networks and trees" if c.networks else "neighbours" for op, c in model.corrections_.items()}
    rows = [
        (
            *key,
            str(law.num_rows),
            str(law.num_energy_rows),
            _missed(law.latency_log_error),
            _missed(law.energy_log_error),
            learners.get(key[0], "nothing"),
        )
        for key, law in model.operations_.items()
    ]
    header = ("operation", "implementation", "format", "rows", "with energy", "latency", "energy", "corrected by")
    return text_table(header, rows, left=3)


def fit_notes(model: KernelCostModel) -> list[str]:
    """What the columns of `fit_table` mean, where they hold something to explain."""
    laws = list(model.operations_.values())
    notes = ["latency, energy: 90 % of rows left out of the fit are missed by less than this, by the law alone"]
    if model.corrections_:
        notes.append("corrected by: what measurements teach beyond the law, checked on shapes left out")
    if any(_is_untold(law) for law in laws):
        notes.append(f"{_NONE}: not measured, or too few rows to leave some out")
    return notes


def eval_table(result: dict[str, Any]) -> str:
    """Errors of `thermoe.cost.evaluate.evaluate`: a line for all rows, for each operation, for shapes not seen."""
    parts = {"all": result["all"], **result["operations"]}
    if "unseen" in result:
        parts["shapes not in the fit"] = result["unseen"]
    header = ["", "rows", "in the fit"]
    for target in ("latency", "energy"):
        header += [f"{target}: mean error", "p90", "inside", "half width"]
    return text_table(header, [_eval_line(name, part) for name, part in parts.items()])


def eval_notes(result: dict[str, Any]) -> list[str]:
    """What the columns of `eval_table` mean."""
    notes = ["inside: rows within their 90 % interval, whose mean half width over the prediction stands beside"]
    if any(result["all"][target]["coverage_pct"] is None for target in ("latency", "energy")):
        notes.append(f"{_NONE}: not measured, or no interval")
    return notes


def flattery(result: dict[str, Any], model: str) -> str:
    """One line on rows that were in the fit, which a model misses by less than new ones; empty where none was."""
    rows, seen, alike = (result["all"][name] for name in ("rows", "rows_in_fit", "rows_of_seen_shapes"))
    remedy = "judge the model on shapes that it has not seen, as thermoe costs report --held-out 5 does"
    if seen is None:
        return (
            f"{model} does not say what it was fitted to: if these rows were among it, the errors flatter; fit it again"
        )
    if not alike:
        return ""
    which = f"all {rows}" if rows == (seen or alike) else f"{seen or alike} of {rows}"
    told = f"{which} rows {'were' if seen else 'have a shape that was'} in the fit of {model}"
    told += f", {alike - seen} more have a shape that was" if seen and alike > seen else ""
    if "unseen" in result:
        remedy = "the last line has the rows of other shapes"
    return f"{told}: these errors flatter; {remedy}"


def _eval_line(name: str, part: dict[str, Any]) -> list[str]:
    in_fit = part["rows_in_fit"]
    cells = [name, str(part["rows"]), _NONE if in_fit is None else str(in_fit)]
    for target in ("latency", "energy"):
        figures = part[target]
        for figure, digits in (("mape_pct", 1), ("p90_pct", 1), ("coverage_pct", 0), ("width_pct", 1)):
            value = figures[figure]
            cells.append(_NONE if value is None else f"{value:.{digits}f} %")
    return cells


def _missed(log_error: float | None) -> str:
    return _NONE if log_error is None else f"{100.0 * np.expm1(log_error):.1f} %"


def _is_untold(law: FittedLaw) -> bool:
    return law.latency_log_error is None or law.energy_log_error is None
