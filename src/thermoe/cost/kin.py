"""Measured kin of a case: rows of other shapes that put as many experts of the same width and format on a GPU.

Kernels are chosen and tuned for just these sizes, by hand and one by one, so that what comes of it cannot be guessed
from the sizes of a case, only from what was measured on its kin. Shapes: B rows, T values of tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from thermoe.cost.encoding import Inputs
from thermoe.errors import DataError
from thermoe.types import BoolArray, FloatArray, IntArray

COLUMNS = 5
"""What a case is told of its kin: their latency and power over the law, their power over that of all rows, the law's
latency over its own (logarithms), and 1; all 0 where it has none."""

_FIGURES = 4
_MOST = 1e6  # no logarithm is larger


@dataclass(frozen=True, slots=True)
class Curve:
    """Means over the kin.

    Attributes:
        log_tokens: Ascending (T,).
        figures: Logarithms: latency and power over the law, power over the mean of all rows, latency by the law [s]
            (T, 4).
    """

    log_tokens: FloatArray
    figures: FloatArray

    def told(self, log_tokens: FloatArray, law_s: FloatArray) -> FloatArray:
        """Columns of cases, the law's own latency as its logarithm (B, `COLUMNS`)."""
        told = np.ones((len(law_s), COLUMNS))
        for i, figure in enumerate(self.figures.T):
            told[:, i] = np.interp(log_tokens, self.log_tokens, figure)
        told[:, 3] -= law_s
        return told


@dataclass(frozen=True, slots=True)
class Kin:
    """Curves of what was measured, by what a GPU was given.

    Attributes:
        curves: By `Inputs.kin`; none where an operation has no experts.
    """

    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def num_columns(self) -> int:
        """Features that it adds."""
        return COLUMNS if self.curves else 0

    def joined(self, inputs: Inputs) -> Inputs:
        """The same rows with what their kin say behind the features."""
        if not self.curves:
            return inputs
        told = np.zeros((len(inputs.tokens), COLUMNS))
        for name in set(inputs.kin.tolist()) & self.curves.keys():
            rows = inputs.kin == name
            told[rows] = self.curves[name].told(np.log(inputs.tokens[rows]), inputs.law[rows, 0])
        return _with(inputs, told)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists by name."""
        return {
            name: {"log_tokens": c.log_tokens.tolist(), "figures": c.figures.tolist()}
            for name, c in self.curves.items()
        }

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Self:
        """Inverse of `as_dict`; sizes that do not fit and numbers that are not finite are a `DataError`."""
        try:
            arrays = {
                str(name): [np.array(curve[key], np.float64) for key in ("log_tokens", "figures")]
                for name, curve in values.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as err:
            raise DataError(f"{where}: kin lack {' '.join(str(err).split())[:100]}") from err
        for name, (tokens, figures) in arrays.items():
            fits = tokens.ndim == 1 and tokens.size and figures.shape == (tokens.size, _FIGURES)
            if (
                not fits
                or not all((np.abs(a) < _MOST).all() for a in (tokens, figures))
                or (np.diff(tokens) <= 0).any()
            ):
                raise DataError(f"{where}: kin {name[:60]!r} hold sizes or numbers that do not fit")
        return cls({name: Curve(*both) for name, both in arrays.items()})


def kin_of(inputs: Inputs, targets: FloatArray) -> Kin:
    """Curves of all rows that have a name and both targets, logarithms of measured over law (B, 2)."""
    usable = _usable(inputs, targets)
    figures = _figures(inputs, targets, usable)
    return Kin({name: _curve(inputs.tokens[rows], figures[rows]) for name, rows in _by_name(inputs, usable)})


def joined_without_own(inputs: Inputs, targets: FloatArray, groups: IntArray) -> Inputs:
    """As `Kin.joined` of all rows, where no row is told of its own shape: what a fit may learn from.

    Args:
        inputs, targets: As for `kin_of`.
        groups: Shape of each row (B,).
    """
    usable = _usable(inputs, targets)
    if not usable.any():
        return inputs
    figures = _figures(inputs, targets, usable)
    told = np.zeros((len(groups), COLUMNS))
    for _, rows in _by_name(inputs, np.ones(len(groups), dtype=np.bool_)):
        for own in np.unique(groups[rows]):
            others, asked = rows[(groups[rows] != own) & usable[rows]], rows[groups[rows] == own]
            if others.size:
                curve = _curve(inputs.tokens[others], figures[others])
                told[asked] = curve.told(np.log(inputs.tokens[asked]), inputs.law[asked, 0])
    return _with(inputs, told)


def _usable(inputs: Inputs, targets: FloatArray) -> BoolArray:
    return np.asarray(np.isfinite(targets).all(axis=1) & (inputs.kin != ""), dtype=np.bool_)


def _figures(inputs: Inputs, targets: FloatArray, usable: BoolArray) -> FloatArray:
    log_power = targets[:, 1] + inputs.law[:, 1]
    if usable.any():  # around 0, so that a case without kin lies in the middle
        log_power = log_power - log_power[usable].mean()
    return np.stack([targets[:, 0], targets[:, 1], log_power, inputs.law[:, 0]], axis=1)


def _by_name(inputs: Inputs, chosen: BoolArray) -> Iterable[tuple[str, IntArray]]:
    for name in np.unique(inputs.kin[chosen]):
        if name:
            yield str(name), np.flatnonzero((inputs.kin == name) & chosen)


def _curve(tokens: FloatArray, figures: FloatArray) -> Curve:
    values, place = np.unique(tokens, return_inverse=True)
    counts = np.bincount(place)
    means = [np.bincount(place, weights=figure) / counts for figure in figures.T]
    return Curve(np.log(values), np.stack(means, axis=1))


def _with(inputs: Inputs, told: FloatArray) -> Inputs:
    return replace(inputs, features=np.concatenate([inputs.features, told], axis=1))
