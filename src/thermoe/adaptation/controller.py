"""A3, the feedback controller: the price follows the error as the dual variable of the budget (THEORY: section 4)."""

from dataclasses import dataclass

import numpy as np


@dataclass
class PriceController:
    """Proportional-integral control of the logarithm of the price.

    How strongly the price acts differs tenfold between prices; dividing by the response that
    calibration measured there makes one gain right everywhere.

    Dual ascent on a budget is integral control of its multiplier; in the logarithm, steps are
    relative and the price stays positive. Errors are log(observed / target), so one gain serves
    watts, joules and degrees. The price is bounded; while it sits at a bound the integral waits.

    Attributes:
        price: Current price, in units of value.
        low, high: Bounds of the price.
        gain: Integral gain per update.
        proportional: Proportional gain as a multiple of `gain`.
    """

    price: float
    low: float
    high: float
    gain: float
    proportional: float = 2.0
    last_error: float | None = None

    def update(self, error: float, response: float = 1.0) -> float:
        """Take in an error (above 0: too much is used) and return the new price.

        `response` is by how much the logarithm of what is used falls when that of the price rises by one.
        """
        change = 0.0 if self.last_error is None else error - self.last_error
        self.last_error = error
        step = self.gain * (error + self.proportional * change) / response
        self.price = float(np.clip(self.price * np.exp(np.clip(step, -0.5, 0.5)), self.low, self.high))
        return self.price
