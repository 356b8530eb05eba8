"""Settings of strategies: `--set NAME.KEY=VALUE` and tables of the TOML file."""

from collections.abc import Iterable, Mapping

from thermoe.errors import ConfigError
from thermoe.routing.settings import SETTINGS, resolve_settings
from thermoe.types import RoutingStrategy

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
    """Refuse unknown strategies and keys, naming the choices, and values that are no numbers or out of range."""
    for name, table in tables.items():
        if name not in SETTINGS:
            raise ConfigError(f"unknown strategy {name!r} in settings: choose from {', '.join(SETTINGS)}")
        for key, value in table.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"setting {name}.{key} = {value!r}: needs a number")
        resolve_settings(RoutingStrategy(name), table)


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ConfigError(f"--set {text!r}: {value!r} is not a number") from None
    return number
