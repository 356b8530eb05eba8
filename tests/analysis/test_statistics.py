import itertools

import numpy as np
import pytest
from scipy import stats

from thermoe.analysis.statistics import (
    Interval,
    bootstrap,
    cliffs_delta,
    cohens_dz,
    holm,
    pareto_front,
    reduction,
    resample_counts,
    sign_flip_p_value,
)


def ratio_change_pct(s):
    return 100.0 * (s[..., 0] / s[..., 1] / (s[..., 2] / s[..., 3]) - 1.0)


def test_every_resample_draws_as_many_units_as_there_are():
    counts = resample_counts(7, 100)
    assert counts.shape == (100, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert len(np.unique(counts, axis=0)) > 50


def test_a_constant_ratio_has_an_interval_of_no_width():
    tokens = np.array([10.0, 40.0, 20.0, 30.0])
    base = tokens * np.array([0.4, 0.9, 0.5, 0.7])
    interval = bootstrap(np.stack([0.75 * base, tokens, base, tokens], axis=1), ratio_change_pct)
    # Batches differ much, but pairs do not: an interval that forgot the pairing would be wide.
    assert interval == pytest.approx((-25.0, -25.0, -25.0))


def test_the_bootstrap_of_a_mean_matches_every_resample_of_three_values():
    values = np.array([1.0, 2.0, 6.0])
    sums = np.stack([values, np.ones(3)], axis=1)
    every = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    low, high = np.percentile(every, [5, 95])
    interval = bootstrap(sums, lambda s: s[..., 0] / s[..., 1])
    assert interval == pytest.approx((3.0, low, high))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    samples = rng.normal(1.0, 0.3, (300, 30))
    hits = 0
    for sample in samples:
        interval = bootstrap(np.stack([sample, np.ones(30)], axis=1), lambda s: s[..., 0] / s[..., 1])
        hits += interval.low <= 1.0 <= interval.high
    assert 0.83 <= hits / 300 <= 0.94


def test_two_units_give_no_interval():
    assert bootstrap(np.ones((2, 2)), lambda s: s[..., 0] / s[..., 1]) == Interval(1.0, None, None)


def test_a_reduction_turns_the_interval_round():
    assert reduction(Interval(-20.0, -25.0, -10.0)) == Interval(20.0, 10.0, 25.0)
    assert reduction(Interval(5.0, None, None)) == Interval(-5.0, None, None)


def test_the_sign_flip_test_tries_every_pattern_of_few_pairs():
    differences = np.array([0.3, 0.1, -0.05, 0.4, 0.25, 0.0, 0.1])
    flips = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=7)]
    expected = np.mean(np.array(flips) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_all_pairs_of_one_sign_reach_the_smallest_p():
    assert sign_flip_p_value(np.full(7, -0.001)) == pytest.approx(2 / 2**7)
    assert sign_flip_p_value(np.zeros(7)) == 1.0
    assert sign_flip_p_value(np.ones(2)) is None


def test_many_pairs_agree_with_the_t_test():
    differences = np.random.default_rng(2).normal(0.2, 1.0, 120)
    assert sign_flip_p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=0.02)


def test_effect_sizes():
    first, second = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0])
    pairs = [np.sign(a - b) for a in first for b in second]
    assert cliffs_delta(first, second) == pytest.approx(np.mean(pairs))
    assert cliffs_delta(first, np.array([])) is None
    assert cohens_dz(np.array([1.0, 3.0])) == pytest.approx(2.0 / np.sqrt(2.0))
    assert cohens_dz(np.full(5, 0.1)) is None  # no spread: the effect has no scale
    assert cohens_dz(np.array([1.0])) is None


def test_holm_steps_down_and_leaves_unknowns_alone():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_pareto_front_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 6, (int(rng.integers(1, 25)), 2)).astype(float)  # many ties
    points[rng.random(len(points)) < 0.1, 0] = np.nan
    beaten = [any((q <= p).all() and (q < p).any() for q in points) or np.isnan(p).any() for p in points]
    assert pareto_front(points).tolist() == [not b for b in beaten]
