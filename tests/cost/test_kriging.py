"""The covariance of neighbours, and the slope that tells which features matter."""

import numpy as np
import pytest

from thermoe.cost.kriging import Kriging, unlikeliness


def rows(count: int, num_features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, num_features))


def fit_of(points: np.ndarray) -> Kriging:
    """One whose value is that of the covariance with its first point."""
    one = np.ones(points.shape[1])
    return Kriging(0.0 * one, one, points, np.eye(len(points))[0])


def test_the_covariance_is_matern_with_smoothness_five_halves():
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    points, asked = rows(5, 3), rows(40, 3, seed=1) * np.geomspace(1e-6, 20.0, 40)[:, None]
    expected = kernels.Matern(length_scale=1.0, nu=2.5)(asked, points)
    fit = fit_of(points)
    assert fit(asked) == pytest.approx(expected[:, 0], rel=1e-9, abs=1e-14)
    assert fit.distance(asked) == pytest.approx(1.0 - expected.max(axis=1), abs=1e-12)
    assert fit(points)[0] == pytest.approx(1.0, abs=1e-12)


def test_a_spread_is_a_length():
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    points, spread = rows(4, 2), np.array([0.5, 3.0])
    fit = Kriging(np.ones(2), spread, (points - 1.0) / spread, np.eye(4)[0])
    expected = kernels.Matern(length_scale=spread, nu=2.5)(rows(9, 2, seed=3), points[:1])[:, 0]
    assert fit(rows(9, 2, seed=3)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_the_slope_of_unlikeliness_is_that_of_its_differences(seed):
    rng = np.random.default_rng(seed)
    x = rows(30, 4, seed)
    x[7] = x[3]  # two rows at one place
    y = np.sin(x[:, 0]) + 0.1 * rng.standard_normal(30)
    start = np.log(np.array([0.25, 0.25, 0.25, 0.25, 0.05]))
    logs = start + rng.uniform(-1.5, 1.5, 5)
    _, slope = unlikeliness(logs, x, y, start)
    step = 1e-5 * np.eye(5)
    differences = [
        (unlikeliness(logs + h, x, y, start)[0] - unlikeliness(logs - h, x, y, start)[0]) / 2e-5 for h in step
    ]
    assert slope == pytest.approx(differences, rel=1e-5, abs=1e-6)


def test_unlikeliness_is_that_of_a_normal_law_at_its_most_likely_variance():
    stats = pytest.importorskip("scipy.stats")
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    x, start = rows(12, 2), np.log(np.array([0.5, 0.5, 0.05]))
    y = np.cos(x[:, 1])
    values, laws = [], []
    for logs in (start, start + np.array([0.8, -0.4, 0.3])):
        weights, noise = np.exp(logs[:2]), np.exp(logs[2])
        covariance = kernels.Matern(length_scale=weights**-0.5, nu=2.5)(x) + noise * np.eye(12)
        variance = y @ np.linalg.solve(covariance, y) / 12
        pull = 0.5 * ((logs - start) ** 2).sum() / 2.0**2
        laws.append(pull - stats.multivariate_normal(np.zeros(12), variance * covariance).logpdf(y))
        values.append(unlikeliness(logs, x, y, start)[0])
    assert values[1] - values[0] == pytest.approx(laws[1] - laws[0])
