import numpy as np
import pytest

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.work import expected_distinct_experts, work_of
from thermoe.errors import CostError
from thermoe.types import NAMED_SHAPES

QWEN3 = NAMED_SHAPES["qwen3-30b-a3b"]


def test_memory_bound_layer_by_hand():
    """82 experts of 9.437 MB and 128 rows of (2*2048 + 4*768) numbers, at 4.38 TB/s, 128 pJ/B and 0.864 pJ/FLOP."""
    weights, rows, flops = 82 * 3 * 2048 * 768 * 2, 128 * (2 * 2048 + 4 * 768) * 2, 128 * 6 * 2048 * 768
    work = work_of("expert_mlp", QWEN3, 128, 82, 16)
    assert (work.weight_bytes, work.row_bytes, work.flops) == (weights, rows, flops)
    got = KernelCostModel().predict("expert_mlp", QWEN3, 128, 82)
    assert got.source == "roofline: NVIDIA H200"
    assert got.latency_s.value >= (weights + rows) / 4.38e12
    assert got.energy_j.value >= (weights + rows) * 128e-12 + flops * 0.864e-12


def test_compute_bound_layer_by_hand():
    got = KernelCostModel().predict("expert_mlp", QWEN3, 32768, 128)
    assert got.latency_s.value >= 32768 * 6 * 2048 * 768 / 664e12


def test_bits_shrink_weights_and_not_activations():
    sixteen, four = (work_of("expert_mlp", QWEN3, 8, 8, bits) for bits in (16, 4))
    assert four.weight_bytes == pytest.approx(sixteen.weight_bytes / 4)
    assert four.row_bytes == sixteen.row_bytes


def test_random_routing_touches_about_82_of_128_experts_with_16_tokens():
    assert expected_distinct_experts(128, 8, 16) == pytest.approx(82.4, abs=0.5)
    rng = np.random.default_rng(0)
    drawn = [np.unique([rng.permutation(128)[:8] for _ in range(16)]).size for _ in range(300)]
    assert expected_distinct_experts(128, 8, 16) == pytest.approx(np.mean(drawn), abs=0.6)


@pytest.mark.parametrize("loads", [(-1, 1), (float("nan"), 1), (8, float("inf"))])
def test_loads_that_cannot_be_are_refused(loads):
    with pytest.raises(CostError, match="finite and not negative"):
        work_of("expert_mlp", QWEN3, *loads, 16)


def test_unknown_operation_is_refused_with_those_that_are_known():
    with pytest.raises(CostError, match="choose from expert_mlp"):
        work_of("sing", QWEN3, 1, 1, 16)
