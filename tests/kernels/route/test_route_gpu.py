"""Fused routing on a GPU as users call it: every layout, captured graphs with knobs that change, compiled functions."""

from dataclasses import replace

import pytest
import torch
from fused_cases import MIXED, POLICIES, SCORINGS, Case, check, compare, drawn, flags_of, layer_knobs, poisoned

from thermoe.kernels.route import SOFTMAX, Scoring, cuda, is_fused, route_logits
from thermoe.kernels.route.cuda import Layout
from thermoe.runtime.knobs import DeviceCounters, DeviceKnobs
from thermoe.types import RoutingKnobs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
needs_clusters = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 9, reason="needs compute capability 9.0"
)
TOKENS = [1, 7, 16, 63, 64, 129, 300, 1000, 4096]


def run_layout(layout):
    """Runs the CUDA kernel, in a spread of its own choice where `layout` is None."""

    def run(logits_TE, row, correction_E, live_T, sums, top_k, columns, flags, scale):
        inputs = [None if t is None else t.cuda() for t in (logits_TE, row, correction_E, live_T)]
        if live_T is not None and live_T.element_size() == 1:
            inputs[3] = inputs[3].view(torch.uint8)
        on_device = None if sums is None else sums.cuda()
        out = poisoned(inputs[0], top_k, columns)
        assert cuda.supports(inputs[0], top_k, flags[1], columns)
        cuda.run(*inputs, on_device, top_k, flags, scale, out, layout)
        if sums is not None:
            sums.copy_(on_device)
        return out

    return run


@needs_clusters
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_policies(tokens, policy):
    check(run_layout(None), Case(tokens=tokens, **POLICIES[policy]))


@needs_clusters
@pytest.mark.parametrize("tokens", [3, 300])
@pytest.mark.parametrize("experts", [128, 256])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_scorings(scoring, experts, tokens):
    case = Case(tokens=tokens, experts=experts, dtype=torch.float32, knobs={"protected_k0": 2.0}, **SCORINGS[scoring])
    check(run_layout(None), case)


@needs_clusters
@pytest.mark.parametrize(("experts", "top_k", "stride"), [(60, 4, 0), (17, 1, 3), (200, 9, 0), (256, 16, 8), (8, 2, 0)])
@pytest.mark.parametrize("tokens", [7, 300, 9000])
def test_awkward_sizes(tokens, experts, top_k, stride):
    case = Case(tokens=tokens, experts=experts, top_k=top_k, stride=stride, dtype=torch.float16, knobs=MIXED, live=0.7)
    check(run_layout(None), case)


@needs_clusters
@pytest.mark.parametrize(
    ("layout", "tokens"),
    [
        (Layout(1, 1, 1, cluster=True), 1),
        (Layout(16, 1, 1, cluster=True), 13),
        (Layout(8, 8, 1, cluster=True), 1),
        (Layout(32, 2, 1, cluster=True), 64),
        (Layout(32, 8, 1, cluster=True), 255),
        (Layout(8, 40, 1, cluster=False), 1),
        (Layout(16, 16, 1, cluster=False), 250),
        (Layout(8, 16, 4, cluster=False), 500),
        (Layout(32, 16, 16, cluster=False), 8000),
    ],
)
def test_every_layout(layout, tokens):
    for seed in range(3):
        check(run_layout(layout), Case(tokens=tokens, knobs=MIXED, live=0.7), seed)


@needs_clusters
def test_two_hundred_runs_give_the_same_bits():
    case = Case(tokens=4096, knobs=MIXED)
    logits_TE, row = drawn(case)[0].cuda(), layer_knobs(case, "cuda")
    first = route_logits(logits_TE, row, top_k=8)
    for _ in range(200):
        again = route_logits(logits_TE, row, top_k=8)
        assert torch.equal(again.routing.weights_TK, first.routing.weights_TK)
        assert torch.equal(again.plan.slot_N, first.plan.slot_N)


@pytest.mark.parametrize("tokens", [1, 16, 64, 300, 4096])
def test_a_graph_reads_new_knobs_logits_and_live_tokens(tokens):
    """One graph, as a captured step: everything but the sizes and whether unions act changes under it."""
    first = Case(tokens=tokens, live=0.5)
    logits_TE, live_T, _ = drawn(first)
    logits_TE, live_T = logits_TE.cuda(), live_T.cuda()
    knobs, sums = layer_knobs(first, "cuda"), torch.zeros(260, dtype=torch.float64, device="cuda")

    def step():
        return route_logits(logits_TE, knobs, top_k=8, live_T=live_T, sums=sums)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused = step()
    for seed, policy in enumerate(("union", "everything", "barred", "most valuable", "few allowed", "union")):
        case = replace(first, knobs=POLICIES[policy]["knobs"], live=0.5)
        new_logits_TE, new_live_T, _ = drawn(case, seed)
        logits_TE.copy_(new_logits_TE)
        live_T.copy_(new_live_T)
        knobs.row.copy_(layer_knobs(case).row)
        sums.fill_(3.0)
        graph.replay()
        torch.cuda.synchronize()
        routing = fused.routing
        out = (routing.ids_TK, routing.weights_TK, routing.kept_TK, routing.own_ids_TK, routing.loaded_CE)
        compare((*out, fused.plan.slot_N, fused.plan.offsets_E1, fused.last_3C), sums, case, seed)


