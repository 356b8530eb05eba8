import copy
import math

import numpy as np
import pytest

from thermoe.cost.thermal_forecast import PlannedLoad
from thermoe.cost.thermal_predictor import ThermalPredictor
from thermoe.errors import ConfigError, DataError
from thermoe.telemetry import ThermalSignalGenerator


@pytest.fixture(scope="module")
def states():
    return ThermalSignalGenerator(seed=1).generate("external_load", duration_s=20.0, interval_s=0.1)


@pytest.fixture(scope="module")
def learned(states):
    return ThermalPredictor().fit(states)


@pytest.mark.parametrize(
    "settings",
    [
        {"time_constants_s": (1.0, math.nan)},
        {"time_constants_s": (math.inf,)},
        {"memory_s": math.nan},
        {"memory_s": math.inf},
        {"sensor_sd_c": math.nan},
        {"sensor_sd_c": 1e300},
    ],
)
def test_settings_that_are_no_numbers_are_refused(settings):
    with pytest.raises(ConfigError, match="each needs to be positive"):
        ThermalPredictor(**settings)


@pytest.mark.parametrize("power_w", [-100.0, 1e300, math.nan, [650.0], "650", []])
def test_powers_that_no_board_draws_and_plans_of_something_else_are_refused(learned, power_w):
    with pytest.raises(ConfigError, match=r"planned load|a plan"):
        learned.predict(2.0, power_w)


def test_impacts_that_no_board_has_are_refused(learned):
    for energy_j, duration_s in ((1e300, 1.0), (math.nan, 1.0), (1.0, 1e-300)):
        with pytest.raises(ConfigError, match="thermal impact"):
            learned.predict_thermal_impact(energy_j, duration_s)
    with pytest.raises(ConfigError, match="planned load"):
        PlannedLoad(duration_s=1.0, power_w=-5.0)
    with pytest.raises(ConfigError, match="2 points"):
        learned.predict(2.0, num_points=2.5)


def damaged(change, values):
    copied = copy.deepcopy(values)
    change(copied)
    return copied


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format="something else"),
        lambda v: v.pop("format"),
        lambda v: v["fit"].update(num_updates=math.inf),
        lambda v: v["fit"].update(num_updates=-3),
        lambda v: v["fit"].update(sums=[0.0, 0.0, 0.0]),
        lambda v: v["fit"].update(gram=np.zeros((7, 7)).tolist()),
        lambda v: v["fit"].update(gram=(-np.array(v["fit"]["gram"])).tolist()),
        lambda v: v["fit"].update(gram=(1e300 * np.array(v["fit"]["gram"])).tolist()),
        lambda v: v["fit"]["gram"][0].__setitem__(3, 1e9),
        lambda v: v["errors"].update(temp=[[[1.0] * 3] * 200] * 5),
    ],
)
def test_what_no_predictor_saved_is_refused_when_it_is_loaded(learned, change):
    with pytest.raises(DataError, match="not a saved thermal predictor") as err:
        ThermalPredictor.from_dict(damaged(change, learned.as_dict()))
    assert "\n" not in str(err.value)


def test_a_saved_one_is_taken_back_after_a_long_and_after_no_recording(learned, states):
    for predictor in (learned, ThermalPredictor()):
        again = ThermalPredictor.from_dict(predictor.as_dict())
        assert again.num_updates_ == predictor.num_updates_
    again = ThermalPredictor.from_dict(learned.as_dict()).update(states[-1])
    assert again.predict(2.0).temp_c[-1] == pytest.approx(learned.predict(2.0).temp_c[-1], abs=1.5)
