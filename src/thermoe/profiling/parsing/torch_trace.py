"""Kernels of a Chrome trace that torch.profiler exported, plain or gzipped."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thermoe.profiling.parsing.devices import normal_bus, normal_uuid
from thermoe.profiling.parsing.json_stream import JsonStream
from thermoe.profiling.parsing.op_types import operation_of_range, type_of_kernel
from thermoe.profiling.parsing.ranges import innermost_by_thread
from thermoe.profiling.parsing.sqlite_file import MAX_TEXT, MISSING
from thermoe.profiling.parsing.table import NothingToParseError, Trace, whole_numbers
from thermoe.profiling.trace_devices import DEVICES_MEMBER
from thermoe.types import IntArray

_LAUNCH = ("cuda_runtime", "cuda_driver", "hip_runtime")
_RANGES = ("user_annotation", "cpu_op")
_ABSOLUTE_US = 1e15  # stamps above count from the Unix epoch (older releases); the others from the base in the file
_MOST_NS = 2.0**61
_MOST_ID = 2**62


@dataclass
class _Events:
    """Columns of the three kinds of events that count, as lists of rows."""

    kernels: list[tuple[Any, ...]] = field(default_factory=list)
    launches: list[tuple[int, int, int, int]] = field(default_factory=list)
    ranges: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    num_bad: int = 0
    is_absolute: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    threads: dict[tuple[Any, Any], int] = field(default_factory=dict)

    def add(self, event: Any) -> None:
        """Keep what one event of the trace tells."""
        if not isinstance(event, dict) or event.get("ph") != "X":
            return
        kind = str(event.get("cat", "")).lower()
        if kind != "kernel" and kind not in _LAUNCH and kind not in _RANGES:
            return
        try:
            start_us, length_us = float(event["ts"]), float(event.get("dur", 0.0))
            start_ns, end_ns = _span_ns(start_us, length_us)
        except (KeyError, TypeError, ValueError, OverflowError):
            self.num_bad += kind == "kernel"
            return
        self.is_absolute |= start_us >= _ABSOLUTE_US
        given = event.get("args")
        arguments: dict[str, Any] = given if isinstance(given, dict) else {}
        name = self._text(event.get("name"))
        if kind == "kernel":
            self.kernels.append((name, start_ns, end_ns, *_kernel_facts(event, arguments)))
            return
        thread = self._thread(event.get("pid"), event.get("tid"))
        if kind in _LAUNCH:
            correlation = _whole(arguments.get("correlation"))
            if correlation != MISSING:
                self.launches.append((_whole(event.get("pid")), thread, correlation, start_ns))
        else:
            self.ranges.append((thread, start_ns, end_ns, int(operation_of_range(name) is not None), name))

    def _text(self, value: Any) -> str:
        """The same string object for the same text: traces repeat few names very often."""
        text = str(value)[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()  # halves of a surrogate pair
        return self.texts.setdefault(text, text)

    def _thread(self, process: Any, thread: Any) -> int:
        return self.threads.setdefault((str(process), str(thread)), len(self.threads))


def parse_torch_trace(path: Path) -> Trace:
    """Read one trace.

    Raises:
        NothingToParseError: If no kernel of a GPU is in it.
        DataError: If it is truncated or no trace.
    """
    events = _Events()
    stream = JsonStream(path)
    try:
        members = dict(stream.members("traceEvents", events.add))
    finally:
        stream.close()
    if not events.kernels:
        ranges = len(events.ranges)
        raise NothingToParseError(
            f"{path} holds no kernels ({ranges} ranges of the CPU, {events.num_bad} kernels without time): "
            "profile on a GPU with ProfilerActivity.CUDA"
        )
    notes = [f"{path.name}: left out {events.num_bad} kernels without a readable time"] if events.num_bad else []
    kernels = _kernel_frame(events, members)
    _add_ranges(events, kernels, notes, path.name)
    wall_offset_ns = _wall_offset_ns(events, members)
    if wall_offset_ns is None:
        notes.append(f"{path.name}: no base time, so no power log can be joined")
    kernels = kernels.sort_values(["start_ns", "device_id", "stream_id"], kind="stable").reset_index(drop=True)
    return Trace(path=path, kernels=kernels, wall_offset_ns=wall_offset_ns, notes=notes)


def _span_ns(start_us: float, length_us: float) -> tuple[int, int]:
    if not (abs(start_us) * 1e3 < _MOST_NS and 0.0 <= length_us * 1e3 < _MOST_NS):
        raise ValueError("out of range")
    whole_us = math.floor(start_us)  # apart from the fraction: their sum in nanoseconds exceeds a float's digits
    start_ns = whole_us * 1000 + round((start_us - whole_us) * 1e3)
    return start_ns, start_ns + round(length_us * 1e3)


def _kernel_facts(event: dict[str, Any], arguments: dict[str, Any]) -> tuple[Any, ...]:
    device = _whole(arguments.get("device"))
    stream = _whole(arguments.get("stream"))
    return (
        device if device != MISSING else _whole(event.get("pid")),
        stream if stream != MISSING else _whole(event.get("tid")),
        _whole(arguments.get("correlation")),
        _volume(arguments.get("grid")),
        _volume(arguments.get("block")),
        _whole(arguments.get("registers per thread")),
        _number(arguments.get("est. achieved occupancy %")),
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return MISSING
    if isinstance(value, str):
        if not (value.isdecimal() and len(value) < 19):
            return MISSING
        value = int(value)
    return value if abs(value) < _MOST_ID else MISSING


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
    return float(value) if is_number else float("nan")


def _volume(sizes: Any) -> int:
    if not isinstance(sizes, list) or len(sizes) != 3 or not all(isinstance(s, int) and 0 < s < 2**31 for s in sizes):
        return MISSING
    volume = int(sizes[0]) * int(sizes[1]) * int(sizes[2])
    return volume if volume < _MOST_ID else MISSING


def _kernel_frame(events: _Events, members: dict[str, Any]) -> pd.DataFrame:
    name, start, end, device, stream, correlation, grid, block, registers, occupancy = zip(*events.kernels, strict=True)
    types = {text: type_of_kernel([text]) for text in set(name)}
    named = {text: _short_name(text) for text in set(name)}
    start_ns, end_ns, device_id = (np.array(values, dtype=np.int64) for values in (start, end, device))
    uuids, buses = _identities(members, device_id)
    processes = {process for process, *_ in events.launches}
    process_id = np.full(start_ns.shape, processes.pop() if len(processes) == 1 else MISSING, dtype=np.int64)
    return pd.DataFrame(
        {
            "kernel_name": np.array([named[text] for text in name], dtype=object),
            "kernel_signature": np.array(name, dtype=object),
            "op_type": np.array([types[text] for text in name], dtype=object),
            "device_id": whole_numbers(device_id),
            "stream_id": whole_numbers(np.array(stream, dtype=np.int64)),
            "start_ns": whole_numbers(start_ns),
            "end_ns": whole_numbers(end_ns),
            "duration_ns": whole_numbers(end_ns - start_ns),
            "process_id": whole_numbers(process_id),
            "correlation_id": whole_numbers(np.array(correlation, dtype=np.int64)),
            "grid_size": whole_numbers(np.array(grid, dtype=np.int64)),
            "block_size": whole_numbers(np.array(block, dtype=np.int64)),
            "registers_per_thread": whole_numbers(np.array(registers, dtype=np.int64)),
            "warps_active_pct": np.array(occupancy, dtype=np.float64),
            "device_uuid": uuids,
            "device_bus": buses,
        }
    )


def _short_name(signature: str) -> str:
    """Name of a function without return type, namespaces, template arguments and parameters."""
    text = signature.replace("(anonymous namespace)", "anonymous")
    depth, kept = 0, []
    for sign in text:
        if sign == "(" and depth == 0:
            break
        depth += (sign == "<") - (sign == ">")
        if depth == 0 and sign != ">":
            kept.append(sign)
    words = "".join(kept).split()
    return words[-1].split("::")[-1] if words and words[-1].split("::")[-1] else signature


def _identities(members: dict[str, Any], device_id: IntArray) -> tuple[Any, Any]:
    given = members.get(DEVICES_MEMBER)
    rows = [row for row in given if isinstance(row, dict)] if isinstance(given, list) else []
    uuids = {_whole(row.get("id")): normal_uuid(row.get("uuid")) for row in rows}
    buses = {_whole(row.get("id")): normal_bus(row.get("bus")) for row in rows}
    columns: list[Callable[[int], str | None]] = [uuids.get, buses.get]
    first, second = (np.array([find(int(d)) for d in device_id] + [None], dtype=object)[:-1] for find in columns)
    return first, second


def _add_ranges(events: _Events, kernels: pd.DataFrame, notes: list[str], name: str) -> None:
    """Join kernels to launches by correlation and process, launches to the ranges open on their thread."""
    launch_ns, thread = _find_launches(events, kernels["correlation_id"].fillna(MISSING).to_numpy(np.int64))
    num_lost = int((thread == MISSING).sum())
    if num_lost:
        notes.append(f"{name}: {num_lost} of {thread.size} kernels have no unambiguous launch, so no range")
    if not events.ranges:
        return
    columns = list(zip(*events.ranges, strict=True))
    owner, start_ns, end_ns, is_operation = (np.array(values, dtype=np.int64) for values in columns[:4])
    names = np.array([*columns[4], None], dtype=object)
    nearest = innermost_by_thread(owner, start_ns, end_ns, thread, launch_ns)
    chosen = np.flatnonzero(is_operation)
    local = innermost_by_thread(owner[chosen], start_ns[chosen], end_ns[chosen], thread, launch_ns)
    operation = np.append(chosen, -1)[local]
    kernels["range_name"] = names[nearest]
    kernels["operation_id"] = whole_numbers(np.where(operation < 0, MISSING, operation))
    by_range = np.array([operation_of_range(text) for text in names[operation]] + [None], dtype=object)[:-1]
    kernels["op_type"] = np.where(operation < 0, kernels["op_type"].to_numpy(object), by_range)


def _find_launches(events: _Events, correlation: IntArray) -> tuple[IntArray, IntArray]:
    """Time and thread of each kernel's launch; a trace names no process for kernels, so shared ids are left out."""
    absent = np.full(correlation.shape, MISSING, dtype=np.int64)
    if not events.launches:
        return absent, absent
    calls = pd.DataFrame(events.launches, columns=["process", "thread", "correlation", "start"])
    owners = calls.groupby("correlation")["process"].transform("nunique")
    calls = calls[owners == 1].sort_values("start", kind="stable").drop_duplicates("correlation")
    calls = calls.sort_values("correlation")
    known = calls["correlation"].to_numpy(np.int64)
    if not known.size:
        return absent, absent
    at = np.minimum(np.searchsorted(known, correlation), known.size - 1)
    found = known[at] == correlation
    launch_ns = np.where(found, calls["start"].to_numpy(np.int64)[at], MISSING)
    return launch_ns, np.where(found, calls["thread"].to_numpy(np.int64)[at], MISSING)


def _wall_offset_ns(events: _Events, members: dict[str, Any]) -> int | None:
    if events.is_absolute:
        return 0
    base = _whole(members.get("baseTimeNanoseconds"))
    return base if 0 < base < _MOST_NS else None
