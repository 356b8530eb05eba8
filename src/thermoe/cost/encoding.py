"""What goes into a learned correction and what comes out; how names and grids of tokens enter.

Shapes: B rows, F features, V codes, H columns.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from thermoe.types import BoolArray, FloatArray, IntArray

# A value of tokens that this share of shapes was measured at gets an input of its own.
_GRID_SHARE, _MOST_GRID = 0.2, 100


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a correction sees of each row.

    Attributes:
        features: (B, F0), of `features_of`.
        extent: Logarithms of sizes and work: whether a row lies in the measured range (B, X).
        tokens: (B,).
        names: Implementation and format of each row, as text (B,).
        models: Sizes of the whole layer, however it is shared between GPUs (B, 4).
        law: Logarithms of what the law says: latency [s] and power [W] (B, 2).
        kin: What one GPU is given: implementation, format, experts and their width, as text; empty for operations
            without experts (B,).
        own: What is known of this project's kernels alone (B, O), of `thermoe.cost.kernels.figures_of`.
    """

    features: FloatArray
    extent: FloatArray
    tokens: FloatArray
    names: NDArray[np.str_]
    models: FloatArray
    law: FloatArray
    kin: NDArray[np.str_]
    own: FloatArray

    def take(self, rows: IntArray) -> "Inputs":
        """Some rows."""
        return Inputs(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a correction says of each row.

    Attributes:
        factors: Logarithms of the factors on latency and on power (B, 2).
        log_error: Logarithmic half width of the 90 % interval of latency and of energy (B, 2).
        is_covered: Whether the row lies inside the measured range (B,).
    """

    factors: FloatArray
    log_error: FloatArray
    is_covered: BoolArray


def codes_of(inputs: Inputs, names: list[str], grid: list[float]) -> IntArray:
    """One number for a name and a value of tokens (B,); the last of each stands for all that were not seen."""
    name = np.full(len(inputs.tokens), len(names))
    for i, known in enumerate(names):
        name[inputs.names == known] = i
    values = np.array([*grid, np.inf])
    place = np.searchsorted(values, inputs.tokens)
    place = np.where(values[place] == inputs.tokens, place, len(grid))
    return np.asarray(place * (len(names) + 1) + name, dtype=np.int64)


def described(names: list[str], grid: list[float]) -> FloatArray:
    """Each code as numbers: one for its name, one for its value of tokens, one for both (V, H)."""
    name, place = np.eye(len(names) + 1)[:, :-1], np.eye(len(grid) + 1)[:, :-1]
    all_names, all_places = np.tile(name, (len(grid) + 1, 1)), np.repeat(place, len(names) + 1, axis=0)
    both = (all_places[:, :, None] * all_names[:, None, :]).reshape(len(all_names), -1)
    return np.concatenate([all_names, all_places, both], axis=1)


def grid_of(tokens: FloatArray, groups: IntArray) -> list[float]:
    """Values of tokens that many shapes were measured at."""
    pairs = np.unique(np.stack([tokens, groups.astype(np.float64)], axis=1), axis=0)
    values, counts = np.unique(pairs[:, 0], return_counts=True)
    often = counts >= _GRID_SHARE * len(np.unique(groups))
    return [float(v) for v in values[often][:_MOST_GRID]]


def _one_hot(names: NDArray[np.str_], known: list[str]) -> FloatArray:
    return np.stack([names == name for name in known], axis=1).astype(np.float64)


def with_names(inputs: Inputs, names: list[str]) -> FloatArray:
    """Features and one column for each name (B, F + N)."""
    return np.concatenate([inputs.features, _one_hot(inputs.names, names)], axis=1)


def for_neighbours(inputs: Inputs, names: list[str]) -> FloatArray:
    """What neighbours are compared by: as `with_names`, and what is known of this project's kernels (B, F + N + O)."""
    return np.concatenate([with_names(inputs, names), inputs.own], axis=1)
