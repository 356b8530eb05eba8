"""Knobs as JSON and back, exactly: a resumed arm routes its next batch by the knobs it was stopped with."""

from dataclasses import fields
from typing import Any

import numpy as np

from thermoe.types import RoutingKnobs


def knobs_to_json(knobs: RoutingKnobs | None) -> dict[str, Any] | None:
    """JSON-able values; None stays None, the model's own routing."""
    if knobs is None:
        return None
    values = {f.name: getattr(knobs, f.name) for f in fields(knobs)}
    return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in values.items()}


def knobs_from_json(values: dict[str, Any] | None) -> RoutingKnobs | None:
    """Inverse of `knobs_to_json`."""
    if values is None:
        return None
    arrays: dict[str, Any] = {name: np.asarray(v) if isinstance(v, list) else v for name, v in values.items()}
    return RoutingKnobs(**arrays)
