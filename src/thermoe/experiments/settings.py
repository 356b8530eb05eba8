"""Settings of strategies: `--set NAME.KEY=VALUE` and tables of the TOML file."""

from collections.abc import Iterable, Mapping

from thermoe.errors import ConfigError
from thermoe.types import RoutingStrategy

_AWARE = ("k0", "price", "max_quality_loss_pct", "alpha", "beta", "value_power")
_TARGETS = ("target_power_w", "target_energy_j_per_token", "target_temp_c", "target_latency_ms")
#: Settings of every strategy.
SETTINGS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "static_optimal": ("k0", "max_quality_loss_pct"),
    "kernel_aware": _AWARE,
    "kernel_aware_ttha": (*_AWARE, *_TARGETS),
    "opportunistic": ("k0",),
    "gate_mass": ("gate_mass",),
    "expert_skipping": ("skip_ratio",),
    "top_p": ("top_p",),
}
#: Shorter names that people may type.
ALIASES = {"ttha": str(RoutingStrategy.KERNEL_AWARE_TTHA)}


def parse_settings(assignments: Iterable[str]) -> dict[str, dict[str, float]]:
    """`NAME.KEY=VALUE` pairs as tables; a later one replaces an earlier one.

    Raises:
        ConfigError: A pair that is not of this form, or whose value is no number.
    """
    tables: dict[str, dict[str, float]] = {}
    for text in assignments:
        target, _, value = text.partition("=")
        name, _, key = target.partition(".")
        if not (name and key and value):
            raise ConfigError(f"--set {text!r}: needs NAME.KEY=VALUE, such as opportunistic.k0=4")
        tables.setdefault(name, {})[key] = _number(text, value)
    return tables


def merge_settings(*layers: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Tables of several layers under full names, the last layer winning key by key."""
    merged: dict[str, dict[str, float]] = {}
    for layer in layers:
        for name, table in layer.items():
            merged.setdefault(ALIASES.get(name, name), {}).update(table)
    return merged


def check_settings(tables: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse unknown strategies and keys, and values that are no numbers, with the choices there are."""
    for name, table in tables.items():
        if name not in SETTINGS:
            raise ConfigError(f"unknown strategy {name!r} in settings: choose from {', '.join(SETTINGS)}")
        known = SETTINGS[name]
        for key, value in table.items():
            if key not in known:
                choose = f"choose from {', '.join(known)}" if known else "it has none"
                raise ConfigError(f"unknown setting {name}.{key}: {choose}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"setting {name}.{key} = {value!r}: needs a number")


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ConfigError(f"--set {text!r}: {value!r} is not a number") from None
    return number
