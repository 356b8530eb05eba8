"""The CUDA kernel on a GPU: every layout, caches of any length, and projections that the launch before makes."""

import pytest
import torch
from attention_cases import WIDE, Case, check_in_bf16, drawn, in_float64

from thermoe.kernels.decode_attention import cuda, decode_attention
from thermoe.kernels.decode_attention.cuda import Layout
from thermoe.kernels.few_linear import few_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs compute capability 9.0",
    ),
]
LAYOUTS = [Layout(4, 4, 2), Layout(4, 4, 3), Layout(8, 4, 1), Layout(4, 8, 1), Layout(2, 8, 2), Layout(1, 2, 3)]


@pytest.mark.parametrize("layout", [None, *LAYOUTS], ids=str)
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_every_layout(case, layout):
    check_in_bf16(lambda given, **options: cuda.run(*given, **options, layout=layout), case, "cuda")


def test_users_get_this_kernel_where_it_fits():
    *given, norms = drawn(WIDE[0], torch.bfloat16, "cuda")
    assert cuda.supports(tuple(given), 32, norms)
    assert not cuda.supports((given[0], given[1].float(), *given[2:]), 32, norms)
    odd_place = given[3].new_empty(given[3].numel() + 4)[4:].view_as(given[3])
    assert not cuda.supports((*given[:3], odd_place, *given[4:]), 32, norms)
    *narrow, norms_of_narrow = drawn(Case(2, 6, 3, 33, 8, 0, normed=True), torch.bfloat16, "cuda")
    assert not cuda.supports(tuple(narrow), 6, norms_of_narrow)
    wanted, _, _ = in_float64(WIDE[0], *given, norms, 0.1, torch.bfloat16)
    got = decode_attention(*given, num_heads=32, scale=0.1, norms=norms)
    torch.testing.assert_close(got.double().cpu(), wanted, atol=1e-2, rtol=2**-7)


def test_a_graph_in_which_the_launch_before_makes_the_projections():
    """Every replay has other projections, so that whoever reads them too early has those of the last one."""
    case = WIDE[0]
    *given, norms = drawn(case, torch.bfloat16, "cuda")
    x = torch.randn(16, 2048, dtype=torch.bfloat16, device="cuda")
    weights = [torch.randn(n, 2048, dtype=torch.bfloat16, device="cuda") / 45 for n in (4096, 512, 512)]

    def step():
        qkv = few_linear(x, weights)
        return qkv, decode_attention(qkv, *given[1:], num_heads=32, scale=0.1, norms=norms)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        qkv, got = step()
    for _ in range(5):
        x.normal_()
        given[5].random_(400, 700)
        for cache in given[3:5]:
            cache.normal_()
        graph.replay()
        moved = Case(16, 32, 4, 704, 128, int(given[5]), normed=True)
        wanted, _, _ = in_float64(moved, qkv, *given[1:], norms, 0.1, torch.bfloat16)
        torch.testing.assert_close(got.double().cpu(), wanted, atol=1e-2, rtol=2**-7)
