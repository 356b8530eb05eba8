"""Routing that adapts while it serves: feedback on power, heat, latency and energy."""

from thermoe.adaptation.adaptation import TestTimeAdaptation
from thermoe.adaptation.objectives import Observed, Targets
from thermoe.adaptation.price_plan import PricePlan, plan_price, price_response, refuse_below_idle
from thermoe.adaptation.ttha import TTHAAdapter

__all__ = [
    "Observed",
    "PricePlan",
    "TTHAAdapter",
    "Targets",
    "TestTimeAdaptation",
    "plan_price",
    "price_response",
    "refuse_below_idle",
]
