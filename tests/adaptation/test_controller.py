"""The price controller on simulated plants."""

import numpy as np
import pytest

from thermoe.adaptation.controller import PriceController


def run(controller, plant, target, steps, seed=0, noise=0.01):
    """Noisy closed loop; returns the noise-free log errors."""
    rng, errors = np.random.default_rng(seed), []
    for step in range(steps):
        use = plant(controller.price, step)
        errors.append(np.log(use / target))
        controller.update(float(np.log(use * np.exp(noise * rng.normal()) / target)))
    return np.array(errors)


@pytest.mark.parametrize("start", [1e-3, 1.0])
@pytest.mark.parametrize("slope", [0.15, 0.5, 1.0])
def test_it_settles_from_both_sides(start, slope):
    target = 3.0 * 0.03**-slope
    errors = run(PriceController(start, 1e-4, 10.0, 0.1), lambda p, _: 3.0 * p**-slope, target, 600)
    assert np.abs(errors[0]) > 0.3
    assert np.abs(errors[400:]).mean() < 0.01


def test_it_holds_after_a_step_of_the_plant():
    controller = PriceController(0.03, 1e-4, 10.0, 0.1)
    errors = run(controller, lambda p, step: (1.0 if step < 300 else 1.3) * p**-0.4, 0.03**-0.4, 900)
    assert errors[300] > 0.2
    assert np.abs(errors[700:]).max() < 0.03


def test_it_saturates_at_its_bounds_without_wind_up():
    controller = PriceController(0.03, 1e-3, 0.1, 0.1)
    for _ in range(500):  # far out of reach
        assert controller.update(1.0) <= 0.1
    assert controller.price == 0.1
    controller.update(-0.2)
    assert controller.price < 0.1  # the first error of the other sign moves it at once
    for _ in range(500):
        assert controller.update(-1.0) >= 1e-3
    assert controller.price == 1e-3


def test_one_update_by_hand():
    controller = PriceController(0.02, 1e-4, 10.0, 0.1)
    assert controller.update(0.3) == pytest.approx(0.02 * np.exp(0.03))
    assert controller.update(0.1) == pytest.approx(0.02 * np.exp(0.03 + 0.1 * (0.1 + 2.0 * (0.1 - 0.3))))
    assert PriceController(0.02, 1e-4, 10.0, 0.1).update(1e6) == pytest.approx(0.02 * np.exp(0.5))


@pytest.mark.parametrize("slope", [0.05, 0.5])
def test_dividing_by_the_response_makes_plants_alike(slope):
    controller = PriceController(0.02, 1e-9, 1e9, 0.1)
    for _ in range(30):
        use = controller.price**-slope / 0.03**-slope
        controller.update(float(np.log(use)), response=slope)
    assert np.log(controller.price / 0.03) == pytest.approx(np.log(2 / 3) * 0.028, abs=0.02)


def test_the_mean_violation_falls_at_least_as_one_over_the_root_of_time():
    """The bound of dual ascent on a convex plant (use falls convexly in the price), from a cold start under noise."""
    violations = []
    for horizon in (100, 400, 1600):
        runs = [
            run(PriceController(1e-3, 1e-4, 10.0, 0.1), lambda p, _: p**-0.4, 0.03**-0.4, horizon, seed, noise=0.05)
            for seed in range(5)
        ]
        violations.append(np.mean([max(np.expm1(errors).mean(), 1e-6) for errors in runs]))
    assert violations[1] <= 0.55 * violations[0]
    assert violations[2] <= 0.55 * violations[1]
