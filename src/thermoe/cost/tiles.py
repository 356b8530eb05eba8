"""Which tiles a kernel is launched with: they decide how much of its work is padding and how often weights are read.

vLLM's fused MoE kernel takes tuned tiles where someone tuned its sizes, and two plain choices elsewhere; which
of the two it is changes time by tens of per cent, so the tuned sizes are data of this package. Kernels whose
tiles are not known are described by the plain choices.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from thermoe.types import FloatArray

FILE = "fused_moe_tiles.json"
NUM_FIGURES = 7


@dataclass(frozen=True, slots=True)
class Tiles:
    """Launch of each case, all (B,).

    Attributes:
        tuned: 1 where tuned for the sizes, else 0.
        rows, columns, depth: Sizes of a tile.
        group, warps, stages: Tiles of rows that follow one another, warps, depth of the pipeline.
    """

    tuned: FloatArray
    rows: FloatArray
    columns: FloatArray
    depth: FloatArray
    group: FloatArray
    warps: FloatArray
    stages: FloatArray


def launch_tiles(
    impl: list[str], dtype: list[str], tokens: FloatArray, num_experts: FloatArray, inter_size: FloatArray
) -> Tiles:
    """Tiles of each case (B,), by the experts and the width on its GPU."""
    sizes = np.stack([tokens, num_experts, inter_size], axis=1).tolist()
    table = [_tiles(i, d, *size) for i, d, size in zip(impl, dtype, sizes, strict=True)]
    return Tiles(*np.array(table, dtype=np.float64).reshape(-1, NUM_FIGURES).T)


@lru_cache(maxsize=65536)
def _tiles(impl: str, dtype: str, tokens: float, num_experts: float, inter_size: float) -> tuple[float, ...]:
    tuned = _tuned().get((impl, f"{num_experts:.0f}x{inter_size:.0f} {dtype}"))
    if tuned is not None:
        _, *figures = min(tuned, key=lambda line: abs(line[0] - tokens))
        return (1.0, *figures)
    if dtype == "fp8_block":
        return (0.0, 64.0, 128.0, 128.0, 32.0, 4.0, 3.0)
    return (0.0, 16.0, 32.0, 64.0, 1.0, 4.0, 3.0) if tokens <= num_experts else (0.0, 64.0, 64.0, 32.0, 8.0, 4.0, 3.0)


@lru_cache(maxsize=1)
def _tuned() -> dict[tuple[str, str], list[list[float]]]:
    content = json.loads((resources.files("thermoe.cost.data") / FILE).read_text(encoding="utf-8"))
    return {(content["kernel"], name): lines for name, lines in content["tiles"].items()}
