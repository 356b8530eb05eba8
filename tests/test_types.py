"""Knobs and limits that cannot be are refused where they are made."""

from dataclasses import replace

import numpy as np
import pytest

from thermoe.errors import ConfigError
from thermoe.types import Budget, RoutingKnobs

KNOBS = RoutingKnobs.neutral(3, 7, 2)
PER_LAYER = ("price", "top_k", "protected_k0", "max_experts", "gate_mass", "skip_ratio")


@pytest.mark.parametrize("name", [*PER_LAYER, "bias", "allowed"])
def test_a_knob_of_another_shape(name: str) -> None:
    knob = getattr(KNOBS, name)
    with pytest.raises(ConfigError, match=f"knob {name} has shape .*needed"):
        replace(KNOBS, **{name: knob[:-1]})
    with pytest.raises(ConfigError, match=f"knob {name} has shape .*needed"):
        replace(KNOBS, **{name: knob[..., None]})


@pytest.mark.parametrize("name", ["price", "cost", "bias", "gate_mass", "skip_ratio"])
def test_a_knob_that_is_not_a_number(name: str) -> None:
    knob = getattr(KNOBS, name).copy()
    knob.flat[-1] = np.nan
    with pytest.raises(ConfigError, match=f"knob {name} holds NaN"):
        replace(KNOBS, **{name: knob})


@pytest.mark.parametrize(("name", "value"), [("top_k", 0), ("protected_k0", -1)])
def test_too_few_experts(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match="top_k >= 1 and protected_k0 >= 0"):
        replace(KNOBS, **{name: np.array([1, 1, value])})


@pytest.mark.parametrize("value", ["450", [450.0], 0, -1.0, np.nan, np.inf, np.float32(0.0), 1j])
def test_a_limit_that_cannot_be(value) -> None:
    with pytest.raises(ConfigError, match=r"budget power_w = .*positive finite number"):
        Budget(power_w=value)


def test_only_the_loss_may_be_limited_to_nothing() -> None:
    assert Budget(max_quality_loss_pct=0.0, power_w=np.float32(2.0), temp_c=80).max_quality_loss_pct == 0.0
    with pytest.raises(ConfigError, match="max_quality_loss_pct = -1"):
        Budget(max_quality_loss_pct=-1)
