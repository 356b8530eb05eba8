"""The predictor against an exact differential equation and against the twin, whose physics it is not told."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from thermoe.cost.prediction import CostPrediction
from thermoe.cost.thermal_forecast import PlannedLoad
from thermoe.cost.thermal_predictor import ThermalPredictor
from thermoe.errors import ConfigError, CostError, DataError
from thermoe.telemetry import DigitalTwin, GpuSystemMonitor, SimulatedSource
from thermoe.types import NAMED_SHAPES, Estimate, Kind, StepWork, SysState

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


def live(predictor, powers_w, *, start_s=0.0, rounded=False, rises_c=None):
    """States every 100 ms under given powers; returns (time, rises)."""
    rises_c = np.array([r * powers_w[0] for r, _ in POLES]) if rises_c is None else rises_c
    kept = np.array([math.exp(-0.1 / tau) for _, tau in POLES])
    resistance = np.array([r for r, _ in POLES])
    for index, power_w in enumerate(powers_w):
        target_c = resistance * power_w
        rises_c = target_c + (rises_c - target_c) * kept
        temp_c = AMBIENT_C + rises_c.sum()
        predictor.update(state(start_s + 0.1 * index, float(round(temp_c)) if rounded else temp_c, power_w))
    return start_s + 0.1 * len(powers_w), rises_c


def steps_w(seed, num, length=20):
    rng = np.random.default_rng(seed)
    return np.repeat(rng.uniform(100.0, 700.0, num), length)


def test_unsteady_power_widens_the_interval_unless_the_power_is_given():
    steady, unsteady = ThermalPredictor(), ThermalPredictor()
    live(steady, 350.0 + np.random.default_rng(0).normal(0.0, 2.0, 600))
    live(unsteady, steps_w(0, 30))

    def width_c(predictor, power_w=None):
        forecast = predictor.predict(4.0, power_w)
        return forecast.high_c[-1] - forecast.low_c[-1]

    assert width_c(unsteady) > width_c(steady) + 8.0  # two steps on average are ahead
    assert width_c(unsteady, 350.0) < width_c(unsteady) / 5


def test_ninety_percent_of_whole_degrees_are_held_with_the_power_given_and_without():
    predictor, held, off_c = ThermalPredictor(), {"given": [], "expected": []}, []
    powers_w = steps_w(1, 60)
    time_s, rises_c = live(predictor, powers_w, rounded=True)
    ahead_w = steps_w(2, 60)
    for start in range(0, len(ahead_w) - 20, 10):
        plan = [
            PlannedLoad(duration_s=1.0, power_w=ahead_w[start]),
            PlannedLoad(duration_s=9.0, power_w=ahead_w[start + 10]),
        ]
        given, expected = predictor.predict(2.0, plan), predictor.predict(2.0)
        _, then_c = live(ThermalPredictor(), ahead_w[start : start + 20], start_s=time_s, rounded=True, rises_c=rises_c)
        came_c = round(AMBIENT_C + then_c.sum())
        time_s, rises_c = live(predictor, ahead_w[start : start + 10], start_s=time_s, rounded=True, rises_c=rises_c)
        held["given"].append(given.low_c[-1] <= came_c <= given.high_c[-1])
        held["expected"].append(expected.low_c[-1] <= came_c <= expected.high_c[-1])
        off_c.append(abs(given.temp_c[-1] - came_c))
    assert np.mean(off_c) < 0.45  # 0.25 is lost by rounding alone
    assert 0.8 <= np.mean(held["given"]) <= 0.98
    assert 0.8 <= np.mean(held["expected"]) <= 0.99


def test_a_constant_load_is_forecast_but_its_impact_is_uncertain():
    constant, varied = ThermalPredictor(), ThermalPredictor()
    for index in range(200):
        constant.update(state(index * 0.1, 45.0, 400.0))
    random_load(varied)
    forecast = constant.predict(10.0)
    np.testing.assert_allclose(forecast.temp_c, 45.0, atol=0.3)
    wide, narrow = (p.predict_thermal_impact(2000.0, 5.0) for p in (constant, varied))
    assert wide.high - wide.low > 5.0 * (narrow.high - narrow.low)


def test_silent_and_absurd_readings_teach_nothing_and_break_nothing():
    plain, holed = ThermalPredictor(), ThermalPredictor()
    powers_w = steps_w(3, 30)
    live(plain, powers_w)
    spoils = [
        {"temp_c": None},
        {"power_w": None},
        {"temp_c": math.nan},
        {"power_w": math.inf},
        {"time_s": math.nan},
        {"temp_c": 4000.0},
        {"power_w": -5.0},
        {"temp_c": None, "power_w": None},
    ]
    rng = np.random.default_rng(0)
    original = holed.update

    def spoil(good):
        original(replace(good, **spoils[rng.integers(len(spoils))]) if rng.uniform() < 0.3 else good)

    holed.update = spoil
    live(holed, powers_w)
    del holed.update
    assert 350 < holed.num_updates_ < 480 < plain.num_updates_ == 599
    for power_w in (150.0, 600.0):
        np.testing.assert_allclose(holed.predict(3.0, power_w).temp_c, plain.predict(3.0, power_w).temp_c, atol=0.8)


def test_without_a_temperature_the_powers_go_on_and_the_forecast_follows():
    predictor = ThermalPredictor()
    time_s, rises_c = live(predictor, np.concatenate([steps_w(4, 30), np.full(50, 120.0)]))
    for index in range(30):  # the temperature is silent while the load rises
        predictor.update(state(time_s + 0.1 * index, None, 650.0))
    exact_c = AMBIENT_C + exact_rises_c(rises_c, 650.0, 3.0 + 1.0).sum()
    assert predictor.predict(1.0, 650.0).temp_c[-1] == pytest.approx(exact_c, abs=0.7)


@pytest.mark.parametrize("jump_s", [-500.0, 7.0, 1e6])
def test_a_clock_that_jumps_does_not_spoil_what_was_learned(jump_s):
    predictor = ThermalPredictor()
    time_s, _ = live(predictor, steps_w(5, 30))
    known = predictor.resistance_c_per_w_.sum()
    start_s = time_s + jump_s
    time_s, rises_c = live(predictor, np.full(100, 500.0), start_s=start_s, rises_c=np.zeros(2))
    assert predictor.resistance_c_per_w_.sum() == pytest.approx(known, rel=0.12)
    forecast = predictor.predict(1.0, 500.0)
    assert forecast.time_s[0] == pytest.approx(start_s + 9.9)
    assert forecast.temp_c[-1] == pytest.approx(AMBIENT_C + exact_rises_c(rises_c, 500.0, 1.0).sum(), abs=0.7)


def test_a_power_that_stays_silent_is_not_guessed_for_ever():
    predictor = ThermalPredictor()
    time_s, _ = live(predictor, steps_w(6, 20))
    before = predictor.predict(1.0, 300.0)
    for index in range(200):
        predictor.update(state(time_s + 0.1 * index, 90.0, None))
    assert predictor.num_updates_ == 399
    assert predictor.predict(1.0, 300.0).time_s[0] - before.time_s[0] < 6.0


def test_slow_sampling_is_no_chain_of_jumps():
    predictor = ThermalPredictor()
    for index in range(40):
        predictor.update(state(index * 10.0, 40.0 + index % 3, 200.0 + index))
    assert predictor.num_updates_ == 39


def test_a_plan_is_followed_load_by_load():
    predictor = ThermalPredictor()
    _, rises_c = live(predictor, steps_w(7, 40))
    plan = [
        PlannedLoad(duration_s=1.0, power_w=650.0),
        PlannedLoad(duration_s=0.5, power_w=120.0),
        PlannedLoad(duration_s=0.1, power_w=400.0, power_sd_w=80.0),
    ]
    forecast = predictor.predict(3.0, plan, num_points=7)
    exact_c = [rises_c]
    for power_w in (650.0, 650.0, 120.0, 400.0, 400.0, 400.0):
        exact_c.append(exact_rises_c(exact_c[-1], power_w, 0.5))
    np.testing.assert_allclose(forecast.temp_c, AMBIENT_C + np.sum(exact_c, axis=1), atol=0.5)
    assert forecast.power_w.tolist() == [650.0, 650.0, 120.0, 400.0, 400.0, 400.0, 400.0]
    assert forecast.power_high_w[-1] - forecast.power_low_w[-1] == pytest.approx(2 * 1.645 * 80.0)
    sure = predictor.predict(3.0, [*plan[:2], PlannedLoad(duration_s=1.0, power_w=400.0)], num_points=7)
    assert forecast.high_c[-1] - forecast.low_c[-1] > sure.high_c[-1] - sure.low_c[-1] + 4.0
    assert sure.low_c[-1] < sure.temp_c[-1] < sure.high_c[-1]


def test_expected_power_follows_steps_and_averages_what_flickers():
    steps, flicker = ThermalPredictor(), ThermalPredictor()
    live(steps, steps_w(8, 20, length=40))
    live(flicker, np.where(np.arange(800) % 2 == 0, 600.0, 100.0))
    forecast = steps.predict(2.0)
    assert forecast.power_w[0] == pytest.approx(steps_w(8, 20, length=40)[-1])
    assert forecast.power_low_w[-1] < forecast.power_w[-1] < forecast.power_high_w[-1]
    assert flicker.predict(2.0).power_w[0] == pytest.approx(350.0, abs=40.0)


def test_the_impact_of_a_predicted_cost_spans_its_interval():
    predictor = ThermalPredictor()
    live(predictor, steps_w(9, 40))

    def estimate(value, share):
        return Estimate(value, value * (1 - share), value * (1 + share), Kind.PREDICTED)

    cost = CostPrediction(
        latency_s=estimate(1e-3, 0.0),
        energy_j=estimate(0.5, 0.2),
        power_w=estimate(500.0, 0.2),
        temp_rise_c=estimate(15.0, 0.2),
        source="test",
        extrapolated=False,
    )
    impact = predictor.predict_cost_impact(cost, repeats=2000, base_power_w=100.0)
    exact_c = [sum(r * (p - 100.0) * (1 - math.exp(-2.0 / tau)) for r, tau in POLES) for p in (400.0, 500.0, 600.0)]
    assert impact.kind is Kind.PREDICTED
    assert [impact.low, impact.value, impact.high] == pytest.approx(exact_c, abs=0.5)
    assert predictor.predict_cost_impact(cost).value < 0.02
    with pytest.raises(ConfigError, match="repeats"):
        predictor.predict_cost_impact(cost, repeats=0)


def test_what_was_learned_travels_as_json():
    predictor = ThermalPredictor()
    live(predictor, steps_w(10, 30), rounded=True)
    copied = ThermalPredictor.from_dict(json.loads(json.dumps(predictor.as_dict())))
    assert copied.num_updates_ == predictor.num_updates_
    np.testing.assert_allclose(copied.resistance_c_per_w_, predictor.resistance_c_per_w_)
    with pytest.raises(CostError, match="seen no state"):
        copied.predict(1.0)
    for made in (copied, predictor):
        live(made, np.full(2, 400.0), start_s=1e4)
    np.testing.assert_allclose(copied.predict(2.0, 300.0).low_c, predictor.predict(2.0, 300.0).low_c, atol=0.02)
    for broken in ({}, predictor.as_dict() | {"fit": {}}, predictor.as_dict() | {"time_constants_s": [1.0]}):
        with pytest.raises(DataError, match="not a saved thermal predictor"):
            ThermalPredictor.from_dict(broken)


def test_replaying_without_learning_changes_no_resistance():
    predictor = ThermalPredictor()
    time_s, _ = live(predictor, steps_w(11, 20))
    known = predictor.resistance_c_per_w_.copy()
    for index in range(100):
        predictor.update(state(time_s + 0.1 * index, 80.0, 300.0), learn=False)
    np.testing.assert_array_equal(predictor.resistance_c_per_w_, known)
    assert predictor.predict(1.0, 300.0).temp_c[0] == pytest.approx(80.0)


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
