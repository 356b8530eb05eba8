"""The CUDA kernel on a GPU against float64, alone, in captured graphs and behind launches that it overlaps."""

import pytest
import torch
from few_linear_cases import drawn, in_float64

from thermoe.errors import ConfigError
from thermoe.kernels.add_norm import add_norm
from thermoe.kernels.few_linear import cuda, few_linear
from thermoe.kernels.few_linear.cuda import launch
from thermoe.kernels.few_linear.cuda.layout import build_for

BF16 = torch.bfloat16

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs compute capability 9.0",
    ),
]
CASES = [
    (1, 2048, (128,)),
    (8, 32, (8,)),
    (9, 64, (40, 0, 7)),
    (15, 328, (19, 8, 5)),
    (16, 2048, (4096, 512, 512)),
    (16, 4096, (2048,)),
    (17, 2880, (4096, 512, 511)),
    (33, 1024, (1000,)),
    (64, 2048, (4096, 512, 512)),
    (64, 4096, (2880,)),
    (5, 7168, (4096,)),
    (16, 2048, (40000,)),
]
TUNINGS = [
    {"cluster": 1, "slices": 8, "groups": 1, "askers": 1},
    {"cluster": 2},
    {"cluster": 8},
    {"slices": 8, "groups": 2, "askers": 4},
    {"clusters": 3},
    {"early": 0},
    {"early": 2},
]


def computed(x, weights, biases, **tuning):
    assert cuda.refusal(x, weights) is None
    out = torch.full((x.shape[0], sum(w.shape[0] for w in weights)), float("nan"), dtype=BF16, device="cuda")
    cuda.run(x, weights, biases, out, tuning=cuda.Tuning(**tuning))
    return out


def close(got, want):
    torch.testing.assert_close(got.double(), want, atol=2e-2, rtol=2**-7)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case, biased):
    x, weights, biases = drawn(*case, BF16, "cuda")
    biases = biases if biased else [None] * len(weights)
    got = computed(x, weights, biases)
    close(got, in_float64(x, weights, biases))
    assert torch.equal(got, few_linear(x, weights, biases))


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
@pytest.mark.parametrize("case", [(16, 2048, (4096, 512, 509)), (3, 1000, (900,))], ids=str)
def test_every_tuning_matches_float64(case, tuning):
    x, weights, biases = drawn(*case, BF16, "cuda")
    close(computed(x, weights, biases, **tuning), in_float64(x, weights, biases))


def test_the_same_bits_every_time():
    x, weights, biases = drawn(16, 2048, (4096, 512, 512), BF16, "cuda")
    first = computed(x, weights, biases)
    assert all(torch.equal(first, computed(x, weights, biases)) for _ in range(50))


def test_rows_of_the_launch_before_are_waited_for_in_a_graph():
    x, weights, _ = drawn(16, 2048, (2048,), BF16, "cuda")
    scale = torch.ones(2048, dtype=BF16, device="cuda")
    many = [weights[0] * 0.02 for _ in range(12)]

    def chain():
        row = x
        for weight in many:
            total, normed = add_norm(row, x, scale, 1e-6)
            row = few_linear(normed, [weight], kernel="cuda")
        return total, row

    kept = chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = chain()
    for _ in range(20):
        for tensor in replayed:
            tensor.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(got, want) for got, want in zip(replayed, kept, strict=True))


def test_what_the_kernel_does_not_take_is_refused_or_computed_by_another():
    x, weights, biases = drawn(16, 100, (96, 33), BF16, "cuda")
    assert "in eights" in cuda.refusal(x, weights)
    close(few_linear(x, weights, biases), in_float64(x, weights, biases))
    with pytest.raises(ConfigError, match="leave the choice of the kernel open"):
        few_linear(x, weights, biases, kernel="cuda")


def test_the_clusters_of_a_launch_all_run_at_once():
    loaded, reason = launch._loaded_or_refusal(build_for(2048, 16), 0)
    assert reason is None
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    assert processors * 3 // 4 <= 4 * loaded.clusters <= processors
