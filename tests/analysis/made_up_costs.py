"""Rows and kernels made up for pages of costs; no figure is a measurement."""

import numpy as np
import pandas as pd

from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.types import Kind

KEY = DeviceKey(gpu="NVIDIA H200", driver="1.2", torch="2.11", triton="3.6", kernel_revision="2")
SHAPES = ((2048, 768, 128, 8), (4096, 14336, 8, 2), (384, 128, 64, 8))


def cost_row(latency_us=50.0, **changes) -> CostRow:
    """A valid row."""
    values = {
        "device": KEY,
        "op": "expert_mlp",
        "impl": "thermoe",
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "inter_size": 768,
        "num_experts": 128,
        "top_k": 8,
        "tokens": 16,
        "routed_rows": 128,
        "active_experts": 82,
        "skew": 1.5,
        "latency_us": latency_us,
        "latency_low_us": 0.98 * latency_us,
        "latency_high_us": 1.03 * latency_us,
        "repeats": 100,
        "spread_pct": 3.0,
        "input_distribution": "normal",
        "kind": Kind.MEASURED,
    }
    return CostRow(**(values | changes))


def expert_rows(*, energy=True, **changes) -> list[CostRow]:
    """Some forty expert MLPs over three shapes, with temperatures that follow power."""
    rng, rows = np.random.default_rng(0), []
    for D, I, E, k in SHAPES:  # noqa: E741
        for tokens in (1, 4, 16, 64):
            most = min(E, tokens * k)
            for experts in sorted({k, round(E * (1 - (1 - k / E) ** tokens)), most}):
                bytes_moved = experts * 6.0 * D * I
                latency_us = (6.0 + bytes_moved / 4e6) * float(np.exp(0.01 * rng.standard_normal()))
                energy_mj = (117.0 * latency_us + 130.0 * bytes_moved * 1e-6) * 1e-3
                power_w = energy_mj / latency_us * 1e3
                measured = {
                    "energy_mj": energy_mj,
                    "energy_integrated_mj": 1.01 * energy_mj,
                    "energy_spread_pct": 1.0,
                    "latency_sustained_us": latency_us,
                    "power_w": power_w,
                    "temp_c": 35.0 + power_w / 40.0,
                }
                sizes = {"hidden_size": D, "inter_size": I, "num_experts": E, "top_k": k, "tokens": tokens}
                counts = {
                    "routed_rows": tokens * k,
                    "active_experts": experts,
                    "bytes_moved": bytes_moved,
                    "flops": 1e6,
                }
                rows.append(cost_row(latency_us, **(sizes | counts | (measured if energy else {}) | changes)))
    return rows


def part_rows() -> list[CostRow]:
    """An int4 call and its parts."""
    parts = (
        ("expert_mlp", "thermoe", "int4", 40.0, 30e6),
        ("dispatch", "torch", "bfloat16", 10.0, 5e6),
        ("dequant_unpack_op", "torch", "int4", 90.0, 75e6),
        ("linear_fc1", "grouped_mm", "bfloat16", 50.0, 40e6),
        ("activation", "torch", "bfloat16", 5.0, 2e6),
        ("linear_fc2", "grouped_mm", "bfloat16", 25.0, 20e6),
        ("combine", "thermoe", "bfloat16", 10.0, 8e6),
    )
    return [
        cost_row(us, op=op, impl=impl, dtype=dtype, bytes_moved=moved, flops=1e6, energy_mj=us * 0.5, power_w=500.0)
        for op, impl, dtype, us, moved in parts
    ]


def kernels(shares, power_w, *, window_ms=100, device=0, file="a.json", kind="measured") -> pd.DataFrame:
    """A trace: in each window one matrix product for a share of the time, then one copy for a third of the rest.

    Args:
        shares: Of the product in each window.
        power_w: Board power in each window [W].
    """
    rows = []
    for number, (share, watts) in enumerate(zip(shares, power_w, strict=True)):
        begin, length = number * window_ms * 1e6, window_ms * 1e6
        middle = begin + share * length
        for op_type, start, end in (("gemm", begin, middle), ("copy", middle, middle + (begin + length - middle) / 3)):
            rows.append(
                {
                    "op_type": op_type,
                    "device_id": device,
                    "start_ns": int(start),
                    "end_ns": int(end),
                    "power_w_mean": watts,
                    "energy_j": watts * (end - start) * 1e-9,
                    "energy_kind": kind,
                    "source_file": file,
                }
            )
    # A last instant, so that the last window is whole.
    end = {
        "op_type": "gemm",
        "start_ns": int(len(shares) * window_ms * 1e6) - 1,
        "end_ns": int(len(shares) * window_ms * 1e6),
    }
    return pd.DataFrame([*rows, rows[-1] | end])
