"""What was learned about a model on calibration text: how much each expert matters, and what thrift costs.

L layers, E experts. Host values only; `thermoe.integrations.calibrate` measures them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from thermoe.errors import BudgetError, DataError
from thermoe.types import FloatArray

POLICIES = ("priced", "opportunistic", "top_k")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierPoint:
    """One fixed policy, judged on the calibration text.

    Attributes:
        policy: "priced" (value: the price), "opportunistic" (value: k0) or "top_k" (value: k).
        value: Setting of the policy.
        loss_pct: Perplexity increase over the model's own routing [%].
        distinct_experts: (L,) mean distinct experts of a batch.
    """

    policy: str
    value: float
    loss_pct: float
    distinct_experts: tuple[float, ...]

    @property
    def mean_distinct(self) -> float:
        """Mean over layers."""
        return float(np.mean(self.distinct_experts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Sensitivities of a model and the frontier of fixed policies.

    Attributes:
        model_type: Family of the model that was calibrated.
        batch_size: Sequences per batch; the frontier holds for this size.
        num_tokens: Tokens scored.
        sensitivity: (L, E) relative rise of the loss when the expert is withheld, about 1 on average.
        value_power: Power of the normalised gate in an expert's value.
        protected_k0: First choices that are always loaded by priced policies.
        own_distinct: (L,) distinct experts of the model's own routing.
        own_perplexity: Perplexity of the model's own routing.
        frontier: Policies that were judged.
    """

    model_type: str
    batch_size: int
    num_tokens: int
    sensitivity: FloatArray
    value_power: float
    protected_k0: int
    own_distinct: FloatArray
    own_perplexity: float
    frontier: tuple[FrontierPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "frontier"}
        values["sensitivity"] = self.sensitivity.tolist()
        values["own_distinct"] = self.own_distinct.tolist()
        values["frontier"] = [asdict(p) for p in self.frontier]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            DataError: The values are not those of a calibration.
        """
        try:
            fields = dict(values)
            fields["sensitivity"] = np.asarray(values["sensitivity"], dtype=np.float64)
            fields["own_distinct"] = np.asarray(values["own_distinct"], dtype=np.float64)
            fields["frontier"] = tuple(
                FrontierPoint(**(p | {"distinct_experts": tuple(p["distinct_experts"])})) for p in values["frontier"]
            )
            calibration = cls(**fields)
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(f"no calibration ({err}): make one with `thermoe calibrate`") from err
        calibration._check()
        return calibration

    def _check(self) -> None:
        """Refuse what no calibration writes: a file that was edited or cut."""
        layers = self.sensitivity.shape[:1]
        if self.sensitivity.ndim != 2 or not (np.isfinite(self.sensitivity) & (self.sensitivity > 0)).all():
            raise DataError("a calibration needs positive sensitivities of shape (layers, experts): calibrate again")
        if self.own_distinct.shape != layers or any(len(p.distinct_experts) != layers[0] for p in self.frontier):
            raise DataError(f"a calibration of {layers[0]} layers needs as many distinct experts each: calibrate again")
        numbers = [self.batch_size, self.num_tokens, self.value_power, self.protected_k0, self.own_perplexity]
        for point in self.frontier:
            if point.policy not in POLICIES:
                raise DataError(f"policy {point.policy!r} in a calibration: known are {', '.join(POLICIES)}")
            numbers += [point.value, point.loss_pct, *point.distinct_experts]
        if not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers):
            raise DataError("a calibration holds an entry that is no finite number: calibrate again")
        if any(p.value <= 0 or min(p.distinct_experts) <= 0 for p in self.frontier) or (self.own_distinct <= 0).any():
            raise DataError("a calibration holds a policy whose setting or experts are not above 0: calibrate again")
        counted: list[float] = [self.batch_size, self.num_tokens, self.protected_k0]
        counted += [p.value for p in self.frontier if p.policy != "priced"]
        if any(isinstance(n, bool) or n < 1 or n != int(n) for n in counted) or self.value_power <= 0:
            raise DataError(
                "a calibration needs whole numbers of at least 1 for batch_size, num_tokens, protected_k0, k0 and k, "
                "and a value_power above 0: calibrate again"
            )
        if len(self.priced()) < 2:
            raise DataError("the calibration holds fewer than 2 priced policies: calibrate again")

    def priced(self) -> list[FrontierPoint]:
        """The priced policies by rising price."""
        return sorted((p for p in self.frontier if p.policy == "priced"), key=lambda p: p.value)

    def price_for_loss(self, loss_pct: float) -> float:
        """The highest price whose calibrated loss stays within `loss_pct` [%]; 0 loads all that tokens choose."""
        prices, losses, _ = self._curves()
        return _blended(prices, *_highest_within(losses, loss_pct))

    def price_for_distinct(self, mean_distinct: float) -> float:
        """The lowest price at which a batch touches at most this many experts per layer on average.

        Raises:
            BudgetError: Not even the highest price that was calibrated gets there.
        """
        prices, _, counts = self._curves()
        if mean_distinct < counts[-1]:
            raise BudgetError(
                f"{mean_distinct:.1f} distinct experts per layer were asked for; the least that calibration reached is "
                f"{counts[-1]:.1f}: raise the budget"
            )
        first = int(np.argmax(counts <= mean_distinct))
        if first == 0:
            return 0.0
        share = (counts[first - 1] - mean_distinct) / (counts[first - 1] - counts[first])
        return _blended(prices, first - 1, float(share))

    def loss_at(self, price: float) -> float:
        """Calibrated perplexity increase at a price [%]; beyond the highest that was judged, that of the highest."""
        prices, losses, _ = self._curves()
        return float(np.interp(*_positions(price, prices), losses))

    def distinct_at(self, price: float) -> FloatArray:
        """(L,) distinct experts at a price."""
        prices, _, _ = self._curves()
        columns = np.array([self.own_distinct, *(p.distinct_experts for p in self.priced())])
        position, places = _positions(price, prices)
        return np.array([np.interp(position, places, column) for column in columns.T])

    def price_range(self) -> tuple[float, float]:
        """Lowest and highest price that were judged."""
        points = self.priced()
        return points[0].value, points[-1].value

    def _curves(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Prices, losses made non-decreasing, mean distinct experts made non-increasing.

        They begin at price 0, where every chosen expert is loaded and nothing is lost.
        """
        points = self.priced()
        if len(points) < 2:
            raise DataError("the calibration holds fewer than 2 priced policies: calibrate again")
        losses = np.maximum.accumulate([0.0, *(p.loss_pct for p in points)])
        counts = np.minimum.accumulate([float(self.own_distinct.mean()), *(p.mean_distinct for p in points)])
        return np.array([0.0, *(p.value for p in points)]), losses, counts


