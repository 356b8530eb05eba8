"""One operation of one implementation and format: its laws, how far they miss unseen shapes, where it was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from thermoe.cost.cases import DTYPE_BITS, Cases
from thermoe.cost.correction import quantile
from thermoe.cost.device_state import LEAST_ABOVE_IDLE, conditions, energy_at_full_clock_j
from thermoe.cost.kernel_work import KnownParts, work_done, work_moved
from thermoe.cost.kernels import KERNELS, LATER, ONLY, kernels_of
from thermoe.cost.law import Law, fit_law
from thermoe.cost.observations import Observations
from thermoe.cost.power_law import ENOUGH_ROWS, PowerLaw
from thermoe.cost.roofline import DeviceLimits, is_positive
from thermoe.cost.work import Work, work_from_table, work_of_cases
from thermoe.errors import DataError
from thermoe.types import BoolArray, FloatArray, IntArray

# A case counts as measured within this factor of the range of the data.
RANGE_SLACK = 1.05
# Rows that a law is fitted to, drawn where there are more: it has thirteen coefficients.
MOST_ROWS = 1500
# A kernel needs so many rows for a law of its own.
LEAST_ROWS_OF_KERNEL = 12
LEAST_ROWS = 4  # where other formats of the kernel are known
# What energies that were not measured count together, in measured rows.
_PRIOR_ROWS = 3.0
# How far kernels of too few rows for a law spread about that of all rows, and what is missed then (powers of e).
_SPREAD_OF_KERNELS, _MISS = 0.5, 0.1
_FOLDS = 5
_MOST_FOLDS = 12
NUM_WORK = len(Work.__slots__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedLaw:
    """A law and what is known about it.

    Attributes:
        law: Fitted coefficients, for all rows.
        kernels: Laws of its kernels (`thermoe.cost.kernels`), where there are several: fitted to the rows of each if
            these are enough, else that of all rows as fast as these few.
        latency_log_error, energy_log_error: 90 % quantile of |log(predicted / measured)| on rows left
            out of the fit, whole shapes at a time where there are several; None if there was nothing to tell.
        work_low, work_high: Range of the work that was measured, (6,).
        num_rows, num_energy_rows: Rows measured, and those of them with energy.
        power: What energies come from where there are too few of them for a law of energy.
    """

    law: Law
    latency_log_error: float | None
    energy_log_error: float | None
    work_low: FloatArray
    work_high: FloatArray
    num_rows: int
    num_energy_rows: int
    kernels: Mapping[str, Law] = field(default_factory=dict)
    power: PowerLaw | None = None

    def law_of(self, kernel: str) -> Law:
        """The law of one of its kernels."""
        return self.kernels.get(kernel, self.law)

    def both(
        self, cases: Cases, table: FloatArray, known_parts: KnownParts | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Latency [s] and energy above idle [J] of cases with their `Work.table()` (B, 6), each by its own law (B,)."""
        return _both(self.law, self.kernels, self.power, cases, table, known_parts)

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
            "kernels": {name: law.as_dict() for name, law in self.kernels.items()},
            "power": None if self.power is None else self.power.as_dict(),
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
        kernels = values.get("kernels", {})
        if not isinstance(kernels, dict) or not set(kernels) <= set(KERNELS):
            raise DataError(f"{where}: kernels must be named {', '.join(filter(None, KERNELS))}")
        return cls(
            law=law,
            kernels={name: Law.from_dict(part, where) for name, part in kernels.items()},
            latency_log_error=values.get("latency_log_error"),
            energy_log_error=values.get("energy_log_error"),
            work_low=np.array(values["work_low"], float),
            work_high=np.array(values["work_high"], float),
            power=None if values.get("power") is None else PowerLaw.from_dict(values["power"], where),
            **counts,
        )


def fit_operation(
    data: Observations,
    limits: DeviceLimits,
    power: PowerLaw | None = None,
    alike: Mapping[str, Law] | None = None,
    *,
    judged: bool = True,
) -> FittedLaw:
    """Fit one implementation in one format, and once more for every fold to learn how far it misses.

    Args:
        data: Its rows.
        limits: The device.
        power: What rows without energy are taken to have needed, all of them together as a few measured ones; energies
            come from it alone where fewer than `ENOUGH_ROWS` were measured.
        alike: Laws of its kernels over all formats, of `laws_of_kernels`.
        judged: Whether to learn how far the law misses.
    """
    table = work_of_cases(data.cases).table()
    chosen = np.random.default_rng(0).permutation(len(data))[:MOST_ROWS]
    few = data if len(data) <= MOST_ROWS else data.take(np.sort(chosen))
    alike = alike or {}
    law, kernels = _fit_all(few, limits, power, alike)
    num_energy_rows = int(np.isfinite(data.energy_j).sum())
    stands_in = power if num_energy_rows < ENOUGH_ROWS else None
    errors: tuple[float | None, float | None] = (None, None)
    if judged:
        errors = _errors_left_out(few, limits, power, stands_in, alike, {ONLY: law} | kernels)
    return FittedLaw(
        law=law,
        kernels=kernels,
        latency_log_error=errors[0],
        energy_log_error=errors[1],
        work_low=table.min(axis=0),
        work_high=table.max(axis=0),
        num_rows=len(data),
        num_energy_rows=num_energy_rows,
        power=stands_in,
    )


def laws_of_kernels(data: Observations, limits: DeviceLimits) -> dict[tuple[str, str], Law]:
    """By implementation and kernel, one law for all its formats: what a format with few rows begins with."""
    names, impls = kernels_of(data.cases), np.array(data.cases.impl)
    laws = {}
    for impl, name in sorted({pair for pair in zip(impls.tolist(), names.tolist(), strict=True) if pair[1] != ONLY}):
        rows = (impls == impl) & (names == name)
        formats = {dtype for dtype, here in zip(data.cases.dtype, rows, strict=True) if here}
        if len(formats) > 1 and rows.sum() >= LEAST_ROWS_OF_KERNEL:
            laws[impl, name] = _fit(data.take(rows), limits, None, None)
    return laws


