"""What a learned correction sees of a case: ratios and logarithms of what the hardware has to do.

Two families: an expert layer (two products by tiles over ragged loads) and everything else, described as one
product by tiles. Shapes: B cases, F features.
"""

import numpy as np

from thermoe.cost.cases import Cases
from thermoe.cost.loads import BLOCKS
from thermoe.cost.roofline import DeviceLimits
from thermoe.cost.tiles import launch_tiles
from thermoe.types import FloatArray

EXPERT_OPS = ("expert_mlp", "linear_fc1", "linear_fc2")
STREAMS = ("copy", "elementwise", "norm", "activation", "combine")
# The profiler takes other activations in every call, but no more than so many: short ones find theirs in the cache.
_ROTATED, _CACHE_BYTES = 96.0, 40e6
_PLAIN_TILES = ((64, 128), (128, 128), (128, 256), (256, 128))
_VECTORS = (2, 4, 8, 16)
_TINY = 1e-12


def features_of(cases: Cases, work: FloatArray, law_s: FloatArray, limits: DeviceLimits) -> FloatArray:
    """Features (B, F).

    Args:
        cases: What is asked.
        work: `Work.table()` of the cases (B, 6).
        law_s: Latency by the fitted physical law (B,) [s].
        limits: The device.
    """
    expert = cases.op in EXPERT_OPS
    columns = _common(cases, work, law_s, limits)
    columns += _experts(cases, work, limits) if expert else _product(cases, limits)
    if cases.op in STREAMS:
        columns.append(1.0 / (1.0 + (_ROTATED * work[:, 2] / _CACHE_BYTES) ** 4))
    return np.ascontiguousarray(np.array(columns).T)


def _common(cases: Cases, work: FloatArray, law_s: FloatArray, limits: DeviceLimits) -> list[FloatArray]:
    _, weight_bytes, row_bytes, rows, flops, _ = work.T
    bits = cases.bits
    rate = np.where(bits > 16, limits.flops_per_s_32bit, limits.flops_per_s_16bit)
    rate = np.where(bits == 8, limits.flops_per_s_8bit, rate)
    weights_s = (weight_bytes + 1.0) / limits.bandwidth_bytes_per_s
    rows_s = (row_bytes + 1.0) / limits.bandwidth_bytes_per_s
    flops_s = (flops + 1.0) / rate
    return [
        np.log(law_s),
        np.log(weights_s),
        np.log(rows_s),
        np.log(flops_s),
        np.log(flops_s / (weights_s + rows_s)),
        np.log(rows_s / weights_s),
        np.log(limits.launch_s + np.maximum(weights_s + rows_s, flops_s)),
        np.log(cases.tokens),
        np.log(np.maximum(rows, 0.1)),
        np.log(cases.hidden_size),
        np.log(cases.inter_size),
        np.log(bits),
        np.log(cases.context),
    ]


def _experts(cases: Cases, work: FloatArray, limits: DeviceLimits) -> list[FloatArray]:
    loads = cases.loads
    D, I, E = cases.hidden_size, cases.inter_size, cases.num_experts  # noqa: E741
    distinct, rows = np.maximum(loads.distinct, 0.05), np.maximum(loads.rows, 0.01)
    tiles = launch_tiles(list(cases.dtype), cases.tokens, E)
    row_tiles = loads.tiles[np.arange(len(cases)), np.searchsorted(BLOCKS, np.minimum(tiles.rows, BLOCKS[-1]))]
    expert_bytes = 3.0 * D * I * cases.bits / 8.0
    weights_s = distinct * expert_bytes / limits.bandwidth_bytes_per_s
    per_row_s = 6.0 * D * I / limits.flops_per_s_16bit
    columns = [
        np.log(distinct),
        np.log(loads.fullest + 0.01),
        np.log(rows / distinct),
        np.log((loads.fullest + 0.01) * distinct / rows),
        np.log(cases.tokens * cases.top_k / (E * cases.ranks)),
        distinct / E,
        np.log(rows * cases.ranks / (cases.tokens * cases.top_k)),
        np.log(cases.ranks),
        np.log(cases.splits),
        np.log(E),
        np.log(E * cases.ranks),
        cases.top_k,
        cases.skew,
        _alignment(I),
        np.log2(tiles.rows),
        np.log2(tiles.columns),
        np.log2(tiles.depth),
        np.log2(tiles.group),
        np.log2(tiles.warps),
        tiles.stages,
    ]
    # Plain tiles of several heights, then the kernel's own, as lines of one array.
    heights = np.concatenate([np.array(BLOCKS[:-1])[:, None] * np.ones_like(rows), tiles.rows[None]])
    counts = np.concatenate([loads.tiles.T[:-1], row_tiles[None]])
    widths = np.where(np.arange(len(counts))[:, None] < len(counts) - 1, 128.0, tiles.columns)
    both = np.concatenate([counts * np.ceil(2.0 * I / widths), counts * np.ceil(D / widths)])
    waves = _num_waves(both, limits.processors)
    steps = np.array([D / tiles.depth, I / tiles.depth])
    own_waves = waves[[len(counts) - 1, -1]]
    columns += [
        *np.log(both + 0.05),
        *np.log(waves),
        *(both / (limits.processors * waves)),
        *np.log((counts * heights * per_row_s + _TINY) / weights_s),
        *(rows / (heights * counts + _TINY)),
        np.log((row_tiles + _TINY) / distinct),
        *np.log(steps),
        *np.log(own_waves * steps),
    ]
    return columns


def _product(cases: Cases, limits: DeviceLimits) -> list[FloatArray]:
    m, n, k = cases.loads.rows, cases.inter_size, cases.hidden_size
    columns = [
        np.log(cases.num_experts),
        np.log(n * k),
        np.log(np.maximum(m, 0.1) * (n + k)),
        np.where(m % 16 == 0, 0.0, 1.0),
        m / (64.0 * np.ceil(m / 64.0) + _TINY),
        cases.tokens,
    ]
    for block_rows, block_columns in _PLAIN_TILES:
        tiles = np.ceil(m / block_rows) * np.ceil(n / block_columns)
        waves = _num_waves(tiles, limits.processors)
        columns += [
            np.log(np.maximum(tiles, 1.0)),
            tiles / (waves * limits.processors),
            np.log(waves),
            np.log(waves * k),
        ]
    return columns


def _alignment(width: FloatArray) -> FloatArray:
    """Powers of two in the length of a row, up to 16: below that many elements rows are not read as whole vectors."""
    return sum((np.where(width % step == 0, 1.0, 0.0) for step in _VECTORS), start=np.zeros_like(width))


def _num_waves(tiles: FloatArray, processors: float) -> FloatArray:
    return np.maximum(np.ceil(tiles / processors), 1.0)
