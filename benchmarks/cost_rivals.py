"""What a cost model has to beat: boosted trees over a roofline, and a roofline with fitted rates and mean power."""

import numpy as np
import pandas as pd

from thermoe.cost.calibrated_roofline import bytes_and_flops, fit_rates, with_rates
from thermoe.cost.observations import Observations
from thermoe.cost.roofline import H200
from thermoe.cost.tables import group_table
from thermoe.types import FloatArray


def boosted(seen: pd.DataFrame, unseen: pd.DataFrame, seed: int) -> tuple[FloatArray, FloatArray, None]:
    """Histogram boosting with its defaults, of the log ratio of latency to the roofline and of the log of power."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    (a,), (b,) = group_table(seen).values(), group_table(unseen).values()
    x, y = _columns(seen, a), _columns(unseen, b)
    ratio = HistGradientBoostingRegressor(random_state=seed).fit(x, np.log(a.latency_s / _roofline_s(a)))
    power = HistGradientBoostingRegressor(random_state=seed).fit(x, np.log(a.power_w))
    latency_s = np.exp(ratio.predict(y)) * _roofline_s(b)
    return latency_s, np.exp(power.predict(y)) * latency_s, None


def calibrated_roofline(seen: pd.DataFrame, unseen: pd.DataFrame, seed: int) -> tuple[FloatArray, FloatArray, None]:
    """Launch plus the longer of bytes and operations, three rates fitted by format; energy at the mean power."""
    del seed
    (a,), (b,) = group_table(seen).values(), group_table(unseen).values()
    latency_s = np.empty(len(b))
    for dtype in sorted(set(b.cases.dtype)):
        known, asked = (np.array(o.cases.dtype) == dtype for o in (a, b))
        if not known.any():
            known = np.ones(len(a), dtype=np.bool_)
        rates = fit_rates(bytes_and_flops(a.take(known)), a.latency_s[known])
        latency_s[asked] = with_rates(rates, bytes_and_flops(b.take(asked)))
    return latency_s, float(np.nanmean(a.power_w)) * latency_s, None


def _roofline_s(observed: Observations) -> FloatArray:
    work, bits = bytes_and_flops(observed), observed.cases.bits
    rate = np.where(bits == 8, H200.flops_per_s_8bit, H200.flops_per_s_16bit)
    return np.asarray(H200.launch_s + np.maximum(work[:, 0] / H200.bandwidth_bytes_per_s, work[:, 1] / rate))


def _columns(table: pd.DataFrame, observed: Observations) -> FloatArray:
    """The table's own numbers, its categories by number, and the roofline."""
    labels = {"latency_ms", "power_w", "power_limit_w"}
    columns = [np.log(_roofline_s(observed))]
    for name in table.columns:
        if name in labels:
            continue
        values = table[name]
        columns.append(values.to_numpy(float) if values.dtype.kind in "if" else np.array([_code(v) for v in values]))
    return np.stack(columns, axis=1)


def _code(word: object) -> float:
    """A number for a category, the same in every fold."""
    return float(sum((i + 1) * ord(c) for i, c in enumerate(str(word))))
