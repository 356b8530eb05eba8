"""One operation of one implementation and format: its law, how far it misses unseen shapes, where it was measured."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.correction import quantile
from thermoe.cost.device_state import conditions, energy_at_full_clock_j
from thermoe.cost.law import Law, fit_law
from thermoe.cost.observations import Observations
from thermoe.cost.roofline import DeviceLimits, is_positive
from thermoe.cost.work import Work, work_of_cases
from thermoe.errors import DataError
from thermoe.types import BoolArray, FloatArray, IntArray

# A case counts as measured within this factor of the range of the data.
RANGE_SLACK = 1.05
# Rows that a law is fitted to, drawn where there are more: it has thirteen coefficients.
MOST_ROWS = 1500
_FOLDS = 5
_MOST_FOLDS = 12
NUM_WORK = len(Work.__slots__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedLaw:
    """A law and what is known about it.

    Attributes:
        law: Fitted coefficients.
        latency_log_error, energy_log_error: 90 % quantile of |log(predicted / measured)| on rows left
            out of the fit, whole shapes at a time where there are several; None if there was nothing to tell.
        work_low, work_high: Range of the work that was measured, (6,).
        num_rows, num_energy_rows: Rows measured, and those of them with energy.
    """

    law: Law
    latency_log_error: float | None
    energy_log_error: float | None
    work_low: FloatArray
    work_high: FloatArray
    num_rows: int
    num_energy_rows: int

    def covered(self, work: FloatArray) -> BoolArray:
        """Whether the work of each case (B, 6) lies within what was measured, (B,)."""
        inside = (work >= self.work_low / RANGE_SLACK) & (work <= self.work_high * RANGE_SLACK)
        return np.asarray(inside.all(axis=1), dtype=np.bool_)

    def as_dict(self) -> dict[str, Any]:
        """All parts as JSON has them."""
        return self.law.as_dict() | {
            "latency_log_error": self.latency_log_error,
            "energy_log_error": self.energy_log_error,
            "work_low": self.work_low.tolist(),
            "work_high": self.work_high.tolist(),
            "num_rows": self.num_rows,
            "num_energy_rows": self.num_energy_rows,
        }

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """Inverse of `as_dict`; anything missing or wrong is a `DataError`."""
        law = Law.from_dict(values, where)
        for name in ("latency_log_error", "energy_log_error"):
            if values.get(name) is not None and not is_positive(values[name], or_zero=True):
                raise DataError(f"{where}: {name} = {values[name]!r} must be null or a number")
        for name in ("work_low", "work_high"):
            numbers = values.get(name)
            if (
                not isinstance(numbers, list)
                or len(numbers) != NUM_WORK
                or not all(is_positive(n, or_zero=True) for n in numbers)
            ):
                raise DataError(f"{where}: {name} needs {NUM_WORK} finite numbers")
        counts = {name: values.get(name) for name in ("num_rows", "num_energy_rows")}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 0:
                raise DataError(f"{where}: {name} = {count!r} must be a whole number")
        return cls(
            law=law,
            latency_log_error=values.get("latency_log_error"),
            energy_log_error=values.get("energy_log_error"),
            work_low=np.array(values["work_low"], float),
            work_high=np.array(values["work_high"], float),
            **counts,
        )


def fit_operation(data: Observations, limits: DeviceLimits) -> FittedLaw:
    """Fit one implementation in one format, and once more for every fold to learn how far it misses."""
    table = work_of_cases(data.cases).table()
    chosen = np.random.default_rng(0).permutation(len(data))[:MOST_ROWS]
    few = data if len(data) <= MOST_ROWS else data.take(np.sort(chosen))
    work = work_of_cases(few.cases)
    law = _fit(work, few, limits)
    latency_error, energy_error = _errors_left_out(few, limits, law.smoothness)
    return FittedLaw(
        law=law,
        latency_log_error=latency_error,
        energy_log_error=energy_error,
        work_low=table.min(axis=0),
        work_high=table.max(axis=0),
        num_rows=len(data),
        num_energy_rows=int(np.isfinite(data.energy_j).sum()),
    )


def work_from_table(table: FloatArray) -> Work:
    """Inverse of `Work.table`."""
    return Work(**dict(zip(Work.__slots__, table.T, strict=True)))


def dynamic_energy_j(data: Observations, limits: DeviceLimits) -> FloatArray:
    """Measured energy above idle, at full clock [J], (B,); at least a tenth of the whole, should idle be misjudged."""
    above_idle = np.maximum(data.energy_j - limits.idle_power_w * data.window_s, 0.1 * data.energy_j)
    return energy_at_full_clock_j(above_idle, np.where(data.throttled, data.window_s / data.latency_s, 1.0))


def _fit(work: Work, data: Observations, limits: DeviceLimits, smoothness: float | None = None) -> Law:
    choice = {} if smoothness is None else {"smoothness": (smoothness,)}
    bits = DTYPE_BITS[data.cases.dtype[0]]
    return fit_law(work, data.latency_s, dynamic_energy_j(data, limits), limits, bits, **choice)


def _errors_left_out(data: Observations, limits: DeviceLimits, smoothness: float) -> tuple[float | None, float | None]:
    folds, as_measured = _folds(data), conditions(limits, 0.0, None)
    latency_errors: list[FloatArray] = []
    energy_errors: list[FloatArray] = []
    for fold in np.unique(folds):
        seen, unseen = data.take(folds != fold), data.take(folds == fold)
        if not len(seen):
            return None, None
        law = _fit(work_of_cases(seen.cases), seen, limits, smoothness)
        work = work_of_cases(unseen.cases)
        latency_errors.append(np.abs(np.log(law.latency_s(work) / unseen.latency_s)))
        predicted = as_measured.apply(law.latency_s(work), law.dynamic_energy_j(work))
        energy_errors.append(np.abs(np.log(predicted.energy_j / unseen.energy_j)))
    return _known(np.concatenate(latency_errors)), _known(np.concatenate(energy_errors))


def _folds(data: Observations) -> IntArray:
    """Fold of each row (B,): its shape if there are several, else every fifth case, with all its repetitions."""
    shapes = data.groups()
    if shapes.max() > 0:
        return shapes % _MOST_FOLDS
    cases = np.unique(work_of_cases(data.cases).table(), axis=0, return_inverse=True)[1]
    return cases.ravel().astype(np.int64) % _FOLDS


def _known(errors: FloatArray) -> float | None:
    return quantile(errors) if np.isfinite(errors).any() else None
