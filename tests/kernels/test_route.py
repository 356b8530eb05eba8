from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from restated_route import restate
from route_cases import GENERAL, layer_knobs, neutral, random_scores

from thermoe.kernels.route import Routing, route


def assert_valid(routing: Routing, num_experts: int) -> None:
    """What every routing promises: ids in range, dropped slots cost nothing, kept experts are distinct."""
    ids, weights, kept = routing.ids_TK, routing.weights_TK, routing.kept_TK
    assert ids.min() >= 0
    assert ids.max() < num_experts
    assert kept[:, 0].all()
    assert (ids == ids[:, :1])[~kept].all()
    assert (weights[~kept] == 0).all()
    for row_ids, row_kept in zip(ids.tolist(), kept.tolist(), strict=True):
        used = [e for e, k in zip(row_ids, row_kept, strict=True) if k]
        assert len(set(used)) == len(used)


def assert_same(routing: Routing, expected, columns: int) -> None:
    for token, (ids, weights) in enumerate(zip(expected.ids, expected.weights, strict=True)):
        kept = routing.kept_TK[token]
        assert routing.ids_TK[token][kept].tolist() == ids, token
        np.testing.assert_allclose(routing.weights_TK[token][kept].double(), weights, rtol=2e-5, atol=1e-30)
    if routing.loaded_CE is not None:
        assert [set(row.nonzero().flatten().tolist()) for row in routing.loaded_CE] == expected.loaded


