"""Logits and routing in one launch, on a GPU and as users call it."""

import pytest
import torch
from fused_cases import MIXED, POLICIES, SCORINGS, Case, compare, drawn, flags_of, layer_knobs, poisoned
from rows_cases import router_for

from thermoe.kernels.route import RouterRows, Scoring, route_logits, route_rows
from thermoe.kernels.route.cuda import rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs compute capability 9.0",
    ),
]


def check(case, width=2048, seed=0):
    logits_TE, live_T, scoring = drawn(case, seed)
    x_TD, weight_ED, bias_E = (t.cuda() for t in router_for(case, width, seed))
    sums = torch.full((2 * case.experts + 4,), 3.0, dtype=torch.float64, device="cuda") if case.counted else None
    got_TE = torch.full_like(logits_TE, float("nan")).cuda()
    out = tuple(t.cuda() for t in poisoned(logits_TE, case.top_k, 1))
    correction_E = None if scoring.correction_E is None else scoring.correction_E.cuda()
    live_T = None if live_T is None else live_T.cuda()
    if live_T is not None and live_T.element_size() == 1:
        live_T = live_T.view(torch.uint8)
    assert rows.supports(x_TD, weight_ED, bias_E, case.top_k, scoring.groups)
    rows.run(
        x_TD, weight_ED, bias_E, layer_knobs(case, "cuda").row, correction_E, live_T, sums, case.top_k,
        flags_of(case, scoring), case.scale, got_TE, out,
    )  # fmt: skip
    assert torch.equal(got_TE.cpu(), logits_TE)
    compare(out, sums, case, seed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16])
def test_policies(tokens, policy):
    check(Case(tokens=tokens, **POLICIES[policy]), seed=tokens)


@pytest.mark.parametrize("experts", [64, 128])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_scorings(scoring, experts):
    check(Case(tokens=11, experts=experts, knobs={"protected_k0": 2.0}, **SCORINGS[scoring]), 1024)


@pytest.mark.parametrize(("experts", "width", "top_k"), [(32, 512, 2), (64, 4096, 16), (128, 1536, 1)])
def test_sizes(experts, width, top_k):
    check(Case(tokens=13, experts=experts, top_k=top_k, knobs=MIXED, live=0.7), width)


@pytest.mark.parametrize("tokens", [3, 16, 17])
def test_a_graph_in_which_the_launch_before_makes_the_rows(tokens):
    case = Case(tokens=tokens, knobs=MIXED)
    knobs, sums = layer_knobs(case, "cuda"), torch.zeros(260, dtype=torch.float64, device="cuda")
    seen = torch.randn(tokens, 2048, device="cuda")
    weight_ED = torch.randn(128, 2048, device="cuda").to(torch.bfloat16) / 45

    def step():
        x_TD = torch.full((tokens, 2048), float("nan"), dtype=torch.bfloat16, device="cuda")
        x_TD.copy_(seen)
        return x_TD, *route_rows(RouterRows(x_TD=x_TD, weight_ED=weight_ED), knobs, top_k=8, sums=sums)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x_TD, logits_TE, fused = step()
    for _ in range(5):
        seen.normal_()
        graph.replay()
        wanted = x_TD.double() @ weight_ED.double().T
        torch.testing.assert_close(logits_TE.double(), wanted, rtol=2**-8, atol=1e-4)
        again = route_logits(logits_TE, knobs, top_k=8)
        assert torch.equal(fused.routing.ids_TK, again.routing.ids_TK)
        assert torch.equal(fused.routing.weights_TK, again.routing.weights_TK)
        assert torch.equal(fused.plan.slot_N, again.plan.slot_N)
        first = logits_TE.clone()
        graph.replay()
        assert torch.equal(first, logits_TE)


def test_more_tokens_and_other_types_go_in_two_launches():
    x_TD, weight_ED, bias_E = (t.cuda().float() for t in router_for(Case(tokens=20), 512))
    knobs = layer_knobs(Case(tokens=20), "cuda")
    logits_TE, fused = route_rows(RouterRows(x_TD=x_TD, weight_ED=weight_ED, bias_E=bias_E), knobs, top_k=8)
    want = route_logits(logits_TE, knobs, top_k=8, scoring=Scoring())
    assert torch.equal(fused.routing.ids_TK, want.routing.ids_TK)
