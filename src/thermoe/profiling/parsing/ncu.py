"""Kernels of an ncu CSV table, in both layouts: a row per metric (details, --metrics) or per kernel (--page raw).

ncu replays kernels, by default at base clocks with flushed caches: take counts from it; its durations are
those of the replay. It has no power and no place in time, so starts and energies are null.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from thermoe.errors import DataError
from thermoe.profiling.parsing.ncu_values import Locale, base_unit, find_locale
from thermoe.profiling.parsing.op_types import type_of_kernel
from thermoe.profiling.parsing.table import COLUMNS, NothingToParseError, Trace

_MOST_LINE_CHARS = 16 << 20
_MOST_BYTES = 1 << 30
_KEYS = ("ID", "Kernel Name")
_LONG = ("Metric Name", "Metric Value")
_SIZE = re.compile(r"^\s*\(?\s*(\d+)\D+(\d+)\D+(\d+)\s*\)?\s*$")
_BARE_ID = re.compile(r"^\d{1,12}$")
_PERCENT, _PLAIN = ("%",), ("", "register/thread", "register", "inst", "block", "thread", "warp")


@dataclass(frozen=True, slots=True)
class _Metric:
    """One column of the table, and where ncu has it: name of the metric or label of the details page."""

    column: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    scale: float = 1.0


_METRICS = (
    _Metric("duration_ns", ("gpu__time_duration.sum", "gpu__time_duration.avg", "Duration"), ("second",), 1e9),
    _Metric(
        "sm_throughput_pct",
        ("sm__throughput.avg.pct_of_peak_sustained_elapsed", "Compute (SM) Throughput", "SM [%]"),
        _PERCENT,
    ),
    _Metric(
        "dram_throughput_pct",
        (
            *("dram__throughput.avg.pct_of_peak_sustained_elapsed", "DRAM Throughput"),
            "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
        ),
        _PERCENT,
    ),
    _Metric("warps_active_pct", ("sm__warps_active.avg.pct_of_peak_sustained_active", "Achieved Occupancy"), _PERCENT),
    _Metric("l2_hit_rate_pct", ("lts__t_sector_hit_rate.pct", "L2 Hit Rate"), _PERCENT),
    _Metric("dram_read_bytes", ("dram__bytes_read.sum", "dram__bytes_op_read.sum"), ("byte",)),
    _Metric("dram_write_bytes", ("dram__bytes_write.sum", "dram__bytes_op_write.sum"), ("byte",)),
    _Metric("l2_bytes", ("lts__t_bytes.sum",), ("byte",)),
    _Metric(
        "instructions", ("smsp__inst_executed.sum", "sm__inst_executed.sum", "Executed Instructions"), ("inst", "")
    ),
    _Metric("sm_cycles_active", ("sm__cycles_active.avg", "SM Active Cycles"), ("cycle", "")),
    _Metric("sm_clock_mhz", ("gpc__cycles_elapsed.avg.per_second", "SM Frequency"), ("hz", "cycle/second"), 1e-6),
    _Metric("registers_per_thread", ("launch__registers_per_thread", "Registers Per Thread"), _PLAIN),
    _Metric("waves_per_sm", ("launch__waves_per_multiprocessor", "Waves Per SM"), _PLAIN),
    _Metric("grid_size", ("launch__grid_size",), _PLAIN),
    _Metric("block_size", ("launch__block_size",), _PLAIN),
)
_BY_NAME = {name: metric for metric in _METRICS for name in metric.names}
_FP32 = {
    f"sm__sass_thread_inst_executed_op_{op}_pred_on.sum": per for op, per in (("fadd", 1), ("fmul", 1), ("ffma", 2))
}
_TENSOR = re.compile(r"^sms?p?__inst_executed_pipe_tensor\w*\.sum$")
_HEAD = frozenset(
    (
        *("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Kernel Time", "Context", "Stream"),
        *("Block Size", "Grid Size", "Device", "CC", "Section Name"),
    )
)
_MOST_VALUE = 1e18
_Row = dict[str, str]


@dataclass
class _Kernel:
    """What is known of one launch; metrics as (name, unit, cell)."""

    head: _Row
    metrics: list[tuple[str, str, str]] = field(default_factory=list)


def parse_ncu(path: Path) -> Trace:
    """Read one table. Lines of the program and of ncu before the header are passed over.

    Raises:
        NothingToParseError: If there is a header and no kernel.
        DataError: If there is no header, or the text cannot be read as CSV.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"{path} has more than 1 GiB: profile fewer launches, with ncu --launch-count")
    header, rows = _table(path)
    is_long = all(name in header for name in _LONG)
    kernels, num_bad = _long(header, rows) if is_long else _wide(header, rows)
    if not kernels:
        raise NothingToParseError(
            f"{path} has the header of an ncu table and no kernel: profile a program that launches one"
        )
    notes = [f"{path.name}: passed over {num_bad} lines that are no rows of the table"] if num_bad else []
    locale = find_locale(cell for kernel in kernels for _, _, cell in kernel.metrics)
    frame = pd.DataFrame([_columns(kernel, locale) for kernel in kernels])
    for name in frame.columns:
        if COLUMNS[name] == "Int64":
            frame[name] = pd.array([None if pd.isna(v) else round(v) for v in frame[name]], dtype="Int64")
    return Trace(path=path, kernels=frame, notes=notes)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        while line := file.readline(_MOST_LINE_CHARS):
            yield line.replace("\0", "")


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows after it."""
    lines = _lines(path)
    for line in lines:
        for delimiter in (",", ";", "\t"):
            cells = _cells(line, delimiter)
            if all(key in cells for key in _KEYS):
                try:
                    return cells, list(csv.reader(lines, delimiter=delimiter))
                except csv.Error as error:
                    raise DataError(f"{path} is damaged ({error}): write it again with ncu --csv") from None
    raise DataError(
        f"{path} has no header of an ncu table (ID, Kernel Name, ...): "
        "write it with ncu --csv, or ncu --import FILE --csv"
    )


def _cells(line: str, delimiter: str) -> list[str]:
    if "Kernel Name" not in line:
        return []
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _as_row(header: Sequence[str], cells: Sequence[str]) -> _Row | None:
    """A row by column; `None` for a line of another kind, such as output of the program. Empty ends may be cut."""
    if len(cells) > len(header) or len(cells) <= header.index("Kernel Name"):
        return None
    row = dict(zip(header, cells, strict=False))
    return row if _BARE_ID.match(row["ID"].strip()) else None


def _long(header: list[str], rows: list[list[str]]) -> tuple[list[_Kernel], int]:
    """A row for each metric; rows without a value carry advice."""
    kernels: dict[tuple[str, str, str], _Kernel] = {}
    num_bad = 0
    for cells in rows:
        row = _as_row(header, cells)
        if row is None:
            num_bad += bool("".join(cells).strip())
            continue
        key = (row["ID"], row.get("Process ID", ""), row["Kernel Name"])
        kernel = kernels.setdefault(key, _Kernel(row))
        if row.get("Metric Value", "").strip():
            kernel.metrics.append((row.get("Metric Name", ""), row.get("Metric Unit", ""), row["Metric Value"]))
    return list(kernels.values()), num_bad


def _wide(header: list[str], rows: list[list[str]]) -> tuple[list[_Kernel], int]:
    """A row for each kernel; the line after the header holds the units."""
    units: list[str] = []
    if rows and len(rows[0]) == len(header) and not rows[0][header.index("ID")].strip():
        units, rows = rows[0], rows[1:]
    unit_of = dict(zip(header, units, strict=False))
    kernels: list[_Kernel] = []
    num_bad = 0
    for cells in rows:
        row = _as_row(header, cells)
        if row is None:
            num_bad += bool("".join(cells).strip())
            continue
        metrics = [(name, unit_of.get(name, ""), cell) for name, cell in row.items() if name not in _HEAD]
        kernels.append(_Kernel(row, metrics))
    return kernels, num_bad


def _columns(kernel: _Kernel, locale: Locale) -> dict[str, object]:
    head = kernel.head
    name = head["Kernel Name"].strip()
    columns: dict[str, object] = {
        "kernel_name": _bare_name(name),
        "kernel_signature": name,
        "op_type": type_of_kernel([name]),
        "device_id": _id(head.get("Device")),
        "stream_id": _id(head.get("Stream")),
        "process_id": _id(head.get("Process ID")),
        "grid_size": _volume(head.get("Grid Size")),
        "block_size": _volume(head.get("Block Size")),
        "duration_ns": None,
        "registers_per_thread": None,
    }
    found: dict[str, tuple[int, float]] = {}
    sums = {"fp32_flops": 0.0, "tensor_instructions": 0.0}
    seen = set()
    for label, unit, cell in kernel.metrics:
        value = locale.number(cell)
        if value is None:
            continue
        column = "fp32_flops" if label in _FP32 else "tensor_instructions" if _TENSOR.match(label) else None
        if column:
            seen.add(column)
            sums[column] += _FP32.get(label, 1) * value
        elif label in _BY_NAME:
            _take(found, label, unit, value)
    measured = {column: value for column, (_, value) in found.items()} | {name: sums[name] for name in seen}
    return columns | {k: v for k, v in measured.items() if columns.get(k) is None}


def _take(found: dict[str, tuple[int, float]], label: str, unit: str, value: float) -> None:
    """Keep a metric in the column's unit; not one of another kind, nor one whose column a better name has filled."""
    metric = _BY_NAME[label]
    factor, base = base_unit(unit)
    rank = metric.names.index(label)
    if base in metric.units and (metric.column not in found or found[metric.column][0] > rank):
        scaled = value * factor * metric.scale
        if abs(scaled) < _MOST_VALUE:
            found[metric.column] = (rank, scaled)


def _bare_name(signature: str) -> str:
    """The function's name without template arguments and parameters."""
    return re.split(r"[<(\[]", signature, maxsplit=1)[0].split("::")[-1].split(" ")[-1].strip() or signature


def _id(cell: str | None) -> int | None:
    return int(cell) if cell and _BARE_ID.match(cell.strip()) else None


def _volume(cell: str | None) -> int | None:
    match = _SIZE.match(cell or "")
    if match is None or max(map(len, match.groups())) > 10:
        return None
    volume = int(match[1]) * int(match[2]) * int(match[3])
    return volume if volume < _MOST_VALUE else None
