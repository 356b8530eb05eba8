"""Power that an nsys export may hold itself. Where nsys writes it is not documented: it is looked for at run time.

Three places are searched: sampled metrics and generic events whose name speaks of power, and any table
that has a column of power beside one of time. A reading of this kind is NVML's average over a second on most
boards since Ampere, so that it says nothing about single kernels; a telemetry log of one's own is better.
"""

import json
import re

import numpy as np

from thermoe.profiling.parsing.devices import Device
from thermoe.profiling.parsing.power_series import PowerSeries
from thermoe.profiling.parsing.sqlite_file import MISSING, SqliteFile
from thermoe.types import FloatArray, IntArray, Kind

_POWER = re.compile(r"power", re.IGNORECASE)
_NOT_A_READING = re.compile(r"limit|state|cap|management", re.IGNORECASE)
_TIME_COLUMNS = ("timestamp", "start", "rawtimestamp")
_DEVICE_COLUMNS = ("gpuid", "deviceid", "gpu", "device")
#: No board takes so much: larger medians are milliwatts [W].
_MOST_W = 5_000.0
_VALUE_COLUMNS = ("intVal", "uintVal", "floatVal", "doubleVal")
_MOST_EVENTS = 1_000_000
_DEVICE_BITS = 0xFF

_Found = tuple[str, int | None, IntArray, FloatArray]


def find_power(file: SqliteFile, wall_offset_ns: int | None, notes: list[str], name: str) -> list[PowerSeries]:
    """All series of power in the export, in the first of the three places that has any."""
    found: list[_Found] = []
    for search in (_in_metrics, _in_events, _in_tables):
        found = [one for one in search(file) if np.unique(one[2]).size >= 2]
        if found:
            break
    series = [_series(one, wall_offset_ns) for one in found]
    if series:
        places = ", ".join(sorted({one.name for one in series}))
        notes.append(f"{name}: power found in {places}; nsys averages it over a second on most boards")
    return series


def _series(found: _Found, wall_offset_ns: int | None) -> PowerSeries:
    place, index, time_ns, values = found
    unique_ns, first = np.unique(time_ns, return_index=True)
    power_w = values[first]
    scale = 1e-3 if float(np.median(power_w)) > _MOST_W else 1.0
    return PowerSeries(
        time_ns=unique_ns + (wall_offset_ns or 0),
        power_w=power_w * scale,
        energy_j=None,
        device=Device(index=index),
        name=f"nsys:{place}",
        kind=Kind.MEASURED,
        on_wall_clock=wall_offset_ns is not None,
    )


def _is_power(name: object) -> bool:
    return isinstance(name, str) and bool(_POWER.search(name)) and not _NOT_A_READING.search(name)


def _in_metrics(file: SqliteFile) -> list[_Found]:
    samples_table, names_table = file.find("GPU_METRICS"), file.find("TARGET_INFO_GPU_METRICS")
    if samples_table is None or names_table is None:
        return []
    names = file.rows(names_table, ["typeId", "metricId", "metricName"])
    wanted = [row for row in names if _is_power(row["metricName"]) and isinstance(row["typeId"], int)]
    if not wanted:
        return []
    samples = file.integers(samples_table, ["timestamp", "typeId", "metricId", "value"])
    result: list[_Found] = []
    for row in wanted:
        mine = (samples["typeId"] == row["typeId"]) & (samples["metricId"] == row["metricId"])
        mine &= (samples["timestamp"] != MISSING) & (samples["value"] != MISSING)
        values = samples["value"][mine].astype(np.float64)
        result.append(("GPU_METRICS", row["typeId"] & _DEVICE_BITS, samples["timestamp"][mine], values))
    return result


