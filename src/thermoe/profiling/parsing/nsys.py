"""Kernels of an nsys SQLite export, whatever its schema version: tables and columns are looked up by name.

Every table but the kernels' is optional. Kernels whose launch was trimmed away stay, without range.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from thermoe.profiling.parsing.nsys_devices import device_columns
from thermoe.profiling.parsing.nsys_metrics import add_metrics
from thermoe.profiling.parsing.nsys_power import find_power
from thermoe.profiling.parsing.nsys_ranges import add_ranges
from thermoe.profiling.parsing.op_types import type_of_kernel
from thermoe.profiling.parsing.sqlite_file import MISSING, SqliteFile
from thermoe.profiling.parsing.table import NothingToParseError, Trace, texts_of, whole_numbers
from thermoe.types import BoolArray, IntArray

REMEDY = "export it again with nsys export --type sqlite"
_KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
_ALIASES = ("CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL",)
_SUFFIXES = ("", "_V2", "_V3")
_GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
_OTHER_WORK = ("CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET")
_NAMES = ("shortName", "demangledName", "mangledName", "name")
_SIZES = (*("gridX", "gridY", "gridZ"), *("blockX", "blockY", "blockZ"), "registersPerThread")
_PLACES = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")
_GRAPH_ADVICE = "profile with --cuda-graph-trace=node to see them"
MOST_NS = 2**61


def parse_nsys(path: Path) -> Trace:
    """Read one export.

    Raises:
        NothingToParseError: If it holds no kernel; the message says why.
        DataError: If it cannot be read.
    """
    with SqliteFile(path, REMEDY) as file:
        kernel_table = file.find(*[table + suffix for table in (_KERNELS, *_ALIASES) for suffix in _SUFFIXES])
        graphs = _read_graphs(file)
        if kernel_table is None or file.count(kernel_table) == 0:
            raise NothingToParseError(f"{path} holds no kernels: {_why_nothing(file, kernel_table, graphs)}")
        raw = file.integers(kernel_table, [*_PLACES, *_NAMES, *_SIZES])
        good = _have_times(raw)
        if not good.any():
            raise NothingToParseError(
                f"{path} holds no kernels with a start and an end (schema {schema_version(file)}): {REMEDY}"
            )
        notes = [] if good.all() else [f"{path.name}: left out {int((~good).sum())} kernels without start and end"]
        raw = _by_start({name: values[good] for name, values in raw.items()})
        frame = _columns(raw) | _name_columns(file, raw) | device_columns(file, raw["globalPid"], raw["deviceId"])
        kernels = pd.DataFrame(frame)
        add_ranges(file, raw, kernels, notes, path.name)
        add_metrics(file, raw, kernels)
        wall_offset_ns = _wall_offset_ns(file)
        power = find_power(file, wall_offset_ns, notes, path.name)
        hidden = _hidden(file, graphs, notes, path.name)
        if wall_offset_ns is None:
            notes.append(f"{path.name}: no session start time, so no power log can be joined")
    return Trace(path=path, kernels=kernels, hidden=hidden, wall_offset_ns=wall_offset_ns, power=power, notes=notes)


def schema_version(file: SqliteFile) -> str:
    """Version of the export's schema, "unknown" where it does not say; no version is refused."""
    for table in ("META_DATA_EXPORT", "EXPORT_META_DATA"):
        name = file.find(table)
        for row in file.rows(name, ["name", "value"]) if name else []:
            if row["name"] == "EXPORT_SCHEMA_VERSION":
                return str(row["value"])
    return "unknown"


def _have_times(raw: dict[str, IntArray]) -> BoolArray:
    start, end = raw["start"], raw["end"]
    good: BoolArray = (start > -MOST_NS) & (end < MOST_NS) & (end >= start)
    return good


def _by_start(raw: dict[str, IntArray]) -> dict[str, IntArray]:
    order = np.lexsort((raw["streamId"], raw["deviceId"], raw["start"]))
    return {name: values[order] for name, values in raw.items()}


def _columns(raw: dict[str, IntArray]) -> dict[str, object]:
    return {
        "device_id": whole_numbers(raw["deviceId"]),
        "stream_id": whole_numbers(raw["streamId"]),
        "start_ns": whole_numbers(raw["start"]),
        "end_ns": whole_numbers(raw["end"]),
        "duration_ns": whole_numbers(raw["end"] - raw["start"]),
        "process_id": whole_numbers(pid_of(raw["globalPid"])),
        "correlation_id": whole_numbers(raw["correlationId"]),
        "grid_size": whole_numbers(_volume(raw, "gridX", "gridY", "gridZ")),
        "block_size": whole_numbers(_volume(raw, "blockX", "blockY", "blockZ")),
        "registers_per_thread": whole_numbers(raw["registersPerThread"]),
    }


