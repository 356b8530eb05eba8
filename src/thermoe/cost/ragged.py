"""How many rows each of the touched experts has, told from the rows, the experts and the fullest alone.

Shapes: B cases, Q groups of experts that are taken for equally loaded.
"""

import numpy as np

from thermoe.cost.loads import Loads
from thermoe.types import FloatArray

_LEAST = 1e-3
# Standard normal quantiles in the middle of twelve equal parts.
_NORMAL = np.array([-1.732, -1.150, -0.812, -0.549, -0.319, -0.105, 0.105, 0.319, 0.549, 0.812, 1.150, 1.732])
_PARTS = len(_NORMAL)
# A fullest expert beyond what chance makes it by this factor belongs to loads that fall as those of Zipf's law.
_BEYOND_CHANCE = 1.3


def spread(loads: Loads) -> tuple[FloatArray, FloatArray]:
    """Rows of an expert of each group and the number of such experts, both (B, Q).

    The last group is the fullest expert. The others have a row each and share the rest at random, or as 1, 1/2, 1/3, ...
    where the fullest has more than chance would give it.
    """
    touched = np.maximum(loads.distinct, _LEAST)
    mean = loads.rows / touched
    fullest = np.maximum(np.minimum(np.maximum(loads.fullest, mean), loads.rows), _LEAST)
    others = np.maximum(touched - 1.0, 0.0)
    left = np.maximum(loads.rows - fullest, 0.0) / np.maximum(others, _LEAST)
    more = np.maximum(left - 1.0, 0.0)
    by_chance = more[:, None] + np.sqrt(more)[:, None] * _NORMAL
    ranks = 2.0 + np.maximum(others, 1.0)[:, None] * (np.arange(_PARTS) + 0.5) / _PARTS
    by_rank = 1.0 / ranks
    by_rank *= more[:, None] / by_rank.mean(axis=1, keepdims=True)
    likely = 1.0 + (mean - 1.0) + np.sqrt(np.maximum(mean - 1.0, 0.0) * 2.0 * np.log(np.maximum(touched, 1.0) + 1.0))
    falls = fullest > _BEYOND_CHANCE * likely
    rows = np.round(1.0 + np.maximum(np.where(falls[:, None], by_rank, by_chance), 0.0))
    rows = np.minimum(rows, np.ceil(fullest)[:, None])
    counts = np.repeat((others / _PARTS)[:, None], _PARTS, axis=1)
    last = np.minimum(touched, 1.0)
    return np.concatenate([rows, fullest[:, None]], axis=1), np.concatenate([counts, last[:, None]], axis=1)
