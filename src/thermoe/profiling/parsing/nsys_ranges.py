"""The NVTX ranges that were open when each kernel of an nsys export was launched."""

import numpy as np
import pandas as pd

from thermoe.profiling.parsing.op_types import OPERATIONS, PREFIXES, operation_of_range
from thermoe.profiling.parsing.ranges import innermost_by_thread
from thermoe.profiling.parsing.sqlite_file import MISSING, SqliteFile
from thermoe.profiling.parsing.table import texts_of, whole_numbers
from thermoe.types import BoolArray, IntArray

_PUSH_POP, _START_END = 59, 60
_THREAD_BITS = 0xFFFFFF
_FOREVER_NS = 2**62


def add_ranges(file: SqliteFile, raw: dict[str, IntArray], kernels: pd.DataFrame, notes: list[str], name: str) -> None:
    """Add range_name and operation_id, and let the range's operation decide op_type.

    A kernel belongs to the ranges that were open, on the launching thread, when it was launched.
    """
    table = file.find("NVTX_EVENTS")
    if table is None or "start" not in file.columns(table):
        return
    text = _text_expression(file, table)
    tests = [f"lower({text}) LIKE '{prefix}%'" for prefix in PREFIXES]
    tests.append(f"lower({text}) IN ({', '.join(repr(name) for name in OPERATIONS)})")
    extra = {"row": "rowid", "is_operation": f"CASE WHEN {' OR '.join(tests)} THEN 1 ELSE 0 END"}
    ranges = file.integers(table, ["start", "end", "eventType", "globalTid"], extra)
    ranges = {key: values[_are_ranges(ranges)] for key, values in ranges.items()}
    if not ranges["start"].size:
        return
    launch_ns, thread = find_launches(file, raw)
    num_lost = int((thread == MISSING).sum())
    if num_lost:
        notes.append(f"{name}: {num_lost} of {thread.size} kernels have no launch in the file, so no range")
    ranges["end"] = np.where(ranges["end"] == MISSING, _FOREVER_NS, ranges["end"])  # still open when the trace ended
    nearest = _enclosing(ranges, np.ones(ranges["start"].shape, bool), thread, launch_ns)
    operation = _enclosing(ranges, ranges["is_operation"] == 1, thread, launch_ns)
    rows = np.unique(np.concatenate([nearest, operation]))
    texts = file.texts(table, "rowid", text, rows)
    kernels["range_name"] = texts_of(nearest, texts)
    kernels["operation_id"] = whole_numbers(operation)
    _overrule_op_type(kernels, operation, texts)


def find_launches(file: SqliteFile, raw: dict[str, IntArray]) -> tuple[IntArray, IntArray]:
    """When and by which thread each kernel was launched; `MISSING` where the call is not in the file.

    Correlation ids repeat between processes: the process is part of the key. Kernels that do not
    name their process get a call only where the id belongs to one process.
    """
    table = file.find("CUPTI_ACTIVITY_KIND_RUNTIME")
    absent = np.full(raw["start"].shape, MISSING, dtype=np.int64)
    if table is None:
        return absent, absent
    calls = file.integers(table, ["start", "globalTid", "correlationId"])
    frame = pd.DataFrame(calls)
    frame = frame[(frame["correlationId"] != MISSING) & (frame["start"] != MISSING) & (frame["globalTid"] != MISSING)]
    frame["process"] = frame["globalTid"] & ~_THREAD_BITS
    frame = frame.sort_values("start", kind="stable")
    if (raw["globalPid"] == MISSING).all():
        owners = frame.groupby("correlationId")["process"].transform("nunique")
        frame = frame[owners == 1].assign(process=MISSING)
    frame = frame.drop_duplicates(["process", "correlationId"])
    frame["call"] = np.arange(len(frame))
    wanted = pd.DataFrame({"process": raw["globalPid"], "correlationId": raw["correlationId"]})
    found = wanted.merge(frame, how="left", on=["process", "correlationId"], validate="many_to_one")
    call = found["call"].fillna(-1).to_numpy().astype(np.int64)  # not the stamps: they would pass through float64
    launch_ns = np.append(frame["start"].to_numpy(np.int64), MISSING)[call]
    thread = np.append(frame["globalTid"].to_numpy(np.int64), MISSING)[call]
    return launch_ns, thread


def _text_expression(file: SqliteFile, table: str) -> str:
    """A range's text is in the row itself, or registered and in the table of strings."""
    columns, strings = file.columns(table), file.find("StringIds")
    terms = [f'"{columns["text"]}"'] if "text" in columns else []
    if "textid" in columns and strings is not None and {"id", "value"} <= set(file.columns(strings)):
        terms.append(f'(SELECT s.value FROM "{strings}" s WHERE s.id = "{columns["textid"]}")')
    return f"coalesce({', '.join([*terms, 'NULL', 'NULL'])})"


def _are_ranges(ranges: dict[str, IntArray]) -> BoolArray:
    """Rows with a start and a thread that are no marks; older exports have no column of types."""
    types = ranges["eventType"]
    is_range = np.isin(types, (_PUSH_POP, _START_END)) | (types == MISSING)
    has_end = (ranges["end"] == MISSING) | (ranges["end"] >= ranges["start"])
    good: BoolArray = is_range & has_end & (ranges["start"] != MISSING) & (ranges["globalTid"] != MISSING)
    return good


def _enclosing(ranges: dict[str, IntArray], wanted: BoolArray, thread: IntArray, at_ns: IntArray) -> IntArray:
    """Row id of the innermost wanted range around each launch; `MISSING` where there is none."""
    some = {key: values[wanted] for key, values in ranges.items()}
    index = innermost_by_thread(some["globalTid"], some["start"], some["end"], thread, at_ns)
    rows = np.append(some["row"], MISSING)
    return rows[index]


def _overrule_op_type(kernels: pd.DataFrame, operation: IntArray, texts: dict[int, str]) -> None:
    names = {row: operation_of_range(text) for row, text in texts.items()}
    known = {row: name for row, name in names.items() if name is not None}
    by_range = texts_of(operation, known)
    kernels["op_type"] = np.where(pd.isna(by_range), kernels["op_type"].to_numpy(object), by_range)