def dynamic_energy_j(data: Observations, limits: DeviceLimits) -> FloatArray:
    """Measured energy above idle, at full clock [J], (B,); never none, should idle be misjudged."""
    energy_j = data.reference_energy_j
    above_idle = np.maximum(energy_j - limits.idle_power_w * data.window_s, LEAST_ABOVE_IDLE * energy_j)
    return energy_at_full_clock_j(above_idle, np.where(data.throttled, data.window_s / data.latency_s, 1.0))


def _fit_all(
    data: Observations,
    limits: DeviceLimits,
    power: PowerLaw | None,
    alike: Mapping[str, Law],
    chosen: Mapping[str, Law] | None = None,
) -> tuple[Law, dict[str, Law]]:
    """The law of all rows, and of each kernel with rows enough, with the smoothness of those chosen before."""
    names, smoothness = kernels_of(data.cases), {k: law.smoothness for k, law in (chosen or {}).items()}
    law = _fit(data, limits, power, smoothness.get(ONLY))
    kernels: dict[str, Law] = {}
    for name in map(str, np.unique(names)):
        rows = names == name
        if name == ONLY:
            continue
        if rows.sum() >= (LEAST_ROWS if name in alike else LEAST_ROWS_OF_KERNEL):
            kernels[name] = _fit(data.take(rows), limits, power, smoothness.get(name), alike.get(name))
        elif not rows.all():
            kernels[name] = _of_few(name, law, data.take(rows))
    return law, kernels


def _of_few(name: str, law: Law, data: Observations) -> Law:
    """The law as fast as the few rows of a kernel are: the most likely factor on it, or time beside it."""
    said_s = law.both(work_done(data.cases, work_of_cases(data.cases).table()))[0]
    count = len(data) + (_MISS / _SPREAD_OF_KERNELS) ** 2
    if name in LATER:
        return law.later(float((data.latency_s - said_s).sum() / count))
    return law.slowed(float(np.exp(np.log(data.latency_s / said_s).sum() / count)))


def _fit(
    data: Observations,
    limits: DeviceLimits,
    power: PowerLaw | None,
    smoothness: float | None,
    alike: Law | None = None,
) -> Law:
    choice = {} if smoothness is None else {"smoothness": (smoothness,)}
    bits, energy_j, weight = DTYPE_BITS[data.cases.dtype[0]], dynamic_energy_j(data, limits), None
    unknown = ~np.isfinite(energy_j)
    if power is not None and unknown.any():
        weight = np.where(unknown, _PRIOR_ROWS / unknown.sum(), 1.0)
        moved = work_moved(data.cases, work_of_cases(data.cases).table())
        energy_j = np.where(unknown, power.dynamic_energy_j(moved, data.latency_s), energy_j)
    work = work_from_table(work_done(data.cases, work_of_cases(data.cases).table()))
    return fit_law(work, data.latency_s, energy_j, limits, bits, energy_weight=weight, alike=alike, **choice)


def _both(
    law: Law,
    laws: Mapping[str, Law],
    power: PowerLaw | None,
    cases: Cases,
    table: FloatArray,
    known_parts: KnownParts | None = None,
) -> tuple[FloatArray, FloatArray]:
    kernels, done = kernels_of(cases), work_done(cases, table, known_parts)
    latency_s, energy_j = law.both(done)
    for name, own in laws.items():
        rows = kernels == name
        if rows.any():
            latency_s[rows], energy_j[rows] = own.both(done[rows])
    return latency_s, energy_j if power is None else power.dynamic_energy_j(work_moved(cases, table), latency_s)


def _errors_left_out(
    data: Observations,
    limits: DeviceLimits,
    power: PowerLaw | None,
    stands_in: PowerLaw | None,
    alike: Mapping[str, Law],
    chosen: Mapping[str, Law],
) -> tuple[float | None, float | None]:
    folds, as_measured = _folds(data), conditions(limits, 0.0, None)
    latency_errors: list[FloatArray] = []
    energy_errors: list[FloatArray] = []
    for fold in np.unique(folds):
        seen, unseen = data.take(folds != fold), data.take(folds == fold)
        if not len(seen):
            return None, None
        law, laws = _fit_all(seen, limits, power, alike, chosen)
        latency_s, energy_j = _both(law, laws, stands_in, unseen.cases, work_of_cases(unseen.cases).table())
        latency_errors.append(np.abs(np.log(latency_s / unseen.latency_s)))
        predicted = as_measured.apply(latency_s, energy_j)
        energy_errors.append(np.abs(np.log(predicted.energy_j / unseen.reference_energy_j)))
    latency_error = _known(np.concatenate(latency_errors))
    if stands_in is not None and latency_error is not None and not np.isnan(stands_in.log_error):
        return latency_error, float(np.hypot(latency_error, stands_in.log_error))
    return latency_error, _known(np.concatenate(energy_errors))


def _folds(data: Observations) -> IntArray:
    """Fold of each row (B,): its shape if there are several, else every fifth case, with all its repetitions."""
    shapes = data.groups()
    if shapes.max() > 0:
        return shapes % _MOST_FOLDS
    cases = np.unique(work_of_cases(data.cases).table(), axis=0, return_inverse=True)[1]
    return cases.ravel().astype(np.int64) % _FOLDS


def _known(errors: FloatArray) -> float | None:
    return quantile(errors) if np.isfinite(errors).any() else None
