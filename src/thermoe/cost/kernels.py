"""Which of several kernels of one implementation takes a call.

A call of few tokens, one of many that fill the experts, and what lies between run different code: their costs do not
follow one law. The choice is made from sizes alone, so it is known before a call. What is told here is what
`thermoe.kernels` and torch do; tests hold them together. Shapes: B cases.
"""

import numpy as np
from numpy.typing import NDArray

from thermoe.cost.cases import Cases

FEW, GROUPED, TILES, SMALL, LARGE, ONLY = "few", "grouped", "tiles", "small tiles", "large tiles", ""
"""Thermoe's kernel for few tokens, for many rows of an expert, and for what lies in between; torch's grouped product
with small and with large tiles; the only one of an implementation."""
HUGE, CUT = "huge", "cut block"
"""torch's copy of half a gibibyte and more, which the driver makes another way; its element-wise operations where the
last block of numbers is not a whole one, which then checks each of them."""
KERNELS = (FEW, GROUPED, TILES, SMALL, LARGE, HUGE, CUT, ONLY)
LATER = (CUT,)
"""Kernels that take some time more, however much there is to do, than the others of their implementation."""

MOST_TOKENS, MOST_SLOTS = 64, 512
LEAST_PLACES = {"bfloat16": 32, "int4": 4}
"""Rows of an expert, on average, from which the grouped kernel takes a call, by format."""
MOST_SMALL = 128
"""Rows of an expert, on average over all of them, up to which torch's grouped product takes small tiles
(`dispatch_bf16_grouped_kernel_on_tile_size` of PyTorch's GroupMM.cu)."""
_PRODUCTS = ("expert_mlp", "linear_fc1", "linear_fc2")
HUGE_BYTES = 1 << 29
"""Measured on an H200: 0.47e9 bytes are copied at 4.2 TB/s (read and written), 0.54e9 and 2.15e9 at 2.75."""
BLOCK_NUMBERS = 1024
"""Measured on an H200: 1.1 us for whole blocks of so many numbers in 16 bit, 1.4 us where one is cut."""


def kernels_of(cases: Cases) -> NDArray[np.str_]:
    """Name of the kernel of each case (B,)."""
    names = np.full(len(cases), ONLY, dtype="<U11")
    numbers = np.round(cases.loads.rows) * cases.hidden_size  # a mean of rows is no row cut
    if cases.op == "copy":
        names[_runs(cases, "torch") & (numbers * cases.bits >= 8 * HUGE_BYTES)] = HUGE
    if cases.op == "elementwise":
        names[_runs(cases, "torch") & (numbers % BLOCK_NUMBERS > 0)] = CUT
    if cases.op not in _PRODUCTS:
        return names
    ours, grouped = _runs(cases, "thermoe"), _runs(cases, "grouped_mm")
    rows = cases.tokens * cases.top_k
    names[grouped] = LARGE
    names[grouped & (np.floor(rows / cases.num_experts) <= MOST_SMALL)] = SMALL
    if cases.op == "expert_mlp":
        least = np.array([LEAST_PLACES.get(dtype, np.inf) for dtype in cases.dtype])
        names[ours] = TILES
        names[ours & (rows >= least * cases.num_experts)] = GROUPED
        names[ours & (cases.tokens <= MOST_TOKENS) & (rows <= MOST_SLOTS)] = FEW
    return names


def _runs(cases: Cases, impl: str) -> NDArray[np.bool_]:
    return np.array([name == impl for name in cases.impl], dtype=np.bool_)
