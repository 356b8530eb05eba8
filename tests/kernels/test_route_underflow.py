"""Chosen gates too small for float32: the weights are still a softmax over the chosen."""

import numpy as np
import pytest
import torch
from route_cases import layer_knobs, neutral, random_scores

from thermoe.kernels.route import route


@pytest.mark.parametrize("below", [60.0, 80.0, 95.0, 103.0, 150.0, 1e4])
@pytest.mark.parametrize("union", [False, True])
def test_softmax_gates_that_underflow_weigh_as_a_softmax_over_the_chosen(below: float, union: bool) -> None:
    """By float64: the best expert is barred, or not loaded, and what is left is `below` nats under it."""
    ranks_TE = torch.tensor([[below, 0.5, 0.0, -1.0], [0.5, 0.0, -1.0, below]])
    allowed = np.array([False, True, True, False])
    knobs = layer_knobs(neutral(4, 3, allowed=allowed, union=union))
    logits_TE = ranks_TE.clone().requires_grad_()
    routing = route(ranks_TE, logits_TE.softmax(-1), knobs, top_k=3, log_gates_TE=logits_TE)
    assert routing.ids_TK.tolist() == [[1, 2, 1], [1, 2, 1]]
    expected = ranks_TE[:, 1:3].double().softmax(-1)
    np.testing.assert_allclose(routing.weights_TK[:, :2].detach(), expected, rtol=1e-5 if below < 70 else 3e-7)
    assert routing.weights_TK[:, 2].tolist() == [0.0, 0.0]
    routing.weights_TK[:, 0].sum().backward()
    slope = expected[:, 0] * expected[:, 1]
    torch.testing.assert_close(logits_TE.grad[:, 1].double(), slope, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(logits_TE.grad[:, 2].double(), -slope, rtol=1e-4, atol=0.0)


def test_chosen_experts_that_the_router_rules_out_get_no_weight_and_no_nan() -> None:
    logits_TE = torch.tensor([[3.0, float("-inf"), float("-inf")]])
    knobs = layer_knobs(neutral(3, 2, allowed=np.array([False, True, True])))
    routing = route(logits_TE, logits_TE.softmax(-1), knobs, top_k=2, log_gates_TE=logits_TE)
    assert routing.weights_TK.tolist() == [[0.0, 0.0]]


def test_logits_change_no_bit_of_weights_that_did_not_underflow() -> None:
    ranks_TE, gates_TE = random_scores(3, 64, 16)
    knobs = layer_knobs(neutral(16, 4, bias=np.linspace(-1.0, 1.0, 16), union=True, protected_k0=1, price=0.5))
    plain = route(ranks_TE, gates_TE, knobs, top_k=4)
    assert torch.equal(route(ranks_TE, gates_TE, knobs, top_k=4, log_gates_TE=ranks_TE).weights_TK, plain.weights_TK)
