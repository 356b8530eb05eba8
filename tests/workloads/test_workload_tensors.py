"""Tensor workloads, arrivals and the manager: seeded, resumable, and as different as they say."""

import numpy as np
import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.workloads import (
    TENSOR_WORKLOADS,
    ArrivalProcess,
    Arrivals,
    DataLoaderManager,
    WorkloadGenerator,
)


def distinct_experts(name: str, d_model: int = 64, num_experts: int = 64, top_k: int = 4) -> float:
    """Mean number of experts a random linear router sends a batch to."""
    weight_ED = torch.from_numpy(np.random.default_rng(7).standard_normal((num_experts, d_model), dtype=np.float32))
    generator = WorkloadGenerator(name, d_model, num_batches=20, seed=3)
    chosen = [(generator.batch(i).hidden_states @ weight_ED.T).topk(top_k).indices.unique() for i in range(20)]
    return float(np.mean([len(ids) for ids in chosen]))


def test_high_complexity_touches_more_experts_than_standard_at_the_same_size():
    assert TENSOR_WORKLOADS["high_complexity"].num_tokens == TENSOR_WORKLOADS["standard"].num_tokens
    assert distinct_experts("high_complexity") > 1.3 * distinct_experts("standard")


def test_batch_sizes_order_the_experts_touched():
    assert distinct_experts("small_batch") < distinct_experts("standard") < distinct_experts("large_batch")


@pytest.mark.parametrize("name", list(TENSOR_WORKLOADS))
def test_entries_have_the_stated_spread_and_tokens_the_stated_coherence(name):
    work = TENSOR_WORKLOADS[name]
    generator = WorkloadGenerator(name, 129, num_batches=200, seed=1)
    x = torch.stack([generator.batch(i).hidden_states for i in range(200)]).double()

    assert x.shape == (200, work.num_tokens, 129)
    assert x.std().item() == pytest.approx(work.scale, rel=0.02)
    # Two tokens share a topic with probability 1 / M, and then correlate with coherence squared.
    num_tokens = work.num_tokens
    all_pairs = (x.sum(dim=1).square() - x.square().sum(dim=1)).mean() / (num_tokens * (num_tokens - 1))
    correlation = (all_pairs / work.scale**2).item()
    assert correlation == pytest.approx(work.coherence**2 / work.topics_per_batch, abs=0.05)


def test_a_batch_depends_on_nothing_drawn_before():
    in_order = [WorkloadGenerator("standard", 8, num_batches=5, seed=2).batch(i).hidden_states for i in range(5)]
    alone = WorkloadGenerator("standard", 8, num_batches=9, seed=2)
    assert torch.equal(alone.batch(4).hidden_states, in_order[4])
    assert torch.equal(alone.batch(0).hidden_states, in_order[0])
    assert not torch.equal(in_order[0], in_order[1])


def test_seed_and_name_change_the_tokens():
    base = WorkloadGenerator("standard", 8, num_batches=1, num_tokens=4).batch(0).hidden_states
    other_seed = WorkloadGenerator("standard", 8, num_batches=1, seed=1, num_tokens=4).batch(0).hidden_states
    other_name = WorkloadGenerator("small_batch", 8, num_batches=1, num_tokens=4).batch(0).hidden_states
    assert base.shape == other_name.shape == (4, 8)
    assert not torch.equal(base, other_seed)
    assert not torch.equal(base, other_name)


def test_first_numbers_of_a_batch_are_pinned():
    """Published runs name a workload and a seed; what these mean must not drift."""
    x = WorkloadGenerator("standard", 3, num_batches=1, seed=0).batch(0).hidden_states
    torch.testing.assert_close(x[0], torch.tensor([-1.1702008, 0.8035502, -0.2113782]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "heavy"}, "choose from standard"),
        ({"d_model": 0}, "d_model = 0"),
        ({"num_batches": 0}, "num_batches = 0"),
        ({"num_tokens": 0}, "num_tokens = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        WorkloadGenerator(**{"name": "standard", "d_model": 4, "num_batches": 1} | arguments)


def test_batches_end_where_they_should():
    generator = WorkloadGenerator("standard", 4, num_batches=2)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            generator.batch(index)


def test_poisson_arrivals_have_exponential_gaps():
    times = Arrivals(50.0, seed=4).times(20_000)
    gaps = np.diff(times, prepend=0.0)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(0.02, rel=0.03)  # exponential: deviation equals mean
    assert (gaps > 0.02).mean() == pytest.approx(np.exp(-1), abs=0.01)


def test_arrivals_are_seeded_and_a_short_list_begins_a_long_one():
    times = Arrivals(3.0, seed=1).times(100)
    np.testing.assert_array_equal(Arrivals(3.0, seed=1).times(7), times[:7])
    assert not np.array_equal(Arrivals(3.0, seed=2).times(7), times[:7])


def test_deterministic_arrivals_are_evenly_spaced():
    arrivals = Arrivals(4.0, process=ArrivalProcess.DETERMINISTIC)
    np.testing.assert_allclose(arrivals.times(3), [0.25, 0.5, 0.75])


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_no_rate_is_refused(rate):
    with pytest.raises(ConfigError, match="arrival rate"):
        Arrivals(rate)


def test_manager_resumes_in_the_middle():
    manager = DataLoaderManager.of_tensors(8, num_batches=6)
    assert manager.names == ["standard", "high_complexity", "small_batch", "large_batch"]
    whole = list(manager.batches("small_batch", seed=5))
    rest = list(DataLoaderManager.of_tensors(8, num_batches=6).batches("small_batch", seed=5, start=4))

    assert [b.index for b in rest] == [4, 5]
    for resumed, first in zip(rest, whole[4:], strict=True):
        assert torch.equal(resumed.hidden_states, first.hidden_states)


def test_manager_builds_each_seed_once_and_keeps_names_apart():
    manager, built = DataLoaderManager(), []

    def factory(seed):
        built.append(seed)
        return WorkloadGenerator("standard", 4, num_batches=1, seed=seed)

    manager.register("mine", factory)
    for seed in (0, 1, 0):
        list(manager.batches("mine", seed))
    assert built == [0, 1]
    with pytest.raises(ConfigError, match="registered already"):
        manager.register("mine", factory)
    with pytest.raises(ConfigError, match="unknown workload 'other': choose from mine"):
        manager.workload("other")
