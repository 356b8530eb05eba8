"""What kernels make of a call: readings of weights for rows that share one, tiles that are partly empty.

The kernel for few tokens plans its work from the ids: an expert's rows are cut into segments that share one reading of
its weights, a segment's rows into tiles, and blocks get equal shares of what the plan takes segments and tiles to cost
(`thermoe/kernels/expert_mlp/cuda/plan.cuh`). torch's grouped product takes whole tiles of an expert's rows, two by two.
Shapes: B cases, Q groups of experts of the same load.
"""

from dataclasses import dataclass

import numpy as np

from thermoe.cost.cases import Cases
from thermoe.cost.kernels import FEW, LARGE, SMALL, kernels_of
from thermoe.cost.ragged import spread
from thermoe.types import BoolArray, FloatArray

NUM_FIGURES = 8

_ROOM_BYTES, _ROW_BYTES = 143 * 1024, 1280  # of shared memory for activations, and beside them for a row's sums
_WIDEST_SECOND = 2048  # columns of the second product held at a time
_ROW_CAPS = (32, 24, 16, 8, 4, 2, 1)
_ROW_CAP_OF_CODES = 16
_CODES = ("int8", "int4", "int2", "bank8", "bank4", "bank2")
_UNPACKING = "dequant_unpack_op"  # of this project's codes, whatever runs it
_GROUPS = (128.0, 64.0, 32.0)
# Of the kernel's plan (`TILE_TOKENS`, `TILE_COST` and `JOB_COLUMNS` of planes.cuh and bytes.cuh, `ExpertPlan::of` of
# plan.cuh): rows of a tile, cost of a further tile, bytes of weights that cost 1; for codes, and for others.
TILE_ROWS, TILE_COST, BYTES_OF_COST = (4.0, 8.0), (24.0, 8.0), 64.0
JOB_ROWS, JOB_COLUMNS, JOB_COST = 32.0, (256.0, 128.0), 2.0  # fewer columns in 16 bit
FEW_SEGMENTS = 132 // 8  # up to so many, every block of an H200 keeps to one segment (`few_segments` of plan.cuh)
# Rows of two tiles of torch's grouped product, which are taken together (aten/src/ATen/native/cuda/GroupMM.cu).
PAIR_ROWS = {SMALL: 2 * 64.0, LARGE: 2 * 128.0}
_SCALE_BITS = 16.0
# Cost of a further scale group's sum in units of the plan, which does not count it: chosen on measured int4 layers with
# groups of 32.
_SUM_COST = 4.0
_DISTINCT, _WEIGHT_BYTES, _ROW_BYTES_AT, _FLOPS = 0, 1, 2, 4  # columns of `Work.table`
# Bytes that torch's chains of operations move for each number of a routed row, and of a token, in 16 bit: dispatch
# gathers; combine scatters, multiplies by gates in 32 bit and sums; an activation keeps its first half in between.
_TORCH_BYTES = {
    "dispatch": (2.0 + 2.0, 0.0),
    "combine": (2.0 + 2.0 + 2.0 + 4.0 + 4.0, 4.0),
    "dispatch_combine": (4.0 + 14.0, 4.0),
    "activation": (2.0 + 2.0 + 2.0 + 2.0 + 2.0, 0.0),
}
_PLAN_BYTES = 4.0 + 4.0 + 4.0  # of a slot: its expert, its weight, its place
# Bytes that torch's chain of operations from codes to 16 bit moves for each weight, counted operation by operation.
UNPACKING_BYTES = {"fp8": 7.0, "int8": 45.0, "int4": 34.5, "int2": 26.25, "bank8": 99.0, "bank4": 99.0, "bank2": 99.0}


@dataclass(frozen=True, slots=True)
class _Parts:
    """Segments or pairs of tiles, tiles of one, rows that these hold, tiles of the fullest, rows that one may hold, all
    (B,)."""

    segments: FloatArray
    tiles: FloatArray
    padded_rows: FloatArray
    most_tiles: FloatArray
    cap: FloatArray


