"""A rival of the cost model: launch plus the longer of bytes and operations, three rates fitted to measurements."""

import numpy as np

from thermoe.cost.observations import Observations
from thermoe.cost.roofline import H200, DeviceLimits
from thermoe.cost.work import work_of_cases
from thermoe.types import BoolArray, FloatArray


def fit_rates(work: FloatArray, latency_s: FloatArray, limits: DeviceLimits = H200) -> FloatArray:
    """Logarithms of launch [s], time of a byte and of an operation [s] that fit best, (3,).

    Args:
        work: Bytes and operations of each row (B, 2).
        latency_s: Measured (B,) [s].
        limits: Where the search begins.
    """
    from scipy.optimize import least_squares  # only here: importing it takes longer than most commands

    def misfit(rates: FloatArray) -> FloatArray:
        return np.asarray(np.log(with_rates(rates, work) / latency_s))

    start = np.log([limits.launch_s, 1.0 / limits.bandwidth_bytes_per_s, 1.0 / limits.flops_per_s_16bit])
    found = least_squares(misfit, start, loss="soft_l1", f_scale=0.1)
    return np.asarray(found.x, dtype=np.float64)


def with_rates(rates: FloatArray, work: FloatArray) -> FloatArray:
    """Latency [s], (B,), of bytes and operations (B, 2)."""
    launch_s, per_byte_s, per_flop_s = np.exp(rates)
    return np.asarray(launch_s + np.maximum(work[:, 0] * per_byte_s, work[:, 1] * per_flop_s), dtype=np.float64)


def bytes_and_flops(observed: Observations) -> FloatArray:
    """Of each row (B, 2)."""
    work = work_of_cases(observed.cases)
    return np.stack([work.weight_bytes + work.row_bytes, work.flops], axis=1)


def calibrated_roofline_s(known: Observations | None, asked: Observations) -> FloatArray:
    """Latency [s] of each asked row (B,), its rates fitted to the known rows of its implementation and format.

    All known rows are taken where none is of that format; NaN where nothing is known.
    """
    latency_s = np.full(len(asked), np.nan)
    if known is None:
        return latency_s
    theirs, ours = _names(known), _names(asked)
    for name in sorted(set(ours)):
        alike, rows = _matching(theirs, name), np.array([n == name for n in ours])
        rates = fit_rates(bytes_and_flops(known.take(alike)), known.window_s[alike])
        latency_s[rows] = with_rates(rates, bytes_and_flops(asked.take(rows)))
    return latency_s


def _names(observed: Observations) -> list[tuple[str, str]]:
    return list(zip(observed.cases.impl, observed.cases.dtype, strict=True))


def _matching(names: list[tuple[str, str]], name: tuple[str, str]) -> BoolArray:
    same = np.array([n == name for n in names])
    return same if same.any() else np.ones(len(names), dtype=np.bool_)