def test_nothing_waits_for_the_host():
    case = Case(tokens=4096, knobs=MIXED)
    logits_TE, knobs = drawn(case)[0].cuda(), layer_knobs(case, "cuda")
    sums = torch.zeros(260, dtype=torch.float64, device="cuda")
    route_logits(logits_TE, knobs, top_k=8, sums=sums)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        route_logits(logits_TE, knobs, top_k=8, sums=sums)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tokens", [5, 300])
def test_streams_at_once_do_not_disturb_each_other(tokens):
    case = Case(tokens=tokens, knobs=MIXED)
    logits_TE, knobs = drawn(case)[0].cuda(), layer_knobs(case, "cuda")
    want = route_logits(logits_TE, knobs, top_k=8)
    streams, results = [torch.cuda.Stream() for _ in range(3)], []
    torch.cuda.synchronize()
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(route_logits(logits_TE, knobs, top_k=8))
    torch.cuda.synchronize()
    assert all(torch.equal(got.plan.slot_N, want.plan.slot_N) for got in results)
    assert all(torch.equal(got.routing.weights_TK, want.routing.weights_TK) for got in results)


def test_a_compiled_function_takes_it_as_one_node():
    case = Case(tokens=33, knobs=MIXED)
    logits_TE, knobs = drawn(case)[0].cuda(), layer_knobs(case, "cuda")

    def double(logits_TE):
        fused = route_logits(logits_TE, knobs, top_k=8)
        return fused.routing.weights_TK * 2, fused.plan.slot_N

    weights_TK, slot_N = torch.compile(double, fullgraph=True)(logits_TE)
    want = double(logits_TE)
    assert torch.equal(weights_TK, want[0])
    assert torch.equal(slot_N, want[1])


def test_neutral_knobs_give_the_models_own_choice_and_weights():
    logits_TE = torch.randn(4096, 128, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    knobs = DeviceKnobs(RoutingKnobs.neutral(1, 128, 8), "cuda").layer(0)
    routing = route_logits(logits_TE, knobs, top_k=8).routing
    gates_TK, ids_TK = logits_TE.softmax(-1).topk(8)
    assert torch.equal(routing.ids_TK, ids_TK)
    exact_TK = logits_TE.double().gather(1, ids_TK).softmax(-1)
    # Two units in the last place.
    torch.testing.assert_close(routing.weights_TK.double(), exact_TK, rtol=2.4e-7, atol=0.0)
    torch.testing.assert_close(routing.weights_TK, gates_TK / gates_TK.sum(-1, keepdim=True), rtol=6e-7, atol=0.0)


@pytest.mark.parametrize("tokens", [3, 300])
def test_poisoned_logits_stay_with_their_token(tokens):
    case = Case(tokens=tokens, knobs={"protected_k0": 2.0, "price": 0.2})
    logits_TE, _, _ = drawn(case)
    logits_TE[1] = float("nan")
    sums = torch.zeros(260, dtype=torch.float64, device="cuda")
    routing = route_logits(logits_TE.cuda(), layer_knobs(case, "cuda"), top_k=8, sums=sums).routing
    others = torch.arange(tokens) != 1
    assert routing.ids_TK.min() >= 0
    assert routing.ids_TK.max() < 128
    assert routing.weights_TK[1, 0].isnan()
    assert routing.weights_TK[others].isfinite().all()
    assert sums.isfinite().all()


def test_columns_gradients_and_large_sizes_take_their_own_ways():
    logits_TE = torch.randn(6, 128, device="cuda")
    assert is_fused(logits_TE, 8, SOFTMAX, 2)
    assert not is_fused(logits_TE.clone().requires_grad_(), 8, SOFTMAX, 1)
    assert not is_fused(logits_TE, 8, Scoring(groups=3), 1)
    assert not is_fused(torch.empty(1, 600, device="cuda"), 8, SOFTMAX, 1)
    case = Case(tokens=15, columns=3, knobs=MIXED, live=0.7)
    logits_TE, live_T, scoring = drawn(case)
    counters = DeviceCounters(1, 128, "cuda")
    counters._rows[0].fill_(3.0)
    routing = counters.route(
        0, logits_TE.cuda(), layer_knobs(case, "cuda"), top_k=8, columns=3, live_T=live_T.cuda(), scoring=scoring
    )
    out = (routing.ids_TK, routing.weights_TK, routing.kept_TK, routing.own_ids_TK, routing.loaded_CE)
    compare(
        (*out, routing.plan.slot_N, routing.plan.offsets_E1, torch.stack(counters.last[0])), counters._rows[0], case
    )
    assert flags_of(case, scoring)[4] == 1
