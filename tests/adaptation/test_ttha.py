"""TTHAAdapter: bounded, resettable, a real descent, and different by expert, layer, cost and state."""

import json

import numpy as np
import pytest

from thermoe.adaptation.ttha import FEATURES, TTHAAdapter

LAYERS, EXPERTS = 3, 7


def features(seed):
    return np.random.default_rng(seed).normal(size=(LAYERS, EXPERTS, len(FEATURES)))


def slopes(seed):
    return np.random.default_rng(100 + seed).uniform(0.0, 1.0, (LAYERS, EXPERTS))


def trained(steps=40, **settings) -> TTHAAdapter:
    adapter = TTHAAdapter(LAYERS, EXPERTS, **settings)
    for seed in range(steps):
        adapter.update(features(seed), slopes(seed), 0.3)
    return adapter


def weights(adapter):
    return [adapter.w1.copy(), adapter.w2.copy(), adapter.offset.copy()]


def test_it_starts_at_exactly_zero():
    assert not TTHAAdapter(LAYERS, EXPERTS)(features(0)).any()


def test_a_thousand_updates_stay_bounded_and_reset_restores_bit_for_bit():
    adapter = TTHAAdapter(LAYERS, EXPERTS, max_bias=0.5, learning_rate=1.0)
    first = weights(adapter)
    rng = np.random.default_rng(0)
    for seed in range(1000):
        adapter.update(10.0 * features(seed), slopes(seed) * rng.uniform(0, 100), float(rng.normal(0, 3)))
        bias = adapter(features(seed))
        assert np.isfinite(bias).all()
        assert np.abs(bias).max() <= 2 * 0.5
        np.testing.assert_allclose(bias.mean(axis=1), 0.0, atol=1e-12)
    assert any(not np.array_equal(a, b) for a, b in zip(first, weights(adapter), strict=True))
    adapter.reset()
    assert all(np.array_equal(a, b) for a, b in zip(first, weights(adapter), strict=True))


def test_state_round_trip_is_exact():
    first, second = trained(), TTHAAdapter(LAYERS, EXPERTS, seed=5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for adapter in (first, second):
        adapter.update(features(77), slopes(77), -0.2)
    assert all(np.array_equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    np.testing.assert_array_equal(first(features(1)), second(features(1)))


@pytest.mark.parametrize("error", [0.2, -0.2])
def test_an_update_follows_the_gradient_of_the_surrogate(error):
    """The step of every weight against finite differences of error x sum(slope x bias)."""
    f, slope, tiny = features(3), slopes(3), 1e-6
    adapter = trained(learning_rate=0.3, weight_decay=0.0)
    start = weights(adapter)

    def surrogate(parts):
        adapter.w1, adapter.w2, adapter.offset = parts
        return error * float((slope * adapter(f)).sum())

    gradients = []
    for which, part in enumerate(start):
        gradient = np.zeros_like(part)
        for index in np.ndindex(part.shape):
            sides = []
            for sign in (1, -1):
                nudged = [p.copy() for p in start]
                nudged[which][index] += sign * tiny
                sides.append(surrogate(nudged))
            gradient[index] = (sides[0] - sides[1]) / (2 * tiny)
        gradients.append(gradient)

    surrogate(start)
    adapter.update(f, slope, error)
    for before, after, gradient in zip(start, weights(adapter), gradients, strict=True):
        step, against = (after - before).ravel(), gradient.ravel()
        cosine = -float(step @ against) / float(np.linalg.norm(step) * np.linalg.norm(against))
        assert cosine == pytest.approx(1.0, abs=1e-6)


def test_updates_lower_the_bias_of_what_costs_much_for_what_it_carries():
    adapter, f = TTHAAdapter(LAYERS, EXPERTS), features(0)
    slope = np.full((LAYERS, EXPERTS), 0.1)
    slope[1, 4] = 0.9
    surrogate = []
    for _ in range(60):
        adapter.update(f, slope, 0.2)
        surrogate.append(float((slope * adapter(f)).sum()))
    assert surrogate[-1] < surrogate[0] < 0.0
    assert adapter(f)[1].argmin() == 4


def test_no_error_means_no_step_but_decay():
    adapter = trained(weight_decay=0.01)
    before = weights(adapter)
    assert adapter.update(features(0), slopes(0), 0.0) == 0.0
    np.testing.assert_array_equal(adapter.w1, before[0])
    np.testing.assert_allclose(adapter.offset, 0.99 * before[2])


@pytest.mark.parametrize("name", FEATURES)
def test_the_output_depends_on_every_feature(name):
    adapter, f = trained(), features(1)
    moved = f.copy()
    moved[..., FEATURES.index(name)] += np.linspace(0.5, 1.5, EXPERTS)
    assert np.abs(adapter(moved) - adapter(f)).max() > 1e-4


def test_the_output_differs_by_expert_and_layer_under_the_same_features():
    alike = np.broadcast_to(features(2)[0, 0], (LAYERS, EXPERTS, len(FEATURES)))
    bias = trained()(alike)
    assert len(np.unique(bias.round(9))) == LAYERS * EXPERTS
