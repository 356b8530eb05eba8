from itertools import pairwise

import numpy as np
import pytest

from thermoe.cost.network import Ensemble, Training, _gradients, can_be_averaged, train_network
from thermoe.errors import DataError


def loss(parameters, x, y, known, spread):
    """Mean relative error, written out apart from the gradient."""
    hidden = x
    for weights, offsets in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        before = hidden @ weights + offsets
        hidden = before / (1 + np.exp(-before))
    log_error = np.clip((hidden @ parameters[-2] + parameters[-1]) * spread - y, -4, 1)
    return float((np.sqrt(np.expm1(log_error) ** 2 + 0.01**2) * known).sum() / len(x))


def test_gradients_agree_with_differences():
    rng = np.random.default_rng(0)
    widths = [3, 5, 4, 2]
    parameters = []
    for a, b in pairwise(widths):
        parameters += [0.5 * rng.standard_normal((a, b)), 0.1 * rng.standard_normal(b)]
    x, y = rng.standard_normal((7, 3)), 0.3 * rng.standard_normal((7, 2))
    known, spread = rng.random((7, 2)) < 0.8, np.array([0.5, 0.7])
    got = _gradients(parameters, x, y, known, spread)
    for p, g in zip(parameters, got, strict=True):
        for i in np.ndindex(p.shape):
            kept, step = p[i], 1e-6
            p[i] = kept + step
            above = loss(parameters, x, y, known, spread)
            p[i] = kept - step
            below = loss(parameters, x, y, known, spread)
            p[i] = kept
            assert g[i] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-8)


def sample(rng, count):
    x, codes = rng.uniform(-2, 2, (count, 2)), rng.integers(0, 3, count)
    y = np.stack([np.sin(x[:, 0]) + 0.5 * codes, x[:, 0] * x[:, 1]], axis=1)
    return x, codes, y


def test_it_learns_curves_codes_and_products_and_comes_back_from_json_bit_for_bit():
    rng = np.random.default_rng(1)
    x, codes, y = sample(rng, 3000)
    y[:500, 1] = np.nan
    network = train_network(x, codes, np.eye(3), y, 0, Training(epochs=40, batch=128))
    x, codes, y = sample(rng, 500)
    assert (np.abs(network(x, codes) - y).mean(axis=0) < 0.06).all()
    again = type(network).from_dict(network.as_dict(), 2, 3, 2, "test")
    assert (again(x, codes) == network(x, codes)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.0]},
        {"spread": [0.0, 1.0]},
        {"layers": []},
        {"table": [[1.0]]},
        {"layers": "many"},
        {"target_mean": [float("nan"), 0.0]},
    ],
)
def test_parts_that_do_not_fit_are_refused(change):
    x, codes, y = sample(np.random.default_rng(2), 64)
    values = train_network(x, codes, np.eye(3), y, 0, Training(epochs=1)).as_dict()
    with pytest.raises(DataError):
        type(train_network(x, codes, np.eye(3), y, 0, Training(epochs=1))).from_dict(values | change, 2, 3, 2, "test")


def test_networks_side_by_side_say_the_mean_of_each():
    x, codes, y = sample(np.random.default_rng(3), 600)
    networks = [train_network(x, codes, np.eye(3), y, seed, Training(epochs=2)) for seed in range(3)]
    assert can_be_averaged(networks)
    alone = np.mean([n(x, codes) for n in networks], axis=0)
    assert Ensemble(networks)(x, codes) == pytest.approx(alone, abs=1e-5)
    assert Ensemble(networks)(30.0 * x, codes) == pytest.approx(
        np.mean([n(30.0 * x, codes) for n in networks], axis=0), abs=1e-5
    )
    assert Ensemble(networks[:1])(x[:1], codes[:1]) == pytest.approx(networks[0](x[:1], codes[:1]), abs=1e-5)
    assert not can_be_averaged([*networks, train_network(x + 1, codes, np.eye(3), y, 0, Training(epochs=1))])
    assert not can_be_averaged([*networks, train_network(x, codes, np.eye(3), y, 0, Training(epochs=1, width=8))])
