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
_MIDDLES = (np.arange(_PARTS) + 0.5) / _PARTS
# A fullest expert so far from what chance makes it to what Zipf's law does, in logarithms, counts as Zipf's: drawn
# loads scatter around it.
_ENOUGH_FOR_ZIPF = 2.0 / 3.0
_ROUNDED = 1e-5  # a database keeps six digits of a load's skew: 4.00001 rows are 4, and not a tile more
_EULER = 0.5772  # the sum of 1, 1/2, ... 1/n is about the logarithm of n + 1/2 and this


def spread(loads: Loads) -> tuple[FloatArray, FloatArray]:
    """Rows of an expert of each group and the number of such experts, both (B, Q).

    The last group is the fullest expert. The others have a row each and share the rest at random where the fullest has
    what chance would give it, and the more as 1, 1/2, 1/3, ... the more it has. A fullest expert that has no more than
    the mean leaves no room for chance: then all have the same, whole rows where the mean is no whole number.
    """
    touched = np.maximum(loads.distinct, _LEAST)
    mean = loads.rows / touched
    fullest = np.maximum(np.minimum(np.maximum(_whole(loads.fullest), mean), loads.rows), _LEAST)
    others = np.maximum(touched - 1.0, 0.0)
    left = np.maximum(loads.rows - fullest, 0.0) / np.maximum(others, _LEAST)
    more = np.maximum(left - 1.0, 0.0)
    exponent = _exponent(touched, mean, fullest)
    ranks = 2.0 + np.maximum(others, 1.0)[:, None] * _MIDDLES[::-1]
    shared = ranks ** -exponent[:, None]
    shared *= more[:, None] / shared.mean(axis=1, keepdims=True)
    deviation = (1.0 - exponent) * _deviation(left, more, others, fullest)
    rows = np.round(1.0 + np.maximum(shared + deviation[:, None] * _NORMAL, 0.0))
    rows = np.minimum(rows, np.ceil(fullest)[:, None])
    counts = np.repeat((others / _PARTS)[:, None], _PARTS, axis=1)
    last = np.minimum(touched, 1.0)
    return np.concatenate([rows, fullest[:, None]], axis=1), np.concatenate([counts, last[:, None]], axis=1)


def _whole(rows: FloatArray) -> FloatArray:
    """Rows that miss a whole number by what a skew is rounded by, as that number (B,)."""
    return np.where(np.abs(rows - np.round(rows)) <= _ROUNDED * rows, np.round(rows), rows)


def _exponent(touched: FloatArray, mean: FloatArray, fullest: FloatArray) -> FloatArray:
    """Of the power of its rank that an expert's load falls with (B,): 0 by chance, 1 by Zipf's law."""
    many = np.maximum(touched, 1.0)
    by_chance = mean + np.sqrt(2.0 * np.maximum(mean - 1.0, 0.0) * np.log(many + 1.0))
    by_zipf = 1.0 + np.maximum(mean - 1.0, 0.0) * many / (np.log(many + 0.5) + _EULER)
    beyond, whole = (np.log(np.maximum(rows / np.maximum(by_chance, _LEAST), 1.0)) for rows in (fullest, by_zipf))
    return np.asarray(np.clip(beyond / np.maximum(_ENOUGH_FOR_ZIPF * whole, _LEAST), 0.0, 1.0) * (whole > 0.0))


def _deviation(left: FloatArray, more: FloatArray, others: FloatArray, fullest: FloatArray) -> FloatArray:
    """Standard deviation of the others' rows (B,): as for rows that fall at random with a given sum, none beyond the
    fullest; at least that of whole numbers with the mean `left`."""
    at_random = np.sqrt(more * np.maximum(1.0 - 1.0 / np.maximum(others, 1.0), 0.0))
    part = left - np.floor(left)
    return np.maximum(np.minimum(at_random, np.maximum(fullest - left, 0.0)), np.sqrt(part * (1.0 - part)))