@st.composite
def policies(draw) -> dict:
    """A shape, a seed and knobs of one layer."""
    num_experts = draw(st.sampled_from([3, 8, 17, 64]))
    top_k = draw(st.integers(1, min(num_experts - 1, 8)))
    rows, columns = draw(st.sampled_from([(1, 1), (7, 1), (63, 1), (129, 1), (9, 7), (43, 3), (1, 5)]))
    return {
        "shape": (rows, columns, num_experts, top_k),
        "seed": draw(st.integers(0, 10_000)),
        "union": draw(st.booleans()),
        "price": draw(st.sampled_from([0.0, 0.02, 0.3, 2.0, np.inf])),
        "protected_k0": draw(st.integers(0, top_k)),
        "max_experts": draw(st.sampled_from([0, 0, 1, num_experts // 2, num_experts])),
        "top_k": draw(st.integers(1, top_k)),
        "gate_mass": draw(st.sampled_from([1.0, 1.0, 0.9, 0.4])),
        "skip_ratio": draw(st.sampled_from([0.0, 0.0, 0.3, 0.8])),
        "biased": draw(st.booleans()),
        "masked": draw(st.sampled_from(["none", "some", "few"])),
        "groups": draw(st.booleans()),
        "live": draw(st.sampled_from(["all", "some", "none"])),
        "scale": draw(st.sampled_from([(True, 1.0), (True, 2.5), (False, 1.0)])),
        "value_power": draw(st.sampled_from([1.0, 2.0, 0.5])),
    }


def _case(policy: dict):
    """Inputs of both implementations for a drawn policy."""
    rows, columns, num_experts, top_k = policy["shape"]
    rng = np.random.default_rng(policy["seed"])
    num_tokens = rows * columns
    ranks = rng.normal(size=(num_tokens, num_experts)).astype(np.float32)
    gates = torch.from_numpy(ranks).softmax(-1)
    if policy["groups"]:  # the model rules out experts, at least one is left
        out = rng.random(ranks.shape) < 0.5
        out[np.arange(num_tokens), rng.integers(num_experts, size=num_tokens)] = False
        ranks = np.where(out, -np.inf, ranks).astype(np.float32)
    allowed = rng.random(num_experts) < {"none": 2.0, "some": 0.7, "few": 0.0}[policy["masked"]]
    allowed[rng.choice(num_experts, size=max(1, top_k - 1), replace=False)] = True
    knobs = neutral(
        num_experts,
        top_k,
        union=policy["union"],
        value_power=policy["value_power"],
        cost=rng.uniform(0.5, 1.5, num_experts),
        bias=rng.normal(0.0, 0.5, num_experts) if policy["biased"] else np.zeros(num_experts),
        allowed=allowed,
        **{name: policy[name] for name in ("price", "protected_k0", "max_experts", "top_k", "gate_mass", "skip_ratio")},
    )
    live = {"all": np.ones(num_tokens), "some": rng.random(num_tokens) < 0.6, "none": np.zeros(num_tokens)}
    return torch.from_numpy(ranks), gates, knobs, live[policy["live"]].astype(bool)


@settings(max_examples=150, deadline=None)
@given(policies())
def test_route_agrees_with_the_restatement(policy) -> None:
    _, columns, num_experts, top_k = policy["shape"]
    ranks_TE, gates_TE, knobs, live = _case(policy)
    renormalise, scale = policy["scale"]
    expected = restate(
        ranks_TE.double().numpy(), gates_TE.double().numpy(), knobs, 0, top_k, columns, live, renormalise, scale
    )
    assume(expected.margin > 1e-5)  # nearer than float32 can tell
    arguments = {
        "top_k": top_k,
        "columns": columns,
        "live_T": None if live.all() else torch.from_numpy(live),
        "renormalise": renormalise,
        "scale": scale,
    }
    specialised = layer_knobs(knobs)
    routing = route(ranks_TE, gates_TE, specialised, **arguments)
    assert_valid(routing, num_experts)
    assert_same(routing, expected, columns)
    # What the host knows leaves out operations, never a decision.
    general = route(ranks_TE, gates_TE, replace(specialised, **GENERAL), **arguments)
    assert torch.equal(general.ids_TK, routing.ids_TK)
    assert torch.equal(general.weights_TK, routing.weights_TK)


def test_columns_route_like_batches_of_their_own() -> None:
    rows, columns, num_experts, top_k = 9, 7, 16, 4
    ranks_TE, gates_TE = random_scores(1, rows * columns, num_experts)
    live_T = torch.rand(rows * columns, generator=torch.Generator().manual_seed(2)) < 0.7
    knobs = layer_knobs(neutral(num_experts, top_k, union=True, price=0.4, protected_k0=1, max_experts=3))
    together = route(ranks_TE, gates_TE, knobs, top_k=top_k, columns=columns, live_T=live_T)
    assert together.loaded_CE is not None
    assert together.loaded_CE.sum() < rows * columns * num_experts
    for column in range(columns):
        part = slice(column, None, columns)
        alone = route(ranks_TE[part], gates_TE[part], knobs, top_k=top_k, live_T=live_T[part])
        assert torch.equal(together.ids_TK[part], alone.ids_TK)
        assert torch.equal(together.weights_TK[part], alone.weights_TK)
        assert torch.equal(together.loaded_CE[column], alone.loaded_CE[0])


def test_neutral_knobs_keep_the_models_own_choice() -> None:
    ranks_TE, gates_TE = random_scores(3, 63, 16)
    for union in (False, True):
        routing = route(ranks_TE, gates_TE, layer_knobs(neutral(16, 4, union=union)), top_k=4)
        values, ids = gates_TE.topk(4, dim=-1)
        assert torch.equal(routing.ids_TK, ids)
        assert torch.equal(routing.weights_TK, values / values.sum(-1, keepdim=True))


def test_protected_choices_beyond_top_k_protect_all_of_them() -> None:
    ranks_TE, gates_TE = random_scores(4, 7, 16)
    knobs = layer_knobs(neutral(16, 4, union=True, price=np.inf, protected_k0=9))
    routing = route(ranks_TE, gates_TE, knobs, top_k=4)
    assert torch.equal(routing.ids_TK, ranks_TE.topk(4).indices)


def test_an_infinite_price_loads_the_protected_choices_alone_and_none_where_nothing_is_live() -> None:
    ranks_TE, gates_TE = random_scores(5, 7, 16)
    knobs = layer_knobs(neutral(16, 4, union=True, price=np.inf, protected_k0=1))
    loaded = route(ranks_TE, gates_TE, knobs, top_k=4).loaded_CE
    assert set(loaded[0].nonzero().flatten().tolist()) == set(ranks_TE.argmax(-1).tolist())
    dead = route(ranks_TE, gates_TE, knobs, top_k=4, live_T=torch.zeros(7))
    assert dead.loaded_CE.all()  # nothing was asked for: nothing is withheld
    assert torch.equal(dead.ids_TK, ranks_TE.topk(4).indices)


def test_fewer_allowed_experts_than_slots_drop_the_rest() -> None:
    ranks_TE, gates_TE = random_scores(6, 5, 8)
    allowed = np.isin(np.arange(8), [2, 5])
    for union in (False, True):
        routing = route(ranks_TE, gates_TE, layer_knobs(neutral(8, 4, union=union, allowed=allowed)), top_k=4)
        assert_valid(routing, 8)
        assert (routing.kept_TK.sum(-1) == 2).all()
        assert set(routing.ids_TK.unique().tolist()) <= {2, 5}
        np.testing.assert_allclose(routing.weights_TK.sum(-1), 1.0, rtol=1e-6)


def test_a_token_with_no_permitted_expert_in_the_set_takes_its_best_gate_there() -> None:
    gates_TE = torch.tensor([[0.1, 0.2, 0.6, 0.1], [0.3, 0.5, 0.1, 0.1]])
    ranks_TE = gates_TE.clone()
    ranks_TE[0, 2:] = -torch.inf  # token 0 may use 0 and 1 ...
    ranks_TE[1, :2] = -torch.inf  # ... token 1 the others
    knobs = layer_knobs(neutral(4, 2, union=True, price=np.inf, protected_k0=1))
    routing = route(ranks_TE, gates_TE, knobs, top_k=2, live_T=torch.tensor([1.0, 0.0]))
    assert routing.loaded_CE.tolist() == [[False, True, False, False]]
    assert routing.ids_TK.tolist() == [[1, 1], [1, 1]]
    assert routing.kept_TK.tolist() == [[True, False], [True, False]]
    assert routing.weights_TK.tolist() == [[1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("whole_row", [False, True])
@pytest.mark.parametrize("union", [False, True])
def test_poisoned_logits_stay_with_their_token(poison: float, whole_row: bool, union: bool) -> None:
    logits_TE, _ = random_scores(7, 6, 16)
    clean_TE = logits_TE.clone()
    logits_TE[2, slice(None) if whole_row else 3] = poison
    changes = {"union": union, "price": 0.2, "protected_k0": 1, "max_experts": 3, "bias": np.linspace(-1, 1, 16)}
    knobs = layer_knobs(neutral(16, 4, **changes))
    routing = route(logits_TE, logits_TE.softmax(-1), knobs, top_k=4)
    ids = routing.ids_TK
    assert ids.min() >= 0
    assert ids.max() < 16
    others = torch.arange(6) != 2
    assert routing.weights_TK[others].isfinite().all()
    if not union:
        clean = route(clean_TE, clean_TE.softmax(-1), knobs, top_k=4)
        assert torch.equal(clean.ids_TK[others], ids[others])
    if union and (whole_row or poison != float("-inf")):  # a token without a usable gate asks for nothing
        live = others.float()
        without = route(clean_TE, clean_TE.softmax(-1), knobs, top_k=4, live_T=live)
        assert torch.equal(without.loaded_CE, routing.loaded_CE)


def test_extreme_biases_leave_no_nan() -> None:
    ranks_TE, _ = random_scores(8, 7, 8)
    gates_TE = ranks_TE.softmax(-1)
    ranks_TE[:, 2] = -torch.inf  # nobody may use it, however it is favoured
    bias = np.array([300.0, -300.0, 500.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    knobs = layer_knobs(neutral(8, 3, union=True, price=np.inf, protected_k0=0, max_experts=1, bias=bias))
    routing = route(ranks_TE, gates_TE, knobs, top_k=3)
    assert routing.loaded_CE.nonzero().tolist() == [[0, 0]]
    assert routing.weights_TK[:, 0].tolist() == [1.0] * 7


def test_ties_give_distinct_experts_and_equal_weights() -> None:
    ranks_TE = torch.zeros(5, 8)
    for union in (False, True):
        knobs = layer_knobs(neutral(8, 3, union=union, price=0.2, protected_k0=1))
        routing = route(ranks_TE, ranks_TE.softmax(-1), knobs, top_k=3)
        assert_valid(routing, 8)
        np.testing.assert_allclose(routing.weights_TK[routing.kept_TK], 1 / 3, rtol=1e-6)


def test_bias_moves_the_choice_and_never_the_weights() -> None:
    ranks_TE, gates_TE = random_scores(9, 63, 16)
    bias = np.zeros(16)
    bias[11] = 3.0
    plain = route(ranks_TE, gates_TE, layer_knobs(neutral(16, 4)), top_k=4)
    moved = route(ranks_TE, gates_TE, layer_knobs(neutral(16, 4, bias=bias)), top_k=4)
    had, has = (plain.ids_TK == 11).any(-1), (moved.ids_TK == 11).any(-1)
    assert has.sum() > had.sum()
    assert had.any()
    chosen = gates_TE.gather(1, moved.ids_TK)
    assert torch.equal(moved.weights_TK, chosen / chosen.sum(-1, keepdim=True))
    order = moved.ids_TK[had].sort(-1), plain.ids_TK[had].sort(-1)
    assert torch.equal(order[0].values, order[1].values)
    weights = moved.weights_TK[had].gather(1, order[0].indices), plain.weights_TK[had].gather(1, order[1].indices)
    torch.testing.assert_close(*weights, rtol=3e-7, atol=0.0)


def test_gates_far_below_the_best_are_still_renormalised() -> None:
    ranks_TE = torch.tensor([[60.0, 1.0, 0.0, -1.0]])
    allowed = np.array([False, True, True, True])
    routing = route(ranks_TE, ranks_TE.softmax(-1), layer_knobs(neutral(4, 2, allowed=allowed)), top_k=2)
    np.testing.assert_allclose(routing.weights_TK, torch.tensor([[1.0, 0.0]]).softmax(-1), rtol=1e-5)


def test_skip_ratio_gate_mass_and_top_k_by_hand() -> None:
    gates_TE = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    ranks_TE = gates_TE.log()

    def kept(**changes) -> list[bool]:
        return route(ranks_TE, gates_TE, layer_knobs(neutral(4, 4, **changes)), top_k=4).kept_TK[0].tolist()

    assert kept(skip_ratio=0.6) == [True, True, False, False]
    assert kept(gate_mass=0.65) == [True, True, False, False]
    assert kept(gate_mass=0.75) == [True, True, True, False]
    assert kept(gate_mass=0.0) == [True, False, False, False]
    assert kept(top_k=3) == [True, True, True, False]
    # A last gate below rounding is no reason to drop it where all are to be kept.
    gates_TE = torch.tensor([[1.0, 1e-12, 0.0, 0.0]])
    ranks_TE = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert kept(top_k=2) == [True, True, False, False]


def test_bfloat16_logits_decide_and_weigh_in_float32() -> None:
    logits_TE = random_scores(10, 33, 16)[0].bfloat16()
    routing = route(logits_TE, logits_TE.float().softmax(-1), layer_knobs(neutral(16, 4)), top_k=4)
    assert routing.weights_TK.dtype is torch.float32
    gates = logits_TE.float().softmax(-1).gather(1, routing.ids_TK)
    assert torch.equal(routing.weights_TK, gates / gates.sum(-1, keepdim=True))


def test_weights_carry_the_gradient_of_their_own_gates() -> None:
    ranks_TE, _ = random_scores(11, 5, 8)
    ranks_TE.requires_grad_()
    knobs = layer_knobs(neutral(8, 3, union=True, price=0.3, protected_k0=1))
    routing = route(ranks_TE, ranks_TE.softmax(-1), knobs, top_k=3)
    (routing.weights_TK**2).sum().backward()
    used = torch.zeros(5, 8).scatter_(1, routing.ids_TK, routing.kept_TK.float()) > 0
    several = routing.kept_TK.sum(-1) > 1
    assert (ranks_TE.grad[several][used[several]] != 0).all()
