"""Limits of the device that a database names: published or measured before where they are known, else from its rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from thermoe.cost.published import DATA_SHEETS, expected_limits
from thermoe.cost.roofline import H200
from thermoe.cost.rows import CostRow

_ON_HOST = ("ttha_adapter_forward", "ttha_update")


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
    if "H200" in gpu:
        limits, source = H200, "measured before on an H200"
    else:
        name = next((name for name, sheet in DATA_SHEETS.items() if sheet.gpu == gpu), None)
        if name is None:
            return _from_rows(rows, shortest_s)
        limits, source = expected_limits(name), "expected from its data sheet"
    return KnownLimits(
        source=source,
        launch_s=limits.launch_s if shortest_s is None else min(limits.launch_s, shortest_s),
        bandwidth_bytes_per_s=limits.bandwidth_bytes_per_s,
        flops_per_s=limits.flops_per_s_16bit,
        idle_power_w=limits.idle_power_w,
        joules_per_byte=limits.joules_per_byte,
        joules_per_flop=limits.joules_per_flop,
    )


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
