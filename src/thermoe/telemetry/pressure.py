"""Two numbers in [0, 1] that say how near a GPU is to its limits."""

from thermoe.telemetry.source import CLOCK_HW_SLOWDOWN, CLOCK_HW_THERMAL, CLOCK_POWER_CAP, CLOCK_SW_THERMAL
from thermoe.types import SysState

#: Thermal pressure begins this far under the limit [deg C].
PRESSURE_RANGE_C = 30.0

_THERMAL_REASONS = CLOCK_HW_SLOWDOWN | CLOCK_SW_THERMAL | CLOCK_HW_THERMAL


def thermal_pressure(state: SysState, temp_limit_c: float | None = None) -> float | None:
    """How much of the last 30 deg C under the temperature limit is used up.

    0 at 30 deg C or more under the limit, 1 at the limit and while temperature holds clocks down;
    the hotter of core and memory counts.

    Args:
        state: The state to judge.
        temp_limit_c: Limit of the core [deg C]; the board's slowdown temperature by default.

    Returns:
        Pressure in [0, 1], or `None` where neither core nor memory has both a reading and a limit.
    """
    if state.throttle_reasons is not None and state.throttle_reasons & _THERMAL_REASONS:
        return 1.0
    limit_c = state.temp_slowdown_c if temp_limit_c is None else temp_limit_c
    pairs = ((state.temp_c, limit_c), (state.memory_temp_c, state.temp_memory_max_c))
    known = [1.0 - (limit - temp) / PRESSURE_RANGE_C for temp, limit in pairs if temp is not None and limit is not None]
    return min(max(*known, 0.0), 1.0) if known else None


def power_pressure(state: SysState, power_limit_w: float | None = None) -> float | None:
    """Which share of the power limit is drawn; 1 at the limit and while it holds clocks down.

    Args:
        state: The state to judge; its instant power counts, else its averaged power.
        power_limit_w: Limit [W]; the board's enforced limit by default.

    Returns:
        Pressure in [0, 1], or `None` where power or limit is unknown.
    """
    if state.throttle_reasons is not None and state.throttle_reasons & CLOCK_POWER_CAP:
        return 1.0
    power_w = state.power_w if state.power_w is not None else state.power_avg_w
    limit_w = state.power_limit_w if power_limit_w is None else power_limit_w
    if power_w is None or limit_w is None or limit_w <= 0.0:
        return None
    return min(max(power_w / limit_w, 0.0), 1.0)
