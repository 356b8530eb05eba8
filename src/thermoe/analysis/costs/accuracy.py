"""Errors of predictions: how far off, how often inside the interval; a roofline and mean power beside. B rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from thermoe.cost.held_out import Predictions
from thermoe.types import FloatArray

LONG_S = 1e-4
_Z90 = 1.6448536269514722


def covered(truth: FloatArray, said: FloatArray, half: FloatArray) -> FloatArray:
    """1 where a measurement lies inside its interval, 0 outside, NaN where there is none (B,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.abs(np.log(truth / said)) <= half
    return np.where(np.isfinite(truth) & np.isfinite(half), inside.astype(np.float64), np.nan)


def wilson(share: float, count: int) -> tuple[float, float]:
    """90 % interval of a share of `count` independent draws."""
    squared = _Z90**2 / count
    middle = (share + squared / 2.0) / (1.0 + squared)
    half = _Z90 / (1.0 + squared) * float(np.sqrt(share * (1.0 - share) / count + squared / (4.0 * count)))
    return max(0.0, middle - half), min(1.0, middle + half)


def error_rows(judged: Mapping[str, Predictions]) -> list[dict[str, Any]]:
    """A line for each operation and quantity, and for all of them."""
    parts = dict(judged)
    if len(parts) > 1:
        parts = {"all": Predictions.joined(list(judged.values()))} | parts
    rows = []
    for op, found in parts.items():
        for name, columns in (
            ("latency", ("measured_s", "latency_s", "latency_half", "roofline_s", None)),
            ("energy", ("measured_j", "energy_j", "energy_half", "roofline_j", "mean_power_j")),
        ):
            row = _errors(found, *columns)
            if row is not None:
                rows.append({"op": op, "quantity": name} | row)
    return rows


def _errors(
    found: Predictions, measured: str, predicted: str, half: str, roofline: str, mean_power: str | None
) -> dict[str, Any] | None:
    known = np.isfinite(getattr(found, measured)) & np.isfinite(getattr(found, predicted))
    if not known.any():
        return None
    part = found.take(known)
    truth, said, wide = (getattr(part, name) for name in (measured, predicted, half))
    errors, inside = 100.0 * np.abs(said / truth - 1.0), covered(truth, said, wide)
    inside = inside[np.isfinite(inside)]
    long = errors[part.measured_s > LONG_S]
    low, high = wilson(float(inside.mean()), len(inside)) if len(inside) else (None, None)
    return {
        "rows": int(known.sum()),
        "mape_pct": float(errors.mean()),
        "median_pct": float(np.median(errors)),
        "p90_pct": float(np.percentile(errors, 90)),
        "long_rows": len(long),
        "long_mape_pct": float(long.mean()) if len(long) else None,
        "coverage_pct": float(100.0 * inside.mean()) if len(inside) else None,
        "coverage_pct_low": None if low is None else 100.0 * low,
        "coverage_pct_high": None if high is None else 100.0 * high,
        "width_pct": float(100.0 * np.sinh(wide[np.isfinite(wide)]).mean()) if np.isfinite(wide).any() else None,
        "roofline_pct": _mape(getattr(part, roofline), truth),
        "mean_power_pct": None if mean_power is None else _mape(getattr(part, mean_power), truth),
    }


def _mape(said: FloatArray, truth: FloatArray) -> float | None:
    errors = np.abs(said / truth - 1.0)
    known = np.isfinite(errors)
    return float(100.0 * errors[known].mean()) if known.any() else None
