"""Which of several kernels of one implementation takes a call, and how many rows of an expert it takes at a time.

A call of few tokens, one of many that fill the experts, and what lies between run different code: their costs do not
follow one law. The choice is made from sizes alone, so it is known before a call. What is told here is what
`thermoe.kernels` does; a test holds the two together. Shapes: B cases.
"""

import numpy as np
from numpy.typing import NDArray

from thermoe.cost.cases import Cases
from thermoe.types import FloatArray

FEW, GROUPED, TILES, ONLY = "few", "grouped", "tiles", ""
"""Kernel for few tokens, for many rows of an expert, tiles in between; the only one of an implementation."""
KERNELS = (FEW, GROUPED, TILES, ONLY)

MOST_TOKENS, MOST_SLOTS = 64, 512
LEAST_PLACES = {"bfloat16": 32, "int4": 4}
"""Rows of an expert, on average, from which the grouped kernel takes a call, by format."""

_ROOM_BYTES, _ROW_BYTES = 143 * 1024, 1280  # of shared memory for activations, and beside them for a row's sums
_WIDEST_SECOND = 2048  # columns of the second product held at a time
_ROW_CAPS = (32, 24, 16, 8, 4, 2, 1)
_ROW_CAP_OF_CODES = 16
_CODES = ("int8", "int4", "int2", "bank8", "bank4", "bank2")
_GROUPS = (128.0, 64.0, 32.0)


def kernels_of(cases: Cases) -> NDArray[np.str_]:
    """Name of the kernel of each case (B,)."""
    names = np.full(len(cases), ONLY, dtype="<U8")
    ours = np.array([impl == "thermoe" for impl in cases.impl], dtype=np.bool_)
    if cases.op != "expert_mlp" or not ours.any():
        return names
    rows = cases.tokens * cases.top_k
    least = np.array([LEAST_PLACES.get(dtype, np.inf) for dtype in cases.dtype])
    names[ours] = TILES
    names[ours & (rows >= least * cases.num_experts)] = GROUPED
    names[ours & (cases.tokens <= MOST_TOKENS) & (rows <= MOST_SLOTS)] = FEW
    return names


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


def figures_of(cases: Cases) -> FloatArray:
    """What this project's kernels make of a call (B, 4), logarithms; 0 for other implementations.

    Readings of an expert's weights for its rows, numbers read over all experts, rows that share a reading, groups.
    """
    figures = np.zeros((len(cases), 4))
    kernels, has_codes = kernels_of(cases), _have_codes(cases)
    figures[has_codes, 3] = np.log2(_GROUPS[0] / group_sizes(cases)[has_codes])
    few = kernels == FEW
    if few.any():
        touched, caps = np.maximum(cases.loads.distinct, 0.05), rows_at_a_time(cases)
        readings = np.maximum(np.ceil(cases.loads.rows / touched / caps - 1e-9), 1.0)
        numbers = 3.0 * cases.hidden_size * cases.inter_size * touched * readings
        figures[few, :3] = np.log(np.stack([readings, numbers, caps], axis=1))[few]
    return figures


def _have_codes(cases: Cases) -> NDArray[np.bool_]:
    return np.array([d in _CODES for d in cases.dtype], dtype=np.bool_)
