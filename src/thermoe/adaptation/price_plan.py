"""Where the price starts and where it may go: what calibration and prediction say before anything was observed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from thermoe.adaptation.objectives import Targets
from thermoe.errors import BudgetError
from thermoe.routing.calibration import Calibration
from thermoe.telemetry.idle import IdleFigures
from thermoe.types import Budget, FloatArray

PRICE_SPAN = 100.0
"""Without a calibration the price may move this far either way from where it starts."""
UNCALIBRATED_PRICE = 0.01
RESPONSE_SPAN = 1.5
"""The response of a price is taken between this factor below and above it."""
LEAST_RESPONSE = 0.05
UNCALIBRATED_RESPONSE = 0.25
"""About what calibrated models show at a price that costs 1 % of perplexity."""
PREDICTION_SLACK = 1.1
"""Prediction may be off by a tenth; only what is out of reach by more is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PricePlan:
    """A start between two bounds, all above 0, in units of value."""

    start: float
    low: float
    high: float


def plan_price(
    targets: Targets,
    settings: Mapping[str, float | None],
    budget: Budget,
    calibration: Calibration | None,
    step_energy_j: Callable[[FloatArray], float],
    idle: IdleFigures | None = None,
    least_energy_j_per_token: float | None = None,
) -> PricePlan:
    """The price that meets the energy target by prediction, or a start that feedback takes from there.

    What power, temperature or latency a price brings depends on arrivals and on what else loads the board, which
    nobody can predict here: such targets start at the lowest price, near the model's own routing, and tighten.
    Without a target the price is the one that calibration allows.

    Args:
        targets: What will be steered to.
        settings: Of the strategy; a `price` there is the start.
        budget: Its quality limit bounds the price.
        calibration: Of the model; without one the bounds are wide and know nothing of quality.
        step_energy_j: (L,) distinct experts -> predicted energy of a step of `calibration.batch_size` tokens [J].
        idle: What the board takes without work, where that is known.
        least_energy_j_per_token: What no routing of any batch gets below, by prediction [J]; None where not known.

    Raises:
        BudgetError: The energy target is out of reach by prediction, or a target lies under what the board takes
            without work.
    """
    refuse_below_idle(targets, idle)
    given = settings["price"]
    if calibration is None:
        _refuse_out_of_reach(targets.energy_j_per_token, least_energy_j_per_token)
        start = given or UNCALIBRATED_PRICE
        return PricePlan(start=start, low=start / PRICE_SPAN, high=start * PRICE_SPAN)
    low, high = calibration.price_range()
    if budget.max_quality_loss_pct is not None:
        high = max(low, min(high, calibration.price_for_loss(budget.max_quality_loss_pct)))
    if given is not None:
        start = given
    elif targets.energy_j_per_token is not None:
        start = _predicted_price(targets.energy_j_per_token, (low, high), calibration, step_energy_j)
    elif targets.first() is not None:
        start = low
    else:
        start = calibration.price_for_loss(settings["max_quality_loss_pct"] or 0.0)
    return PricePlan(start=float(np.clip(start, low, high)), low=low, high=high)


def refuse_below_idle(targets: Targets, idle: IdleFigures | None) -> None:
    """Refuse a power or temperature that no routing can reach.

    Raises:
        BudgetError: A target that is not above what the board takes without work.
    """
    if idle is None:
        return
    for wanted, least, what, unit in (
        (targets.power_w, idle.power_w, "draws", "W"),
        (targets.temp_c, idle.temp_c, "is at", "deg C"),
    ):
        if wanted is not None and least is not None and wanted <= least:
            raise BudgetError(
                f"{wanted:.4g} {unit} was asked for; {idle.board} {what} {least:.4g} {unit} without any work: "
                "ask for more than that, or lift the limit"
            )


def _refuse_out_of_reach(wanted: float | None, least: float | None) -> None:
    if wanted is not None and least is not None and least > PREDICTION_SLACK * wanted:
        raise BudgetError(
            f"{wanted:.3g} J/token was asked for; the least that is predicted for any routing of any batch is "
            f"{least:.3g}: raise the budget"
        )


def _predicted_price(
    energy_j_per_token: float,
    bounds: tuple[float, float],
    calibration: Calibration,
    step_energy_j: Callable[[FloatArray], float],
) -> float:
    grid = np.geomspace(*bounds, 64)
    predicted = np.array([step_energy_j(calibration.distinct_at(p)) / calibration.batch_size for p in grid])
    if predicted.min() > PREDICTION_SLACK * energy_j_per_token:
        raise BudgetError(
            f"{energy_j_per_token:.3g} J/token was asked for; the least that is predicted within the "
            f"quality budget is {predicted.min():.3g}: raise the budget or allow more quality loss"
        )
    return float(grid[int(np.argmin(np.abs(predicted - energy_j_per_token)))])


def price_response(calibration: Calibration | None, price: float) -> float:
    """How strongly a price acts: -d log(distinct experts) / d log(price), as calibrated around it."""
    if calibration is None:
        return UNCALIBRATED_RESPONSE
    below, above = (calibration.distinct_at(price * factor).mean() for factor in (1 / RESPONSE_SPAN, RESPONSE_SPAN))
    return float(max(np.log(below / above) / (2.0 * np.log(RESPONSE_SPAN)), LEAST_RESPONSE))
