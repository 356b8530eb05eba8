"""The plant against the measured table, against arithmetic done here, and against itself."""

import json
import math

import numpy as np
import pytest

from thermoe.errors import ConfigError, DataError
from thermoe.telemetry import DigitalTwin, ScenarioName, SimulatedSource, ThermalScenario, plant
from thermoe.types import NAMED_SHAPES, Kind, MoEShape, StepWork

QWEN = NAMED_SHAPES["qwen3-30b-a3b"]
TINY = MoEShape(num_layers=5, hidden_size=96, inter_size=40, num_experts=12, top_k=3)
BATCH = 16  # tokens of a decode step


def decode(experts, *, shape=QWEN, rows=128.0, tokens=BATCH, bits=16.0):
    layers = shape.num_layers
    return StepWork(
        shape=shape, num_tokens=tokens, distinct_experts=[experts] * layers, routed_rows=[rows] * layers, bits=bits
    )


@pytest.mark.parametrize(
    ("rows", "experts", "micros", "millis"),
    [(8, 1, 28, 6.0), (8, 8, 53, 22.3), (128, 16, 75, 39.4), (128, 128, 453, 288), (1024, 32, 130, 82.8)],
)
def test_a_decode_layer_costs_what_was_measured(rows, experts, micros, millis):
    latency_s, energy_j = plant.layer_demand(np.array([rows, rows]), np.array([experts, experts]))

    np.testing.assert_allclose(latency_s, micros * 1e-6, rtol=1e-9)
    np.testing.assert_allclose(energy_j, millis * 1e-3, rtol=1e-9)


def test_between_measured_points_cost_is_linear_in_experts_and_rises_with_operations():
    latency_s, energy_j = plant.layer_demand(np.full(3, 128.0), np.array([80.0, 64.0, 96.0]))
    assert latency_s[0] == pytest.approx((230e-6 + 348e-6) / 2)
    assert energy_j[0] == pytest.approx((147e-3 + 218e-3) / 2)

    at_twice_the_rows, _ = plant.layer_demand(np.array([65536.0, 32768.0]), np.array([128.0, 128.0]))
    assert at_twice_the_rows[0] == pytest.approx(2 * at_twice_the_rows[1])


def test_a_decode_step_at_82_experts_is_its_layers_and_the_rest_of_a_served_step():
    outcome = DigitalTwin(noise=0.0).run_step(decode(82))

    layer_s = (230 + (348 - 230) * 18 / 32) * 1e-6
    rest_s = 12.8e-3 - 48 * 199e-6
    assert outcome.kind is Kind.SIMULATED
    assert outcome.latency_s == pytest.approx(48 * layer_s + rest_s, rel=1e-9)
    assert outcome.extra["experts_latency_s"] == pytest.approx(48 * layer_s, rel=1e-9)
    assert outcome.extra["rest_latency_s"] == pytest.approx(rest_s, rel=1e-9)
    layer_j = (147 + (218 - 147) * 18 / 32) * 1e-3
    assert outcome.energy_j == pytest.approx(48 * layer_j + 0.23 * 7.65, rel=0.02)  # a cool start leaks a little less


def test_compute_bound_layers_return_what_was_measured_at_the_power_limit():
    twin = DigitalTwin(noise=0.0)
    for _ in range(40):  # two seconds: warm
        outcome = twin.run_step(decode(128, rows=32768.0, tokens=4096))

    state = twin.read()
    assert state.power_w == pytest.approx(700.0, rel=1e-6)
    assert state.throttle_reasons == 0x4
    assert 1400 < state.sm_clock_mhz < 1750  # 1455 to 1545 MHz for matrix products alone
    per_layer_s = outcome.extra["experts_latency_s"] / 48
    assert per_layer_s == pytest.approx(735e-6, rel=0.05)
    assert per_layer_s * 700.0 == pytest.approx(511e-3, rel=0.05)


def test_fewer_experts_and_fewer_bits_cost_less_and_no_work_costs_the_launches():
    twin = DigitalTwin(noise=0.0)
    energies = [twin.run_step(decode(e, bits=b)).energy_j for e, b in [(128, 16), (56, 16), (56, 4), (0, 16)]]

    assert energies == sorted(energies, reverse=True)
    assert len(set(energies)) == 4
    launches = twin.run_step(decode(0, rows=0.0, tokens=0))
    assert launches.extra["experts_latency_s"] == pytest.approx(48 * 26e-6)


