"""Which tiles a kernel is launched with: they decide how much of its work is padding and how often weights are read.

vLLM's fused MoE kernel takes tuned tiles where someone tuned its sizes, and plain choices elsewhere. Which sizes are
tuned is not known here, so every case is described by the plain choices.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from thermoe.types import FloatArray

NUM_FIGURES = 6


@dataclass(frozen=True, slots=True)
class Tiles:
    """Launch of each case, all (B,).

    Attributes:
        rows, columns, depth: Sizes of a tile.
        group, warps, stages: Tiles of rows that follow one another, warps, depth of the pipeline.
    """

    rows: FloatArray
    columns: FloatArray
    depth: FloatArray
    group: FloatArray
    warps: FloatArray
    stages: FloatArray


def launch_tiles(dtype: list[str], tokens: FloatArray, num_experts: FloatArray) -> Tiles:
    """Tiles of each case (B,), by the experts on its GPU."""
    sizes = np.stack([tokens, num_experts], axis=1).tolist()
    table = [_tiles(d, *size) for d, size in zip(dtype, sizes, strict=True)]
    return Tiles(*np.array(table, dtype=np.float64).reshape(-1, NUM_FIGURES).T)


@lru_cache(maxsize=65536)
def _tiles(dtype: str, tokens: float, num_experts: float) -> tuple[float, ...]:
    if dtype == "fp8_block":
        return (64.0, 128.0, 128.0, 32.0, 4.0, 3.0)
    return (16.0, 32.0, 64.0, 1.0, 4.0, 3.0) if tokens <= num_experts else (64.0, 64.0, 32.0, 8.0, 4.0, 3.0)
