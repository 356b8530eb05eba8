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
        if calibration.sensitivity.ndim != 2 or not (calibration.sensitivity > 0).all():
            raise DataError("a calibration needs positive sensitivities of shape (layers, experts): calibrate again")
        return calibration

    def priced(self) -> list[FrontierPoint]:
        """The priced policies by rising price."""
        return sorted((p for p in self.frontier if p.policy == "priced"), key=lambda p: p.value)

    def price_for_loss(self, loss_pct: float) -> float:
        """The highest price whose calibrated loss stays within `loss_pct` [%]."""
        points = self._monotone()
        losses = [loss for _, loss, _ in points]
        return float(np.exp(np.interp(loss_pct, losses, [np.log(price) for price, _, _ in points])))

    def price_for_distinct(self, mean_distinct: float) -> float:
        """The price at which a batch touches this many experts per layer on average.

        Raises:
            BudgetError: Not even the highest price that was calibrated gets there.
        """
        points = self._monotone()
        counts = [count for _, _, count in points]
        if mean_distinct < counts[-1]:
            raise BudgetError(
                f"{mean_distinct:.1f} distinct experts per layer were asked for; the least that calibration reached is "
                f"{counts[-1]:.1f}: raise the budget"
            )
        return float(np.exp(np.interp(-mean_distinct, [-c for c in counts], [np.log(p) for p, _, _ in points])))

    def loss_at(self, price: float) -> float:
        """Calibrated perplexity increase at a price [%]."""
        points = self._monotone()
        return float(np.interp(np.log(price), [np.log(p) for p, _, _ in points], [loss for _, loss, _ in points]))

    def distinct_at(self, price: float) -> FloatArray:
        """(L,) distinct experts at a price."""
        points = self.priced()
        log_prices = [np.log(p.value) for p in points]
        columns = np.array([p.distinct_experts for p in points])
        return np.array([np.interp(np.log(price), log_prices, columns[:, i]) for i in range(columns.shape[1])])

    def price_range(self) -> tuple[float, float]:
        """Lowest and highest price that were judged."""
        points = self.priced()
        return points[0].value, points[-1].value

    def _monotone(self) -> list[tuple[float, float, float]]:
        """(price, loss, distinct) with loss made non-decreasing and distinct non-increasing in the price."""
        points = self.priced()
        if len(points) < 2:
            raise DataError("the calibration holds fewer than 2 priced policies: calibrate again")
        losses = np.maximum.accumulate([max(p.loss_pct, 0.0) for p in points])
        counts = np.minimum.accumulate([p.mean_distinct for p in points])
        strict = np.arange(len(points)) * 1e-9  # np.interp needs rising abscissae
        return [
            (p.value, float(v + s), float(c - s)) for p, v, c, s in zip(points, losses, counts, strict, strict=True)
        ]


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
