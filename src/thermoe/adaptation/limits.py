"""Whether a strategy held what it was asked to hold, by the figures of its entry in summary.json."""

from collections.abc import Mapping
from typing import Any

from thermoe.adaptation.objectives import Targets
from thermoe.types import Budget, RoutingStrategy

TOLERANCE = 0.01
"""A limit that is steered to is met from both sides: a mean of up to this share above it holds it."""
TOLERANCE_C = 1.0
"""Core temperatures are whole degrees."""
QUALITY = "quality_loss_pct"
_UNITS = {
    "power_w": "W",
    "energy_j_per_token": "J/token",
    "temp_c": "°C",
    "latency_ms": "ms",
    "tokens_per_s": "tokens/s",
}
_STEERED = RoutingStrategy.KERNEL_AWARE_TTHA
_CALIBRATED = (RoutingStrategy.STATIC_OPTIMAL, RoutingStrategy.KERNEL_AWARE, _STEERED)


def limits_of(
    strategy: str, budget: Budget, settings: Mapping[str, float | None], figures: Mapping[str, Any], kind: str | None
) -> dict[str, dict[str, Any]]:
    """Every limit of the strategy beside the figure that it is held against.

    Args:
        strategy: The strategy; one that heeds no limit has none.
        budget: Limits of the run.
        settings: Those given to the strategy, of which targets are read.
        figures: The strategy's entry of summary.json.
        kind: Of the figures of the hardware.

    Returns:
        Name with its unit -> `limit`; `value`: the mean of the run, the peak of a temperature; `held`: whether the
        value is at most the limit (at least, for a rate), None where it is unknown; `kind` of the value, None for
        quality, which the model computes.
    """
    found = {}
    for name, limit in _asked(strategy, budget, settings).items():
        value = _value(name, figures)
        found[name] = {
            "limit": limit,
            "value": value,
            "held": None if value is None else _is_held(name, value, limit),
            "kind": None if name == QUALITY or value is None or kind is None else str(kind),
        }
    return found


def all_held(limits: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Whether all are held; None where there are none, or where none is known to be missed and some are unknown."""
    states = [limit["held"] for limit in limits.values()]
    if False in states:
        return False
    return True if states and None not in states else None


def told(limits: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The limits of one strategy in a few words, those that were missed alone if any was; None where it has none."""
    by_state: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for name, limit in limits.items():
        by_state[limit["held"]].append(_figures(name, limit))
    if by_state[False]:
        return "missed: " + ", ".join(by_state[False])
    known = [f"held: {', '.join(by_state[True])}"] if by_state[True] else []
    silent = [f"no reading for {', '.join(by_state[None])}"] if by_state[None] else []
    return "; ".join(known + silent) or None


def _asked(strategy: str, budget: Budget, settings: Mapping[str, float | None]) -> dict[str, float]:
    asked: dict[str, float | None] = {}
    if strategy == _STEERED:
        targets = Targets.of(budget, dict(settings))
        asked = {
            "power_w": targets.power_w,
            "energy_j_per_token": targets.energy_j_per_token,
            "temp_c": targets.temp_c,
            "latency_ms": None if targets.latency_s is None else 1e3 * targets.latency_s,
            "tokens_per_s": targets.tokens_per_s,
        }
    if strategy in _CALIBRATED:
        of_settings = settings.get("max_quality_loss_pct")
        asked[QUALITY] = of_settings if budget.max_quality_loss_pct is None else budget.max_quality_loss_pct
    return {name: limit for name, limit in asked.items() if limit is not None}


def _value(name: str, figures: Mapping[str, Any]) -> float | None:
    value: float | None = {
        "power_w": figures["power_w_mean"],
        "energy_j_per_token": figures["energy_j_per_token"]["value"],
        "temp_c": figures["temp_c_peak"],
        "latency_ms": figures["latency_ms"]["mean"],
        "tokens_per_s": figures["tokens_per_s"],
        QUALITY: figures["perplexity_change_pct"],
    }[name]
    return value


def _is_held(name: str, value: float, limit: float) -> bool:
    if name == "tokens_per_s":
        return value >= limit * (1.0 - TOLERANCE)
    slack = {"temp_c": TOLERANCE_C, QUALITY: 0.0}.get(name, TOLERANCE * limit)
    return value <= limit + slack


def _figures(name: str, limit: Mapping[str, Any]) -> str:
    """Value and limit with their unit; a limit that is held may be passed by its tolerance, so no sign is between."""
    unit = _UNITS.get(name, "% loss")
    if limit["held"] is None:
        return f"{limit['limit']:.4g} {unit}"
    sign = "of" if limit["held"] else "<" if name == "tokens_per_s" else ">"
    return f"{limit['value']:.4g} {sign} {limit['limit']:.4g} {unit}"
