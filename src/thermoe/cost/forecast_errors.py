"""How far forecasts were off so far: the source of their intervals."""

from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np

from thermoe.types import FloatArray

#: Horizons at which forecasts are compared with what came [s].
HORIZONS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_LEVELS = (0.05, 0.95)
_MOST = 600  # a minute at 10 Hz: older errors are of a fit that knew less, or of another state of the board
#: Errors follow one another, so that fewer than some ten seconds of them say little.
_ENOUGH = 100


class ForecastOf(StrEnum):
    """What was forecast: the temperature under a power that is given, or is not, and the power itself."""

    TEMP_GIVEN_POWER = "temp_given_power"
    TEMP = "temp"
    POWER = "power"


class ForecastErrors:
    """Bounded samples of errors (what came minus what was forecast), by what was forecast and by horizon."""

    def __init__(self) -> None:
        self._samples = {what: [deque[float](maxlen=_MOST) for _ in HORIZONS_S] for what in ForecastOf}

    def add(self, what: ForecastOf, horizon: int, error: float) -> None:
        """Count an error at `HORIZONS_S[horizon]`."""
        self._samples[what][horizon].append(error)

    def bounds(self, what: ForecastOf, ahead_s: FloatArray, at_once: float) -> tuple[FloatArray, FloatArray] | None:
        """The errors between which 90 % lay, interpolated to (N,) times ahead; `None` while too few are known.

        Args:
            what: What is forecast.
            ahead_s: (N,) times ahead [s]; beyond the longest horizon that is known its errors are taken.
            at_once: Half width at no time ahead, as the error of a reading.
        """
        known = [k for k, errors in enumerate(self._samples[what]) if len(errors) >= _ENOUGH]
        if not known:
            return None
        times_s = np.array([0.0] + [HORIZONS_S[k] for k in known])
        ends = np.array([[-at_once, at_once]] + [np.quantile(self._samples[what][k], _LEVELS) for k in known])
        return np.interp(ahead_s, times_s, ends[:, 0]), np.interp(ahead_s, times_s, ends[:, 1])

    def as_dict(self) -> dict[str, list[list[float]]]:
        """The samples, to a thousandth, as JSON-able values."""
        return {str(w): [[round(e, 3) for e in errors] for errors in rows] for w, rows in self._samples.items()}

    def load(self, values: Mapping[str, Any]) -> None:
        """Inverse of `as_dict`.

        Raises:
            KeyError, TypeError, ValueError: If the values are not samples of these horizons.
        """
        for what in ForecastOf:
            rows = [np.array(errors, dtype=np.float64) for errors in values[what]]
            if len(rows) != len(HORIZONS_S) or not all(
                errors.ndim == 1 and np.isfinite(errors).all() for errors in rows
            ):
                raise ValueError(f"errors of {what} at {len(rows)} horizons, needed finite ones at {len(HORIZONS_S)}")
            self._samples[what] = [deque(errors.tolist(), maxlen=_MOST) for errors in rows]
