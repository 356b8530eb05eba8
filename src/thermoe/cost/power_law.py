"""Board power of any operation from what it does in a second: one law for a whole database, scaled to each.

Energy takes seconds to measure and latency milliseconds, so most implementations and formats have few rows with
energy, or none. What a byte and an operation cost is much the same for all of them: those who were measured tell about
those who were not. But work is counted from sizes, and one implementation needs more for it than another, as when it
moves its activations several times: so the law is scaled to what was measured of an implementation, and
more cautiously to a format. With some more rows its coefficients leave that one by one, each as far as the rows tell.
Shapes: B rows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from thermoe.cost.cases import DTYPE_BITS, Cases
from thermoe.cost.correction import quantile
from thermoe.cost.kernel_work import work_moved
from thermoe.cost.observations import LawKey, Observations
from thermoe.cost.roofline import DeviceLimits, is_positive
from thermoe.cost.work import work_of_cases
from thermoe.errors import DataError
from thermoe.types import FloatArray

_Measured = tuple[Observations, FloatArray]

LEAST_ROWS = 12  # with energy, of all operations together for a law; of one for what the law misses of it
ENOUGH_ROWS = 32  # of one implementation and format: then a law of energy of its own
ON_HOST = "host"
NUM_WATTS = 6

_START_S = 3e-6  # of a call, in which most of the device waits
_HALF_BUSY = 0.3  # of what the device can do: from about there it is busy
_CODES = ("expert_mlp", "dequant_unpack_op")
# How far implementations spread about the law and formats about an implementation (powers of e), what is missed once
# they are scaled to it (share of all power), and the scales to choose from.
_SPREAD, _SPREAD_OF_FORMATS, _MISS = 0.7, 0.15, 0.08
# How far the coefficients of an implementation spread about those of the scaled law: as far as these are large, or so
# many watts where they are nearly none.
_SPREAD_OF_COEFFICIENTS, _LEAST_W = 1.0, 20.0
_LOG_SCALES = np.linspace(-3.0, 4.0, 141)
_FOLDS = 8


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Coefficients for one implementation and format.

    Attributes:
        watts: Above idle [W]: of any load; of a device that is busy; and of each thing done at the rate of the device's
            limits: bytes of weights, bytes of activations, operations, weights unpacked (6,).
        seconds: Of a byte, of an operation and of a weight's byte to unpack, at these limits (3,).
        log_error: 90 % quantile of |log(predicted / measured)| of power on shapes left out; NaN where not known.
    """

    watts: FloatArray
    seconds: FloatArray
    log_error: float

    def dynamic_energy_j(self, table: FloatArray, latency_s: FloatArray) -> FloatArray:
        """Energy above idle, at full clock, of `work_moved` (B, 6) and latencies (B,) [J]."""
        return np.asarray(_terms(table, latency_s, self.seconds) @ self.watts * latency_s, dtype=np.float64)

    def scaled(self, scale: float) -> "PowerLaw":
        """The same where all that is done takes so much more."""
        return PowerLaw(np.append(self.watts[:1], scale * self.watts[1:]), self.seconds, self.log_error)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        known = None if np.isnan(self.log_error) else self.log_error
        return {"watts": self.watts.tolist(), "seconds": self.seconds.tolist(), "log_error": known}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """Inverse of `as_dict`; anything missing or wrong is a `DataError`."""
        if not isinstance(values, dict):
            raise DataError(f"{where}: a law of power is {type(values).__name__}, needed an object")
        lists, error = (values.get("watts"), values.get("seconds")), values.get("log_error")
        for numbers, length in zip(lists, (NUM_WATTS, 3), strict=True):
            if (
                not isinstance(numbers, list)
                or len(numbers) != length
                or not all(is_positive(n, or_zero=True) for n in numbers)
            ):
                raise DataError(f"{where}: a law of power needs {NUM_WATTS} watts and 3 times, finite and not negative")
        if error is not None and not is_positive(error, or_zero=True):
            raise DataError(f"{where}: log_error = {error!r} of a law of power must be null or a number")
        return cls(np.array(lists[0], float), np.array(lists[1], float), np.nan if error is None else float(error))