def pid_of(global_pid: IntArray) -> IntArray:
    """Process id inside a serialised global id: bits 24 to 47."""
    return np.where(global_pid == MISSING, MISSING, (global_pid >> 24) & 0xFFFFFF)


def _volume(raw: dict[str, IntArray], *names: str) -> IntArray:
    sizes = np.stack([raw[name] for name in names])
    sane = ((sizes >= 0) & (sizes < 2**31)).all(axis=0) & (sizes.astype(np.float64).prod(axis=0) < 2.0**62)
    return np.where(sane, np.where(sane, sizes, 0).prod(axis=0), MISSING)


def _name_columns(file: SqliteFile, raw: dict[str, IntArray]) -> dict[str, object]:
    """Names as text: nsys spells the table `StringIds`, nvprof before it `StringTable`."""
    table, key = file.find("StringIds"), "id"
    if table is None:
        table, key = file.find("StringTable"), "_id_"
    used = np.unique(np.concatenate([raw[name] for name in _NAMES]))
    has_texts = table is not None and {key, "value"} <= set(file.columns(table))
    known = file.texts(table, key, '"value"', used) if table is not None and has_texts else {}
    short, demangled, mangled, legacy = (texts_of(raw[name], known) for name in _NAMES)
    name = _first_known(short, demangled, mangled, legacy)
    signature = _first_known(demangled, mangled, legacy)
    pairs = pd.MultiIndex.from_arrays([name, signature])
    codes, unique = pd.factorize(pairs)
    kinds = np.array([type_of_kernel(_texts(pair)) for pair in unique], dtype=object)
    return {"kernel_name": name, "kernel_signature": signature, "op_type": kinds[codes]}


def _texts(pair: tuple[object, ...]) -> list[str | None]:
    return [text if isinstance(text, str) else None for text in pair]


def _first_known(
    *columns: "np.ndarray[tuple[int], np.dtype[np.object_]]",
) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
    result = columns[0]
    for column in columns[1:]:
        result = np.where(pd.isna(result), column, result)
    return result


def _wall_offset_ns(file: SqliteFile) -> int | None:
    """Wall-clock time of the session's start: event times count from there."""
    table = file.find("TARGET_INFO_SESSION_START_TIME")
    starts = file.integers(table, ["utcEpochNs"])["utcEpochNs"] if table else np.empty(0, np.int64)
    sane = starts[(starts > 0) & (starts < MOST_NS)]
    return int(sane[0]) if sane.size else None


def _read_graphs(file: SqliteFile) -> dict[str, IntArray] | None:
    table = file.find(_GRAPHS)
    if table is None:
        return None
    raw = file.integers(table, _PLACES)
    good = _have_times(raw)
    return {name: values[good] for name, values in raw.items()} if good.any() else None


def _hidden(file: SqliteFile, graphs: dict[str, IntArray] | None, notes: list[str], name: str) -> pd.DataFrame | None:
    """Launches of whole graphs: they keep the device busy and no kernel row stands for them."""
    if graphs is None:
        return None
    notes.append(f"{name}: {graphs['start'].size} launches of CUDA graphs hide their kernels: {_GRAPH_ADVICE}")
    columns = {
        "start_ns": graphs["start"],
        "end_ns": graphs["end"],
        "device_id": whole_numbers(graphs["deviceId"]),
        "process_id": whole_numbers(pid_of(graphs["globalPid"])),
    }
    return pd.DataFrame(columns | device_columns(file, graphs["globalPid"], graphs["deviceId"]))


def _why_nothing(file: SqliteFile, kernel_table: str | None, graphs: dict[str, IntArray] | None) -> str:
    if graphs is not None:
        return f"its {graphs['start'].size} launches of CUDA graphs were traced as a whole; {_GRAPH_ADVICE}"
    if not file.tables:
        return f"the database has no tables; {REMEDY}"
    seen = "the kernel table is empty" if kernel_table else "there is no kernel table"
    others = [(file.find(table), table.rsplit("_", 1)[-1].lower()) for table in _OTHER_WORK]
    counts = [f"{file.count(table)} {what}" for table, what in others if table and file.count(table)]
    work = f"of the GPU it saw only {', '.join(counts)}" if counts else "no work of the GPU was recorded"
    runtime = file.find("CUPTI_ACTIVITY_KIND_RUNTIME")
    calls = f"{file.count(runtime)} calls of the CUDA API" if runtime else "no call of the CUDA API"
    remedy = "trace a part of the program that launches kernels, with nsys profile --trace cuda,nvtx"
    return f"{seen} (schema {schema_version(file)}), {work}, {calls}; {remedy}"