def test_a_layer_of_another_size_counts_by_bytes_and_operations():
    half = MoEShape(num_layers=48, hidden_size=1024, inter_size=768, num_experts=128, top_k=8)
    narrow = plant.step_demand(decode(64, shape=half, rows=256.0))
    full = plant.step_demand(decode(32, shape=QWEN, rows=128.0))

    assert narrow.experts_latency_s == pytest.approx(full.experts_latency_s)
    assert narrow.experts_energy_j == pytest.approx(full.experts_energy_j)
    assert narrow.rest_latency_s < full.rest_latency_s


def test_work_of_a_small_model_is_priced_on_the_twins_layers():
    priced = DigitalTwin(noise=0.0).run_step(decode(6.0, shape=TINY, rows=48.0))
    same = DigitalTwin(noise=0.0).run_step(decode(64.0, rows=128.0))

    assert priced.latency_s == pytest.approx(same.latency_s)
    own = DigitalTwin(TINY, noise=0.0).run_step(decode(6.0, shape=TINY, rows=48.0))
    assert own.latency_s == pytest.approx(5 * 26e-6 + own.extra["rest_latency_s"], rel=0.01)  # bound by launches


def test_the_energy_counter_is_the_integral_of_power_however_the_time_is_cut():
    twin = DigitalTwin(seed=3)
    total_j = 0.0
    for index in range(200):
        outcome = twin.run_step(decode(40 + index % 50))
        total_j += outcome.energy_j
    before_idle_j = twin.energy_j
    assert before_idle_j == pytest.approx(total_j, rel=1e-12)

    readings = []
    tick = math.ceil(twin.time_s / 0.1)
    twin.wait_until(tick * 0.1)
    start_j = twin.read().energy_j
    for index in range(1, 51):
        twin.wait_until((tick + index) * 0.1)
        readings.append(twin.read().power_w)
    assert twin.read().energy_j - start_j == pytest.approx(sum(readings) * 0.1, rel=1e-6)


def test_sensors_change_every_100_ms_of_virtual_time_and_hold_in_between():
    twin = DigitalTwin(noise=0.05, seed=1)
    seen = {}
    for _ in range(400):
        twin.run_step(decode(82))
        state = twin.read()
        seen.setdefault(int(state.time_s / 0.1 + 1e-9), set()).add((state.power_w, state.energy_j, state.temp_c))
    assert len(seen) > 50
    assert all(len(values) == 1 for values in seen.values())
    assert len(set.union(*seen.values())) == len(seen)


def test_averaged_power_is_the_mean_of_the_last_second():
    twin = DigitalTwin(noise=0.0)
    powers = []
    while twin.time_s < 3.0:
        twin.run_step(decode(100))
        tick = int(twin.time_s / 0.1 + 1e-9)
        if tick > len(powers):
            powers.append(twin.read().power_w)
    assert twin.read().power_avg_w == pytest.approx(np.mean(powers[-10:]))


def test_idle_board_draws_117_w_and_is_34_degrees_warm():
    twin = DigitalTwin()
    twin.idle(30.0)
    state = twin.read()

    assert state.power_w == pytest.approx(117.0, abs=0.5)
    assert 33.0 <= state.temp_c <= 34.5
    assert state.memory_temp_c == pytest.approx(37.0, abs=0.5)
    assert state.gpu_util == 0.0
    assert state.throttle_reasons == 0x1
    assert state.fan_speed is None
    assert state.kind is Kind.SIMULATED


def test_a_forced_limit_stretches_steps_until_power_fits():
    limited = ThermalScenario(name=ScenarioName.THROTTLING, windows=((0.0, math.inf),), power_limit_w=400.0)
    held, free = DigitalTwin(scenario=limited, noise=0.0), DigitalTwin(noise=0.0)
    slow, fast = held.run_step(decode(82)), free.run_step(decode(82))

    assert slow.energy_j / slow.latency_s == pytest.approx(400.0, rel=1e-9)
    assert slow.latency_s > fast.latency_s
    assert slow.energy_j < fast.energy_j  # lower clocks and voltage: less dynamic energy
    held.idle(0.2)
    assert held.read().power_limit_w == 400.0


def test_a_limit_below_idle_power_leaves_the_lowest_clock():
    limited = ThermalScenario(name=ScenarioName.THROTTLING, windows=((0.0, math.inf),), power_limit_w=50.0)
    outcome = DigitalTwin(scenario=limited, noise=0.0).run_step(decode(82))
    assert outcome.extra["sm_clock_mhz"] == pytest.approx(345.0)


