"""The power to expect where nobody tells what will run: one of a few smoothed readings, whichever did best so far."""

import math

import numpy as np

from thermoe.types import FloatArray

#: Time constants of the candidates [s]; 0 is the last reading, best where loads change in steps.
_CANDIDATES_S = np.array([0.0, 0.5, 2.0, 6.0])
_MEMORY_S = 60.0  # of how well each did


class PowerOutlook:
    """Smooths readings of power in several ways and remembers whose mean error was the least."""

    def __init__(self) -> None:
        self._smoothed_w = np.zeros(len(_CANDIDATES_S))
        self._loss_w = np.zeros(len(_CANDIDATES_S))

    @property
    def candidates_w(self) -> FloatArray:
        """What each candidate expects [W]; a new array after every reading."""
        return self._smoothed_w

    @property
    def expected_w(self) -> float:
        """What the best candidate expects [W]."""
        return float(self._smoothed_w[int(self._loss_w.argmin())])

    def restart(self, power_w: float) -> None:
        """Forget earlier readings, not how well each candidate did."""
        self._smoothed_w = np.full(len(_CANDIDATES_S), power_w)

    def add(self, power_w: float, gap_s: float) -> None:
        """Count a reading `gap_s` after the one before."""
        kept = np.exp(-gap_s / np.maximum(_CANDIDATES_S, 1e-9))
        self._smoothed_w = power_w + (self._smoothed_w - power_w) * kept

    def judge(self, candidates_w: FloatArray, mean_w: float, gap_s: float) -> None:
        """Tell what the mean power was after `candidates_w` had been expected."""
        share = 1.0 - math.exp(-gap_s / _MEMORY_S)
        self._loss_w += share * (np.abs(candidates_w - mean_w) - self._loss_w)
