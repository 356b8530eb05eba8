"""How rows fall on the experts of one GPU: what a kernel with tiles of rows sees of a routing.

Shapes: B cases, E experts, S sampled routings.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Self

import numpy as np

from thermoe.errors import DataError
from thermoe.types import FloatArray

BLOCKS = (16, 32, 64, 128, 256)
"""Rows of a tile for which tiles are counted."""

_SAMPLES = 16
_SEED = 20261121
_POWER_LAW = "power_law_"
# Up to so many tokens, that none picks an expert twice shows in the loads.
_FEW = 64
# Where tokens are fewer than experts, expected loads are drawn between these; otherwise from 1 to this share of tokens.
_FEW_TOKENS = (0.01, 2.0)
_MOST_OF_TOKENS = 0.8


@dataclass(frozen=True, slots=True)
class Loads:
    """Loads of each case on the GPU that has most of them, means over routings.

    Attributes:
        rows, distinct, fullest: Rows, experts with at least one, rows of the fullest (B,).
        tiles: Tiles of `BLOCKS` rows, none shared between experts (B, 5).
    """

    rows: FloatArray
    distinct: FloatArray
    fullest: FloatArray
    tiles: FloatArray

    def take(self, chosen: Any) -> Self:
        """The cases of an index or a mask."""
        return type(self)(*(getattr(self, f.name)[chosen] for f in fields(self)))


def even_loads(rows: FloatArray, distinct: FloatArray, skew: FloatArray) -> Loads:
    """Rows spread evenly over the experts touched.

    Args:
        rows, distinct: (B,), real numbers allowed.
        skew: Load of the fullest expert over the mean (B,).
    """
    touched = np.maximum(np.minimum(distinct, rows), 1e-3)
    mean = rows / touched
    whole = np.floor(mean + 1e-9)
    part = np.maximum(mean - whole, 0.0)
    blocks = np.array(BLOCKS, dtype=np.float64)
    low, high = np.ceil(whole[:, None] / blocks), np.ceil((whole[:, None] + 1.0) / blocks)
    tiles = touched[:, None] * np.maximum((1.0 - part[:, None]) * low + part[:, None] * high, mean[:, None] / blocks)
    return Loads(rows, distinct, np.maximum(mean * skew, mean), tiles)


def named_loads(name: str, tokens: int, top_k: int, num_experts: int, ranks: int) -> Loads:
    """Loads under a named distribution, one case.

    Args:
        name: "balanced", "random" (each token picks at random) or "power_law_A": expected loads drawn from a
            truncated power law of exponent A, the GPU with most rows taken.
        tokens, top_k, num_experts: Of the whole layer.
        ranks: GPUs that share its experts.

    Raises:
        DataError: Another name.
    """
    return Loads(*(np.array([v]) for v in _named(name, tokens, top_k, num_experts, ranks)))


def many_named_loads(
    name: list[str], tokens: FloatArray, top_k: FloatArray, num_experts: FloatArray, ranks: FloatArray
) -> Loads:
    """As `named_loads` for many cases (B,)."""
    sizes = np.stack([tokens, top_k, num_experts, ranks], axis=1).astype(np.int64).tolist()
    table = [_named(n, *size) for n, size in zip(name, sizes, strict=True)]
    rows, distinct, fullest = (np.array([line[i] for line in table]) for i in range(3))
    return Loads(rows, distinct, fullest, np.array([line[3] for line in table]))


def power_law_exponent(name: str) -> float:
    """Exponent of a named distribution, 0 for those that are no power law; `DataError` for a name that is not known."""
    if name in ("balanced", "random"):
        return 0.0
    try:
        exponent = float(name.removeprefix(_POWER_LAW)) if name.startswith(_POWER_LAW) else np.nan
    except ValueError:
        exponent = np.nan
    if not np.isfinite(exponent) or exponent <= 0 or exponent == 1.0:
        raise DataError(f"distribution {name} is not known: balanced, random and {_POWER_LAW}A (A > 0, not 1) are")
    return exponent


@lru_cache(maxsize=65536)
def _named(
    name: str, tokens: int, top_k: int, num_experts: int, ranks: int
) -> tuple[float, float, float, tuple[float, ...]]:
    if name == "balanced":
        loads_SE = _balanced(tokens * top_k, num_experts)
    elif name == "random":
        loads_SE = _random(tokens, top_k, num_experts)
    else:
        loads_SE = _power_law(tokens, top_k, num_experts, power_law_exponent(name))
    by_rank = loads_SE.reshape(len(loads_SE), ranks, -1)
    busiest = by_rank[np.arange(len(by_rank)), by_rank.sum(axis=2).argmax(axis=1)]
    tiles = tuple(float(np.ceil(busiest / b).sum(axis=1).mean()) for b in BLOCKS)
    distinct = float((busiest > 0).sum(axis=1).mean())
    return float(busiest.sum(axis=1).mean()), distinct, float(busiest.max(axis=1).mean()), tiles


def _balanced(rows: int, num_experts: int) -> FloatArray:
    ends = np.floor(np.arange(num_experts + 1) * rows / num_experts + 1e-9)
    return np.diff(ends)[None]


def _random(tokens: int, top_k: int, num_experts: int) -> FloatArray:
    """Loads (S, E) of tokens that pick at random: each its own experts while there are few tokens, else rows alone."""
    rng = np.random.default_rng(_SEED)
    if tokens > _FEW:
        return rng.multinomial(tokens * top_k, np.full(num_experts, 1.0 / num_experts), _SAMPLES).astype(np.float64)
    ids = rng.random((_SAMPLES, tokens, num_experts)).argsort(axis=2)[:, :, :top_k].reshape(_SAMPLES, -1)
    return np.stack([np.bincount(row, minlength=num_experts) for row in ids]).astype(np.float64)


def _power_law(tokens: int, top_k: int, num_experts: int, exponent: float) -> FloatArray:
    """Sampled loads (S, E) that add up to tokens x top_k."""
    low, high = (1.0, _MOST_OF_TOKENS * tokens) if tokens * top_k > num_experts else _FEW_TOKENS
    draws = np.random.default_rng(_SEED).random((_SAMPLES, num_experts))
    inverse = 1.0 - exponent
    weights = ((high**inverse - low**inverse) * draws + low**inverse) ** (1.0 / inverse)
    shares = weights / weights.sum(axis=1, keepdims=True) * (tokens * top_k)
    return np.stack([_rounded(s, tokens * top_k) for s in shares])


def _rounded(shares: FloatArray, total: int) -> FloatArray:
    """Whole loads near the shares with the given sum: what rounding lacks or has too many goes to the fullest."""
    loads = np.round(shares)
    lacking = int(total - loads.sum())
    order = np.argsort(-loads, kind="stable")
    if lacking >= 0:
        loads += lacking // len(loads)
        loads[order[: lacking % len(loads)]] += 1
        return loads
    while lacking < 0:
        filled = order[loads[order] > 0][::-1][:-lacking]
        loads[filled] -= 1
        lacking += len(filled)
    return loads
