"""Energy windows against integrals done by hand."""

import math

import pytest

from thermoe.telemetry import WindowAccumulator
from thermoe.types import Kind, SysState


def state(time_s, **values):
    return SysState(time_s=time_s, wall_time_s=time_s, source="test", kind=Kind.MEASURED, **values)


def window(states, **kwargs):
    accumulator = WindowAccumulator(states[0], **kwargs)
    for one in states[1:]:
        accumulator.add(one)
    return accumulator.result()


def test_two_estimates_and_their_disagreement():
    powers = [100.0, 300.0, 300.0, 200.0]
    got = window([state(i * 0.5, power_w=p, energy_j=1000.0 + 100.0 * i) for i, p in enumerate(powers)])

    assert got.duration_s == 1.5
    assert got.energy_counter_j == pytest.approx(300.0)
    assert got.energy_integrated_j == pytest.approx(100.0 + 150.0 + 125.0)
    assert got.disagreement_pct == pytest.approx(25.0)
    assert got.power_mean_w == pytest.approx(250.0)
    assert got.power_peak_w == 300.0
    assert got.kind is Kind.MEASURED
    assert got.num_samples == 4


def test_a_sine_is_integrated_to_its_closed_form():
    times = [i * 0.01 for i in range(3142)]
    got = window([state(t, power_w=400.0 + 200.0 * math.sin(t)) for t in times])
    assert got.energy_integrated_j == pytest.approx(400.0 * times[-1] + 200.0 * (1 - math.cos(times[-1])), rel=1e-5)


def test_what_no_sensor_told_is_none():
    got = window([state(0.0), state(0.5), state(1.0)])
    assert got.duration_s == 1.0
    for name in ("energy_counter_j", "energy_integrated_j", "disagreement_pct", "power_mean_w", "power_peak_w"):
        assert getattr(got, name) is None
    assert got.temp_mean_c is None
    assert got.temp_peak_c is None
    assert got.throttled is None


def test_short_holes_are_bridged_and_long_ones_leave_the_integral_unknown():
    short = [state(0.0, power_w=100.0), state(0.4), state(0.8, power_w=200.0), state(1.0)]
    assert window(short).energy_integrated_j == pytest.approx(0.8 * 150.0 + 0.2 * 200.0)

    hole = [state(0.0, power_w=100.0), state(1.0), state(2.0, power_w=100.0), state(2.1, power_w=100.0)]
    assert window(hole).energy_integrated_j is None
    assert window(hole, max_gap_s=3.0).energy_integrated_j == pytest.approx(210.0)
    late = [state(0.0), state(1.5, power_w=90.0), state(1.6, power_w=90.0)]
    assert window(late).energy_integrated_j is None
    lost = [state(0.0, power_w=90.0), state(0.1, power_w=90.0), state(1.5)]
    assert window(lost).energy_integrated_j is None


def test_a_counter_that_was_reset_tells_nothing():
    got = window([state(0.0, energy_j=500.0, power_w=50.0), state(1.0, energy_j=3.0, power_w=50.0)])
    assert got.energy_counter_j is None
    assert got.disagreement_pct is None
    assert got.power_mean_w == pytest.approx(50.0)


def test_without_instant_power_the_average_counts():
    got = window([state(0.0, power_avg_w=80.0), state(1.0, power_avg_w=120.0, power_w=None)])
    assert got.energy_integrated_j == pytest.approx(100.0)


def test_without_any_power_the_mean_comes_from_the_counter():
    assert window([state(0.0, energy_j=0.0), state(2.0, energy_j=30.0)]).power_mean_w == pytest.approx(15.0)


def test_temperature_and_throttling():
    got = window([
        state(0.0, temp_c=40.0, throttle_reasons=0x1),
        state(0.1, temp_c=60.0),
        state(0.2, throttle_reasons=0x4),
        state(0.3, temp_c=50.0, throttle_reasons=0x0),
    ])  # fmt: skip
    assert got.temp_mean_c == pytest.approx(50.0)
    assert got.temp_peak_c == 60.0
    assert got.throttled is True
    assert window([state(0.0, throttle_reasons=0x1), state(0.1)]).throttled is False


def test_a_reading_from_the_past_is_ignored():
    got = window([state(1.0, power_w=100.0), state(0.5, power_w=9000.0), state(2.0, power_w=100.0)])
    assert got.energy_integrated_j == pytest.approx(100.0)
    assert got.power_peak_w == 100.0


def test_an_empty_window_has_no_mean():
    got = window([state(1.0, power_w=100.0, energy_j=5.0)])
    assert got.duration_s == 0.0
    assert got.energy_counter_j == 0.0
    assert got.power_mean_w is None
    assert got.disagreement_pct is None
