"""Loads as the profiler draws them, and a plan for them in plain Python."""

import math
import re
from pathlib import Path

import numpy as np

import thermoe
from thermoe.cost.loads import Loads, even_loads
from thermoe.profiling.case import Case, draw_expert_ids

SIZES = [(128, 8), (8, 2), (64, 6), (32, 4), (512, 10)]
KERNEL = Path(thermoe.__file__).parent / "kernels" / "expert_mlp" / "cuda"


def drawn(num_experts: int, top_k: int, tokens: int, distinct: int, load: str, count: int = 16) -> list[np.ndarray]:
    """Rows of each touched expert, one array a draw."""
    case = Case(
        op="expert_mlp",
        impl="thermoe",
        hidden_size=64,
        inter_size=64,
        num_experts=num_experts,
        top_k=top_k,
        routed_rows=tokens * top_k,
        distinct_experts=distinct,
        load=load,
    )
    return [np.unique(draw_expert_ids(case, seed), return_counts=True)[1] for seed in range(count)]


def told(draws: list[np.ndarray]) -> Loads:
    """What a cost database keeps of draws: rows, experts, the fullest."""
    rows = np.array([float(d.sum()) for d in draws])
    distinct = np.array([float(len(d)) for d in draws])
    return even_loads(rows, distinct, np.array([float(d.max()) for d in draws]) * distinct / rows)


def number(file: str, pattern: str) -> float:
    """A number of the kernel's source; the pattern has one group."""
    (found,) = set(re.findall(pattern, (KERNEL / file).read_text()))
    return float(found)


def planned(loads: np.ndarray, cap: int, tile_rows: int, job_cost: float, further_cost: float) -> tuple[int, float]:
    """Segments, and their cost in jobs of one tile, as the kernel plans: an expert's segments all cost the same."""
    segments, cost = 0, 0.0
    for rows in loads.tolist():
        own = math.ceil(rows / cap)
        tiles = next(t for t in (1, 2, 4, 8) if min(rows, cap) <= t * tile_rows)
        segments += own
        cost += own * (job_cost + further_cost * (tiles - 1))
    return segments, cost / job_cost
