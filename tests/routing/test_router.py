"""AdaptiveRouter: switching, load balance, masking under heat, memory."""

import json

import numpy as np
import pytest
from routing_inputs import SHAPE, calibration, statistics

from thermoe.errors import ConfigError
from thermoe.routing.router import AdaptiveRouter
from thermoe.routing.strategies import ExpertCosts
from thermoe.types import Budget, Kind, MoEShape, RoutingKnobs, RoutingStrategy, SysState

S = RoutingStrategy


def router(strategy=S.KERNEL_AWARE, shape=SHAPE, **settings) -> AdaptiveRouter:
    return AdaptiveRouter(
        shape=shape,
        strategy=strategy,
        settings=settings,
        budget=Budget(),
        calibration=calibration(shape),
        step_energy_j=lambda distinct: float(distinct.sum()),
    )


def costs(shape=SHAPE) -> ExpertCosts:
    ones = np.ones((shape.num_layers, shape.num_experts))
    return ExpertCosts(energy_j=ones, latency_s=ones)


def at(temp_c) -> SysState:
    return SysState(time_s=0.0, wall_time_s=0.0, source="test", kind=Kind.SIMULATED, temp_c=temp_c)


def counts(seed=0, shape=SHAPE):
    return statistics(np.random.default_rng(seed).integers(0, 50, (shape.num_layers, shape.num_experts)))


def same(a: RoutingKnobs | None, b: RoutingKnobs | None) -> bool:
    assert a is not None
    assert b is not None
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in RoutingKnobs.__dataclass_fields__)


def test_it_switches_while_serving():
    r = router(S.BASELINE)
    assert r.decide(None, costs(), None) is None
    r.switch(S.OPPORTUNISTIC, {"k0": 2})
    assert r.decide(None, costs(), None).protected_k0.tolist() == [2] * SHAPE.num_layers
    r.switch(S.STATIC_OPTIMAL)
    r.decide(None, costs(), None)
    assert r.memory
    r.switch(S.TOP_P)
    assert r.memory == {}
    assert r.decide(None, costs(), None).gate_mass[0] == 0.85


def test_a_refused_switch_changes_nothing():
    r = router(S.OPPORTUNISTIC, k0=2)
    with pytest.raises(ConfigError):
        r.switch(S.TOP_P, {"k0": 3})
    assert r.strategy is S.OPPORTUNISTIC
    assert r.decide(None, costs(), None).protected_k0[0] == 2


@pytest.mark.parametrize("top_k", [1, 4, 11])
@pytest.mark.parametrize("excess_c", [-5.0, 0.0, 0.1, 3.0, 10.0, 500.0])
def test_masking_leaves_enough_and_takes_the_least_used(top_k, excess_c):
    shape = MoEShape(num_layers=3, hidden_size=8, inter_size=4, num_experts=12, top_k=top_k)
    r = router(shape=shape, mask_above_c=60.0)
    used = counts(1, shape)
    allowed = r.decide(at(60.0 + excess_c), costs(shape), used).allowed
    left = allowed.sum(axis=1)
    wanted = 12 - min(int(0.5 * min(max(excess_c / 10.0, 0.0), 1.0) * 12), 12 - top_k)
    assert left.tolist() == [wanted] * 3
    assert (left >= top_k).all()
    for layer in range(3):
        rows = used.tokens_per_expert[layer]
        if not allowed[layer].all():
            assert rows[~allowed[layer]].max() <= rows[allowed[layer]].min()


def test_masked_experts_stay_masked_while_the_heat_lasts_and_come_back():
    r = router(mask_above_c=60.0)
    first = r.decide(at(70.0), costs(), counts(1)).allowed
    unused = counts(2)
    unused.tokens_per_expert[~first] = 0.0
    np.testing.assert_array_equal(r.decide(at(70.0), costs(), unused).allowed, first)
    np.testing.assert_array_equal(r.decide(at(70.0), costs(), None).allowed, first)
    assert r.decide(at(59.0), costs(), counts(3)).allowed.all()
    assert r.decide(at(None), costs(), counts(3)).allowed.all()


def test_load_balance_joins_the_hardware_biases():
    r = router(balance_rate=0.01)
    plain = r.decide(None, costs(), None).bias
    moved = r.decide(None, costs(), counts()).bias
    np.testing.assert_allclose(np.abs(moved - plain), 0.01)
    np.testing.assert_array_equal(r.decide(None, costs(), None).bias, moved)  # no counters: nothing new to learn


@pytest.mark.parametrize("strategy", [S.STATIC_OPTIMAL, S.KERNEL_AWARE])
def test_memory_is_restored(strategy):
    given = {"balance_rate": 0.01, "mask_above_c": 60.0} if strategy is S.KERNEL_AWARE else {}
    first, second = router(strategy, **given), router(strategy, **given)
    for seed in range(5):
        first.decide(at(66.0), costs(), counts(seed))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert json.dumps(second.state_dict()) == json.dumps(first.state_dict())
    assert same(first.decide(at(66.0), costs(), None), second.decide(at(66.0), costs(), None))
    assert same(first.decide(at(66.0), costs(), counts(9)), second.decide(at(66.0), costs(), counts(9)))
