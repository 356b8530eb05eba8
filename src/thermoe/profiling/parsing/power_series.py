"""Power of each GPU over wall-clock time, from the logs that people have.

Known are the telemetry of a run folder and any table with a time and a power column: the project's own logs,
`nvidia-smi --query-gpu=timestamp,power.draw.instant,... --format=csv`, meters. Instant power is preferred.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thermoe.errors import ConfigError, DataError
from thermoe.profiling.parsing.devices import Device, normal_bus, normal_uuid
from thermoe.telemetry.tables import Row, read_table
from thermoe.types import FloatArray, IntArray, Kind

TIME_COLUMNS = ("wall_time_s", "timestamp", "timestamp_ns", "unix_time_s", "utc", "time", "time_s")
POWER_COLUMNS = (
    "power_w",
    "power.draw.instant",
    "power_avg_w",
    "power.draw",
    "power.draw.average",
    "power",
    "power_mw",
)
_SCALE_W = {"mw": 1e-3, "w": 1.0, "kw": 1e3}
_UNIT = re.compile(r"[\[(]\s*(mw|w|kw)\s*[\])]", re.IGNORECASE)
#: A plain number above each bound counts in nano-, micro- or milliseconds; in seconds below all.
_EPOCH_UNITS = ((1e17, 1), (1e14, 1_000), (1e11, 1_000_000))
_EARLIEST_NS = 946_684_800 * 10**9  # the year 2000: earlier stamps count from the start of a machine
_LATEST_NS = 2**62
_MOST_W = 1e6
_MOST_OFFSET_S = 1e9
_MOST_STEP_BACK_NS = 1_000_000_000  # of a log's clock
_MOST_CLASHES = 0.1  # share of stamps that may have two powers
_NVML_SOURCE = re.compile(r"^nvml:(\d+)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerSeries:
    """Readings of one GPU's power.

    Attributes:
        time_ns: (N,) increasing, at least two; since the Unix epoch, or the trace's clock if not `on_wall_clock` [ns].
        power_w: (N,) board power [W].
        energy_j: (N,) energy counter [J], NaN where it was silent; `None` if there is no counter.
        device: Whose power it is.
        name: Where it comes from, for the table.
        kind: Measured, simulated or replayed.
        on_wall_clock: Whether the stamps are wall-clock time.
    """

    time_ns: IntArray
    power_w: FloatArray
    energy_j: FloatArray | None
    device: Device
    name: str
    kind: Kind
    on_wall_clock: bool = True

    def counter_j(self, start_ns: int, end_ns: int) -> float | None:
        """Growth of the energy counter between two moments [J]; `None` where it cannot be told."""
        if self.energy_j is None:
            return None
        known = np.flatnonzero(~np.isnan(self.energy_j))
        ticks = known[1:][np.diff(self.energy_j[known]) != 0]  # between its steps the counter stands still
        time_ns, energy_j = self.time_ns[ticks], self.energy_j[ticks]
        if time_ns.size < 2 or start_ns < time_ns[0] or end_ns > time_ns[-1] or (np.diff(energy_j) < 0).any():
            return None
        low, high = np.interp(np.array([start_ns, end_ns]) - time_ns[0], time_ns - time_ns[0], energy_j)
        return float(high - low)


def read_power_series(path: str | Path, offset_s: float = 0.0) -> list[PowerSeries]:
    """The power of every GPU in a log.

    Args:
        path: A run folder, or a Parquet or CSV file.
        offset_s: Added to every stamp [s]; minus the offset from UTC for local stamps, as nvidia-smi writes them.

    Raises:
        ConfigError: If the offset is no number of seconds, or of more than thirty years.
        DataError: If there is no such file, it has no column of wall-clock time or of power, or its clock went back.
    """
    if not abs(offset_s) <= _MOST_OFFSET_S:
        raise ConfigError(f"offset of {offset_s} s: needs a number within {_MOST_OFFSET_S:g} s")
    file = Path(path)
    file = file / "telemetry.parquet" if file.is_dir() else file
    frame = _frame(read_table(file))
    time_ns = _stamps_ns(frame, file) + round(offset_s * 1e9)
    power_w = _powers_w(frame, file)
    good = (power_w >= 0.0) & (power_w < _MOST_W) & (time_ns > _EARLIEST_NS) & (time_ns < _LATEST_NS)
    if good.sum() < 2:
        raise DataError(
            f"{file}: {int(good.sum())} of {len(frame)} rows have a wall-clock time after 2000 and a power; "
            "needed at least two: record wall_time_s and power_w"
        )
    series = []
    for device, rows in _by_device(frame[good]).items():
        keep = np.flatnonzero(good)[rows]
        one = _one_series(frame.iloc[keep], time_ns[keep], power_w[keep], device, file)
        series += [one] if one is not None else []
    if not series:
        raise DataError(f"{file}: no GPU has two readings at different times; record it longer")
    return series


def _frame(rows: list[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, dtype=object)
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    return frame.loc[:, ~frame.columns.duplicated()]


def _one_series(
    frame: pd.DataFrame, time_ns: IntArray, power_w: FloatArray, device: Device, file: Path
) -> PowerSeries | None:
    unique_ns, first = np.unique(time_ns, return_index=True)
    if unique_ns.size < 2:
        return None
    _refuse_two_at_once(time_ns, power_w, device, file)
    energy_j = None
    if "energy_j" in frame:
        energy_j = pd.to_numeric(frame["energy_j"], errors="coerce").to_numpy(np.float64)[first]
    kinds = {str(kind) for kind in frame["kind"].dropna().unique()} if "kind" in frame else {str(Kind.MEASURED)}
    if len(kinds) > 1 or not kinds <= {str(kind) for kind in Kind}:
        raise DataError(
            f"{file} has the kinds {', '.join(sorted(kinds))}: needed one of {', '.join(Kind)}, never mixed"
        )
    return PowerSeries(
        time_ns=unique_ns,
        power_w=power_w[first],
        energy_j=energy_j,
        device=device,
        name=f"log:{file.name}",
        kind=Kind(kinds.pop()) if kinds else Kind.MEASURED,
    )


def _refuse_two_at_once(time_ns: IntArray, power_w: FloatArray, device: Device, file: Path) -> None:
    """Two powers for one moment: the clock was set back while it ran, or rows of several GPUs do not name theirs."""
    rows = pd.DataFrame({"time_ns": time_ns, "power_w": power_w}).drop_duplicates()
    clashes = len(rows) - rows["time_ns"].nunique()
    if device == Device() and clashes > _MOST_CLASHES * len(rows):
        raise DataError(
            f"{file}: {clashes} of {len(rows)} stamps have several powers and no row names its GPU: log uuid too"
        )
    stamps = rows["time_ns"].to_numpy()
    begins = np.flatnonzero(np.diff(stamps, prepend=stamps[0] - 1) < 0)
    starts, ends = stamps[np.concatenate([[0], begins])], stamps[np.concatenate([begins - 1, [stamps.size - 1]])]
    order = np.argsort(starts, kind="stable")
    shared_ns = int((np.maximum.accumulate(ends[order])[:-1] - starts[order][1:]).max(initial=0))
    if shared_ns > _MOST_STEP_BACK_NS:
        raise DataError(
            f"{file}: its clock goes back, so that {shared_ns * 1e-9:.1f} s hold readings of two times: cut the log "
            "where that happens, and name one part"
        )


def _by_device(frame: pd.DataFrame) -> dict[Device, IntArray]:
    """Rows of each GPU, by the columns that name it; a log of one GPU need not name it."""
    columns = {re.sub(r"\s*\[.*", "", name).lower(): name for name in frame.columns}
    uuids = _column(frame, columns, "uuid", "gpu_uuid", "device_uuid")
    buses = _column(frame, columns, "pci.bus_id", "bus_id", "bus", "gpu_bus_id", "device_bus")
    indices = _column(frame, columns, "index", "gpu", "gpu_index")
    sources = _column(frame, columns, "source")
    names = [
        Device(normal_uuid(uuid), normal_bus(bus), _index(index, source))
        for uuid, bus, index, source in zip(uuids, buses, indices, sources, strict=True)
    ]
    result: dict[Device, list[int]] = {}
    for row, device in enumerate(names):
        result.setdefault(device, []).append(row)
    return {device: np.array(rows, dtype=np.int64) for device, rows in result.items()}


def _column(frame: pd.DataFrame, columns: dict[str, str], *names: str) -> list[Any]:
    found = next((columns[name] for name in names if name in columns), None)
    return [None] * len(frame) if found is None else frame[found].tolist()


def _index(index: Any, source: Any) -> int | None:
    match = _NVML_SOURCE.match(source) if isinstance(source, str) else None
    text = match.group(1) if match else str(index).strip()
    return int(text) if text.isdecimal() and len(text) < 6 else None


def _find(frame: pd.DataFrame, wanted: tuple[str, ...], what: str, file: Path) -> str:
    bare = {_UNIT.sub("", name).strip().lower(): name for name in frame.columns}
    filled = [bare[name] for name in wanted if name in bare and frame[bare[name]].notna().any()]
    filled.sort(key=lambda name: not frame[name].astype(str).str.contains(r"\d").any())  # "[N/A]" is no reading
    if not filled:
        have = ", ".join(map(str, frame.columns[:12]))
        raise DataError(f"{file} has no column of {what} (it has {have}): needed one of {', '.join(wanted)}")
    return filled[0]


def _powers_w(frame: pd.DataFrame, file: Path) -> FloatArray:
    name = _find(frame, POWER_COLUMNS, "power", file)
    header = _UNIT.search(name)
    scale_w = _SCALE_W[header.group(1).lower()] if header else (1e-3 if name.lower().endswith("_mw") else 1.0)
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64) * scale_w
    if np.isnan(values).all():  # cells that carry their unit, as in "56.1 W"
        parts = frame[name].astype(str).str.extract(r"^\s*([-+0-9.eE]+)\s*([mk]?W)\s*$", flags=re.IGNORECASE)
        numbers = pd.to_numeric(parts[0], errors="coerce").to_numpy(np.float64)
        units = parts[1].str.lower().map(_SCALE_W).to_numpy(np.float64)
        values = numbers * units
    return np.where(np.isfinite(values), values, np.nan)


def _stamps_ns(frame: pd.DataFrame, file: Path) -> IntArray:
    """Stamps since the epoch [ns]; 0 where there is none."""
    column = frame[_find(frame, TIME_COLUMNS, "time", file)]
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    if not np.isnan(numbers).all():
        return np.array([_epoch_ns(cell) for cell in column.tolist()], dtype=np.int64)
    dates = pd.to_datetime(column.astype(str), errors="coerce", utc=True, format="mixed")
    stamps = dates.dt.as_unit("ns").astype("int64").to_numpy()
    return np.where(dates.isna(), 0, stamps).astype(np.int64)


def _epoch_ns(cell: Any) -> int:
    """A number in whatever unit its size tells; whole nanoseconds are kept exactly."""
    try:
        number = int(cell) if isinstance(cell, int) or (isinstance(cell, str) and cell.isdecimal()) else float(cell)
    except (TypeError, ValueError):
        return 0
    if isinstance(number, float) and not math.isfinite(number):
        return 0
    unit = next((unit for bound, unit in _EPOCH_UNITS if abs(number) >= bound), 1_000_000_000)
    stamp = number * unit if isinstance(number, int) else round(number * unit)
    return int(stamp) if abs(stamp) < _LATEST_NS else 0