@dataclass(frozen=True, slots=True)
class PowerLaws:
    """The law of a whole database; `law` for one implementation and format.

    Attributes:
        watts: As those of `PowerLaw`, before they are scaled; operations in 16 and in 8 bit apart (7,).
        limits: The device.
        log_error: As that of `PowerLaw`, over all operations.
        log_errors: The same of an operation and implementation with rows enough to tell.
    """

    watts: FloatArray
    limits: DeviceLimits
    log_error: float = np.nan
    log_errors: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def law(self, key: LawKey, operation: Observations, energy_j: FloatArray) -> PowerLaw:
        """Scaled to what was measured, then fitted to it; the least there is for what runs on the host.

        Args:
            key: Operation, implementation, format.
            operation: Rows of the operation (B,).
            energy_j: Their energies above idle, at full clock (B,) [J]; NaN where not measured.
        """
        if key[1] == ON_HOST:  # the device waits; how much that takes, no other operation tells
            return replace(self._of(key).scaled(0.0), log_error=np.nan)
        same = np.array([impl == key[1] for impl in operation.cases.impl], dtype=np.bool_) & np.isfinite(energy_j)
        data = operation.take(same)
        misses, of_format = self._misses(data, energy_j[same]), np.array([d == key[2] for d in data.cases.dtype], bool)
        scale = _best(misses.sum(axis=1), 0.0, _SPREAD)
        scale = _best(misses[:, of_format].sum(axis=1), scale, _SPREAD_OF_FORMATS)
        return self._fitted(self._of(key).scaled(float(np.exp(scale))), data, energy_j[same], key[2])

    def _of(self, key: LawKey) -> PowerLaw:
        log_error = self.log_errors.get(key[:2], self.log_error)
        return PowerLaw(self.watts[_columns(key)], seconds_of(key, self.limits), log_error)

    def _fitted(self, scaled: PowerLaw, data: Observations, energy_j: FloatArray, dtype: str) -> PowerLaw:
        """The most likely coefficients, those of the scaled law being the most likely without any row."""
        from scipy.optimize import nnls  # only here: predicting needs no scipy

        spread = _SPREAD_OF_COEFFICIENTS * np.maximum(scaled.watts, _LEAST_W)
        terms, power_w = [np.diag(1.0 / spread)], [scaled.watts / spread]
        for key, rows in data.by_key().items():
            part, part_w = data.take(rows), energy_j[rows] / data.latency_s[rows]
            miss = _MISS if key[2] == dtype else np.hypot(_MISS, _SPREAD_OF_FORMATS)
            weight = 1.0 / (miss * (part_w + self.limits.idle_power_w))
            terms.append(_terms(_table(part.cases), part.latency_s, seconds_of(key, self.limits)) * weight[:, None])
            power_w.append(part_w * weight)
        watts, _ = nnls(np.concatenate(terms), np.concatenate(power_w))
        return replace(scaled, watts=np.asarray(watts, dtype=np.float64))

    def _misses(self, data: Observations, energy_j: FloatArray) -> FloatArray:
        """Squares of what each scale misses of each row, in units of what is usual (S, B)."""
        squares = np.empty((len(_LOG_SCALES), len(data)))
        idle_j = self.limits.idle_power_w * data.latency_s
        for key, rows in data.by_key().items():
            law, part = self._of(key), data.take(rows)
            terms = _terms(_table(part.cases), part.latency_s, law.seconds) * part.latency_s[:, None]
            said_j = terms[:, 0] * law.watts[0] + np.exp(_LOG_SCALES)[:, None] * (terms[:, 1:] @ law.watts[1:])
            squares[:, rows] = ((said_j - energy_j[rows]) / (energy_j + idle_j)[rows] / _MISS) ** 2
        return squares


def seconds_of(key: LawKey, limits: DeviceLimits) -> FloatArray:
    """Least time of a byte, of an operation and of a weight's byte to unpack, 0 where nothing is unpacked (3,) [s]."""
    bits = DTYPE_BITS[key[2]]
    per_byte = 1.0 / limits.bandwidth_bytes_per_s
    per_flop = 1.0 / (limits.flops_per_s_8bit if key[0] == "gemm" and bits == 8 else limits.flops_per_s_16bit)
    return np.array([per_byte, per_flop, 8.0 / bits * per_byte if bits < 16 and key[0] in _CODES else 0.0])


