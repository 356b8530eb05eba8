"""`route_logits` where no kernel serves: the reference, its plan and its counters, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from fused_cases import MIXED, SCORINGS, Case, drawn, layer_knobs, wanted

from thermoe.errors import ConfigError
from thermoe.kernels.dispatch import dispatch_plan
from thermoe.kernels.route import SOFTMAX, Scoring, route, route_logits
from thermoe.kernels.route.fused import fits, knob_row
from thermoe.runtime.knobs import DeviceCounters


@pytest.mark.parametrize("columns", [1, 3])
def test_decisions_plan_and_counters_are_those_of_the_parts(columns):
    case = Case(tokens=21, experts=17, top_k=3, columns=columns, knobs=MIXED, live=0.7, dtype=torch.float32)
    logits_TE, live_T, _ = drawn(case)
    knobs, sums = layer_knobs(case), torch.zeros(38, dtype=torch.float64)
    fused = route_logits(logits_TE, knobs, top_k=3, columns=columns, live_T=live_T, sums=sums)
    gates_TE = logits_TE.softmax(-1)
    alone = route(logits_TE, gates_TE, knobs, top_k=3, columns=columns, live_T=live_T, log_gates_TE=logits_TE)
    for name in ("ids_TK", "weights_TK", "kept_TK", "own_ids_TK", "loaded_CE"):
        assert torch.equal(getattr(fused.routing, name), getattr(alone, name))
    plan = dispatch_plan(alone.ids_TK, alone.weights_TK, 17)
    assert torch.equal(fused.plan.slot_N, plan.slot_N)
    assert fused.routing.plan is fused.plan
    counters = DeviceCounters(1, 17, "cpu")
    counters.add(0, alone, gates_TE, live_T, columns, logits_TE.topk(3).indices)
    torch.testing.assert_close(sums, counters._rows[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused.last_3C, torch.stack(counters.last[0]))
    assert sums[:17].sum() > 0


@pytest.mark.parametrize("scoring", SCORINGS)
def test_groups_by_hand(scoring):
    """The chosen experts of each token, ranked in float64 and loops."""
    case = Case(tokens=9, experts=32, top_k=4, dtype=torch.float32, union=False, **SCORINGS[scoring])
    logits_TE, _, how = drawn(case)
    ids = wanted(case)[0].routing.ids_TK.tolist()
    for logits, got in zip(logits_TE.double(), ids, strict=True):
        ranks = logits.sigmoid() if how.sigmoid else logits
        ranks = (ranks if how.correction_E is None else ranks + how.correction_E.double()).tolist()
        size = 32 // how.groups
        parts = [sorted(ranks[g * size : (g + 1) * size], reverse=True) for g in range(how.groups)]
        worth = [sum(part[:2]) if how.sigmoid else part[0] for part in parts]
        best = sorted(range(how.groups), key=lambda g: -worth[g])[: how.groups_kept]
        open_ = [e for e in range(32) if e // size in best]
        assert got == sorted(open_, key=lambda e: -ranks[e])[:4]


def test_a_row_is_made_of_knobs_that_have_none():
    knobs = layer_knobs(Case(tokens=1, experts=7, top_k=2, knobs=MIXED))
    assert torch.equal(knob_row(replace(knobs, row=None)), knobs.row)


def test_sizes_that_fit():
    assert fits(4096, 128, 8, SOFTMAX, 1)
    assert fits(128, 128, 8, SOFTMAX, 2)
    assert not fits(130, 128, 8, SOFTMAX, 2)  # a column is one program
    assert not fits(4, 128, 17, SOFTMAX, 1)
    assert not fits(0, 128, 8, SOFTMAX, 1)
    assert not fits(4, 96, 8, Scoring(groups=4), 1)


CASE = Case(tokens=4, experts=8, top_k=2)
LOGITS = torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("logits_TE", "changes", "message"),
    [
        (torch.zeros(4), {}, "needed floating-point numbers"),
        (torch.zeros(4, 8, dtype=torch.int64), {}, "needed floating-point numbers"),
        (torch.zeros(4, 9), {}, "make the knobs for this layer"),
        (LOGITS, {"top_k": 9}, "choose 1 to 8"),
        (LOGITS, {"top_k": 0}, "choose 1 to 8"),
        (LOGITS, {"columns": 3}, "a whole number of rows"),
        (LOGITS, {"live_T": torch.ones(3)}, "live mask"),
        (LOGITS, {"sums": torch.zeros(19)}, "sums"),
        (LOGITS, {"sums": torch.zeros(20, dtype=torch.int64)}, "float64 or float32"),
        (LOGITS, {"sums": torch.zeros(40)[::2]}, "contiguous"),
        (LOGITS, {"scoring": Scoring(groups=3)}, "equal groups"),
        (LOGITS, {"scoring": Scoring(groups=2, groups_kept=3)}, "equal groups"),
        (LOGITS, {"scoring": Scoring(correction_E=torch.zeros(8))}, "with sigmoid gates"),
        (LOGITS, {"scoring": Scoring(sigmoid=True, correction_E=torch.zeros(7))}, r"needed \(8,\) float32"),
    ],
)
def test_bad_input_is_refused(logits_TE, changes, message):
    with pytest.raises(ConfigError, match=message):
        route_logits(logits_TE, layer_knobs(CASE), **({"top_k": 2} | changes))