def _in_events(file: SqliteFile) -> list[_Found]:
    """Generic events of a type or source named after power; the value in its data table or in its JSON."""
    events, types, strings = file.find("GENERIC_EVENTS"), file.find("GENERIC_EVENT_TYPES"), file.find("StringIds")
    if events is None or types is None or strings is None:
        return []
    rows = file.rows(types, ["typeId", "sourceId", "nameId"])
    sources = file.find("GENERIC_EVENT_SOURCES")
    source_names = (
        {row["sourceId"]: row["nameId"] for row in file.rows(sources, ["sourceId", "nameId"])} if sources else {}
    )
    ids = [
        value for row in rows for value in (row["nameId"], source_names.get(row["sourceId"])) if isinstance(value, int)
    ]
    texts = file.texts(strings, "id", '"value"', ids)
    result: list[_Found] = []
    for row in rows:
        names = [
            texts.get(value) for value in (row["nameId"], source_names.get(row["sourceId"])) if isinstance(value, int)
        ]
        if isinstance(row["typeId"], int) and any(map(_is_power, names)):
            time_ns, values = _event_values(file, events, row["typeId"])
            result.append(("GENERIC_EVENTS", None, time_ns, values))
    return result


def _event_values(file: SqliteFile, events: str, type_id: int) -> tuple[IntArray, FloatArray]:
    data = file.find("GENERIC_EVENT_DATA")
    if data is not None:
        known = file.columns(data)
        terms = [f'd."{known[name.lower()]}"' for name in _VALUE_COLUMNS if name.lower() in known]
        value = f"coalesce({', '.join([*terms, 'NULL', 'NULL'])})"
        query = (
            f'SELECT e.timestamp, {value} FROM "{events}" e JOIN "{data}" d ON d.genericEventId = e.genericEventId '
            f'WHERE e.typeId = ? AND d.fieldIdx = (SELECT min(fieldIdx) FROM "{data}") LIMIT {_MOST_EVENTS}'
        )
        pairs = list(file.query(query, [type_id]))
        if pairs:
            return _clean(pairs)
    if "data" not in file.columns(events):
        return _clean([])
    rows = file.query(f'SELECT timestamp, data FROM "{events}" WHERE typeId = ? LIMIT {_MOST_EVENTS}', [type_id])
    return _clean([(time_ns, _power_in_json(text)) for time_ns, text in rows])


def _power_in_json(text: object) -> float | None:
    try:
        fields = json.loads(text) if isinstance(text, str) and len(text) < 65_536 else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    for name, value in fields.items():
        if _is_power(name) and isinstance(value, str | int | float):
            try:
                return float(value)
            except ValueError:
                continue
    return None


def _in_tables(file: SqliteFile) -> list[_Found]:
    """Tables with a column of power and one of time; one series for each device that the table names."""
    result: list[_Found] = []
    for table in file.tables.values():
        columns = file.columns(table)
        power = next((name for name in columns if _is_power(name)), None)
        stamp = next((name for name in _TIME_COLUMNS if name in columns), None)
        if power is None or stamp is None:
            continue
        device = next((name for name in _DEVICE_COLUMNS if name in columns), None)
        third = f'"{columns[device]}"' if device else "NULL"
        query = f'SELECT "{columns[stamp]}", "{columns[power]}", {third} FROM "{table}" LIMIT {_MOST_EVENTS}'
        rows = list(file.query(query))
        indices: list[int | None] = [*sorted({row[2] for row in rows if isinstance(row[2], int)})] or [None]
        for index in indices:
            time_ns, values = _clean([row[:2] for row in rows if index is None or row[2] == index])
            result.append((table, index, time_ns, values))
    return result


def _clean(pairs: "list[tuple[object, ...]]") -> tuple[IntArray, FloatArray]:
    good = [
        (stamp, float(value))
        for stamp, value in pairs
        if isinstance(stamp, int) and abs(stamp) < 2**61 and isinstance(value, int | float) and abs(value) < 1e9
    ]
    times = np.array([stamp for stamp, _ in good], dtype=np.int64)
    return times, np.array([value for _, value in good], dtype=np.float64)
