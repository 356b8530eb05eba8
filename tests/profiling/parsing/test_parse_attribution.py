"""Energy of kernels against a slow, exact reading of the rule; what is given out adds up to the window."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thermoe.profiling.parsing.attribution import PowerCurve, attribute

GAP_NS = 50


def exact(kernels, times, powers):
    """Integrals in rational numbers, nanosecond by nanosecond where power is known."""
    energy = [Fraction(0)] * len(kernels)
    window = idle = Fraction(0)
    covered = [True] * len(kernels)
    first, last = min(s for s, _ in kernels), max(e for _, e in kernels)
    for at in range(first, last):
        step = next((i for i in range(len(times) - 1) if times[i] <= at < times[i + 1]), None)
        running = [i for i, (s, e) in enumerate(kernels) if s <= at < e]
        if step is None or times[step + 1] - times[step] > GAP_NS:
            for i in running:
                covered[i] = False
            continue
        rise = Fraction(powers[step + 1] - powers[step], times[step + 1] - times[step])
        joules = (powers[step] + rise * (Fraction(2 * at + 1, 2) - times[step])) / 10**9  # trapezoid of one nanosecond
        window += joules
        idle += joules if not running else 0
        for i in running:
            energy[i] += joules / len(running)
    return energy, covered, window, idle


kernel_lists = st.lists(st.tuples(st.integers(-20, 120), st.integers(1, 60)), min_size=1, max_size=7).map(
    lambda pairs: [(start, start + length) for start, length in pairs]
)
logs = st.lists(st.tuples(st.integers(1, 80), st.integers(0, 700)), min_size=2, max_size=6)


@settings(deadline=None, max_examples=60)
@given(kernels=kernel_lists, log=logs)
def test_energies_are_the_exact_ones_and_add_up_to_the_window(kernels, log):
    times = np.cumsum([gap for gap, _ in log]) - 40
    powers = [power for _, power in log]
    energy, covered, window, idle = exact(kernels, times.tolist(), powers)
    starts, ends = np.array(kernels, dtype=np.int64).T

    found = attribute(starts, ends, PowerCurve(times, np.array(powers, dtype=float), GAP_NS))

    assert np.isnan(found.energy_j).tolist() == [not known for known in covered]
    want = [float(e) for e, known in zip(energy, covered, strict=True) if known]
    np.testing.assert_allclose(found.energy_j[covered], want, rtol=1e-9, atol=1e-18)
    assert found.window_j == pytest.approx(float(window), rel=1e-9, abs=1e-18)
    assert found.idle_j == pytest.approx(float(idle), rel=1e-9, abs=1e-18)
    assert np.nansum(found.energy_j) + found.idle_j + found.lost_j == pytest.approx(found.window_j, rel=1e-9, abs=1e-18)
    assert found.busy_ns == len({at for start, end in kernels for at in range(start, end)})


@settings(deadline=None, max_examples=60)
@given(kernels=kernel_lists, log=logs)
def test_mean_lies_between_lowest_and_peak_and_peak_is_the_highest_reading(kernels, log):
    times = np.cumsum([gap for gap, _ in log]) - 40
    powers = np.array([power for _, power in log], dtype=float)
    starts, ends = np.array(kernels, dtype=np.int64).T

    found = attribute(starts, ends, PowerCurve(times, powers, GAP_NS))

    for (start, end), mean_w, peak_w in zip(kernels, found.power_mean_w, found.power_peak_w, strict=True):
        if np.isnan(mean_w):
            continue
        values = np.interp(np.arange(start, end + 1), times, powers)
        assert peak_w == pytest.approx(values.max(), abs=1e-9)
        assert values.min() - 1e-6 <= mean_w <= peak_w + 1e-6


def test_two_kernels_at_once_share_and_a_lone_one_does_not():
    curve = PowerCurve(np.array([0, 10**9]), np.array([300.0, 300.0]))
    start, end = np.array([0, 200_000_000]), np.array([400_000_000, 600_000_000])

    found = attribute(start, end, curve)

    np.testing.assert_allclose(found.energy_j, [90.0, 90.0])  # 60 J alone and half of 60 J together, each
    np.testing.assert_allclose(found.power_mean_w, 300.0)
    assert found.window_j == pytest.approx(180.0)
    assert found.busy_ns == 600_000_000


def test_a_kernel_without_length_costs_nothing_and_knows_its_power():
    curve = PowerCurve(np.array([0, 100]), np.array([100.0, 200.0]))
    found = attribute(np.array([50]), np.array([50]), curve)
    assert (found.energy_j[0], found.power_mean_w[0], found.power_peak_w[0]) == (0.0, 150.0, 150.0)


def test_no_kernels_use_no_energy():
    nothing = np.empty(0, dtype=np.int64)
    found = attribute(nothing, nothing, PowerCurve(np.array([0, 100]), np.array([100.0, 200.0])))
    assert found.window_j == 0.0
    assert found.energy_j.shape == (0,)


def test_very_many_kernels_keep_their_energies_to_a_millionth():
    count = 200_000
    start = np.arange(count, dtype=np.int64) * 100_000
    log = np.arange(0, 21 * 10**9 + 1, 10**8, dtype=np.int64)
    found = attribute(start, start + 50_000, PowerCurve(log, np.full(log.shape, 500.0)))
    np.testing.assert_allclose(found.energy_j, 500.0 * 50e-6, rtol=1e-6)
    assert found.energy_j.sum() + found.idle_j == pytest.approx(found.window_j, rel=1e-12)
