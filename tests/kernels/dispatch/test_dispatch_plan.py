"""The dispatch plan: a permutation of the slots in order of expert, on any input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import CASES, drawn, restated

from thermoe.errors import ConfigError
from thermoe.kernels.dispatch import dispatch_plan


@st.composite
def slots(draw):
    """Ids in and out of range, weights with zeros of both signs and NaN, and the number of experts."""
    tokens, top_k, experts = draw(st.integers(0, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    count = tokens * top_k
    ids = draw(st.lists(st.integers(-3, experts + 2) | st.just(2**40), min_size=count, max_size=count))
    weight = st.sampled_from([0.0, -0.0, 1e-45, 0.5, -0.25, float("nan")])
    weights = draw(st.lists(weight, min_size=count, max_size=count))
    shape = (tokens, top_k)
    return torch.tensor(ids, dtype=torch.int64).view(shape), torch.tensor(weights).view(shape), experts


@settings(max_examples=200, deadline=None)
@given(slots())
def test_plan_is_a_permutation_in_order_of_expert_and_slot(given_slots):
    ids_TK, weights_TK, num_experts = given_slots
    plan = dispatch_plan(ids_TK, weights_TK, num_experts)
    assert (plan.slot_N.dtype, plan.offsets_E1.dtype) == (torch.int32, torch.int32)
    slots_of_all, offsets = plan.slot_N.tolist(), plan.offsets_E1.tolist()
    assert sorted(slots_of_all) == list(range(ids_TK.numel()))
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    ids, weights = ids_TK.flatten().tolist(), weights_TK.flatten().tolist()
    for expert in range(num_experts):
        mine = slots_of_all[offsets[expert] : offsets[expert + 1]]
        assert mine == sorted(mine)
        assert all(ids[slot] == expert and weights[slot] != 0 for slot in mine)
    rest = slots_of_all[offsets[-1] :]
    assert rest == sorted(rest)
    assert all(weights[slot] == 0 or not 0 <= ids[slot] < num_experts for slot in rest)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_plan_by_hand(case):
    ids_TK, weights_TK, num_experts = drawn(**case)
    plan = dispatch_plan(ids_TK, weights_TK, num_experts)
    assert (plan.slot_N.tolist(), plan.offsets_E1.tolist()) == restated(ids_TK, weights_TK, num_experts)


IDS, WEIGHTS = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IDS, WEIGHTS[:2], 4), "needed two of one shape"),
        ((IDS.float(), WEIGHTS, 4), "needed integers"),
        ((IDS, IDS, 4), "needed integers"),
        ((IDS, WEIGHTS.to("meta"), 4), "move both to one device"),
        ((IDS, WEIGHTS, 0), "1 to 32768 experts"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        dispatch_plan(*arguments)
