"""The predictor against an exact differential equation and against the twin, whose physics it is not told."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from thermoe.cost.thermal_predictor import ThermalPredictor
from thermoe.errors import ConfigError, CostError
from thermoe.telemetry import DigitalTwin, GpuSystemMonitor, SimulatedSource
from thermoe.types import NAMED_SHAPES, Kind, StepWork, SysState

AMBIENT_C = 24.0
POLES = ((0.028, 0.8), (0.009, 6.0))  # deg C/W and s, none of them among the predictor's own


def state(time_s, temp_c, power_w):
    return SysState(time_s=time_s, wall_time_s=time_s, source="t", kind=Kind.MEASURED, temp_c=temp_c, power_w=power_w)


def exact_rises_c(rises_c, power_w, duration_s):
    """The two poles integrated by an independent solver."""

    def slope(_time_s, rises):
        return [(r * power_w - rise) / tau for (r, tau), rise in zip(POLES, rises, strict=True)]

    return solve_ivp(slope, (0.0, duration_s), rises_c, rtol=1e-8, atol=1e-8).y[:, -1]


def random_load(predictor, *, seconds=120.0, seed=0, rounded=False, ambient_c=AMBIENT_C, start_s=0.0):
    """Teach a predictor with power that jumps and times that are uneven; returns (time, rises)."""
    rng = np.random.default_rng(seed)
    time_s, rises_c, power_w = start_s, np.array([r * 117.0 for r, _ in POLES]), 117.0
    predictor.update(state(time_s, ambient_c + rises_c.sum(), power_w))
    while time_s < start_s + seconds:
        if rng.uniform() < 0.05:
            power_w = rng.uniform(80.0, 700.0)
        step_s = rng.uniform(0.05, 0.2)
        rises_c = exact_rises_c(rises_c, power_w, step_s)
        time_s += step_s
        temp_c = ambient_c + rises_c.sum()
        predictor.update(state(time_s, round(temp_c) if rounded else temp_c, power_w))
    return time_s, rises_c


@pytest.mark.parametrize(("rounded", "allowed_c"), [(False, 0.5), (True, 1.2)])
def test_forecasts_follow_the_exact_solution(rounded, allowed_c):
    predictor = ThermalPredictor(sensor_sd_c=0.4 if rounded else 0.1)
    time_s, rises_c = random_load(predictor, rounded=rounded)

    for power_w in (90.0, 650.0):
        forecast = predictor.predict(6.0, power_w, num_points=13)
        assert forecast.kind is Kind.PREDICTED
        np.testing.assert_allclose(forecast.time_s, time_s + np.linspace(0, 6, 13))
        exact_c = [AMBIENT_C + exact_rises_c(rises_c, power_w, max(t, 1e-9)).sum() for t in np.linspace(0, 6, 13)]
        np.testing.assert_allclose(forecast.temp_c, exact_c, atol=allowed_c)
        assert (forecast.low_c < forecast.temp_c).all()
        assert (forecast.temp_c < forecast.high_c).all()


def test_it_finds_ambient_and_total_resistance():
    predictor = ThermalPredictor()
    random_load(predictor)
    predictor.predict(1.0)
    assert predictor.ambient_c_ == pytest.approx(AMBIENT_C, abs=0.5)
    assert predictor.resistance_c_per_w_.sum() == pytest.approx(0.037, rel=0.03)
    assert (predictor.resistance_c_per_w_ >= 0.0).all()
    assert predictor.residual_sd_c_ < 0.3


@pytest.mark.parametrize(("energy_j", "duration_s"), [(300.0, 0.5), (1200.0, 3.0), (9000.0, 30.0), (-200.0, 1.0)])
def test_thermal_impact_is_the_exact_extra_rise(energy_j, duration_s):
    predictor = ThermalPredictor()
    random_load(predictor)
    got = predictor.predict_thermal_impact(energy_j, duration_s)

    power_w = energy_j / duration_s
    exact_c = sum(r * power_w * (1.0 - math.exp(-duration_s / tau)) for r, tau in POLES)
    assert got.kind is Kind.PREDICTED
    assert got.value == pytest.approx(exact_c, rel=0.06, abs=0.1)
    assert got.low < got.value < got.high


def test_ninety_percent_of_the_intervals_hold_on_the_twin():
    twin, predictor = DigitalTwin(seed=4), ThermalPredictor()
    monitor = GpuSystemMonitor(SimulatedSource(twin), predictor=predictor)
    rng = np.random.default_rng(2)
    shape = NAMED_SHAPES["qwen3-30b-a3b"]
    work = StepWork(shape=shape, num_tokens=16, distinct_experts=[0.0] * 48, routed_rows=[128.0] * 48)

    def go(experts, until_s):
        powers, due_s = [], twin.time_s
        while twin.time_s < until_s:
            if experts:
                twin.run_step(replace(work, distinct_experts=[experts] * work.shape.num_layers))
            else:
                twin.idle(0.05)
            if twin.time_s >= due_s:
                powers.append(monitor.sample().power_w)
                due_s += 0.1
        return np.mean(powers[2:])

    for _ in range(12):
        go(rng.choice([0, 8, 24, 90]), twin.time_s + rng.uniform(1.0, 8.0))
    held, errors = 0, []
    for _ in range(30):
        before = monitor.predict_thermal_trajectory(2.0)
        assert before.temp_c[0] == pytest.approx(monitor.latest.temp_c)
        snapshot = copy.deepcopy(predictor)
        power_w = go(rng.choice([0, 8, 24, 90]), twin.time_s + 2.0)
        forecast = snapshot.predict(2.0, power_w)
        held += forecast.low_c[-1] <= twin.temp_c <= forecast.high_c[-1]
        errors.append(abs(forecast.temp_c[-1] - twin.temp_c))
    assert held >= 24
    assert np.median(errors) < 0.5
    assert predictor.resistance_c_per_w_.sum() == pytest.approx(0.038, rel=0.05)


def test_unsteady_power_widens_the_interval_unless_the_power_is_given():
    steady, unsteady = ThermalPredictor(), ThermalPredictor()
    for predictor, swing_w in ((steady, 0.0), (unsteady, 150.0)):
        end_s, _ = random_load(predictor, seconds=60.0)
        for index in range(1, 100):
            predictor.update(state(end_s + index * 0.1, 40.0, 350.0 + swing_w * (-1) ** (index // 3)))

    def width_c(predictor, power_w=None):
        forecast = predictor.predict(5.0, power_w)
        return forecast.high_c[-1] - forecast.low_c[-1]

    assert width_c(unsteady) > width_c(steady) + 5.0  # 150 W are 5.5 deg C either way
    assert width_c(unsteady, 350.0) < width_c(unsteady) / 2


def test_a_constant_load_is_forecast_but_its_impact_is_uncertain():
    constant, varied = ThermalPredictor(), ThermalPredictor()
    for index in range(200):
        constant.update(state(index * 0.1, 45.0, 400.0))
    random_load(varied)
    forecast = constant.predict(10.0)
    np.testing.assert_allclose(forecast.temp_c, 45.0, atol=0.3)
    wide, narrow = (p.predict_thermal_impact(2000.0, 5.0) for p in (constant, varied))
    assert wide.high - wide.low > 5.0 * (narrow.high - narrow.low)


def test_silent_sensors_teach_nothing_and_break_nothing():
    plain, holed = ThermalPredictor(), ThermalPredictor()
    for index in range(100):
        good = state(index * 0.1, 40.0 + index % 7, 200.0 + 10 * (index % 5))
        plain.update(good)
        holed.update(good)
        holed.update(replace(good, time_s=good.time_s + 0.05, temp_c=None))
        holed.update(replace(good, time_s=good.time_s + 0.06, power_w=None))
    assert holed.num_updates_ == plain.num_updates_ == 99
    np.testing.assert_array_equal(holed.predict(2.0).temp_c, plain.predict(2.0).temp_c)


def test_a_repeated_state_counts_once_and_a_clock_that_goes_back_keeps_what_was_learned():
    predictor = ThermalPredictor()
    random_load(predictor, seconds=60.0)
    learned = predictor.num_updates_
    predictor.update(state(0.0, 30.0, 117.0))
    predictor.update(state(0.0, 30.0, 117.0))
    assert predictor.num_updates_ == learned
    assert predictor.predict_thermal_impact(1000.0, 2.0).value == pytest.approx(16.5, rel=0.15)


def test_it_follows_an_ambient_that_has_changed():
    quick, slow = ThermalPredictor(memory_s=40.0), ThermalPredictor(memory_s=1e6)
    errors_c = []
    for predictor in (quick, slow):
        end_s, _ = random_load(predictor, seconds=60.0)
        _, rises_c = random_load(predictor, seconds=100.0, ambient_c=AMBIENT_C + 8.0, start_s=end_s + 0.1, seed=1)
        exact_c = AMBIENT_C + 8.0 + exact_rises_c(rises_c, 300.0, 20.0).sum()
        errors_c.append(abs(predictor.predict(20.0, 300.0).temp_c[-1] - exact_c))
    assert errors_c[0] < 1.0
    assert errors_c[0] < errors_c[1]


def test_it_refuses_what_it_cannot_answer():
    predictor = ThermalPredictor()
    for index in range(10):
        predictor.update(state(index * 0.1, 40.0, 100.0))
    with pytest.raises(CostError, match="learned from 9 states, needs 10"):
        predictor.predict(1.0)
    with pytest.raises(CostError):
        predictor.predict_thermal_impact(1.0, 1.0)
    predictor.update(state(1.0, 40.0, 100.0))
    assert predictor.predict(1.0).temp_c.shape == (21,)
    for horizon_s in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError):
            predictor.predict(horizon_s)
    for energy_j, duration_s in [(math.nan, 1.0), (1.0, 0.0)]:
        with pytest.raises(ConfigError):
            predictor.predict_thermal_impact(energy_j, duration_s)
    for settings in ({"memory_s": 0.0}, {"sensor_sd_c": -1.0}, {"time_constants_s": ()}):
        with pytest.raises(ConfigError):
            ThermalPredictor(**settings)
