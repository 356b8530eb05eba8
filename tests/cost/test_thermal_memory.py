"""A board whose memory takes watts that do not warm the core, and tells its use late: as an H200 does."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest

from thermoe.cost.prediction import CostPrediction
from thermoe.cost.thermal_forecast import PlannedLoad
from thermoe.cost.thermal_predictor import ThermalPredictor
from thermoe.errors import ConfigError
from thermoe.types import Estimate, Kind, SysState

AMBIENT_C, MEMORY_W = 37.0, 150.0
POLES = ((0.03, 0.2), (0.006, 6.0))  # deg C/W and s
RELIEF_C = MEMORY_W * sum(r for r, _ in POLES)
LOADS = ((130.0, 0.0), (690.0, 0.0), (690.0, 0.25), (540.0, 1.0), (330.0, 0.5))


class Board:
    """Two poles, exact for constant loads; the use of its memory is a mean of 0.4 s, renewed every 1.07 s."""

    def __init__(self, *, late=True):
        self.time_s, self.rises_c = 0.0, np.array([r * 130.0 for r, _ in POLES])
        self.late, self.told, self.due_s, self.uses = late, 0.0, 1.07, [0.0]

    def run(self, power_w, memory_util, seconds):
        """States every 100 ms under one load, in whole degrees."""
        states = []
        for _ in range(round(seconds / 0.1)):
            target_c = np.array([r for r, _ in POLES]) * (power_w - MEMORY_W * memory_util)
            self.rises_c = target_c + (self.rises_c - target_c) * np.exp([-0.1 / tau for _, tau in POLES])
            self.time_s += 0.1
            self.uses.append(memory_util)
            if self.time_s >= self.due_s:
                self.told, self.due_s = float(np.mean(self.uses[-4:])), self.due_s + 1.07
            states.append(
                SysState(
                    time_s=self.time_s,
                    wall_time_s=self.time_s,
                    source="t",
                    kind=Kind.MEASURED,
                    temp_c=float(round(AMBIENT_C + self.rises_c.sum())),
                    power_w=power_w,
                    memory_util=self.told if self.late else memory_util,
                )
            )
        return states


def random_loads(seed, num=40):
    rng = np.random.default_rng(seed)
    return [(*LOADS[rng.integers(len(LOADS))], round(rng.uniform(1.5, 5.0), 1)) for _ in range(num)]


def learned(*, late=True, seed=0):
    board, predictor = Board(late=late), ThermalPredictor()
    for load in random_loads(seed):
        predictor.fit(board.run(*load))
    return board, predictor


@pytest.mark.parametrize(("late", "allowed_c"), [(False, 0.5), (True, 0.8)])
def test_it_finds_how_much_cooler_the_core_stays_though_the_use_is_told_late(late, allowed_c):
    _, predictor = learned(late=late)
    assert predictor.memory_relief_c_.sum() == pytest.approx(RELIEF_C, abs=allowed_c)
    assert predictor.resistance_c_per_w_.sum() == pytest.approx(0.036, rel=0.04)
    assert (predictor.memory_relief_c_ >= 0.0).all()
    assert predictor.ambient_c_ == pytest.approx(AMBIENT_C, abs=0.7)


def forecasts(board, predictor, seed):
    """(forecast, low, high, what came) 2 s ahead at every state of new loads whose plan is known."""
    loads = random_loads(seed, 30)
    states = [(state, index) for index, load in enumerate(loads) for state in board.run(*load)]
    found = []
    for at, (now, index) in enumerate(states[:-20]):
        predictor.update(now)
        _, later = states[at + 20]
        changes = [k for k in range(at + 1, at + 21) if states[k][1] != states[k - 1][1]]
        ends_s = [0.1 * (k - at - 1) + 1e-9 for k in changes] + [math.inf]
        starts_s = [0.0, *ends_s[:-1]]
        plan = [
            PlannedLoad(duration_s=max(end - start, 1e-9), power_w=loads[i][0], memory_util=loads[i][1])
            for start, end, i in zip(starts_s, ends_s, range(index, later + 1), strict=True)
        ]
        forecast = predictor.predict(2.0, plan, num_points=2)
        found.append((forecast.temp_c[-1], forecast.low_c[-1], forecast.high_c[-1], states[at + 20][0].temp_c))
    return np.array(found).T


def test_planned_forecasts_hold_at_every_moment_of_new_loads():
    board, predictor = learned()
    forecast_c, low_c, high_c, came_c = forecasts(board, predictor, seed=1)
    assert len(came_c) > 500
    assert np.abs(forecast_c - came_c).mean() < 0.6
    assert 0.85 <= ((low_c <= came_c) & (came_c <= high_c)).mean() <= 0.97
    assert (high_c - low_c).mean() < 3.0


def test_a_use_that_is_not_told_yet_misleads_no_forecast_whose_plan_tells_it():
    board, predictor = learned()
    board.due_s = board.time_s + 0.05  # renewed at the start of each load, then not before the next
    predictor.fit(board.run(690.0, 0.0, 4.0))
    board.due_s = math.inf
    now = board.run(540.0, 1.0, 0.6)
    predictor.fit(now)
    assert now[-1].memory_util == 0.0
    came_c = board.run(540.0, 1.0, 2.0)[-1].temp_c
    told = predictor.predict(2.0, [PlannedLoad(duration_s=9.0, power_w=540.0, memory_util=1.0)])
    assert told.temp_c[-1] == pytest.approx(came_c, abs=0.9)


def test_a_board_without_that_sensor_is_none_the_worse():
    board, with_sensor = Board(late=False), ThermalPredictor()
    silent, absurd = ThermalPredictor(), ThermalPredictor()
    for power_w, _, seconds in random_loads(2):
        for state in board.run(power_w, 0.0, seconds):
            with_sensor.update(state)
            silent.update(replace(state, memory_util=None))
            absurd.update(replace(state, memory_util=(math.nan, -1.0, 7.0)[round(10 * state.time_s) % 3]))
    assert not silent.memory_relief_c_.any()
    for power_w in (130.0, 600.0):
        forecast, same, near = (p.predict(2.0, power_w) for p in (silent, absurd, with_sensor))
        np.testing.assert_array_equal(forecast.temp_c, same.temp_c)
        np.testing.assert_allclose(forecast.temp_c, near.temp_c, atol=0.7)


def test_a_use_that_always_changes_is_learned_from_too():
    board, predictor, rng = Board(late=False), ThermalPredictor(), np.random.default_rng(3)
    for _ in range(900):
        predictor.fit(board.run(rng.choice([130.0, 400.0, 690.0]), rng.uniform(), 0.3))
    assert predictor.resistance_c_per_w_.sum() == pytest.approx(0.036, rel=0.1)
    assert predictor.memory_relief_c_.sum() == pytest.approx(RELIEF_C, abs=1.5)


def test_the_use_goes_on_as_it_is_where_no_plan_tells_it():
    board, predictor = learned(late=False)
    predictor.fit(board.run(540.0, 1.0, 4.0))
    same, told, other = (
        predictor.predict(4.0, [PlannedLoad(duration_s=9.0, power_w=540.0, memory_util=util)])
        for util in (None, 1.0, 0.0)
    )
    np.testing.assert_allclose(same.temp_c, told.temp_c, atol=0.7)
    np.testing.assert_allclose(predictor.predict(4.0, 540.0).temp_c, same.temp_c)
    exact_c = MEMORY_W * sum(r * (1.0 - math.exp(-4.0 / tau)) for r, tau in POLES)
    assert other.temp_c[-1] - told.temp_c[-1] == pytest.approx(exact_c, abs=0.8)


def test_work_in_the_memory_warms_the_core_less():
    _, predictor = learned(late=False)
    core, memory = (predictor.predict_thermal_impact(1200.0, 3.0, memory_util=util) for util in (0.0, 0.8))
    exact_c = 0.8 * MEMORY_W * sum(r * (1.0 - math.exp(-3.0 / tau)) for r, tau in POLES)
    assert core.value - memory.value == pytest.approx(exact_c, abs=0.7)
    energy_j, latency_s = (Estimate(value, value, value, Kind.PREDICTED) for value in (1200.0, 3.0))
    cost = CostPrediction(
        latency_s=latency_s,
        energy_j=energy_j,
        power_w=energy_j,
        temp_rise_c=energy_j,
        source="test",
        extrapolated=False,
    )
    assert predictor.predict_cost_impact(cost, memory_util=0.8).value == pytest.approx(memory.value)
    for util in (math.nan, 1.5, -2.0):
        with pytest.raises(ConfigError, match="memory_util"):
            predictor.predict_thermal_impact(1200.0, 3.0, memory_util=util)


@pytest.mark.parametrize("util", [-0.1, 1.1, math.nan, math.inf])
def test_a_planned_use_that_no_memory_has_is_refused(util):
    with pytest.raises(ConfigError, match="memory_util"):
        PlannedLoad(duration_s=1.0, power_w=100.0, memory_util=util)


def test_a_form_saved_before_there_was_memory_use_is_read_as_of_a_board_without_it():
    board, predictor = Board(), ThermalPredictor()
    states = [replace(s, memory_util=None) for load in random_loads(4) for s in board.run(*load)]
    saved = predictor.fit(states).as_dict()
    old = 1 + len(predictor.time_constants_s)
    fit = saved["fit"] | {"gram": [row[:old] for row in saved["fit"]["gram"][:old]]}
    fit["moment"] = saved["fit"]["moment"][:old]
    again = ThermalPredictor.from_dict(saved | {"fit": fit}).update(states[-1])
    np.testing.assert_allclose(again.resistance_c_per_w_, predictor.resistance_c_per_w_)
    assert not again.memory_relief_c_.any()
    assert again.predict(2.0, 500.0).temp_c[-1] == pytest.approx(predictor.predict(2.0, 500.0).temp_c[-1], abs=1.0)


def test_to_look_at_what_was_learned_changes_no_forecast():
    board, predictor = learned()
    predictor.fit(board.run(540.0, 1.0, 0.5))
    unseen = copy.deepcopy(predictor)
    assert predictor.ambient_c_ > 30.0
    np.testing.assert_allclose(predictor.predict(2.0, 400.0).temp_c, unseen.predict(2.0, 400.0).temp_c, rtol=1e-12)
