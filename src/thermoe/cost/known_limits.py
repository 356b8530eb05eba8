"""Limits of the device that a database names: published or measured before where they are known, else from its rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from thermoe.cost.published import DATA_SHEETS, expected_limits
from thermoe.cost.roofline import H200, DeviceLimits
from thermoe.cost.rows import CostRow

NOMINAL_POWER_W = 100.0
_ON_HOST = ("ttha_adapter_forward", "ttha_update")
_OTHER_RATES = (H200.flops_per_s_8bit, H200.flops_per_s_32bit)
_SLOW = 1e9  # bytes or operations a second where no row counts any


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownLimits:
    """What is known of a device; None where nothing is.

    Attributes:
        source: Where the figures come from, in words.
        launch_s: Least time of an operation [s].
        bandwidth_bytes_per_s: Of long reads and writes [byte/s].
        flops_per_s: Of long matrix products in 16 bit, or in what the rows are [1/s].
        idle_power_w: Board power with nothing running [W].
        joules_per_byte, joules_per_flop: Energy above idle of a byte moved and of an operation [J].
    """

    source: str
    launch_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    flops_per_s: float | None = None
    idle_power_w: float | None = None
    joules_per_byte: float | None = None
    joules_per_flop: float | None = None


def limits_of(gpu: str, rows: Sequence[CostRow]) -> KnownLimits:
    """Limits of a device by name; of one without a data sheet here, the best that its rows reached.

    A launch takes no longer than the shortest operation that was measured.

    Args:
        gpu: Name as a database has it.
        rows: All rows of that device.
    """
    shortest_s = min((r.latency_us * 1e-6 for r in rows if r.op not in _ON_HOST), default=None)
    limits = _published(gpu)
    if limits is None:
        return _from_rows(rows, shortest_s)
    return KnownLimits(
        source="measured before on an H200" if limits is H200 else "expected from its data sheet",
        launch_s=limits.launch_s if shortest_s is None else min(limits.launch_s, shortest_s),
        bandwidth_bytes_per_s=limits.bandwidth_bytes_per_s,
        flops_per_s=limits.flops_per_s_16bit,
        idle_power_w=limits.idle_power_w,
        joules_per_byte=limits.joules_per_byte,
        joules_per_flop=limits.joules_per_flop,
    )


def fitting_limits(gpu: str, rows: Sequence[CostRow]) -> DeviceLimits:
    """Limits that a model of a device is fitted with: where its physics begins, and what it falls back to.

    A device without a data sheet here gets the bandwidth and the rates that its rows reached. Its power, where no row
    tells, is a nominal `NOMINAL_POWER_W`, of which idling, moving bytes and computing take the shares they take on an
    H200: energies that rest on it alone are guesses.

    Args:
        gpu: Name as a database has it.
        rows: All rows of that device.
    """
    published = _published(gpu)
    if published is not None:
        return published
    reached = limits_of(gpu, rows)
    limit_w = max((r.power_limit_w or r.power_w or 0.0 for r in rows), default=0.0) or NOMINAL_POWER_W
    bandwidth = reached.bandwidth_bytes_per_s or max((_rate(r.bytes_moved, r) for r in rows), default=0.0) or _SLOW
    flops = reached.flops_per_s or max((_rate(r.flops, r) for r in rows), default=0.0) or _SLOW
    power, on_cpu = limit_w / H200.power_limit_w, gpu.startswith("cpu ")
    # A CPU computes in float32 whatever the format; a GPU is taken to have an H200's ratios.
    narrow, wide = (1.0, 1.0) if on_cpu else (rate / H200.flops_per_s_16bit for rate in _OTHER_RATES)
    return DeviceLimits(
        name=gpu,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s_16bit=flops,
        flops_per_s_8bit=flops * narrow,
        flops_per_s_32bit=flops * wide,
        launch_s=reached.launch_s or H200.launch_s,
        idle_power_w=H200.idle_power_w * power,
        joules_per_byte=H200.joules_per_byte * H200.bandwidth_bytes_per_s * power / bandwidth,
        joules_per_flop=H200.joules_per_flop * H200.flops_per_s_16bit * power / flops,
        power_limit_w=limit_w,
        processors=1.0 if on_cpu else H200.processors,
    )


def _published(gpu: str) -> DeviceLimits | None:
    if re.search(r"\bH200\b", gpu):  # a GH200 is another GPU
        return H200
    name = next((name for name, sheet in DATA_SHEETS.items() if sheet.gpu == gpu), None)
    return None if name is None else expected_limits(name)


def _rate(work: float | None, row: CostRow) -> float:
    """Work over time [1/s]."""
    return (work or 0.0) / row.latency_us * 1e6


def _from_rows(rows: Sequence[CostRow], shortest_s: float | None) -> KnownLimits:
    copies = [r for r in rows if r.op in ("copy", "elementwise") and r.bytes_moved]
    products = [r for r in rows if r.op in ("gemm", "matmul", "linear_fc1") and r.flops]
    longest = max(copies, key=lambda r: r.bytes_moved or 0.0, default=None)  # short ones stay in a cache
    return KnownLimits(
        source="the best that these rows reached",
        launch_s=shortest_s,
        bandwidth_bytes_per_s=None if longest is None else (longest.bytes_moved or 0.0) / longest.latency_us * 1e6,
        flops_per_s=max(((r.flops or 0.0) / r.latency_us * 1e6 for r in products), default=None),
    )
