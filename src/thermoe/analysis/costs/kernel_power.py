"""Which types of kernels go with high power: windows of a trace, their kernel time by type and their mean power.

A correlation, and no more: kernels that run beside a hungry one correlate with power as well as it does, and a sensor
that averages over 100 ms cannot tell them apart. Shapes: W windows, K types.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from thermoe.analysis.statistics import NUM_RESAMPLES, Interval
from thermoe.errors import DataError
from thermoe.types import FloatArray, IntArray

NEEDED = ("op_type", "device_id", "start_ns", "end_ns", "power_w_mean", "energy_j", "energy_kind", "source_file")
SENSOR_S = 0.1
MIN_WINDOWS = 8
_MOST_WINDOWS = 2000
_WANTED_WINDOWS = 60
_LEAST_COVERED = 0.01
_SEED = 20262


@dataclass(frozen=True, slots=True)
class TypePower:
    """One type of kernels.

    Attributes:
        op_type: The type, an operation or what the kernels' names say.
        kernels: How many ran.
        time_share: Of all kernel time.
        energy_j: Energy that was given to them [J].
        power_w: Mean board power while they ran, weighted by time [W].
        correlation: Of their time in a window with the window's mean power, within devices, with a 90 % interval; None
            where there are too few windows or either does not vary.
    """

    op_type: str
    kernels: int
    time_share: float
    energy_j: float
    power_w: float
    correlation: Interval | None


@dataclass(frozen=True, slots=True)
class KernelPower:
    """Kernels of one kind of power.

    Attributes:
        kind: Of the power: measured, simulated or replayed.
        types: The most time first.
        windows: Windows that count.
        dropped: Windows in which kernels ran for less than a hundredth of the time, so that their power is not known.
        window_s: Their length [s].
        devices: Devices of all files.
        note: Why there is no correlation; empty where there is one.
    """

    kind: str
    types: Sequence[TypePower]
    windows: int
    dropped: int
    window_s: float
    devices: int
    note: str


def read_kernels(paths: Sequence[Path]) -> pd.DataFrame:
    """Kernel tables as `thermoe parse` writes them, joined.

    Raises:
        DataError: A file cannot be read, or is no such table.
    """
    return pd.concat([_read(path) for path in paths], ignore_index=True)


def kernel_power(table: pd.DataFrame, window_s: float | None = None) -> list[KernelPower]:
    """One answer for each kind of power in the table; empty where no kernel has power and a place in time.

    Args:
        table: Of `read_kernels`.
        window_s: Length of a window [s]; by default a sixtieth of the longest trace, no less than a sensor's period.

    Raises:
        DataError: The window is not positive, or far too short for the trace.
    """
    if window_s is not None and not window_s > 0:
        raise DataError(f"windows of {window_s:g} s: need a positive length")
    known = table[table["power_w_mean"].notna() & table["start_ns"].notna() & table["end_ns"].notna()]
    known = known[known["end_ns"] > known["start_ns"]]
    kinds = known["energy_kind"].fillna("of unknown kind")
    return [_of_kind(str(kind), part, window_s) for kind, part in known.groupby(kinds, sort=True)]


def _of_kind(kind: str, table: pd.DataFrame, window_s: float | None) -> KernelPower:
    devices = [part for _, part in table.groupby(["source_file", "device_id"], dropna=False, sort=True)]
    longest_s = max(float(part["end_ns"].max() - part["start_ns"].min()) for part in devices) * 1e-9
    length_s = max(longest_s / _WANTED_WINDOWS, SENSOR_S) if window_s is None else window_s
    if longest_s / length_s > _MOST_WINDOWS:
        least_s = longest_s / _MOST_WINDOWS
        raise DataError(f"windows of {length_s:g} s over a trace of {longest_s:g} s: choose {least_s:.3g} s or more")
    names = sorted(str(name) for name in table["op_type"].unique())
    found = [_windows(part, names, length_s) for part in devices]
    counts = [len(power_W) for _, power_W, _ in found]
    windows = sum(counts)
    note = ""
    if windows < MIN_WINDOWS:
        note = (
            f"a trace of {longest_s:.3g} s holds {windows} windows of {length_s:.3g} s in which kernels ran: "
            f"a correlation needs {MIN_WINDOWS}"
        )
    share_WK, power_W = _centred(found)
    drawn = _resamples(counts) if not note else np.zeros((0, 0), dtype=np.int64)
    types = [_type(table, name, share_WK[:, k], power_W, drawn) for k, name in enumerate(names)]
    return KernelPower(
        kind=kind,
        types=sorted(types, key=lambda t: -t.time_share),
        windows=windows,
        dropped=sum(dropped for _, _, dropped in found),
        window_s=length_s,
        devices=len(devices),
        note=note,
    )


def _type(table: pd.DataFrame, name: str, share_W: FloatArray, power_W: FloatArray, drawn: IntArray) -> TypePower:
    mine = table[table["op_type"] == name]
    time = _float(mine["end_ns"]) - _float(mine["start_ns"])
    total = (_float(table["end_ns"]) - _float(table["start_ns"])).sum()
    return TypePower(
        op_type=name,
        kernels=len(mine),
        time_share=float(time.sum() / total),
        energy_j=float(np.nansum(_float(mine["energy_j"]))),
        power_w=float((time * _float(mine["power_w_mean"])).sum() / time.sum()),
        correlation=_correlation(share_W, power_W, drawn) if len(drawn) else None,
    )


def _windows(part: pd.DataFrame, names: Sequence[str], length_s: float) -> tuple[FloatArray, FloatArray, int]:
    """Of one device: kernel time by type over the window's length (W, K), mean power (W,) [W], windows left out."""
    start_s, end_s = (_float(part[c] - part["start_ns"].min()) * 1e-9 for c in ("start_ns", "end_ns"))
    power_w = _float(part["power_w_mean"])
    count = max(1, int(end_s.max() / length_s))  # what is left at the end is no whole window
    type_K = np.array([names.index(str(name)) for name in part["op_type"]])
    busy_WK, joules_W = np.zeros((count, len(names))), np.zeros(count)
    first, last = (start_s / length_s).astype(np.int64), (end_s / length_s).astype(np.int64)
    for ahead in range(int((last - first).max()) + 1):
        window = first + ahead
        overlap_s = np.minimum(end_s, (window + 1) * length_s) - np.maximum(start_s, window * length_s)
        inside = (overlap_s > 0) & (window < count)
        np.add.at(busy_WK, (window[inside], type_K[inside]), overlap_s[inside])
        np.add.at(joules_W, window[inside], overlap_s[inside] * power_w[inside])
    busy_W = busy_WK.sum(axis=1)
    kept = busy_W >= _LEAST_COVERED * length_s
    return busy_WK[kept] / length_s, joules_W[kept] / busy_W[kept], int((~kept).sum())


