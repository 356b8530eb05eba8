import numpy as np
import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.profiling.case import Case, draw_expert_ids, load_skew
from thermoe.profiling.operations import combine, dispatch, expert_mlp_reference, find_operation
from thermoe.profiling.plan import cpu_plan, h200_plan

CPU = torch.device("cpu")


def make_case(**changes) -> Case:
    values = {"op": "expert_mlp", "impl": "loop", "hidden_size": 24, "inter_size": 10, "num_experts": 7, "top_k": 3}
    return Case(**(values | {"routed_rows": 39, "distinct_experts": 5, "dtype": "float32"} | changes))


@pytest.mark.parametrize(("rows", "experts"), [(3, 1), (3, 3), (39, 5), (399, 7)])
def test_exactly_the_wanted_experts_are_touched(rows, experts):
    case = make_case(routed_rows=rows, distinct_experts=experts)
    for seed in range(5):
        ids = draw_expert_ids(case, seed)
        assert ids.shape == (rows,)
        assert np.unique(ids).size == experts


def test_layers_of_the_rotation_touch_different_experts():
    case = make_case(num_experts=64, distinct_experts=5)
    assert set(draw_expert_ids(case, 0)) != set(draw_expert_ids(case, 1))


def test_rows_of_one_expert_go_to_different_tokens_while_it_has_fewer_than_there_are():
    case = make_case(num_experts=64, top_k=4, routed_rows=256, distinct_experts=64)
    ids_TK = draw_expert_ids(case, 3).reshape(64, 4)
    assert max(np.bincount(ids_TK.ravel())) <= 64
    assert all(len(set(row)) == 4 for row in ids_TK.tolist())


def test_skew_is_the_fullest_over_the_mean():
    assert load_skew(np.array([4, 4, 4, 9])) == pytest.approx(1.5)


@pytest.mark.parametrize("impl", ["loop", "batched_mm"])
@pytest.mark.parametrize(("rows", "experts"), [(3, 1), (39, 5), (66, 7)])
def test_expert_mlp_agrees_with_float64(impl, rows, experts):
    case = make_case(impl=impl, routed_rows=rows, distinct_experts=experts)
    torch.manual_seed(1)
    assert find_operation(case).build(case, CPU, 2).rel_error() < 1e-5


@pytest.mark.parametrize("op", ["dispatch_combine", "router_topk", "copy"])
def test_other_operations_agree_with_float64(op):
    case = make_case(op=op, impl="torch")
    assert find_operation(case).build(case, CPU, 2).rel_error() < 1e-5


def test_dispatch_then_experts_then_combine_is_the_whole_layer():
    torch.manual_seed(0)
    T, k, E, D, I = 5, 2, 4, 6, 3  # noqa: E741
    x_TD, gate_TK = torch.randn(T, D), torch.rand(T, k)
    ids_TK = torch.stack([torch.randperm(E)[:k] for _ in range(T)])
    gate_up, down = torch.randn(E, 2 * I, D), torch.randn(E, D, I)
    x_RD, order_R, offs_E = dispatch(x_TD, ids_TK.ravel(), torch.arange(E), k)
    experts_R = torch.repeat_interleave(torch.arange(E), offs_E.diff(prepend=torch.zeros(1)).long())
    y_RD = expert_mlp_reference(x_RD, experts_R, gate_up, down).float()
    want_TD = torch.zeros(T, D)
    for t in range(T):
        for s in range(k):
            expert = ids_TK[t, s]
            gate, up = (gate_up[expert] @ x_TD[t]).chunk(2)
            want_TD[t] += gate_TK[t, s] * (down[expert] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(combine(y_RD, order_R, gate_TK), want_TD, atol=1e-5, rtol=1e-4)


def test_counts_of_the_expert_mlp():
    case = make_case()
    operation = find_operation(case)
    assert operation.flops(case) == 39 * 2 * 3 * 24 * 10
    assert operation.bytes_moved(case) == 4 * (5 * 3 * 24 * 10 + 2 * 39 * 24)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"op": "sing"}, "unknown operation sing"),
        ({"impl": "magic"}, "no implementation magic"),
        ({"distinct_experts": 8}, "between 1 and the 7"),
        ({"distinct_experts": 0}, "between 1"),
        ({"dtype": "int1"}, "choose from"),
    ],
)
def test_wrong_cases_are_refused_in_one_line(changes, words):
    with pytest.raises(ConfigError, match=words) as err:
        find_operation(make_case(**changes))
    assert "\n" not in str(err.value)


@pytest.mark.parametrize("plan", [h200_plan(), cpu_plan()])
def test_plans_name_known_operations_and_no_case_twice(plan):
    assert all(find_operation(case) for case in plan)
    assert len(set(map(str, plan))) == len(plan)