KnownParts = tuple[_Parts, BoolArray]


def work_moved(cases: Cases, asked: FloatArray) -> FloatArray:
    """`Work.table()` with the bytes that implementations move in place of those that were asked for (B, 6).

    Codes have scales. Torch's operations one after the other write and read what lies between them. This project's
    dispatch is a plan, which moves no activations.
    """
    moved = asked.copy()
    codes = _are_scaled(cases)
    if codes.any():
        moved[codes, _WEIGHT_BYTES] *= 1.0 + _SCALE_BITS / (group_sizes(cases) * cases.bits)[codes]
    if cases.op in _TORCH_BYTES:
        in_torch = np.array([impl == "torch" for impl in cases.impl], dtype=np.bool_)
        of_row, of_token = _TORCH_BYTES[cases.op]
        width = cases.inter_size if cases.op == "activation" else cases.hidden_size
        by_torch = cases.loads.rows * width * (of_row + of_token / cases.top_k)
        moved[:, _ROW_BYTES_AT] = np.where(in_torch, by_torch, moved[:, _ROW_BYTES_AT])
    if cases.op == _UNPACKING:
        of_weight = np.array([UNPACKING_BYTES.get(dtype, 0.0) for dtype in cases.dtype])
        moved[:, _ROW_BYTES_AT] += asked[:, _DISTINCT] * 3.0 * cases.hidden_size * cases.inter_size * of_weight
    if cases.op == "dispatch":
        planned = np.array([impl == "thermoe" for impl in cases.impl], dtype=np.bool_)
        moved[planned, _ROW_BYTES_AT] = _PLAN_BYTES * cases.loads.rows[planned]
    return moved


def work_done(cases: Cases, asked: FloatArray, known_parts: KnownParts | None = None) -> FloatArray:
    """As `work_moved`, with what the kernel does: segments for experts, operations on all rows of its tiles (B, 6).

    `known_parts` are those of `parts_of`, where they are at hand.
    """
    parts, known = known_parts or parts_of(cases)
    done = work_moved(cases, asked)
    if not known.any():
        return done
    scale = parts.padded_rows / np.maximum(cases.loads.rows, 1e-3)
    done[known, _DISTINCT] = parts.segments[known]
    done[known, _FLOPS] *= scale[known]
    return done


def figures_of(cases: Cases, known_parts: KnownParts | None = None) -> FloatArray:
    """What kernels make of a call (B, 8), logarithms; 0 where only one is known.

    Segments over experts, rows in tiles over rows, tiles of a segment, tiles of the fullest, rows that share a reading,
    groups of scales, whether blocks keep to a segment, parts of the second product. `known_parts` as in `work_done`.
    """
    figures = np.zeros((len(cases), NUM_FIGURES))
    codes = _are_scaled(cases)
    if codes.any():
        figures[codes, 5] = np.log2(_GROUPS[0] / group_sizes(cases)[codes])
    parts, known = known_parts or parts_of(cases)
    if known.any():
        touched = np.maximum(cases.loads.distinct, 1e-3)
        columns = [
            np.log(np.maximum(parts.segments, 1e-3) / touched),
            np.log(parts.padded_rows / np.maximum(cases.loads.rows, 1e-3)),
            np.log2(parts.tiles),
            np.log2(parts.most_tiles),
            np.log2(parts.cap),
            figures[:, 5],
            np.minimum(parts.segments / FEW_SEGMENTS, 1.0),
            np.log2(np.ceil(cases.inter_size / _WIDEST_SECOND)),
        ]
        figures[known] = np.stack(columns, axis=1)[known]
    return figures


def rows_at_a_time(cases: Cases) -> FloatArray:
    """About how many rows of an expert share one reading of its weights in the kernel for few tokens (B,)."""
    width = np.maximum(cases.hidden_size, np.minimum(cases.inter_size, _WIDEST_SECOND))
    fitting = _ROOM_BYTES / (2.0 * width + _ROW_BYTES)
    fitting = np.where(_have_codes(cases), np.minimum(fitting, _ROW_CAP_OF_CODES), fitting)
    caps = np.array(_ROW_CAPS[::-1], dtype=np.float64)
    return caps[np.maximum(np.searchsorted(caps, fitting, side="right") - 1, 0)]


