"""The table that every parser fills: one row per kernel, the same columns whatever the file was."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from thermoe.errors import DataError
from thermoe.profiling.parsing.sqlite_file import MISSING
from thermoe.types import IntArray, Kind

if TYPE_CHECKING:
    from thermoe.profiling.parsing.power_series import PowerSeries

_TEXT, _WHOLE, _NUMBER = "string", "Int64", "float64"

#: Counters of a kernel, null where the profiler did not take them.
COUNTERS: dict[str, str] = {
    "grid_size": _WHOLE,
    "block_size": _WHOLE,
    "registers_per_thread": _WHOLE,
    "waves_per_sm": _NUMBER,
    "sm_active_pct": _NUMBER,
    "sm_throughput_pct": _NUMBER,
    "tensor_active_pct": _NUMBER,
    "warps_active_pct": _NUMBER,
    "dram_throughput_pct": _NUMBER,
    "dram_read_pct": _NUMBER,
    "dram_write_pct": _NUMBER,
    "l2_hit_rate_pct": _NUMBER,
    "dram_read_bytes": _NUMBER,
    "dram_write_bytes": _NUMBER,
    "l2_bytes": _NUMBER,
    "instructions": _NUMBER,
    "tensor_instructions": _NUMBER,
    "fp32_flops": _NUMBER,
    "sm_cycles_active": _NUMBER,
    "sm_clock_mhz": _NUMBER,
}

#: Every column and its type, in order (docs/guides/parse.md explains them).
COLUMNS: dict[str, str] = {
    "kernel_name": _TEXT,
    "op_type": _TEXT,
    "device_id": _WHOLE,
    "stream_id": _WHOLE,
    "start_ns": _WHOLE,
    "end_ns": _WHOLE,
    "energy_j": _NUMBER,
    "power_w_mean": _NUMBER,
    "power_w_peak": _NUMBER,
    "duration_ns": _WHOLE,
    "start_wall_ns": _WHOLE,
    "process_id": _WHOLE,
    "correlation_id": _WHOLE,
    "range_name": _TEXT,
    "operation_id": _WHOLE,
    "kernel_signature": _TEXT,
    "device_uuid": _TEXT,
    "device_bus": _TEXT,
    "power_source": _TEXT,
    "energy_kind": _TEXT,
    "kind": _TEXT,
    "source_format": _TEXT,
    "source_file": _TEXT,
    **COUNTERS,
}


class NothingToParseError(DataError):
    """A whole and readable file that holds no kernel; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one file gave, before power is joined to it.

    Attributes:
        path: The file.
        kernels: Columns of `COLUMNS` that the file fills, and of `hidden` those that the join needs.
        hidden: Busy time of the devices that no kernel row stands for, such as launches of whole CUDA graphs:
            columns start_ns, end_ns, device_id, process_id, device_uuid, device_bus.
        wall_offset_ns: Wall clock minus the file's clock [ns]; `None` where the file does not tell.
        power: Power that the file itself holds.
        notes: One line each about what was left out or is missing.
    """

    path: Path
    kernels: pd.DataFrame
    hidden: pd.DataFrame | None = None
    wall_offset_ns: int | None = None
    power: Sequence["PowerSeries"] = ()
    notes: list[str] = field(default_factory=list)


def finish(frame: pd.DataFrame) -> pd.DataFrame:
    """All columns of the table in their order and types; what is not there is null."""
    rows = len(frame)
    columns: dict[str, Any] = {}
    for name, kind in COLUMNS.items():
        if name in frame:
            columns[name] = frame[name].astype(pd.api.types.pandas_dtype(kind)).reset_index(drop=True)
        elif name == "kind":
            columns[name] = pd.Series([str(Kind.MEASURED)] * rows, dtype=kind)
        else:
            columns[name] = pd.Series([None] * rows, dtype=kind)
    return pd.DataFrame(columns)


def whole_numbers(values: IntArray) -> "pd.api.extensions.ExtensionArray":
    """Integers with null where they are `MISSING`."""
    missing = values == MISSING
    return pd.arrays.IntegerArray(np.where(missing, 0, values), missing)


def texts_of(values: IntArray, names: dict[int, str]) -> "np.ndarray[Any, np.dtype[np.object_]]":
    """Text of each id (N,), `None` where it is unknown; the same string object for the same id."""
    ids, inverse = np.unique(values, return_inverse=True)
    known = np.empty(ids.size, dtype=object)
    known[:] = [names.get(int(i)) for i in ids]
    return known[inverse]


def sum_by_operation(table: pd.DataFrame) -> pd.DataFrame:
    """One row per call of an operation: its kernels added up.

    A call is one range (NVTX or record_function) that names an operation; kernels outside any are left out.

    Returns:
        source_file, operation_id, op_type, num_kernels, start_ns, end_ns, kernel_ns (sum of durations),
        energy_j (null where any kernel has none).
    """
    inside = table[table["operation_id"].notna()]
    groups = inside.groupby(["source_file", "operation_id"], sort=True)
    energy = groups["energy_j"].agg(lambda joules: joules.sum(skipna=False))
    return pd.DataFrame(
        {
            "op_type": groups["op_type"].first(),
            "num_kernels": groups.size(),
            "start_ns": groups["start_ns"].min(),
            "end_ns": groups["end_ns"].max(),
            "kernel_ns": groups["duration_ns"].sum(),
            "energy_j": energy.astype(float),
        }
    ).reset_index()
