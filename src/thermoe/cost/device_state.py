"""What heat and the power limit do to a cost, in a first form."""

from dataclasses import dataclass

import numpy as np

from thermoe.cost.prediction import CostArrays
from thermoe.cost.roofline import DeviceLimits
from thermoe.errors import CostError
from thermoe.types import FloatArray, SysState

# Assumption, not measured: leakage grows by this share of idle power per degree.
LEAKAGE_PER_C = 0.004
# Measured on one H200: 0.038 degC from board power to core temperature.
THERMAL_RESISTANCE_C_PER_W = 0.038
# Assumption, not measured: work that a lower clock stretches by x takes x ** -CLOCK_SAVING of its energy above idle,
# because voltage falls with the clock.
CLOCK_SAVING = 1.0
# A limit close to idle power would stop the clock in the model; boards keep a lowest clock instead.
LEAST_DYNAMIC_POWER_W = 20.0
# Power above idle of any work, as a share of all power: what a misjudged idle power and a correction leave.
LEAST_ABOVE_IDLE = 0.02
_PLAUSIBLE_C, _PLAUSIBLE_W = (-60.0, 200.0), (1.0, 1e5)  # a reading beyond says nothing


@dataclass(frozen=True, slots=True)
class Conditions:
    """Power that a state leaves to work.

    Attributes:
        static_power_w: Idle power with leakage at the state's temperature [W].
        power_limit_w: Enforced limit [W].
    """

    static_power_w: float
    power_limit_w: float

    def apply(self, latency_s: FloatArray, dynamic_energy_j: FloatArray) -> CostArrays:
        """Latency stretched until mean power fits the limit, and energy with idle power over that time (B,)."""
        dynamic_w = max(self.power_limit_w - self.static_power_w, LEAST_DYNAMIC_POWER_W)
        excess = np.maximum(dynamic_energy_j / (dynamic_w * latency_s), 1.0)
        stretch = excess ** (1.0 / (1.0 + CLOCK_SAVING))
        stretched_s = latency_s * stretch
        return CostArrays(stretched_s, dynamic_energy_j * stretch**-CLOCK_SAVING + self.static_power_w * stretched_s)


def energy_at_full_clock_j(dynamic_energy_j: FloatArray, stretch: FloatArray) -> FloatArray:
    """Energy above idle [J] that work would have taken had the power limit not stretched it, (B,)."""
    return np.asarray(dynamic_energy_j * np.maximum(stretch, 1.0) ** CLOCK_SAVING, dtype=np.float64)


def conditions(limits: DeviceLimits, reference_temp_c: float, state: SysState | None) -> Conditions:
    """Conditions of a state; what it does not tell, or cannot be, is as it was when the costs were measured.

    Raises:
        CostError: It is no state.
    """
    if not isinstance(state, SysState | None):
        raise CostError(f"state = {state!r}: needs a SysState of thermoe.types or None")
    temp_c = _told(None if state is None else state.temp_c, reference_temp_c, _PLAUSIBLE_C)
    limit_w = _told(None if state is None else state.power_limit_w, limits.power_limit_w, _PLAUSIBLE_W)
    leakage = max(0.0, 1.0 + LEAKAGE_PER_C * (temp_c - reference_temp_c))
    return Conditions(limits.idle_power_w * leakage, limit_w)


def _told(value: float | None, usual: float, span: tuple[float, float]) -> float:
    return value if value is not None and span[0] <= value <= span[1] else usual
