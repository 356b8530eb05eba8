"""What measurements say beyond the physical law of an operation: a learned factor on latency and on power.

Inside the measured range the factor comes from neighbours (few rows) or from small networks and trees (many); outside
it fades to 1, so that physics alone speaks. How far it misses is learned on shapes left out of the fit. Shapes: B
rows, F features.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from thermoe.cost.encoding import Answer, Inputs, codes_of, for_neighbours, with_names
from thermoe.cost.forest import Forest
from thermoe.cost.kin import Kin
from thermoe.cost.kriging import Kriging
from thermoe.cost.network import Ensemble, Network, can_be_averaged
from thermoe.errors import DataError
from thermoe.types import FloatArray

# Beyond the measured range the factor fades over this many powers of e, in size or work.
_FADE = 1.5
_MOST = 1e9  # larger ones are no fit, and would overflow


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """Logarithm of the factor on latency and on power.

    Attributes:
        names: Implementations and formats that were seen; others are described by features alone.
        grid: Values of tokens with an input of their own.
        low, high: Measured range of `Inputs.extent`.
        kin: What was measured on other shapes that look the same to one GPU; behind the features of networks and trees.
        networks: Mean of these, both targets.
        trees: Of latency and of power, with the share of them that helps on unseen shapes.
        neighbours: Of latency and of power, where there are too few rows for networks.
        growth: By how many powers of e the miss of latency and of energy grows between neighbours and beyond them.
        spreads: Expected miss of latency and of energy (logarithm), where there are networks.
        quantiles: Factors on it that hold 90 % of shapes left out, of latency and of energy; NaN where unknown.
        models: Models that were measured (M, 4), where there are several shapes of each; else none.
        strangeness: Factors on the intervals of models that are not among them.
    """

    names: list[str]
    grid: list[float]
    low: FloatArray
    high: FloatArray
    kin: Kin = field(default_factory=Kin)
    networks: list[Network] = field(default_factory=list)
    trees: list[Forest] = field(default_factory=list)
    tree_shares: tuple[float, float] = (0.0, 0.0)
    neighbours: list[Kriging] = field(default_factory=list)
    growth: tuple[float, float] = (0.0, 0.0)
    spreads: list[Forest] = field(default_factory=list)
    quantiles: tuple[float, float] = (0.0, 0.0)
    models: FloatArray = field(default_factory=lambda: np.zeros((0, 4)))
    strangeness: tuple[float, float] = (1.0, 1.0)
    _ensemble: Ensemble | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ensemble", Ensemble(self.networks) if self.networks else None)

    @property
    def knows_power(self) -> bool:
        """Whether there was power enough to learn a factor on it."""
        return bool(self.networks) or (any(self.neighbours[1:]) and bool(np.any(self.neighbours[1].weights)))

    def answer(self, inputs: Inputs, law_error: tuple[float, float] = (np.nan, np.nan)) -> Answer:
        """Factors, intervals and coverage of each row.

        `law_error` are half widths of the intervals of latency and of energy by the law alone, NaN if unknown: beside
        neighbours the wider ones mean nothing.
        """
        excess, inputs = self.excess(inputs), self.kin.joined(inputs)
        said, far = (self.inside(inputs), None) if self._ensemble is not None else self._near(inputs)
        factors = said * np.exp(-0.5 * (excess / _FADE) ** 2)[:, None]
        miss = self.miss(inputs, far)
        if far is not None:  # where no neighbour is near the law alone speaks
            miss = np.fmin(miss, np.array(law_error))
        return Answer(factors, miss * (1.0 + excess)[:, None], excess < np.log(1.05))

    def miss(self, inputs: Inputs, far: FloatArray | None = None) -> FloatArray:
        """Half width of the intervals there (B, 2); features as after `Kin.joined`.

        `far` are the distances to the nearest rows (B, 2), where they are at hand.
        """
        if self.spreads:
            expected = np.exp(np.array([s(inputs.features) for s in self.spreads]).T)
        else:
            expected = np.exp(np.array(self.growth) * (self._near(inputs)[1] if far is None else far))
        if len(self.models):
            is_known = (inputs.models[:, None] == self.models[None]).all(axis=2).any(axis=1)
            expected = expected * np.where(is_known[:, None], 1.0, np.array(self.strangeness))
        return np.asarray(expected * np.array(self.quantiles), dtype=np.float64)

    def _near(self, inputs: Inputs) -> tuple[FloatArray, FloatArray]:
        """What neighbours say, and how far they are, both (B, 2)."""
        named = for_neighbours(inputs, self.names)
        both = [n.value_and_distance(named) for n in self.neighbours]
        return np.stack([value for value, _ in both], axis=1), distances(*(far for _, far in both))

    def excess(self, inputs: Inputs) -> FloatArray:
        """How far each row lies outside the measured range, in powers of e (B,)."""
        beyond = np.maximum(np.maximum(self.low - inputs.extent, inputs.extent - self.high), 0.0)
        return np.asarray(np.sqrt((beyond * beyond).sum(axis=1)), dtype=np.float64)

    def inside(self, inputs: Inputs) -> FloatArray:
        """Factors where nothing lies outside the measured range (B, 2); features as after `Kin.joined`."""
        if self._ensemble is None:
            return self._near(inputs)[0]
        named = with_names(inputs, self.names) if any(self.tree_shares) else inputs.features
        said = self._ensemble(inputs.features, codes_of(inputs, self.names, self.grid))
        for target, share in enumerate(self.tree_shares):
            if share:
                said[:, target] += share * self.trees[target](named)
        return said

    def as_dict(self) -> dict[str, Any]:
        """All parts as JSON has them."""
        lists = ("networks", "trees", "neighbours", "spreads")
        return {
            "names": self.names,
            "grid": self.grid,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "tree_shares": list(self.tree_shares),
            "growth": list(self.growth),
            "models": self.models.tolist(),
            "kin": self.kin.as_dict(),
            "strangeness": list(self.strangeness),
            "quantiles": [None if np.isnan(q) else q for q in self.quantiles],
        } | {name: [part.as_dict() for part in getattr(self, name)] for name in lists}

    @classmethod
    def from_dict(cls, values: Any, num_features: int, num_extent: int, num_own: int, where: str) -> Self:
        """Inverse of `as_dict`; anything missing or wrong is a `DataError`."""
        try:
            names, grid = [str(n) for n in values["names"]], [float(g) for g in values["grid"]]
            low, high = (np.array(values[n], np.float64) for n in ("low", "high"))
            pairs = ("tree_shares", "growth", "strangeness")
            shares, growth, strangeness = (tuple(float(v) for v in values[n]) for n in pairs)
            models = np.array(values["models"], np.float64).reshape(-1, 4)
            quantiles = tuple(np.nan if v is None else float(v) for v in values["quantiles"])
            kin = values["kin"]
            parts = {n: list(values[n]) for n in ("networks", "trees", "neighbours", "spreads")}
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            raise DataError(f"{where}: a correction lacks {' '.join(str(err).split())[:100]}") from err
        counts = [len(parts[n]) for n in ("trees", "neighbours", "spreads")]
        fits = (
            low.shape == high.shape == (num_extent,)
            and len(shares) == len(quantiles) == len(growth) == len(strangeness) == 2
            and all(c in (0, 2) for c in counts)
            and bool(parts["networks"]) != bool(parts["neighbours"])
            and (counts[0] == 2 or not any(shares))
            and all((np.abs(v) < _MOST).all() for v in (low, high, shares, growth, strangeness, models, grid))
            and not any(q > _MOST or q < 0 for q in quantiles)
        )
        if not fits:
            raise DataError(f"{where}: a correction holds parts that do not fit each other")
        relatives = Kin.from_dict(kin, where)
        num_features += relatives.num_columns
        named = num_features + len(names)
        num_codes = (len(grid) + 1) * (len(names) + 1)
        networks = [Network.from_dict(v, num_features, num_codes, 2, where) for v in parts["networks"]]
        if networks and not can_be_averaged(networks):
            raise DataError(f"{where}: networks that are averaged need the same sizes and scales")
        return cls(
            names=names,
            grid=grid,
            low=low,
            high=high,
            kin=relatives,
            networks=networks,
            trees=[Forest.from_dict(v, named, where) for v in parts["trees"]],
            tree_shares=(shares[0], shares[1]),
            growth=(growth[0], growth[1]),
            neighbours=[Kriging.from_dict(v, named + num_own, where) for v in parts["neighbours"]],
            spreads=[Forest.from_dict(v, num_features, where) for v in parts["spreads"]],
            quantiles=(quantiles[0], quantiles[1]),
            models=models,
            strangeness=(strangeness[0], strangeness[1]),
        )


def distances(latency: FloatArray, power: FloatArray) -> FloatArray:
    """How far rows are from what tells their latency and their energy (B, 2), from that of latency and power (B,)."""
    return np.stack([latency, 0.5 * (latency + power)], axis=1)


def quantile(errors: FloatArray, share: float = 0.9) -> float:
    """Conformal quantile: with n errors the ceil((n + 1) share)-th smallest, or the largest; NaN without any."""
    known = np.sort(errors[np.isfinite(errors)])
    if not known.size:
        return float("nan")
    return float(known[min(int(np.ceil((known.size + 1) * share)), known.size) - 1])