def fit_power_laws(
    groups: Iterable[Observations], dynamic_energy_j: Iterable[FloatArray], limits: DeviceLimits
) -> PowerLaws | None:
    """Fit to all rows with energy, to relative error of whole power; None where there are too few.

    Args:
        groups: Measured rows, by operation.
        dynamic_energy_j: Energy above idle, at full clock, of each (B,) [J].
        limits: The device.
    """
    rows = [_measured(data, energy_j) for data, energy_j in zip(groups, dynamic_energy_j, strict=True)]
    rows = [(data, energy_j) for data, energy_j in rows if len(data)]
    if sum(len(data) for data, _ in rows) < LEAST_ROWS:
        return None
    missed = _left_out(rows, limits)
    if not missed:
        return _fitted(rows, limits)
    return replace(
        _fitted(rows, limits),
        log_error=quantile(np.concatenate(list(missed.values()))),
        log_errors={name: quantile(m) for name, m in missed.items() if len(m) >= LEAST_ROWS},
    )


def _left_out(rows: list[_Measured], limits: DeviceLimits) -> dict[tuple[str, str], FloatArray]:
    """What is missed of the power of rows (logarithm) when the rows of their shape are left out.

    By operation and implementation; none where all rows have one shape.
    """
    sizes = [data.cases.sizes() for data, _ in rows]
    shapes = np.unique(np.concatenate(sizes), axis=0, return_inverse=True)[1].ravel() % _FOLDS
    folds = np.split(shapes, np.cumsum([len(s) for s in sizes])[:-1])
    missed: dict[tuple[str, str], list[FloatArray]] = {}
    for fold in np.unique(shapes):
        seen = [(data.take(at != fold), energy_j[at != fold]) for (data, energy_j), at in zip(rows, folds, strict=True)]
        if not any(len(data) for data, _ in seen):
            return {}
        laws = _fitted(seen, limits)
        for (data, energy_j), (known, known_j), at in zip(rows, seen, folds, strict=True):
            for key, places in data.take(at == fold).by_key().items():
                part, part_j = data.take(at == fold).take(places), energy_j[at == fold][places]
                law = laws.law(key, known, known_j)
                said_j = law.dynamic_energy_j(_table(part.cases), part.latency_s)
                idle_j = limits.idle_power_w * part.latency_s
                missed.setdefault(key[:2], []).append(np.abs(np.log((said_j + idle_j) / (part_j + idle_j))))
    return {name: np.concatenate(parts) for name, parts in missed.items()}


def _measured(data: Observations, energy_j: FloatArray) -> _Measured:
    known = np.isfinite(energy_j) & np.array([impl != ON_HOST for impl in data.cases.impl], dtype=np.bool_)
    return data.take(known), energy_j[known]


def _fitted(rows: list[_Measured], limits: DeviceLimits) -> PowerLaws:
    from scipy.optimize import nnls  # only here: predicting needs no scipy

    terms, power_w = [], []
    for data, energy_j in rows:
        for key, places in data.by_key().items():
            part = data.take(places)
            wide = np.zeros((len(part), NUM_WATTS + 1))
            wide[:, _columns(key)] = _terms(_table(part.cases), part.latency_s, seconds_of(key, limits))
            terms.append(wide)
            power_w.append(energy_j[places] / part.latency_s)
    all_terms, all_w = np.concatenate(terms), np.concatenate(power_w)
    weight = 1.0 / (all_w + limits.idle_power_w)
    watts, _ = nnls(all_terms * weight[:, None], all_w * weight)
    return PowerLaws(np.asarray(watts, dtype=np.float64), limits)


def _columns(key: LawKey) -> list[int]:
    """Which coefficients of `PowerLaws` are those of an operation in a format (6,)."""
    return [0, 1, 2, 3, 5 if key[0] == "gemm" and DTYPE_BITS[key[2]] == 8 else 4, 6]


def _table(cases: Cases) -> FloatArray:
    return work_moved(cases, work_of_cases(cases).table())


def _best(squares: FloatArray, middle: float, spread: float) -> float:
    return float(_LOG_SCALES[(squares + ((_LOG_SCALES - middle) / spread) ** 2).argmin()])


def _terms(table: FloatArray, latency_s: FloatArray, seconds: FloatArray) -> FloatArray:
    """What goes on: something, how busy the device is, and what is done in a second over what it can do (B, 6)."""
    weight_bytes, row_bytes, flops = table[:, 1], table[:, 2], table[:, 4]
    rates = np.stack(
        [weight_bytes * seconds[0], row_bytes * seconds[0], flops * seconds[1], weight_bytes * seconds[2]], axis=1
    )
    rates = rates / latency_s[:, None]
    total = rates.sum(axis=1)
    busy = latency_s / (latency_s + _START_S) * total / (total + _HALF_BUSY)
    return np.concatenate([np.ones((len(table), 1)), busy[:, None], rates], axis=1)
