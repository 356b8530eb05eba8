"""The load balancer on a simulated skewed router."""

import json

import numpy as np
import pytest
from routing_inputs import statistics

from thermoe.routing.load_balancer import ExpertLoadBalancer

LAYERS, EXPERTS, TOP_K, TOKENS = 2, 16, 4, 256


def skewed_router(seed=0):
    """Draws of router scores whose first experts are far more popular."""
    rng = np.random.default_rng(seed)
    popularity = np.linspace(1.5, -1.5, EXPERTS)

    def counts(bias):
        rows = np.zeros((LAYERS, EXPERTS))
        for layer in range(LAYERS):
            scores = popularity + rng.normal(size=(TOKENS, EXPERTS)) + bias[layer]
            chosen = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K]
            rows[layer] = np.bincount(chosen.ravel(), minlength=EXPERTS)
        return statistics(rows)

    return counts


def test_the_load_evens_out():
    router, balancer = skewed_router(), ExpertLoadBalancer(LAYERS, EXPERTS, rate=0.02, max_bias=3.0)
    bias = balancer.update(router(balancer.bias))
    first = balancer.balance()
    for _ in range(300):
        bias = balancer.update(router(bias))
    assert first < 0.7
    assert balancer.balance() > 0.95
    assert (np.diff(bias, axis=1).mean(axis=1) > 0).all()  # the unpopular ones are raised


def test_biases_stop_at_their_bound():
    router, balancer = skewed_router(), ExpertLoadBalancer(LAYERS, EXPERTS, rate=0.1, max_bias=0.25)
    for _ in range(50):
        balancer.update(router(np.zeros((LAYERS, EXPERTS))))
    assert np.abs(balancer.bias).max() == 0.25


def test_load_and_balance_by_hand():
    balancer = ExpertLoadBalancer(1, 4, rate=0.5, smoothing=0.5)
    assert balancer.balance() == 1.0
    balancer.update(statistics([[8, 0, 0, 0]]))
    assert balancer.balance() == pytest.approx(0.25)
    np.testing.assert_array_equal(balancer.bias, [[-0.5, 0.5, 0.5, 0.5]])
    balancer.update(statistics([[0, 8, 0, 0]]))
    np.testing.assert_array_equal(balancer.load, [[0.5, 0.5, 0.0, 0.0]])
    assert balancer.balance() == pytest.approx(0.5)
    np.testing.assert_array_equal(balancer.bias, [[-1.0, 0.0, 1.0, 1.0]])


def test_a_layer_without_rows_keeps_what_it_had():
    balancer = ExpertLoadBalancer(2, 3, rate=0.1)
    balancer.update(statistics([[4, 2, 0], [0, 0, 6]]))
    load, bias = balancer.load.copy(), balancer.bias.copy()
    balancer.update(statistics([[0, 0, 0], [6, 0, 0]]))
    np.testing.assert_array_equal(balancer.load[0], load[0])
    np.testing.assert_array_equal(balancer.bias[0], bias[0])
    assert not np.array_equal(balancer.load[1], load[1])


def test_state_round_trip_and_reset():
    router, balancer = skewed_router(), ExpertLoadBalancer(LAYERS, EXPERTS, rate=0.01)
    again = ExpertLoadBalancer(LAYERS, EXPERTS, rate=0.01)
    again.load_state_dict(json.loads(json.dumps(balancer.state_dict())))
    assert again.load is None
    for _ in range(3):
        balancer.update(router(balancer.bias))
    again.load_state_dict(json.loads(json.dumps(balancer.state_dict())))
    counts = router(balancer.bias)
    np.testing.assert_array_equal(balancer.update(counts), again.update(counts))
    np.testing.assert_array_equal(balancer.load, again.load)

    balancer.reset()
    assert balancer.load is None
    assert not balancer.bias.any()
