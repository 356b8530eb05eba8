"""The dispatch plan on a GPU as users call it: every layout, captured graphs whose ids change, streams at once."""

import pytest
import torch
from plan_cases import drawn

from thermoe.kernels.dispatch import cuda, dispatch_plan, dispatch_plan_reference
from thermoe.kernels.dispatch.cuda import Layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
needs_cuda = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8, reason="needs compute capability 8.0"
)


def on_gpu(ids_TK, weights_TK, num_experts):
    return ids_TK.cuda(), weights_TK.cuda(), num_experts


def check(given, slot_N, offsets_E1):
    want = dispatch_plan_reference(*given)
    assert torch.equal(offsets_E1, want.offsets_E1)
    assert torch.equal(slot_N, want.slot_N)


def skip_unless(*, processors):
    if torch.cuda.get_device_properties(0).multi_processor_count < processors:
        pytest.skip(f"needs {processors} multiprocessors")


def run(given, layout=None):
    ids_TK, weights_TK, num_experts = given
    assert cuda.supports(ids_TK, weights_TK, num_experts)
    slot_N = torch.full((ids_TK.numel(),), -7, dtype=torch.int32, device="cuda")
    offsets_E1 = torch.full((num_experts + 1,), -7, dtype=torch.int32, device="cuda")
    cuda.run(ids_TK, weights_TK, slot_N, offsets_E1, layout)
    return slot_N, offsets_E1


@needs_cuda
@pytest.mark.parametrize("experts", [7, 128, 512])
@pytest.mark.parametrize("tokens", [0, 1, 63, 65, 129, 512, 1000, 4096, 8192, 32768, 131072])
def test_sizes(tokens, experts):
    skip_unless(processors=128 if tokens > 60000 else 64)
    given = on_gpu(*drawn(tokens=tokens, top_k=8, experts=experts, seed=tokens))
    check(given, *run(given))


@needs_cuda
@pytest.mark.parametrize("tokens", [65, 4096, 131072])
@pytest.mark.parametrize("uneven", [{"only": 5}, {"dropped": 1.0}, {"dropped": 0.0}, {"narrow": True}])
def test_one_expert_no_expert_and_narrow_types(uneven, tokens):
    skip_unless(processors=128 if tokens > 60000 else 64)
    given = on_gpu(*drawn(tokens=tokens, top_k=8, experts=128, **uneven))
    check(given, *run(given))


@needs_cuda
@pytest.mark.parametrize(
    "layout",
    [Layout(8, 128, 1), Layout(32, 32, 1), Layout(16, 32, 4), Layout(16, 128, 16), Layout(1, 100, 1), Layout(32, 1, 2)],
)
def test_every_layout_in_launches_in_a_row(layout):
    skip_unless(processors=layout.blocks)
    for seed in range(9):
        top_k = 1 + seed % 4
        tokens = layout.capacity // top_k - 37 * seed
        given = on_gpu(*drawn(tokens=tokens, top_k=top_k, experts=60, seed=seed))
        check(given, *run(given, layout))


@pytest.mark.parametrize("tokens", [65, 512, 4096, 32768])
def test_a_graph_reads_new_ids_and_weights(tokens):
    ids_TK, weights_TK, experts = on_gpu(*drawn(tokens=tokens, top_k=8, experts=128))
    dispatch_plan(ids_TK, weights_TK, experts)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plans = [dispatch_plan(ids_TK, weights_TK, experts) for _ in range(3)]
    for seed in range(1, 9):
        new_ids_TK, new_weights_TK, _ = drawn(tokens=tokens, top_k=8, experts=128, seed=seed)
        ids_TK.copy_(new_ids_TK)
        weights_TK.copy_(new_weights_TK)
        graph.replay()
        dispatch_plan(ids_TK, weights_TK, experts)  # outside the graph, beside it
        for plan in plans:
            check((ids_TK, weights_TK, experts), plan.slot_N, plan.offsets_E1)


@needs_cuda
def test_a_graph_that_is_captured_before_any_run_works(monkeypatch):
    given = on_gpu(*drawn(tokens=4096, top_k=8, experts=128))
    run(given)  # compiles
    torch.cuda.synchronize()
    monkeypatch.setattr(cuda, "_workspaces", {})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plans = [dispatch_plan(*given) for _ in range(2)]
    for _ in range(5):
        graph.replay()
        for plan in plans:
            check(given, plan.slot_N, plan.offsets_E1)


def test_nothing_waits_for_the_host():
    given = on_gpu(*drawn(tokens=4096, top_k=8, experts=128))
    dispatch_plan(*given)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        dispatch_plan(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_streams_at_once_do_not_disturb_each_other():
    given = on_gpu(*drawn(tokens=4096, top_k=8, experts=128))
    dispatch_plan(*given)
    streams, plans = [torch.cuda.Stream() for _ in range(3)], []
    torch.cuda.synchronize()
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                plans.append(dispatch_plan(*given))
    torch.cuda.synchronize()
    for plan in plans:
        check(given, plan.slot_N, plan.offsets_E1)


def test_other_types_and_many_slots_take_triton():
    ids_TK, weights_TK, experts = on_gpu(*drawn(tokens=1000, top_k=8, experts=60))
    assert not cuda.supports(ids_TK.to(torch.int16), weights_TK, experts)
    assert not cuda.supports(ids_TK, weights_TK, 513)
    assert not cuda.supports(ids_TK.expand(9, -1, -1).reshape(-1, 8).repeat(20, 1), weights_TK, experts)
    plan = dispatch_plan(ids_TK.to(torch.int16), weights_TK, experts)
    check((ids_TK, weights_TK, experts), plan.slot_N, plan.offsets_E1)
