"""Arguments of `thermoe.attach`, read and checked before anything is touched."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from thermoe.errors import ConfigError, DataError
from thermoe.integrations.batch_context import UnionScope
from thermoe.routing.calibration import Calibration
from thermoe.types import NAMED_SHAPES, NUMBER, Budget, MoEShape, RoutingStrategy


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


def strategy_of(name: str) -> RoutingStrategy:
    """The strategy of a name.

    Raises:
        ConfigError: There is none.
    """
    try:
        return RoutingStrategy(name)
    except ValueError:
        raise ConfigError(f"unknown strategy {name!r}: choose from {', '.join(RoutingStrategy)}") from None


def scope_of(name: str) -> UnionScope:
    """The union scope of a name.

    Raises:
        ConfigError: There is none.
    """
    try:
        return UnionScope(name)
    except ValueError:
        raise ConfigError(f"unknown union scope {name!r}: choose from {', '.join(UnionScope)}") from None


def priced_shape_of(name: str, own: MoEShape) -> MoEShape:
    """The shape whose costs stand in: that of a named model, or the model's own for "model".

    Raises:
        ConfigError: There is none of that name.
    """
    if name == "model":
        return own
    if name not in NAMED_SHAPES:
        raise ConfigError(f"cannot price as {name!r}: choose from model, {', '.join(NAMED_SHAPES)}")
    return NAMED_SHAPES[name]


def calibration_of(calibration: Calibration | str | Path | None) -> Calibration | None:
    """A calibration as it is, or from its file.

    Raises:
        DataError: The file cannot be read, or holds none.
    """
    if calibration is None or isinstance(calibration, Calibration):
        return calibration
    try:
        return Calibration.from_dict(json.loads(Path(calibration).read_text(encoding="utf-8")))
    except OSError as err:
        raise DataError(f"calibration {calibration} cannot be read: {err.strerror}") from err
    except ValueError as err:
        raise DataError(f"{calibration} is no calibration ({err}): make one with `thermoe calibrate`") from err


def budget_of(
    power_w: float | None,
    energy_j_per_token: float | None,
    temp_c: float | None,
    latency_ms: float | None,
    max_quality_loss_pct: float | None,
) -> Budget:
    """The limits in SI units.

    Raises:
        ConfigError: One that is no positive number.
    """
    budget = Budget(
        power_w=power_w,
        energy_j_per_token=energy_j_per_token,
        temp_c=temp_c,
        latency_s=latency_ms,
        max_quality_loss_pct=max_quality_loss_pct,
    )
    if budget.latency_s is None:
        return budget
    return budget.with_changes(latency_s=budget.latency_s / 1e3)  # a number, then


def _short(value: Any) -> str:
    """A value and its type on one line."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
