"""The portable routing kernels against the reference, on a GPU or in the interpreter, from poisoned outputs."""

import pytest
import torch
from fused_cases import MIXED, POLICIES, SCORINGS, Case, check, drawn, flags_of, layer_knobs, poisoned

from thermoe.kernels.route import launch as launching
from thermoe.kernels.route.fused import knob_row

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _portable_path(monkeypatch):
    monkeypatch.setattr(launching, "supports", lambda *_: False)


def run(logits_TE, row, correction_E, live_T, sums, top_k, columns, flags, scale):
    inputs = [None if t is None else t.to(DEVICE) for t in (logits_TE, row, correction_E, live_T)]
    on_device = None if sums is None else sums.to(DEVICE)
    out = poisoned(inputs[0], top_k, columns)
    launching.launch(*inputs, on_device, top_k, columns, flags, scale, out)
    if sums is not None:
        sums.copy_(on_device)
    return out


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_in_one_program(policy):
    check(run, Case(tokens=7, experts=32, top_k=4, **POLICIES[policy]))


@pytest.mark.parametrize("policy", ["neutral", "everything", "ties with bias", "nobody lives"])
def test_policies_over_blocks(policy):
    check(run, Case(tokens=70, experts=60, top_k=4, **POLICIES[policy]))


@pytest.mark.parametrize("scoring", SCORINGS)
def test_scorings(scoring):
    check(run, Case(tokens=5, experts=32, top_k=4, dtype=torch.float32, knobs=MIXED, **SCORINGS[scoring]))


@pytest.mark.parametrize("columns", [3, 7])
def test_columns_are_batches_of_their_own(columns):
    check(run, Case(tokens=5 * columns, experts=17, top_k=3, columns=columns, knobs=MIXED, live=0.7))


@pytest.mark.parametrize(("experts", "top_k", "stride"), [(17, 1, 3), (200, 9, 0)])
def test_awkward_sizes(experts, top_k, stride):
    check(run, Case(tokens=3, experts=experts, top_k=top_k, stride=stride, dtype=torch.float16, knobs=MIXED))


def test_poisoned_logits_stay_with_their_token():
    case = Case(tokens=7, experts=32, top_k=4, knobs={"protected_k0": 2.0, "price": 0.2})
    logits_TE, _, scoring = drawn(case)
    clean = [0, 1, 3, 4, 6]
    rest = (knob_row(layer_knobs(case)), None)
    live_T = torch.zeros(7, dtype=torch.bool)
    live_T[clean] = True
    apart = run(logits_TE, *rest, live_T, None, 4, 1, flags_of(case, scoring), 1.0)
    logits_TE[2] = float("nan")
    logits_TE[5, 7] = float("inf")
    sums = torch.zeros(2 * case.experts + 4, dtype=torch.float64)
    out = run(logits_TE, *rest, None, sums, 4, 1, flags_of(case, scoring), 1.0)
    assert out[0].min() >= 0
    assert out[0].max() < case.experts
    assert out[1][[2, 5], 0].isnan().all()
    for which in range(4):
        assert torch.equal(out[which][clean], apart[which][clean])
    assert torch.equal(out[4], apart[4])
    assert sums.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tokens", [16, 63, 129, 1000, 4096])
def test_policies_at_full_size(tokens, policy):
    check(run, Case(tokens=tokens, **POLICIES[policy]))
