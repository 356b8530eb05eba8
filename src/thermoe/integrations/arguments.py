"""Arguments of `thermoe.attach` of a wrong type, told before anything is touched."""

from collections.abc import Mapping
from types import UnionType
from typing import Any

from thermoe.errors import ConfigError
from thermoe.types import NUMBER


def refuse_wrong_types(**given: tuple[Any, type | UnionType]) -> None:
    """Check each argument, given by name as (value, types it may have).

    Raises:
        ConfigError: The first that is of another type.
    """
    for name, (value, kinds) in given.items():
        if not isinstance(value, kinds):
            needed = kinds.__name__ if isinstance(kinds, type) else str(kinds)
            raise ConfigError(f"{name} is {_short(value)}: needs {needed}")


def settings_of(settings: Mapping[str, Any] | None) -> Mapping[str, float]:
    """The settings of a strategy; none for None.

    Raises:
        ConfigError: They are no mapping from names to numbers.
    """
    refuse_wrong_types(settings=(settings, Mapping | None))
    for key, value in (settings or {}).items():
        if not isinstance(value, NUMBER):
            raise ConfigError(f"setting {key} = {_short(value)}: needs a number")
    return settings or {}


def _short(value: Any) -> str:
    """A value and its type on one line."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
