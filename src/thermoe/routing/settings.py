"""Settings of the strategies with their defaults; what `--set NAME.KEY=VALUE` may name.

Defaults and their reasons: docs/concepts/routing.md.
"""

from collections.abc import Mapping

from thermoe.errors import ConfigError
from thermoe.types import RoutingStrategy

_S = RoutingStrategy
_AWARE: dict[str, float | None] = {
    "max_quality_loss_pct": 1.0,
    "price": None,
    "alpha": 1.0,
    "beta": 0.0,
    "reserve": 0.0,
    "bias_strength": 0.25,
    "balance_rate": 0.0,
    "mask_above_c": None,
}
SETTINGS: dict[RoutingStrategy, dict[str, float | None]] = {
    _S.BASELINE: {},
    _S.STATIC_OPTIMAL: {"max_quality_loss_pct": 1.0},
    _S.KERNEL_AWARE: _AWARE,
    _S.KERNEL_AWARE_TTHA: _AWARE
    | {
        "target_power_w": None,
        "target_energy_j_per_token": None,
        "target_temp_c": None,
        "target_latency_ms": None,
        "target_tokens_per_s": None,
        "gain": 0.06,
        "adapter": 1.0,
        "learning_rate": 0.02,
        "max_bias": 0.5,
    },
    _S.OPPORTUNISTIC: {"k0": 4.0},
    _S.GATE_MASS: {"share": 0.45, "k0": 1.0},
    _S.EXPERT_SKIPPING: {"ratio": 0.3},
    _S.TOP_P: {"mass": 0.85},
}


def resolve_settings(strategy: RoutingStrategy, given: Mapping[str, float]) -> dict[str, float | None]:
    """Defaults of a strategy with the given values in their place.

    Raises:
        ConfigError: An unknown key, or a value out of its range.
    """
    defaults = SETTINGS[strategy]
    for key, value in given.items():
        if key not in defaults:
            known = ", ".join(defaults) or "it has none"
            raise ConfigError(f"unknown setting {strategy}.{key}: choose from {known}")
        _check_range(f"{strategy}.{key}", key, value)
    return dict(defaults) | dict(given)


_RANGES: dict[str, tuple[float, float]] = {
    "k0": (0, 1e6),
    "share": (1e-9, 1),
    "ratio": (0, 1),
    "mass": (1e-9, 1),
    "max_quality_loss_pct": (0, 1e6),
    "price": (0, 1e9),
    "reserve": (0, 1),
    "gain": (0, 10),
    "adapter": (0, 1),
    "max_bias": (0, 10),
    "learning_rate": (0, 10),
}
_LARGEST = 1e9


def _check_range(name: str, key: str, value: float) -> None:
    low, high = _RANGES.get(key, (1e-9 if key.startswith("target_") else 0.0, _LARGEST))
    if name == f"{_S.OPPORTUNISTIC}.k0":
        low = 1  # with none protected it would load everything
    if not low <= value <= high:  # also refuses NaN
        raise ConfigError(f"setting {name} = {value!r}: needs a number from {low:g} to {high:g}")
    if key == "k0" and value != round(value):
        raise ConfigError(f"setting {name} = {value!r}: needs a whole number of experts")