def _centred(found: Sequence[tuple[FloatArray, FloatArray, int]]) -> tuple[FloatArray, FloatArray]:
    """All devices' windows, each device's own means taken off: devices differ for reasons of their own."""
    shares = [share_WK - share_WK.mean(axis=0) for share_WK, _, _ in found if len(share_WK)]
    powers = [power_W - power_W.mean() for _, power_W, _ in found if len(power_W)]
    if not powers:
        return np.zeros((0, found[0][0].shape[1])), np.zeros(0)
    return np.concatenate(shares), np.concatenate(powers)


def _correlation(share_W: FloatArray, power_W: FloatArray, drawn_RW: IntArray) -> Interval | None:
    value = float(_pearson(share_W[None], power_W[None])[0])
    if not np.isfinite(value):
        return None
    draws = _pearson(share_W[drawn_RW], power_W[drawn_RW])
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, [5.0, 95.0])
    return Interval(value, float(low), float(high))


def _pearson(x_RW: FloatArray, y_RW: FloatArray) -> FloatArray:
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x_RW, y_RW))
    spread = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    varies = spread > 1e-9 * x_RW.shape[1]
    result = np.where(varies, (x * y).sum(axis=1) / np.where(varies, spread, 1.0), np.nan)
    return np.asarray(result, dtype=np.float64)


def _resamples(counts: Sequence[int]) -> IntArray:
    """Windows of each resample (R, W): blocks of neighbours, which are alike, drawn within each device."""
    rng, parts, begin = np.random.default_rng(_SEED), [], 0
    for count in (c for c in counts if c):
        block = max(1, round(count ** (1 / 3)))
        starts = rng.integers(0, count - block + 1, (NUM_RESAMPLES, -(-count // block)))
        drawn = (starts[:, :, None] + np.arange(block)).reshape(NUM_RESAMPLES, -1)[:, :count]
        parts.append(begin + drawn)
        begin += count
    return np.concatenate(parts, axis=1)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be read as a kernel table ({' '.join(str(err).split())[:200]})") from err
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; give a table that thermoe parse wrote")
    for name in ("start_ns", "end_ns", "power_w_mean", "energy_j"):
        try:
            table[name] = pd.to_numeric(table[name])
        except (TypeError, ValueError) as err:
            raise DataError(f"{path}: column {name} holds something other than numbers") from err
    return table[table["op_type"].notna()]


def _float(values: "pd.Series[float]") -> FloatArray:
    return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