def group_sizes(cases: Cases) -> FloatArray:
    """Columns that share a scale in formats of codes (B,): the largest that both widths hold an even number of."""
    sizes = np.full(len(cases), _GROUPS[0])
    for size in _GROUPS[::-1]:
        fits = [np.ceil(width / size) % 2 == 0 for width in (cases.hidden_size, cases.inter_size)]
        sizes[fits[0] & fits[1]] = size
    return sizes


def parts_of(cases: Cases) -> KnownParts:
    """Of each case, and whether its kernel is one that is known here (B,)."""
    kernels = kernels_of(cases)
    few, one = kernels == FEW, np.ones(len(cases))
    if few.all():
        return _segments(cases), few
    parts, known = _Parts(*(one.copy() for _ in _Parts.__slots__)), np.zeros(len(cases), dtype=np.bool_)
    if few.any():
        known |= few
        _put(parts, few, _segments(cases.take(np.flatnonzero(few))))
    for name, pair in PAIR_ROWS.items():
        if (rows := kernels == name).any():
            known |= rows
            _put(parts, rows, _pairs(cases.take(np.flatnonzero(rows)), pair))
    return parts, known


def _put(parts: _Parts, rows: BoolArray, some: _Parts) -> None:
    for name in _Parts.__slots__:
        getattr(parts, name)[rows] = getattr(some, name)


def _segments(cases: Cases) -> _Parts:
    """Of the kernel for few tokens; rows as if each cost what the plan takes a row of a full tile to cost."""
    loads, experts = spread(cases.loads)
    codes = _have_codes(cases)
    cap = rows_at_a_time(cases)
    tile = np.where(codes, TILE_ROWS[0], TILE_ROWS[1])[:, None]
    segments = np.ceil(loads / cap[:, None])
    tiles = _power_of_two(np.ceil(np.minimum(loads, cap[:, None]) / tile))
    columns = np.where(cases.bits == 16.0, JOB_COLUMNS[1], JOB_COLUMNS[0])
    job = (JOB_ROWS * columns * cases.bits / 8.0 / BYTES_OF_COST + JOB_COST)[:, None]
    further = np.where(codes, TILE_COST[0], TILE_COST[1])[:, None]
    sums = np.where(codes, JOB_COLUMNS[0] / group_sizes(cases), 2.0)[:, None] if codes.any() else 2.0
    cost = (experts * segments * (job + further * (tiles - 1.0) + _SUM_COST * (sums - 2.0) * tiles) / job).sum(axis=1)
    count = (experts * segments).sum(axis=1)
    return _Parts(count, (experts * segments * tiles).sum(axis=1) / count, 4.0 * cost, tiles[:, -1], cap)


def _pairs(cases: Cases, pair: float) -> _Parts:
    loads, experts = spread(cases.loads)
    pairs = np.ceil(loads / pair)
    total = (experts * pairs).sum(axis=1)
    return _Parts(total, np.ones(len(cases)), pair * total, pairs[:, -1], np.full(len(cases), pair))


def _power_of_two(tiles: FloatArray) -> FloatArray:
    return np.asarray(2.0 ** np.ceil(np.log2(np.maximum(tiles, 1.0))), dtype=np.float64)


def _are_scaled(cases: Cases) -> BoolArray:
    """Whether weights are this project's codes with their scales (B,): what others call int8 may have a scale a row."""
    ours = np.array([impl == "thermoe" for impl in cases.impl], dtype=np.bool_)
    return _have_codes(cases) & (ours | (cases.op == _UNPACKING))


def _have_codes(cases: Cases) -> BoolArray:
    return np.array([d in _CODES for d in cases.dtype], dtype=np.bool_)
