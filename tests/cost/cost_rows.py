"""Rows made up for tests; no figure here is a measurement of the project's own."""

from dataclasses import replace
from typing import Any

import numpy as np

from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.types import Kind, MoEShape

KEY = DeviceKey(gpu="Test GPU", driver="1.2", torch="2.11", triton="3.6", kernel_revision="1")

# One MoE layer on one H200, torch grouped matrix product, bf16, D 2048, I 768, E 128, k 8, 12 layers in a CUDA graph:
# routed rows, experts touched, us, mJ. Measured by others than this profiler.
INDEPENDENT_TABLE = [
    *((8, d, t, e) for d, t, e in [(1, 28, 6.0), (2, 30, 7.9), (4, 35, 12.0), (8, 53, 22.3)]),
    *((128, d, t, e) for d, t, e in [(8, 50, 21.9), (16, 75, 39.4), (32, 127, 75.2), (64, 230, 147)]),
    *((128, d, t, e) for d, t, e in [(96, 348, 218), (128, 453, 288)]),
    *((1024, d, t, e) for d, t, e in [(8, 52, 28.7), (32, 130, 82.8), (128, 411, 283)]),
    *((32768, d, t, e) for d, t, e in [(8, 655, 470), (64, 694, 476), (128, 735, 511)]),
]
QWEN3 = MoEShape(num_layers=48, hidden_size=2048, inter_size=768, num_experts=128, top_k=8)


def make_row(latency_us: float = 50.0, **changes: Any) -> CostRow:
    """A valid row, some fields changed."""
    values: dict[str, Any] = {
        "device": KEY,
        "op": "expert_mlp",
        "impl": "grouped_mm",
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "inter_size": 768,
        "num_experts": 128,
        "top_k": 8,
        "tokens": 16,
        "routed_rows": 128,
        "active_experts": 32,
        "skew": 1.5,
        "latency_us": latency_us,
        "latency_low_us": 0.99 * latency_us,
        "latency_high_us": 1.02 * latency_us,
        "repeats": 100,
        "spread_pct": 3.0,
        "input_distribution": "normal",
        "kind": Kind.MEASURED,
    }
    return CostRow(**(values | changes))


def row_of(shape: MoEShape, rows: int, distinct: int, latency_s: float, energy_j: float | None) -> CostRow:
    """A row of a given cost, its load even."""
    return make_row(
        latency_s * 1e6,
        skew=1.0,
        hidden_size=shape.hidden_size,
        inter_size=shape.inter_size,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        tokens=max(1, rows // shape.top_k),
        routed_rows=rows,
        active_experts=distinct,
        energy_mj=None if energy_j is None else energy_j * 1e3,
        latency_sustained_us=latency_s * 1e6,
        power_w=None if energy_j is None else energy_j / latency_s,
    )


SHAPES = [
    QWEN3,
    MoEShape(num_layers=1, hidden_size=4096, inter_size=14336, num_experts=8, top_k=2),
    MoEShape(num_layers=1, hidden_size=384, inter_size=128, num_experts=64, top_k=8),
    MoEShape(num_layers=1, hidden_size=2048, inter_size=1408, num_experts=64, top_k=6),
    MoEShape(num_layers=1, hidden_size=7168, inter_size=2048, num_experts=32, top_k=8),
]


def loads(shape: MoEShape) -> list[tuple[int, int]]:
    """Loads from one token to a large batch."""
    tokens = (1, 7, 16, 128, 4096)
    wanted = [(t * shape.top_k, max(1, round(share * shape.num_experts))) for t in tokens for share in (0.1, 0.5, 1.0)]
    return sorted({(rows, min(rows, distinct)) for rows, distinct in wanted})


def true_cost(shape: MoEShape, rows: float, distinct: float) -> tuple[float, float]:
    """A made-up device, written without the package: launch 18 us, 2.6 TB/s, 600 TFLOP/s, joined as a 3-norm.

    Energy: 117 W idle, 140 pJ a byte of weights and 0.5 pJ an operation.
    """
    weight_bytes = distinct * 3 * shape.hidden_size * shape.inter_size * 2
    flops = rows * 6 * shape.hidden_size * shape.inter_size
    memory_s = weight_bytes / 2.6e12 + distinct * 0.2e-6 + rows * 1e-9
    latency_s = 18e-6 + (memory_s**3 + (flops / 600e12) ** 3) ** (1 / 3)
    return latency_s, 117 * latency_s + 140e-12 * weight_bytes + 0.5e-12 * flops


def synthetic_rows(noise: float = 0.0, seed: int = 0) -> list[CostRow]:
    """Rows of the made-up device, with log-normal noise; its kernel has no tiles, as torch's grouped product does."""
    rng = np.random.default_rng(seed)
    rows = []
    for shape in SHAPES:
        for routed_rows, distinct in loads(shape):
            latency_s, energy_j = true_cost(shape, routed_rows, distinct)
            scale = np.exp(noise * rng.standard_normal(2))
            row = row_of(shape, routed_rows, distinct, latency_s * scale[0], energy_j * scale[1])
            rows.append(replace(row, impl="made_up"))
    return rows
