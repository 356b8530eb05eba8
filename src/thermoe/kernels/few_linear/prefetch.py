# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202 - Triton takes pointers and tensors, which have no Python types
"""Weights of the next launch brought to the L2 cache by one that leaves the memory idle."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

_LINE_BYTES = 128
MOST_AHEAD = 3
"""Matrices that one launch brings."""


@triton.jit
def _bring(ptr, num_lines, program, programs, LANES: tl.constexpr):
    """Ask for every `programs`-th row of lines; nothing waits for them."""
    for begin in range(program * LANES, num_lines, programs * LANES):
        line = tl.minimum(begin + tl.arange(0, LANES), num_lines - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [ptr.to(tl.int64) + line.to(tl.int64) * 128],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def bring_ahead(ptr0, ptr1, ptr2, lines0, lines1, lines2, program, programs, COUNT: tl.constexpr, LANES: tl.constexpr):
    """Ask for up to three matrices, all programs together; `LANES` is that of a program's threads."""
    if COUNT > 0:
        _bring(ptr0, lines0, program, programs, LANES)
    if COUNT > 1:
        _bring(ptr1, lines1, program, programs, LANES)
    if COUNT > 2:
        _bring(ptr2, lines2, program, programs, LANES)


def ahead_arguments(weights: Sequence[Tensor], stand_in: Tensor) -> tuple:
    """Pointers and numbers of lines, as `bring_ahead` takes them; `stand_in` where there are fewer than three."""
    spare = MOST_AHEAD - len(weights)
    lines = [w.numel() * w.element_size() // _LINE_BYTES for w in weights]
    return (*weights, *[stand_in] * spare, *lines, *[0] * spare)