def _highest_within(losses: FloatArray, limit: float) -> tuple[int, float]:
    """Last place on a non-decreasing curve that stays within the limit: an index and the share of the way beyond."""
    last = int(np.searchsorted(losses, max(limit, 0.0), side="right")) - 1
    if last == len(losses) - 1:
        return last, 0.0
    return last, float((max(limit, 0.0) - losses[last]) / (losses[last + 1] - losses[last]))


def _blended(prices: FloatArray, index: int, share: float) -> float:
    """Price a share of the way from one judged price to the next: in the logarithm, from 0 linearly."""
    if share == 0.0:
        return float(prices[index])
    low, high = prices[index], prices[index + 1]
    blended = share * high if index == 0 else np.exp((1.0 - share) * np.log(low) + share * np.log(high))
    return float(np.clip(blended, low, high))  # rounding may step over the end


def _positions(price: float, prices: FloatArray) -> tuple[float, FloatArray]:
    """Where a price lies among the judged ones, on the scale of `_blended`, and the places of those."""
    places = np.arange(len(prices), dtype=np.float64)
    if price <= prices[1]:
        return price / prices[1], places
    return 1.0 + float(np.interp(np.log(price), np.log(prices[1:]), places[:-1])), places


def best_within(points: Sequence[FrontierPoint], max_loss_pct: float, energy_j: Sequence[float]) -> FrontierPoint:
    """The point of least predicted energy whose calibrated loss is within the budget.

    Raises:
        BudgetError: No point is within the budget.
    """
    within = [(energy, i) for i, energy in enumerate(energy_j) if points[i].loss_pct <= max_loss_pct]
    if not within:
        least = min(p.loss_pct for p in points)
        raise BudgetError(f"no policy loses at most {max_loss_pct:g} %; the least calibrated loss is {least:.2f} %")
    return points[min(within)[1]]
