"""Knobs, scores and masks of other experts, tokens or types, which a kernel would read past their end."""

from dataclasses import replace

import pytest
import torch
from fused_cases import MIXED, Case, layer_knobs

from thermoe.errors import ConfigError
from thermoe.kernels.route import RouterRows, Scoring, route, route_logits, route_rows
from thermoe.runtime.knobs import DeviceCounters

CASE = Case(tokens=4, experts=8, top_k=2, knobs=MIXED)
LOGITS = torch.zeros(4, 8)
KNOBS = layer_knobs(CASE)
BARE = replace(KNOBS, row=None)


def _routed(knobs):
    """Each public way to a routing."""
    rows = RouterRows(x_TD=torch.zeros(4, 16), weight_ED=torch.zeros(8, 16))
    yield lambda: route_logits(LOGITS, knobs, top_k=2)
    yield lambda: route_rows(rows, knobs, top_k=2)
    yield lambda: route(LOGITS, LOGITS.softmax(-1), knobs, top_k=2)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        *[(replace(KNOBS, **{name: torch.ones(3)}), f"{name} of") for name in ("cost", "bias", "allowed")],
        *[(replace(BARE, **{name: torch.ones(9)}), f"{name} of") for name in ("cost", "bias", "allowed")],
        (replace(BARE, bias=torch.ones(8, dtype=torch.float64)), "in float32"),
        (replace(BARE, allowed=torch.ones(8, dtype=torch.bool)), "in float32"),
        (replace(BARE, bias=torch.ones(8, device="meta")), "on meta"),
        (replace(BARE, price=torch.ones(2)), "knob price"),
        (replace(BARE, gate_mass=torch.ones((), device="meta")), "knob gate_mass"),
        (replace(BARE, top_k=2), "knob top_k is 2"),
        (replace(KNOBS, row=KNOBS.row[:-1]), r"needed \(31,\) float32"),
        (replace(KNOBS, row=KNOBS.row.double()), r"needed \(31,\) float32"),
        (replace(KNOBS, row=KNOBS.row.repeat(2)[::2]), "contiguous"),
        (replace(KNOBS, row=KNOBS.row.to("meta")), "on meta"),
    ],
)
def test_knobs_of_another_layer_are_refused(knobs, said):
    for routed in _routed(knobs):
        with pytest.raises(ConfigError, match=said):
            routed()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 2.0}, "top_k = 2.0"),
        ({"top_k": "2"}, "top_k = '2'"),
        ({"top_k": None}, "top_k = None"),
        ({"top_k": True}, "top_k = True"),
        ({"columns": 2.0}, "2.0 columns"),
        ({"live_T": torch.ones(4, dtype=torch.complex64)}, "real numbers"),
        ({"scoring": Scoring(sigmoid=True, groups=8, groups_kept=2)}, "two best experts"),
        ({"scoring": Scoring(groups=2.0)}, "equal groups"),
        ({"logits_TE": LOGITS.to(torch.float8_e4m3fn)}, "16 bits or more"),
    ],
)
def test_numbers_of_another_type_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        route_logits(**({"logits_TE": LOGITS, "knobs": KNOBS, "top_k": 2} | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 9}, "choose 1 to 8"),
        ({"top_k": 0}, "choose 1 to 8"),
        ({"columns": 3}, "whole number of rows"),
        ({"columns": 0}, "whole number of rows"),
        ({"live_T": torch.ones(3)}, "live mask"),
        ({"ranks_TE": LOGITS[0]}, r"\(tokens, experts\)"),
        ({"ranks_TE": LOGITS.int()}, "floating-point"),
        ({"gates_TE": LOGITS[:, :3]}, "gates"),
        ({"gates_TE": LOGITS.int()}, "gates"),
        ({"log_gates_TE": LOGITS[:2]}, "log gates"),
    ],
)
def test_scores_that_do_not_fit_are_refused(changes, said):
    given = {"ranks_TE": LOGITS, "gates_TE": LOGITS.softmax(-1), "knobs": KNOBS, "top_k": 2}
    with pytest.raises(ConfigError, match=said):
        route(**(given | changes))


def test_every_mask_that_is_not_zero_counts_a_token_once():
    logits_TE = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    want = None
    for live_T in (
        torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool),
        torch.tensor([2, 0, 3, 1, 0, 2]),
        torch.tensor([-1, 0, -1, -1, 0, -1], dtype=torch.int8),
        torch.tensor([-0.5, 0, 0.5, float("nan"), 0, 9]),
    ):
        sums = torch.zeros(20, dtype=torch.float64)
        fused = route_logits(logits_TE, KNOBS, top_k=2, live_T=live_T, sums=sums)
        counters = DeviceCounters(1, 8, "cpu")
        own_TK = logits_TE.topk(2).indices
        counters.add(0, fused.routing, logits_TE.softmax(-1), live_T, 1, own_TK)
        torch.testing.assert_close(counters._rows[0], sums, rtol=1e-6, atol=1e-6)
        got = fused.routing.loaded_CE, sums
        want = got if want is None else want
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
    assert want[1][17] == 4
