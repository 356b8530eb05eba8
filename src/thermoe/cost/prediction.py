"""What a cost model answers: figures with their interval, and the convex view that routing uses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thermoe.errors import CostError
from thermoe.types import Estimate, FloatArray, Kind, MoEShape

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True, slots=True)
class CostPrediction:
    """Cost of one execution of one operation.

    Attributes:
        latency_s: Latency [s].
        energy_j: Energy with the board's idle power in it [J].
        power_w: Mean board power [W].
        temp_rise_c: Steady rise of the core over idle if nothing else ran [deg C].
        source: What answered: "fitted: GPU" or "roofline: GPU", and where energy comes from if it was not measured.
        extrapolated: Whether the case lies outside what was measured.
        energy_is_guess: Whether no measured energy stands behind energy, power and rise; they have no interval then.
    """

    latency_s: Estimate
    energy_j: Estimate
    power_w: Estimate
    temp_rise_c: Estimate
    source: str
    extrapolated: bool
    energy_is_guess: bool = False


@dataclass(frozen=True, slots=True)
class CostArrays:
    """Latency [s] and energy [J], arrays of one shape; predicted."""

    latency_s: FloatArray
    energy_j: FloatArray


@dataclass(frozen=True, slots=True)
class Hinges:
    """phi(n) = max over lines of max(0, slope n - offset): convex, non-decreasing, phi(0) = 0.

    Attributes:
        slopes: At least 0, (M,).
        offsets: At least 0, (M,).
    """

    slopes: FloatArray
    offsets: FloatArray

    def __post_init__(self) -> None:
        if not ((self.slopes >= 0).all() and (self.offsets >= 0).all()):
            raise CostError("slopes and offsets of a convex, non-decreasing cost must not be negative")

    def scaled(self, factor: float) -> "Hinges":
        """The same times a positive factor."""
        return Hinges(self.slopes * factor, self.offsets * factor)

    def __call__(self, loads: "ArrayLike") -> FloatArray:
        """phi of each load, same shape."""
        n = np.asarray(loads, dtype=np.float64)[..., None]
        return np.asarray(np.maximum(n * self.slopes - self.offsets, 0.0).max(axis=-1), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingCost:
    """Convex view of one layer's expert cost, fixed + sum over experts of c [n >= 1] + phi(n).

    Attributes:
        shape: Sizes of the layer.
        num_tokens: Tokens for which the view was made.
        fixed_latency_s, fixed_energy_j: Cost of a layer whatever it touches.
        latency_s, energy_j: c, the cost of touching one more expert.
        load_latency_s, load_energy_j: phi, the part that grows with an expert's load.
        latency_distance, energy_distance: Mean relative distance to `predict` over the experts that the
            tokens may touch.
        source: What answered, as in `CostPrediction`.
    """

    shape: MoEShape
    num_tokens: int
    fixed_latency_s: float
    fixed_energy_j: float
    latency_s: float
    energy_j: float
    load_latency_s: Hinges
    load_energy_j: Hinges
    latency_distance: float
    energy_distance: float
    source: str

    @property
    def distance(self) -> float:
        """The larger of the two distances."""
        return max(self.latency_distance, self.energy_distance)

    def per_expert(self, loads: "ArrayLike") -> CostArrays:
        """Cost of each expert under its load in rows, any shape; an expert without load costs nothing."""
        n = np.asarray(loads, dtype=np.float64)
        touched = n > 0
        return CostArrays(
            np.asarray(touched * (self.latency_s + self.load_latency_s(n))),
            np.asarray(touched * (self.energy_j + self.load_energy_j(n))),
        )

    def layer(self, loads: "ArrayLike") -> CostArrays:
        """Cost of the layer under loads (..., E): arrays (...)."""
        each = self.per_expert(loads)
        return CostArrays(
            self.fixed_latency_s + each.latency_s.sum(axis=-1), self.fixed_energy_j + each.energy_j.sum(axis=-1)
        )


def estimate(value: float, log_error: float, highest: float | None = None) -> Estimate:
    """A predicted value with an interval of this logarithmic half width, NaN for none, and of this highest end."""
    if not np.isfinite(log_error):
        return Estimate(value, None, None, Kind.PREDICTED)
    low, high = float(value * np.exp(-log_error)), float(value * np.exp(log_error))
    return Estimate(value, low, high if highest is None else min(high, highest), Kind.PREDICTED)
