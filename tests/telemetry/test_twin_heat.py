"""The thermal network against its closed form and an independent integration."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from thermoe.telemetry import plant_heat
from thermoe.telemetry.plant_heat import ThermalNetwork


@pytest.mark.parametrize("step_s", [0.001, 0.0137, 0.1, 1.0, 60.0])
@pytest.mark.parametrize("power_w", [0.0, 117.0, 690.0])
def test_at_constant_power_it_settles_at_ambient_plus_r_times_p_whatever_the_step(step_s, power_w):
    network = ThermalNetwork.settled(350.0)
    for _ in range(max(int(150.0 / step_s), 5)):
        network.advance(step_s, power_w)
    assert network.core_rise_c == pytest.approx(0.038 * power_w, abs=1e-5)


def test_one_step_or_many_give_the_same_transient():
    coarse, fine = ThermalNetwork.settled(117.0), ThermalNetwork.settled(117.0)
    coarse.advance(2.0, 650.0, 4e12)
    for _ in range(2000):
        fine.advance(0.001, 650.0, 4e12)
    assert coarse.core_rise_c == pytest.approx(fine.core_rise_c, rel=1e-9)
    assert coarse.memory_c == pytest.approx(fine.memory_c, rel=1e-9)


def test_the_transient_solves_the_differential_equation_of_two_poles():
    powers_w = [690.0, 117.0, 400.0]

    def slope(time_s, rises_c):
        power_w = powers_w[min(int(time_s / 4.0), 2)]
        return [(0.035 * power_w - rises_c[0]) / 0.5, (0.003 * power_w - rises_c[1]) / 8.0]

    network = ThermalNetwork.settled(117.0)
    rises_c = np.array([0.035 * 117.0, 0.003 * 117.0])
    for index, power_w in enumerate(powers_w):
        span = (4.0 * index, 4.0 * (index + 1) - 1e-9)
        rises_c = solve_ivp(slope, span, rises_c, rtol=1e-9, atol=1e-9).y[:, -1]
        network.advance(4.0, power_w)
        assert network.core_rise_c == pytest.approx(rises_c.sum(), abs=1e-5)


def test_temperatures_agree_with_those_measured_under_load():
    assert plant_heat.AMBIENT_C + ThermalNetwork.settled(690.0).core_rise_c == pytest.approx(55.0, abs=1.0)
    for power_w, traffic, measured_c in [(117.0, 0.0, 37.0), (691.0, 0.0, 47.0), (678.0, 4.38e12, 61.0)]:
        network = ThermalNetwork.settled(power_w, traffic)
        assert plant_heat.AMBIENT_C + network.memory_c == pytest.approx(measured_c, abs=0.1)


def test_after_a_minute_of_load_most_of_the_heat_is_gone_within_seconds():
    network = ThermalNetwork.settled(690.0)
    network.advance(1.0, 117.0)
    assert plant_heat.AMBIENT_C + network.core_rise_c == pytest.approx(36.0, abs=2.5)
    network.advance(7.0, 117.0)
    assert plant_heat.AMBIENT_C + network.core_rise_c == pytest.approx(33.5, abs=1.5)
