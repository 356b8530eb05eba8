"""Gives the kernels of traces the energy that power logs recorded: by wall clock, device by device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from thermoe.profiling.parsing.attribution import Attribution, PowerCurve, attribute
from thermoe.profiling.parsing.devices import Device
from thermoe.profiling.parsing.power_series import PowerSeries
from thermoe.profiling.parsing.table import Trace
from thermoe.types import IntArray


@dataclass
class _Work:
    """Everything that ran on one physical device in one trace.

    Attributes:
        device: How the trace names it.
        rows: Rows of the trace's kernels.
        start_ns, end_ns: (K + H,) kernels, then hidden work, on the trace's clock.
        is_ambiguous: Whether several processes used this ordinal and nothing tells if it was one device.
    """

    device: Device
    rows: IntArray
    start_ns: IntArray
    end_ns: IntArray
    is_ambiguous: bool


def join_power(trace: Trace, logs: Sequence[PowerSeries], notes: list[str]) -> list[dict[str, Any]]:
    """Fill energy, power and their source in the trace's kernels; say in `notes` why some stay without.

    Args:
        trace: Its `kernels` gain start_wall_ns, energy_j, power_w_mean, power_w_peak, power_source and energy_kind.
        logs: Series of telemetry logs; if there are none, power in the trace itself is used.
        notes: Gains a line for each device that got no energy.

    Returns:
        What each device's window held, ready for JSON.
    """
    kernels, offset_ns = trace.kernels, trace.wall_offset_ns
    if "start_ns" not in kernels:
        if logs:
            notes.append(f"{trace.path.name}: its kernels have no place in time, so no energy")
        return []
    if offset_ns is not None:
        kernels["start_wall_ns"] = kernels["start_ns"] + offset_ns
    _prepare(kernels)
    series = list(logs) or list(trace.power)
    if not series:
        return []
    windows = []
    works = _by_device(trace)
    for work in works:
        chosen = _match(work, series, works, notes, trace.path.name)
        if chosen is None:
            continue
        if chosen.on_wall_clock and offset_ns is None:
            continue  # the parser has said so
        shift_ns = offset_ns if chosen.on_wall_clock and offset_ns is not None else 0
        windows.append(_attribute(kernels, work, chosen, shift_ns, notes, trace.path.name))
    return windows


def _prepare(kernels: pd.DataFrame) -> None:
    for name in ("energy_j", "power_w_mean", "power_w_peak"):
        kernels[name] = np.nan
    for name in ("power_source", "energy_kind"):
        kernels[name] = pd.Series([None] * len(kernels), index=kernels.index, dtype=object)


def _by_device(trace: Trace) -> list[_Work]:
    """Work by physical device: by UUID or bus where known, else by ordinal."""
    kernels = trace.kernels
    parts = [kernels] if trace.hidden is None else [kernels, trace.hidden]
    names = ["device_uuid", "device_bus", "device_id", "process_id", "start_ns", "end_ns"]
    both = pd.concat([part.reindex(columns=names) for part in parts], ignore_index=True)
    identity = both["device_uuid"].astype(object).where(both["device_uuid"].notna(), both["device_bus"].astype(object))
    by_ordinal = "ordinal " + both["device_id"].astype(str)
    codes, keys = pd.factorize(identity.where(identity.notna(), by_ordinal))
    result = []
    for code in range(len(keys)):
        rows = np.flatnonzero(codes == code)
        first = both.iloc[rows[0]]
        uuid, bus = (first[name] if isinstance(first[name], str) else None for name in ("device_uuid", "device_bus"))
        index = None if pd.isna(first["device_id"]) else int(first["device_id"])
        several = both["process_id"].iloc[rows].nunique(dropna=False) > 1
        work = _Work(
            Device(uuid, bus, index),
            rows[rows < len(kernels)].astype(np.int64),
            both["start_ns"].iloc[rows].to_numpy(np.int64),
            both["end_ns"].iloc[rows].to_numpy(np.int64),
            is_ambiguous=uuid is None and bus is None and bool(several),
        )
        result.append(work)
    return [work for work in result if work.rows.size]


def _match(
    work: _Work, series: Sequence[PowerSeries], works: Sequence[_Work], notes: list[str], name: str
) -> PowerSeries | None:
    """The series of this device: by UUID or bus, else the only one left, else by index."""
    sure = [one for one in series if one.device.is_surely(work.device)]
    if sure:
        return sure[0]
    possible = [one for one in series if not one.device.contradicts(work.device)]
    if work.is_ambiguous:
        notes.append(
            f"{name}: several processes call a device {work.device} and nothing tells whether it is one GPU: "
            "no energy; export with the table TARGET_INFO_CUDA_DEVICE"
        )
        return None
    if len(possible) == 1 and len(works) == 1:
        return possible[0]
    by_index = [one for one in possible if one.device.index is not None and one.device.index == work.device.index]
    if len(by_index) == 1:
        notes.append(f"{name}: device {work.device} was matched to the power log by its index, not by UUID or bus")
        return by_index[0]
    notes.append(f"{name}: no power log belongs to device {work.device}: no energy; log its uuid or bus beside power")
    return None


def _attribute(
    kernels: pd.DataFrame, work: _Work, series: PowerSeries, shift_ns: int, notes: list[str], name: str
) -> dict[str, Any]:
    origin_ns = int(series.time_ns[0])  # small numbers: float64 would lose nanoseconds of the epoch
    curve = PowerCurve(series.time_ns - origin_ns, series.power_w)
    to_log_ns = shift_ns - origin_ns
    found = attribute(work.start_ns + to_log_ns, work.end_ns + to_log_ns, curve)
    count = work.rows.size
    for column, values in (
        ("energy_j", found.energy_j),
        ("power_w_mean", found.power_mean_w),
        ("power_w_peak", found.power_peak_w),
    ):
        kernels.loc[work.rows, column] = values[:count]
    known = work.rows[~np.isnan(found.energy_j[:count])]
    kernels.loc[known, "power_source"] = series.name
    kernels.loc[known, "energy_kind"] = str(series.kind)
    num_lost = count - known.size
    if num_lost:
        notes.append(
            f"{name}: {num_lost} of {count} kernels on device {work.device} are outside {series.name} "
            f"or in a hole of it: {_spans(work, series, shift_ns)}"
        )
    return _window(work, series, shift_ns, found)


def _window(work: _Work, series: PowerSeries, shift_ns: int, found: Attribution) -> dict[str, Any]:
    start_ns, end_ns = int(work.start_ns.min()), int(work.end_ns.max())
    count = work.rows.size
    return {
        "device": str(work.device),
        "power_source": series.name,
        "kind": str(series.kind),
        "start_ns": start_ns,
        "end_ns": end_ns,
        "busy_ns": found.busy_ns,
        "window_j": found.window_j,
        "kernels_j": float(np.nansum(found.energy_j[:count])),
        "hidden_j": float(np.nansum(found.energy_j[count:])),
        "idle_j": found.idle_j,
        "lost_j": found.lost_j,
        "counter_j": series.counter_j(start_ns + shift_ns, end_ns + shift_ns),
    }


def _spans(work: _Work, series: PowerSeries, shift_ns: int) -> str:
    log = _span(int(series.time_ns[0]), int(series.time_ns[-1]), series.on_wall_clock)
    ran = _span(int(work.start_ns.min()) + shift_ns, int(work.end_ns.max()) + shift_ns, series.on_wall_clock)
    return f"it covers {log}, they ran {ran}"


def _span(first_ns: int, last_ns: int, is_wall: bool) -> str:
    if not is_wall:
        return f"{first_ns * 1e-9:.3f} to {last_ns * 1e-9:.3f} s of the trace"
    first, last = (np.datetime64(stamp, "ns").astype("datetime64[ms]") for stamp in (first_ns, last_ns))
    return f"{first} to {last} UTC"
