"""Logs of external power meters: wall-clock stamps and watts, aligned with what ran at the time."""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from thermoe.errors import ConfigError, DataError
from thermoe.telemetry.tables import read_csv
from thermoe.types import FloatArray

_log = logging.getLogger(__name__)

_UNITS_W = {"mw": 1e-3, "w": 1.0, "kw": 1e3}
_NUMBER = re.compile(r"^\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*(mW|W|kW)?\s*$", re.IGNORECASE)
_HEADER_UNIT = re.compile(r"[\[(]\s*(mW|W|kW)\s*[\])]", re.IGNORECASE)
_STAMP_FORMATS = ("%Y/%m/%d %H:%M:%S.%f", "%Y/%m/%d %H:%M:%S")
#: A plain number above each bound counts in nano-, micro- or milliseconds; seconds below all (until the year 5138).
_EPOCH_UNITS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))


@dataclass(frozen=True, slots=True)
class PowerLog:
    """Samples of a power meter.

    Attributes:
        wall_time_s: (N,) seconds since the Unix epoch, increasing [s].
        power_w: (N,) power [W].
    """

    wall_time_s: FloatArray
    power_w: FloatArray


def read_power_log(path: str | Path, *, time_column: str, power_column: str, time_offset_s: float = 0.0) -> PowerLog:
    """Read the log of a power meter.

    Rows whose stamp or power cannot be read are left out and their number is logged; stamps may be
    repeated or out of order. Cells may carry a unit ("56.1 W"), as may the header ("[mW]").

    Args:
        path: Text file with a header line; cells separated by commas, semicolons or tabs.
        time_column: Column of the stamps: seconds (or milli-, micro-, nanoseconds) since the epoch,
            ISO 8601, or "2023/07/14 10:12:46.483". Stamps without a zone are taken as UTC.
        power_column: Column of the power; its unit may be left out of the name.
        time_offset_s: Added to every stamp [s]: minus the meter's UTC offset for local stamps, plus
            whatever its clock is behind.

    Raises:
        DataError: If the file or a column is missing, or most rows cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no file {file}: needed the CSV log of a power meter")
    rows = read_csv(file)
    if not rows:
        raise DataError(f"{file} has no rows: needed samples of a power meter")
    time_name = _find_column(rows[0].keys(), time_column, file)
    power_name = _find_column(rows[0].keys(), power_column, file)
    header_unit = _HEADER_UNIT.search(power_name)
    scale = _UNITS_W[header_unit.group(1).lower()] if header_unit else 1.0
    read = [(_stamp_s(row[time_name]), _power_w(row[power_name], scale)) for row in rows]
    good = [(time_s, power_w) for time_s, power_w in read if time_s is not None and power_w is not None]
    if 2 * len(good) < len(read) or len(good) < 2:
        raise DataError(f"{file}: {len(good)} of {len(read)} rows have a time and a power; check the two column names")
    if len(good) < len(read):
        _log.warning(
            "%s: left out %d of %d rows without a readable time or power", file, len(read) - len(good), len(read)
        )
    times_s, powers_w = np.array(good, dtype=np.float64).T
    unique_s, first = np.unique(times_s, return_index=True)
    return PowerLog(unique_s + time_offset_s, powers_w[first])


def align_power_log(
    log: PowerLog, windows: Sequence[tuple[float, float]], *, max_gap_s: float = 1.0
) -> list[float | None]:
    """Energy of each window of wall-clock time [J], the power taken as linear between samples.

    Args:
        log: The samples.
        windows: (start, end) of each, seconds since the Unix epoch.
        max_gap_s: Longest stretch without a sample that is bridged [s].

    Returns:
        One energy per window; `None` where the log does not cover it or has a longer hole in it.

    Raises:
        ConfigError: For a window that ends before it begins.
    """
    return [_window_energy_j(log, start_s, end_s, max_gap_s) for start_s, end_s in windows]


def _window_energy_j(log: PowerLog, start_s: float, end_s: float, max_gap_s: float) -> float | None:
    if not start_s <= end_s:
        raise ConfigError(f"window from {start_s} to {end_s} s: needs start <= end")
    times_s = log.wall_time_s
    if start_s < times_s[0] or end_s > times_s[-1]:
        return None
    low = int(np.searchsorted(times_s, start_s, side="right")) - 1
    high = int(np.searchsorted(times_s, end_s, side="left"))
    if high > low and np.diff(times_s[low : high + 1]).max() > max_gap_s:
        return None
    inside = times_s[(times_s > start_s) & (times_s < end_s)]
    knots_s = np.concatenate([[start_s], inside, [end_s]])
    return float(np.trapezoid(np.interp(knots_s, times_s, log.power_w), knots_s))


def _find_column(names: Iterable[str], wanted: str, file: Path) -> str:
    known = list(names)
    for name in known:
        if wanted.strip() in (name, _HEADER_UNIT.sub("", name).strip()):
            return name
    raise DataError(f"{file} has no column {wanted!r}: it has {', '.join(known)}")


def _power_w(cell: str | None, scale: float) -> float | None:
    match = _NUMBER.match(cell or "")
    if match is None:
        return None
    return float(match.group(1)) * (_UNITS_W[match.group(2).lower()] if match.group(2) else scale)


def _stamp_s(cell: str | None) -> float | None:
    if not cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        return _date_s(cell)
    if not math.isfinite(number):
        return None
    return number * next((unit for bound, unit in _EPOCH_UNITS if abs(number) >= bound), 1.0)


def _date_s(cell: str) -> float | None:
    stamp = None
    try:
        stamp = datetime.fromisoformat(cell)
    except ValueError:
        for form in _STAMP_FORMATS:
            try:
                stamp = datetime.strptime(cell, form).replace(tzinfo=UTC)
                break
            except ValueError:
                continue
    if stamp is None:
        return None
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
