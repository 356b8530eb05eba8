"""Costs on GPUs that one does not have: rows measured on one carried over by published limits, marked as predicted."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from thermoe.cost.database import CostDatabase
from thermoe.cost.roofline import H200, DeviceLimits
from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSheet:
    """What a vendor publishes of a GPU; matrix rates are dense, without sparsity.

    Attributes:
        gpu: Name as the driver gives it.
        bandwidth_bytes_per_s: Of the memory [byte/s].
        flops_per_s_16bit, flops_per_s_8bit, flops_per_s_32bit: bf16, fp8 (16 bit where there is none), float32 [1/s].
        power_limit_w: By default [W].
        processors: Streaming multiprocessors.
        source: Where it stands.
    """

    gpu: str
    bandwidth_bytes_per_s: float
    flops_per_s_16bit: float
    flops_per_s_8bit: float
    flops_per_s_32bit: float
    power_limit_w: float
    processors: float
    source: str


DATA_SHEETS: dict[str, DataSheet] = {
    "a100": DataSheet(
        gpu="NVIDIA A100-SXM4-80GB",
        bandwidth_bytes_per_s=2.039e12,
        flops_per_s_16bit=312e12,
        flops_per_s_8bit=312e12,
        flops_per_s_32bit=19.5e12,
        power_limit_w=400.0,
        processors=108.0,
        source="NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM",
    ),
    "h100": DataSheet(
        gpu="NVIDIA H100 80GB HBM3",
        bandwidth_bytes_per_s=3.35e12,
        flops_per_s_16bit=989.4e12,
        flops_per_s_8bit=1978.9e12,
        flops_per_s_32bit=66.9e12,
        power_limit_w=700.0,
        processors=132.0,
        source="NVIDIA H100 Tensor Core GPU data sheet, SXM5, half of the rates with sparsity",
    ),
    "h200": DataSheet(
        gpu="NVIDIA H200",
        bandwidth_bytes_per_s=4.8e12,
        flops_per_s_16bit=989.4e12,
        flops_per_s_8bit=1978.9e12,
        flops_per_s_32bit=66.9e12,
        power_limit_w=700.0,
        processors=132.0,
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM, half of the rates with sparsity",
    ),
    "b200": DataSheet(
        gpu="NVIDIA B200",
        bandwidth_bytes_per_s=8.0e12,
        flops_per_s_16bit=2250e12,
        flops_per_s_8bit=4500e12,
        flops_per_s_32bit=75e12,
        power_limit_w=1000.0,
        processors=148.0,
        source="NVIDIA DGX B200 and HGX B200 data sheets, a GPU's share, half of the rates with sparsity",
    ),
}

BITS = {"float32": 32.0, "fp8": 8.0}  # of matrix products; every other format is multiplied in 16 bit


def expected_limits(name: str) -> DeviceLimits:
    """Limits that a GPU would reach if it reached the share of its data sheet that a measured H200 reaches.

    That is an assumption, and so is its energy: at full bandwidth and in full matrix products a board is taken to
    draw the share of its power limit that an H200 draws there, and idle likewise.

    Raises:
        ConfigError: A GPU without a data sheet here.
    """
    sheet, base = _sheet(name), DATA_SHEETS["h200"]
    bandwidth = H200.bandwidth_bytes_per_s * sheet.bandwidth_bytes_per_s / base.bandwidth_bytes_per_s
    flops = H200.flops_per_s_16bit * sheet.flops_per_s_16bit / base.flops_per_s_16bit
    power = sheet.power_limit_w / base.power_limit_w
    return replace(
        H200,
        name=sheet.gpu,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s_16bit=flops,
        flops_per_s_8bit=H200.flops_per_s_8bit * sheet.flops_per_s_8bit / base.flops_per_s_8bit,
        flops_per_s_32bit=H200.flops_per_s_32bit * sheet.flops_per_s_32bit / base.flops_per_s_32bit,
        idle_power_w=H200.idle_power_w * power,
        joules_per_byte=H200.joules_per_byte * H200.bandwidth_bytes_per_s * power / bandwidth,
        joules_per_flop=H200.joules_per_flop * H200.flops_per_s_16bit * power / flops,
        power_limit_w=sheet.power_limit_w,
        processors=sheet.processors,
    )


def carry_over(rows: Iterable[CostRow], name: str, source: DeviceLimits = H200) -> CostDatabase:
    """Measured rows as they would be on another GPU.

    Each row keeps its efficiency: the roofline of the other GPU is divided by the share of its own roofline that
    the row reached. Energy is scaled by the ratio of what idle power, bytes and operations take on both; where the
    power limit would be exceeded, the sustained time is stretched until it holds. Rows that do not count their
    operations and bytes are left out.

    Args:
        rows: Measured on the GPU of `source`.
        name: One of `DATA_SHEETS`.
        source: Limits of the GPU that the rows were measured on.

    Raises:
        ConfigError: A GPU without a data sheet here.
        DataError: No row can be carried over.
    """
    target = expected_limits(name)
    counted = [r for r in rows if r.kind is Kind.MEASURED and r.bytes_moved and not r.is_smoke]
    carried = [_carried(row, source, target) for row in counted]
    if not carried:
        raise DataError(f"no measured row that counts its bytes and operations: nothing to carry over to {target.name}")
    found: dict[Any, CostRow] = {}
    for row in carried:  # of several occasions and releases the last one stays, but none without energy for one with
        if row.energy_mj is not None or row.key not in found or found[row.key].energy_mj is None:
            found[row.key] = row
    return CostDatabase(list(found.values()))


def _carried(row: CostRow, source: DeviceLimits, target: DeviceLimits) -> CostRow:
    stretch = _floor_s(row, target) / _floor_s(row, source)
    latency_us = row.latency_us * stretch
    sustained_us = energy_mj = power_w = None
    if row.energy_mj is not None:
        before_s = (row.latency_sustained_us or row.latency_us) * 1e-6
        energy_mj = row.energy_mj * _energy_j(row, target, before_s * stretch) / _energy_j(row, source, before_s)
        sustained_us = max(before_s * stretch * 1e6, energy_mj * 1e3 / target.power_limit_w)
        power_w = energy_mj * 1e3 / sustained_us
    return replace(
        row,
        device=DeviceKey(gpu=target.name, driver="", torch="", triton="", kernel_revision=row.device.kernel_revision),
        occasion="",
        kind=Kind.PREDICTED,
        input_distribution=f"none: carried over from {row.device.gpu}",
        latency_us=latency_us,
        latency_low_us=latency_us,
        latency_high_us=latency_us,
        latency_sustained_us=sustained_us,
        spread_pct=0.0,
        repeats=1,
        energy_mj=energy_mj,
        energy_integrated_mj=None,
        power_w=power_w,
        power_limit_w=target.power_limit_w,
        temp_c=None,
        sm_clock_mhz=None,
        memory_clock_mhz=None,
        throttled=None,
        windows=None,
        energy_spread_pct=None,
        rel_error=None,
    )


def _floor_s(row: CostRow, limits: DeviceLimits) -> float:
    """The roofline of a row, launch included [s]."""
    rate = limits.flops_per_s(BITS.get(row.dtype, 16.0))
    work_s = max((row.bytes_moved or 0.0) / limits.bandwidth_bytes_per_s, (row.flops or 0.0) / rate)
    return limits.launch_s + work_s


def _energy_j(row: CostRow, limits: DeviceLimits, seconds: float) -> float:
    moved_j = (row.bytes_moved or 0.0) * limits.joules_per_byte
    return limits.idle_power_w * seconds + moved_j + (row.flops or 0.0) * limits.joules_per_flop


def _sheet(name: str) -> DataSheet:
    sheet = DATA_SHEETS.get(name.lower())
    if sheet is None:
        raise ConfigError(f"no data sheet of {name}: choose from {', '.join(DATA_SHEETS)}")
    return sheet