def test_heat_above_the_slowdown_temperature_cuts_clocks():
    hot = ThermalScenario(name=ScenarioName.HOT_AMBIENT, windows=((0.0, math.inf),), ambient_offset_c=60.0)
    twin = DigitalTwin(scenario=hot, noise=0.0)
    slow = twin.run_step(decode(82))

    assert twin.temp_c > 89.0
    assert slow.extra["sm_clock_mhz"] == pytest.approx(990.0)
    assert slow.latency_s > DigitalTwin(noise=0.0).run_step(decode(82)).latency_s
    twin.idle(0.1)
    assert twin.read().throttle_reasons & 0x40


def test_external_load_heats_and_counts_but_is_not_the_works_energy():
    load = ThermalScenario(name=ScenarioName.EXTERNAL_LOAD, windows=((0.0, math.inf),), external_power_w=60.0)
    twin, alone = DigitalTwin(scenario=load, noise=0.0), DigitalTwin(noise=0.0)
    outcome, bare = twin.run_step(decode(8)), alone.run_step(decode(8))

    assert outcome.energy_j == pytest.approx(bare.energy_j)
    assert twin.energy_j == pytest.approx(outcome.energy_j + outcome.extra["external_j"])
    assert outcome.extra["external_j"] == pytest.approx(60.0 * outcome.latency_s)


def test_noise_has_the_deviation_it_was_given_and_follows_the_seed():
    def latencies(seed, noise):
        twin = DigitalTwin(seed=seed, noise=noise)
        return np.array([twin.run_step(decode(56)).latency_s for _ in range(600)])

    assert np.log(latencies(0, 0.03)).std() == pytest.approx(0.03, rel=0.12)
    np.testing.assert_array_equal(latencies(7, 0.01), latencies(7, 0.01))
    assert (latencies(7, 0.01) != latencies(8, 0.01)).all()


def test_a_twin_restored_from_json_goes_on_bit_for_bit():
    scenario = ThermalScenario(windows=((0.5, 2.0),), external_power_w=90.0)
    whole = DigitalTwin(scenario=scenario, seed=11)
    for _ in range(37):
        whole.run_step(decode(70))
    text = json.dumps(whole.state_dict())
    resumed = DigitalTwin(scenario=scenario, seed=999)
    resumed.load_state_dict(json.loads(text))

    assert resumed.read() == whole.read()
    for experts in (3, 90, 128):
        assert resumed.run_step(decode(experts)) == whole.run_step(decode(experts))
        resumed.idle(0.37)
        whole.idle(0.37)
        assert resumed.read() == whole.read()
    assert resumed.state_dict() == whole.state_dict()


def test_a_state_of_another_twin_is_refused():
    state = DigitalTwin().state_dict()
    with pytest.raises(DataError, match="shape"):
        DigitalTwin(TINY).load_state_dict(state)
    del state["rng"]
    with pytest.raises(DataError, match="rng"):
        DigitalTwin().load_state_dict(state)


@pytest.mark.parametrize(
    "work",
    [
        StepWork(shape=QWEN, num_tokens=1, distinct_experts=[8.0] * 48, routed_rows=[8.0] * 47),
        StepWork(shape=QWEN, num_tokens=1, distinct_experts=[], routed_rows=[]),
        decode(math.nan),
        decode(8.0, rows=-1.0),
        decode(8.0, bits=0.0),
    ],
)
def test_work_that_cannot_be_counted_is_refused(work):
    with pytest.raises(ConfigError, match="step work"):
        DigitalTwin().run_step(work)


@pytest.mark.parametrize("duration_s", [-1.0, math.nan, math.inf])
def test_impossible_idle_times_are_refused(duration_s):
    with pytest.raises(ConfigError):
        DigitalTwin().idle(duration_s)


def test_waiting_for_the_past_is_no_wait():
    twin = DigitalTwin()
    twin.idle(1.25)
    twin.wait_until(0.5)
    assert twin.time_s == 1.25


def test_a_realtime_source_lets_the_twin_idle_along():
    twin = DigitalTwin()
    source = SimulatedSource(twin, realtime=True)
    first = source.read().time_s
    while source.read().time_s <= first:
        pass
    assert twin.time_s > 0.0
    assert source.read().power_w == pytest.approx(117.0, abs=1.0)


def test_external_load_takes_its_share_of_the_power_limit():
    load = ThermalScenario(name=ScenarioName.EXTERNAL_LOAD, windows=((0.0, math.inf),), external_power_w=200.0)
    outcome = DigitalTwin(scenario=load, noise=0.0).run_step(decode(82))

    total_j = outcome.energy_j + outcome.extra["external_j"]
    assert total_j / outcome.latency_s == pytest.approx(700.0, rel=1e-9)
