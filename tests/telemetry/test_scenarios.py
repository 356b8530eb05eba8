import dataclasses
import math

import numpy as np
import pytest

from thermoe.errors import ConfigError
from thermoe.telemetry import ScenarioName, ThermalScenario, ThermalSignalGenerator
from thermoe.types import Kind


def test_the_level_rises_holds_and_falls():
    scenario = ThermalScenario(windows=((10.0, 20.0),), rise_s=4.0, external_power_w=100.0, power_limit_w=300.0)

    levels = [scenario.level(t) for t in (9.9, 10.0, 11.0, 14.0, 19.9, 21.0, 24.0, 99.0)]
    assert levels == pytest.approx([0.0, 0.0, 0.25, 1.0, 1.0, 0.75, 0.0, 0.0])
    assert scenario.at(11.0).external_power_w == pytest.approx(25.0)
    assert scenario.at(11.0).power_limit_w == 300.0
    assert scenario.at(5.0).power_limit_w is None


@pytest.mark.parametrize("name", list(ScenarioName))
def test_every_scenario_depends_on_seed_and_name_alone(name):
    alone = ThermalSignalGenerator(5).scenario(name)
    generator = ThermalSignalGenerator(5)
    for other in ScenarioName:
        generator.scenario(other)

    assert generator.scenario(str(name)) == alone
    assert alone.name is name
    if name is not ScenarioName.IDLE:
        assert any(ThermalSignalGenerator(seed).scenario(name) != alone for seed in range(6, 12))
        assert alone.level(4.99) == 0.0
        assert any(alone.level(t) > 0.0 for t in np.arange(5.0, 70.0, 0.1))


def trace(name, **kwargs):
    generator = ThermalSignalGenerator(2)
    return generator.generate(generator.scenario(name, start_s=5.0, duration_s=20.0), 40.0, **kwargs)


def between(states, start_s, end_s, field):
    return [getattr(s, field) for s in states if start_s <= s.time_s < end_s]


def test_a_trace_has_its_times_and_kind():
    states = trace("idle", interval_s=0.25)
    assert len(states) == 161
    np.testing.assert_allclose([s.time_s for s in states], np.arange(161) * 0.25, atol=1e-9)
    assert {s.kind for s in states} == {Kind.SIMULATED}
    assert np.ptp(between(states, 0, 41, "temp_c")) < 0.1


def test_a_ramp_ends_far_above_where_it_began():
    states = trace("ramp")
    middle, end = between(states, 14.9, 15.1, "power_w")[0], between(states, 30.0, 31.0, "power_w")[0]
    assert 117.0 < middle < end
    assert middle == pytest.approx((117.0 + end) / 2, rel=0.05)
    assert between(states, 39.0, 41.0, "temp_c")[-1] > between(states, 0.0, 5.0, "temp_c")[0] + 12.0


def test_spikes_are_short_and_come_back_to_idle():
    powers = np.array(between(trace("spike"), 0.0, 41.0, "power_w"))
    assert powers.max() > 400.0
    assert np.median(powers) < 130.0


def test_hot_ambient_warms_without_power():
    states = trace("hot_ambient")
    assert max(between(states, 0, 41, "temp_c")) > 44.0
    assert max(between(states, 0, 41, "power_w")) < 130.0


def test_external_load_lasts_as_long_as_it_should():
    states = trace("external_load")
    assert min(between(states, 5.2, 25.0, "power_w")) > 230.0
    assert max(between(states, 25.2, 41.0, "power_w")) < 125.0


def test_throttling_lowers_the_limit_for_a_while():
    states = trace("throttling")
    assert set(between(states, 0.0, 5.0, "power_limit_w")) == {700.0}
    assert max(between(states, 5.0, 25.0, "power_limit_w")) < 430.0
    assert set(between(states, 25.0, 41.0, "power_limit_w")) == {700.0}


def test_a_failing_sensor_is_silent_never_zero():
    generator = ThermalSignalGenerator(2)
    scenario = generator.scenario("failing_sensor", duration_s=20.0)
    states = generator.generate(scenario, 40.0)
    for name in scenario.silent_sensors:
        assert set(between(states, 5.0, 25.0, name)) == {None}
        assert None not in between(states, 0.0, 5.0, name) + between(states, 25.0, 41.0, name)
    spoken = (
        {f.name for f in dataclasses.fields(states[0])} - scenario.silent_sensors - {"fan_speed", "memory_clock_mhz"}
    )
    assert all(getattr(s, name) is not None for s in states for name in spoken)


def test_bad_scenarios_and_traces_are_refused():
    generator = ThermalSignalGenerator()
    with pytest.raises(ConfigError, match="choose from idle, ramp"):
        generator.scenario("earthquake")
    with pytest.raises(ConfigError, match="colour"):
        ThermalScenario(silent_sensors=frozenset({"colour"}))
    with pytest.raises(ConfigError):
        ThermalScenario(windows=((3.0, 3.0),))
    with pytest.raises(ConfigError):
        ThermalScenario(power_limit_w=0.0)
    with pytest.raises(ConfigError):
        generator.scenario("spike", duration_s=math.inf)
    with pytest.raises(ConfigError):
        generator.scenario("ramp", duration_s=0.0)
    for duration_s, interval_s in [(0.0, 0.1), (1.0, 0.0), (1.0, 2.0), (math.inf, 1.0)]:
        with pytest.raises(ConfigError):
            generator.generate("idle", duration_s, interval_s)
