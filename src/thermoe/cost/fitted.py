"""One fitted operation: its law, how far it misses on what it has not seen, and where it was measured."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from thermoe.cost.device_state import conditions, energy_at_full_clock_j
from thermoe.cost.law import Law, fit_law
from thermoe.cost.observations import Observations
from thermoe.cost.roofline import DeviceLimits, is_positive
from thermoe.cost.work import Work, work_of
from thermoe.errors import DataError
from thermoe.types import FloatArray

COVERAGE = 0.9
# A case counts as measured within this factor of the range of the data.
RANGE_SLACK = 1.05
_FOLDS = 5
NUM_WORK = len(Work.__slots__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedOperation:
    """A law and what is known about it.

    Attributes:
        law: Fitted coefficients.
        latency_log_error, energy_log_error: 90 % quantile of |log(predicted / measured)| on rows left
            out of the fit, whole shapes at a time where there are several; None if there was nothing to tell.
        work_low, work_high: Range of the work that was measured, (6,).
        num_rows: Rows fitted.
    """

    law: Law
    latency_log_error: float | None
    energy_log_error: float | None
    work_low: FloatArray
    work_high: FloatArray
    num_rows: int

    def covers(self, work: Work) -> bool:
        """Whether all of the work lies within what was measured."""
        table = work.table()
        return bool(((table >= self.work_low / RANGE_SLACK) & (table <= self.work_high * RANGE_SLACK)).all())

    def as_dict(self) -> dict[str, Any]:
        """All parts as JSON has them."""
        return self.law.as_dict() | {
            "latency_log_error": self.latency_log_error,
            "energy_log_error": self.energy_log_error,
            "work_low": self.work_low.tolist(),
            "work_high": self.work_high.tolist(),
            "num_rows": self.num_rows,
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
        if not isinstance(values.get("num_rows"), int):
            raise DataError(f"{where}: num_rows = {values.get('num_rows')!r} must be a whole number")
        return cls(
            law=law,
            latency_log_error=values.get("latency_log_error"),
            energy_log_error=values.get("energy_log_error"),
            work_low=np.array(values["work_low"], float),
            work_high=np.array(values["work_high"], float),
            num_rows=values["num_rows"],
        )


def fit_operation(op: str, bits: int, data: Observations, limits: DeviceLimits) -> FittedOperation:
    """Fit one operation, and once more for every fold to learn how far it misses."""
    work = observed_work(op, bits, data)
    law = _fit(work, data, limits, bits)
    table = work.table()
    latency_error, energy_error = _errors_left_out(op, bits, data, limits, law.smoothness)
    return FittedOperation(
        law=law,
        latency_log_error=latency_error,
        energy_log_error=energy_error,
        work_low=table.min(axis=0),
        work_high=table.max(axis=0),
        num_rows=len(data),
    )


def observed_work(op: str, bits: int, data: Observations) -> Work:
    """Work of every observation (B,)."""
    each = [
        work_of(op, data.shape(i), data.routed_rows[i], data.distinct_experts[i], bits).table()[0]
        for i in range(len(data))
    ]
    return work_from_table(np.array(each))


def work_from_table(table: FloatArray) -> Work:
    """Inverse of `Work.table`."""
    return Work(**dict(zip(Work.__slots__, table.T, strict=True)))


def dynamic_energy_j(data: Observations, limits: DeviceLimits) -> FloatArray:
    """Measured energy above idle, at full clock [J], (B,); at least a tenth of the whole, should idle be misjudged."""
    above_idle = np.maximum(data.energy_j - limits.idle_power_w * data.window_s, 0.1 * data.energy_j)
    return energy_at_full_clock_j(above_idle, np.where(data.throttled, data.window_s / data.latency_s, 1.0))


def _fit(work: Work, data: Observations, limits: DeviceLimits, bits: int, smoothness: float | None = None) -> Law:
    choice = {} if smoothness is None else {"smoothness": (smoothness,)}
    return fit_law(work, data.latency_s, dynamic_energy_j(data, limits), limits, bits, **choice)


def _errors_left_out(
    op: str, bits: int, data: Observations, limits: DeviceLimits, smoothness: float
) -> tuple[float | None, float | None]:
    folds, as_measured = _folds(data), conditions(limits, 0.0, None)
    latency_errors: list[FloatArray] = []
    energy_errors: list[FloatArray] = []
    for fold in np.unique(folds):
        seen, unseen = data.take(folds != fold), data.take(folds == fold)
        if not len(seen):
            return None, None
        law = _fit(observed_work(op, bits, seen), seen, limits, bits, smoothness)
        work = observed_work(op, bits, unseen)
        latency_errors.append(np.abs(np.log(law.latency_s(work) / unseen.latency_s)))
        predicted = as_measured.apply(law.latency_s(work), law.dynamic_energy_j(work))
        energy_errors.append(np.abs(np.log(predicted.energy_j / unseen.energy_j)))
    return _quantile(np.concatenate(latency_errors)), _quantile(np.concatenate(energy_errors))


def _folds(data: Observations) -> FloatArray:
    """Fold of each row (B,): its shape if there are several, else every fifth row."""
    shapes = data.groups()
    return np.asarray(shapes if shapes.max() > 0 else np.arange(len(data)) % _FOLDS, dtype=np.float64)


def _quantile(errors: FloatArray) -> float | None:
    """Conformal quantile: with n left-out errors the ceil((n + 1) 0.9)-th smallest, or the largest."""
    known = np.sort(errors[np.isfinite(errors)])
    if not known.size:
        return None
    rank = int(np.ceil((known.size + 1) * COVERAGE))
    return float(known[min(rank, known.size) - 1])
