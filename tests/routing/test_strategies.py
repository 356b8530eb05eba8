"""Each strategy against hand-computed knobs and, through the routing kernel, against brute force."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_inputs import SHAPE, calibration, inputs, knobs, loaded, logits, routed

from thermoe.errors import BudgetError, ConfigError
from thermoe.routing.settings import SETTINGS, resolve_settings
from thermoe.routing.strategies import STRATEGIES, ExpertCosts
from thermoe.telemetry.source import CLOCK_POWER_CAP
from thermoe.types import Budget, Kind, RoutingKnobs, RoutingStrategy, SysState

S = RoutingStrategy
LAYERS, EXPERTS = SHAPE.num_layers, SHAPE.num_experts


def hot_state() -> SysState:
    return SysState(time_s=0.0, wall_time_s=0.0, source="test", kind=Kind.SIMULATED, throttle_reasons=CLOCK_POWER_CAP)


def test_every_strategy_name_has_exactly_one_function_and_its_settings():
    assert set(STRATEGIES) == set(RoutingStrategy) == set(SETTINGS)
    assert len(set(STRATEGIES.values())) == len(RoutingStrategy)


def test_baseline_leaves_the_routing_alone():
    assert STRATEGIES[S.BASELINE](inputs(S.BASELINE), {}) == (None, {})


@pytest.mark.parametrize("k0", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_opportunistic_loads_the_union_of_the_first_choices_and_uses_the_best_of_it(k0, seed):
    logits_TE = logits(7, seed=seed)
    routing = routed(knobs(S.OPPORTUNISTIC, k0=k0), logits_TE)

    order = [sorted(range(EXPERTS), key=lambda e, t=t: -float(logits_TE[t, e])) for t in range(7)]
    union = {e for ranked in order for e in ranked[:k0]}
    assert loaded(routing) == union
    for token, ranked in enumerate(order):
        wanted = [e for e in ranked if e in union][: SHAPE.top_k]
        assert routing.ids_TK[token, : len(wanted)].tolist() == wanted
        gates = logits_TE[token, wanted].softmax(-1)  # renormalised softmax gates are the softmax of the chosen
        torch.testing.assert_close(routing.weights_TK[token, : len(wanted)], gates)


def test_gate_mass_loads_the_heaviest_experts_and_the_first_choices():
    logits_TE = logits(7)
    own = logits_TE.topk(SHAPE.top_k)
    mass = torch.zeros(EXPERTS)
    for token in range(7):
        mass[own.indices[token]] += own.values[token].softmax(-1)
    share = 0.5
    heaviest = set(mass.argsort(descending=True)[: round(share * EXPERTS)].tolist())
    firsts = set(own.indices[:, 0].tolist())

    assert loaded(routed(knobs(S.GATE_MASS, share=share, k0=0), logits_TE)) == heaviest
    assert loaded(routed(knobs(S.GATE_MASS, share=share, k0=1), logits_TE)) == heaviest | firsts


def test_expert_skipping_drops_gates_below_a_share_of_the_best():
    routing = routed(knobs(S.EXPERT_SKIPPING, ratio=0.3), torch.tensor([[0.4, 0.3, 0.11, 0.1, *[1e-4] * 8]]).log())
    assert routing.kept_TK.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(routing.weights_TK, torch.tensor([[4 / 7, 3 / 7, 0.0, 0.0]]))


def test_top_p_keeps_the_best_until_the_mass_is_reached():
    # Of its own four gates (sum 0.91) the first two hold 77 %, the first three 89 %.
    gates_TE = torch.tensor([[0.4, 0.3, 0.11, 0.1, *[1e-4] * 8]])
    for mass, kept in ((0.7, 2), (0.8, 3), (0.95, 4)):
        assert int(routed(knobs(S.TOP_P, mass=mass), gates_TE.log()).kept_TK.sum()) == kept


def test_knobs_of_the_fixed_strategies_touch_nothing_else():
    neutral = RoutingKnobs.neutral(LAYERS, EXPERTS, SHAPE.top_k)
    for strategy, chosen, changed in (
        (S.OPPORTUNISTIC, {"k0": 2}, {"union", "price", "protected_k0"}),
        (S.GATE_MASS, {}, {"union", "price", "protected_k0", "max_experts", "value_power"}),
        (S.EXPERT_SKIPPING, {}, {"skip_ratio"}),
        (S.TOP_P, {}, {"gate_mass"}),
    ):
        decided = knobs(strategy, **chosen)
        for name in RoutingKnobs.__dataclass_fields__:
            same = np.array_equal(getattr(decided, name), getattr(neutral, name))
            assert same == (name not in changed), (strategy, name)


def test_kernel_aware_knobs_by_hand():
    sensitivity = np.ones((LAYERS, EXPERTS))
    sensitivity[1] = 4.0
    energy_j = np.ones((LAYERS, EXPERTS))
    energy_j[0, 0] = 3.0
    decided = knobs(
        S.KERNEL_AWARE,
        calibrated=calibration(sensitivity=sensitivity),
        energy_j=energy_j,
        max_quality_loss_pct=1.0,
        alpha=3.0,
        beta=1.0,
        bias_strength=0.5,
    )
    mean = 1.0 + 2.0 / (LAYERS * EXPERTS)
    dear, cheap = (3.0 * 3.0 / mean + 1.0) / 4.0, (3.0 / mean + 1.0) / 4.0  # latency is 1 for all
    np.testing.assert_allclose(decided.cost[0, :2], [dear, cheap])
    np.testing.assert_allclose(decided.cost[1], cheap / 4.0)
    np.testing.assert_allclose(decided.bias[0, :2], [-0.5 * (dear - 1.0), -0.5 * (cheap - 1.0)])
    np.testing.assert_allclose(decided.price, 0.01)  # the judged price that loses 1 %
    assert decided.union
    assert decided.value_power == 2.0
    assert decided.protected_k0.tolist() == [1] * LAYERS


@pytest.mark.parametrize("expert", [0, 5])
def test_a_dearer_expert_is_loaded_less_and_ranks_lower(expert):
    energy_j = np.ones((LAYERS, EXPERTS))
    energy_j[0, expert] = 6.0
    even = knobs(S.KERNEL_AWARE, price=0.05)
    dear = knobs(S.KERNEL_AWARE, price=0.05, energy_j=energy_j)
    assert dear.bias[0, expert] < min(0.0, even.bias[0, expert])
    assert dear.bias[0, expert] < dear.bias[0].max()
    batches = [logits(6, seed=seed) for seed in range(40)]
    times = [sum(expert in loaded(routed(k, batch)) for batch in batches) for k in (even, dear)]
    assert times[1] < times[0]


def test_costs_and_biases_choose_but_never_weigh():
    energy_j = np.random.default_rng(0).uniform(0.2, 5.0, (LAYERS, EXPERTS))
    logits_TE = logits(8)
    routing = routed(knobs(S.KERNEL_AWARE, price=0.1, energy_j=energy_j), logits_TE)
    assert not torch.equal(routing.ids_TK, routing.own_ids_TK)
    gates = logits_TE.softmax(-1).gather(1, routing.ids_TK).masked_fill(~routing.kept_TK, 0.0)
    torch.testing.assert_close(routing.weights_TK, gates / gates.sum(-1, keepdim=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(1e-4, 3.0), min_size=2, max_size=4))
def test_a_higher_price_never_loads_more(seed, prices):
    energy_j = np.random.default_rng(seed).uniform(0.2, 5.0, (LAYERS, EXPERTS))
    logits_TE = logits(6, seed=seed)
    sets = [loaded(routed(knobs(S.KERNEL_AWARE, price=p, energy_j=energy_j), logits_TE)) for p in sorted(prices)]
    for cheap, dear in itertools.pairwise(sets):
        assert dear <= cheap


def test_price_zero_loads_every_own_choice():
    logits_TE = logits(6)
    routing = routed(knobs(S.KERNEL_AWARE, price=0.0, bias_strength=0.0), logits_TE)
    assert torch.equal(routing.ids_TK, logits_TE.topk(SHAPE.top_k).indices)


def test_the_reserve_is_released_under_pressure():
    given = {"calibrated": calibration(), "reserve": 0.8, "max_quality_loss_pct": 1.0}
    cool, hot = (knobs(S.KERNEL_AWARE, state=state, **given).price[0] for state in (None, hot_state()))
    assert cool == pytest.approx(0.001)  # a fifth of the allowance: 0.2 %
    assert hot == pytest.approx(0.01)


def test_the_budget_comes_before_the_setting():
    decided = knobs(S.KERNEL_AWARE, calibrated=calibration(), budget=Budget(max_quality_loss_pct=4.0))
    assert decided.price[0] == pytest.approx(0.1)


def test_kernel_aware_without_calibration_or_price_says_what_to_do():
    with pytest.raises(ConfigError, match="thermoe calibrate"):
        knobs(S.KERNEL_AWARE)


def test_ttha_adds_the_learned_biases_to_the_priced_knobs():
    bias = np.random.default_rng(0).normal(size=(LAYERS, EXPERTS))
    energy_j = np.random.default_rng(1).uniform(0.5, 2.0, (LAYERS, EXPERTS))
    decided = knobs(S.KERNEL_AWARE_TTHA, {"price": 0.02, "bias": bias.tolist()}, energy_j=energy_j)
    priced = knobs(S.KERNEL_AWARE, price=0.02, energy_j=energy_j)
    np.testing.assert_allclose(decided.bias, priced.bias + bias)
    np.testing.assert_array_equal(decided.price, priced.price)


@pytest.mark.parametrize(
    ("max_loss_pct", "policy", "value"),
    [
        (0.2, "priced", 0.001),
        (1.0, "priced", 0.01),
        (1.5, "top_k", 3.0),
        (2.0, "opportunistic", 2.0),
        (9, "priced", 0.1),
    ],
)
def test_static_optimal_takes_the_least_energy_within_the_budget(max_loss_pct, policy, value):
    given = inputs(S.STATIC_OPTIMAL, calibrated=calibration(), max_quality_loss_pct=max_loss_pct)
    decided, memory = STRATEGIES[S.STATIC_OPTIMAL](given, {})
    assert (memory["point"]["policy"], memory["point"]["value"]) == (policy, value)
    if policy == "top_k":
        assert not decided.union
        assert decided.top_k.tolist() == [3] * LAYERS
    elif policy == "opportunistic":
        assert decided.protected_k0.tolist() == [2] * LAYERS
        assert np.isinf(decided.price).all()
    else:
        np.testing.assert_array_equal(decided.price, value)


def test_static_optimal_goes_by_energy_not_by_experts():
    given = inputs(
        S.STATIC_OPTIMAL,
        calibrated=calibration(),
        max_quality_loss_pct=9.0,
        step_energy_j=lambda distinct: abs(float(distinct[0]) - 8.5),
    )
    _, memory = STRATEGIES[S.STATIC_OPTIMAL](given, {})
    assert memory["point"]["value"] == 3.0


def test_static_optimal_stays_with_its_choice_until_the_quality_budget_changes():
    def refuse(distinct):
        raise AssertionError("chosen again")

    first = inputs(S.STATIC_OPTIMAL, calibrated=calibration(), max_quality_loss_pct=1.0)
    _, memory = STRATEGIES[S.STATIC_OPTIMAL](first, {})
    again = inputs(S.STATIC_OPTIMAL, calibrated=calibration(), max_quality_loss_pct=1.0, step_energy_j=refuse)
    _, same = STRATEGIES[S.STATIC_OPTIMAL](again, memory)
    assert same == memory
    looser = inputs(S.STATIC_OPTIMAL, calibrated=calibration(), budget=Budget(max_quality_loss_pct=9.0))
    _, moved = STRATEGIES[S.STATIC_OPTIMAL](looser, memory)
    assert moved["point"]["value"] == 0.1


def test_static_optimal_without_a_policy_in_the_budget():
    with pytest.raises(BudgetError, match=r"least calibrated loss is 0\.20 %"):
        knobs(S.STATIC_OPTIMAL, calibrated=calibration(), max_quality_loss_pct=0.1)


@pytest.mark.parametrize("strategy", list(RoutingStrategy))
def test_strategies_are_pure(strategy):
    memory = {"price": 0.03, "bias": np.full((LAYERS, EXPERTS), 0.1).tolist()} if "ttha" in strategy else {}
    energy_j = np.random.default_rng(0).uniform(0.5, 2.0, (LAYERS, EXPERTS))
    given = inputs(strategy, energy_j=energy_j, calibrated=calibration(), state=hot_state())
    before = copy.deepcopy((given.costs.energy_j, given.settings, given.calibration.to_dict(), memory))

    first, second = (STRATEGIES[strategy](given, memory) for _ in range(2))

    assert first[1] == second[1]
    for name in RoutingKnobs.__dataclass_fields__ if first[0] is not None else ():
        np.testing.assert_array_equal(getattr(first[0], name), getattr(second[0], name))
    after = (given.costs.energy_j, given.settings, given.calibration.to_dict(), memory)
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_relative_costs_need_a_weight():
    ones = np.ones((1, 2))
    with pytest.raises(ConfigError, match="at least one"):
        ExpertCosts(energy_j=ones, latency_s=ones).relative(0.0, 0.0)


@pytest.mark.parametrize(
    ("strategy", "values"),
    [
        (S.BASELINE, {"k0": 2}),
        (S.OPPORTUNISTIC, {"k0": 0}),
        (S.OPPORTUNISTIC, {"k0": 2.5}),
        (S.OPPORTUNISTIC, {"k0": float("nan")}),
        (S.GATE_MASS, {"share": 0}),
        (S.TOP_P, {"mass": 1.5}),
        (S.EXPERT_SKIPPING, {"ratio": -0.1}),
        (S.KERNEL_AWARE, {"price": float("inf")}),
        (S.KERNEL_AWARE_TTHA, {"target_power_w": 0}),
        (S.KERNEL_AWARE_TTHA, {"target_temp_c": float("inf")}),
    ],
)
def test_settings_out_of_range_are_one_clear_line(strategy, values):
    with pytest.raises(ConfigError) as caught:
        resolve_settings(strategy, values)
    assert str(strategy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_given_replace_defaults_without_touching_them():
    before = dict(SETTINGS[S.OPPORTUNISTIC])
    assert resolve_settings(S.OPPORTUNISTIC, {"k0": 3}) == {"k0": 3}
    assert SETTINGS[S.OPPORTUNISTIC] == before


def test_the_helper_routes_as_the_model_does_under_neutral_knobs():
    logits_TE = logits(5)
    routing = routed(RoutingKnobs.neutral(LAYERS, EXPERTS, SHAPE.top_k), logits_TE)
    assert torch.equal(routing.ids_TK, logits_TE.topk(SHAPE.top_k).indices)


@pytest.mark.parametrize("strategy", [RoutingStrategy.STATIC_OPTIMAL, RoutingStrategy.KERNEL_AWARE])
def test_without_a_calibration_only_settings_that_exist_are_offered(strategy):
    with pytest.raises(ConfigError, match="thermoe calibrate") as caught:
        STRATEGIES[strategy](inputs(strategy), {})
    assert (f"{strategy}.price" in str(caught.value)) == ("price" in SETTINGS[strategy])
