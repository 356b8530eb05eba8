import numpy as np
import pytest
import torch
from profiling_cases import SIZES, build, expert_case, make_case, make_setup, row_case

from thermoe.adaptation.ttha import FEATURES
from thermoe.errors import ConfigError
from thermoe.profiling.candidates import adapter_case
from thermoe.profiling.case import WEIGHT_BITS, draw_expert_ids, load_skew
from thermoe.profiling.formats import WeightCache, held_bytes, num_bytes
from thermoe.profiling.operations import OPERATIONS, combine, dispatch, expert_mlp_reference, find_operation
from thermoe.profiling.operations.routed import Routed

PACKED = [d for d in WEIGHT_BITS if d.startswith(("int", "bank", "fp8"))]
ATTENTION = row_case("attention_decode", "torch", 3, 512, 256, context=17, dtype="float32")
GATE = (24, 1, 7, 1)
ONE_OF_EACH = [
    *(make_case(impl=impl) for impl in ("loop", "batched_mm", "thermoe")),
    make_case(op="linear_fc1"),
    make_case(op="linear_fc2", impl="batched_mm"),
    make_case(op="activation", impl="torch"),
    expert_case("router_gate", "torch", GATE, 13, 7, dtype="float32"),
    expert_case("ttt_step", "torch", GATE, 13, 7, dtype="float32"),
    *(make_case(op="router_topk", impl=impl) for impl in ("torch", "thermoe", "thermoe_union")),
    *(make_case(op=op, impl=impl) for op in ("dispatch", "combine") for impl in ("torch", "thermoe")),
    make_case(op="dispatch_combine", impl="torch"),
    row_case("gemm", "torch", 13, 24, 10, dtype="float32"),
    *(row_case(op, "torch", 13, 24, dtype="float32") for op in ("copy", "elementwise", "norm")),
    ATTENTION,
    adapter_case("ttha_adapter_forward", 5, 7),
    adapter_case("ttha_update", 5, 7),
]


@pytest.mark.parametrize("load", ["random", "balanced", "zipf"])
@pytest.mark.parametrize(("rows", "experts"), [(3, 1), (3, 3), (39, 5), (399, 7)])
def test_exactly_the_wanted_experts_are_touched(rows, experts, load):
    case = make_case(routed_rows=rows, distinct_experts=experts, load=load)
    for seed in range(5):
        ids = draw_expert_ids(case, seed)
        assert ids.shape == (rows,)
        assert np.unique(ids).size == experts


def test_layers_of_the_rotation_touch_different_experts():
    case = make_case(num_experts=64, distinct_experts=5)
    assert set(draw_expert_ids(case, 0)) != set(draw_expert_ids(case, 1))


@pytest.mark.parametrize("load", ["random", "balanced", "zipf"])
@pytest.mark.parametrize("experts", [4, 6, 64])
def test_no_token_uses_an_expert_twice(load, experts):
    case = make_case(num_experts=64, top_k=4, routed_rows=256, distinct_experts=experts, load=load)
    ids_TK = draw_expert_ids(case, 3).reshape(64, 4)
    assert all(len(set(row)) == 4 for row in ids_TK.tolist())


def test_skew_is_the_fullest_over_the_mean_and_loads_are_ordered_by_it():
    assert load_skew(np.array([4, 4, 4, 9])) == pytest.approx(1.5)
    skew = {
        load: load_skew(
            draw_expert_ids(
                make_case(num_experts=64, top_k=4, routed_rows=1024, distinct_experts=64, load=load), seed=0
            )
        )
        for load in ("balanced", "random", "zipf")
    }
    assert skew["balanced"] == pytest.approx(1.0)
    assert skew["balanced"] < skew["random"] < skew["zipf"]


def test_every_operation_is_among_those_that_are_checked():
    assert {case.op for case in ONE_OF_EACH} | {"dequant_unpack_op"} == set(OPERATIONS)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda c: f"{c.op}-{c.impl}")
def test_operations_agree_with_float64_and_draw_no_zeros(case):
    bench = build(case)
    assert bench.rel_error() < 1e-5
    assert bench.run(1).double().abs().max() > 0


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("op", ["expert_mlp", "dequant_unpack_op"])
def test_packed_formats_agree_with_float64(op, dtype):
    impl = "thermoe" if op == "expert_mlp" else "torch"
    case = expert_case(op, impl, (96, 64, 5, 2), 10, 3, dtype=dtype)
    assert build(case).rel_error() < 2e-2


@pytest.mark.parametrize(
    ("op", "part"),
    [
        ("expert_mlp", "thermoe.profiling.operations.experts.expert_mlp"),
        ("router_topk", "thermoe.profiling.operations.routing.route_logits"),
        ("combine", "thermoe.profiling.operations.routing.combine_rows"),
    ],
)
def test_a_wrong_kernel_is_noticed(op, part, monkeypatch):
    bench = build(make_case(op=op, impl="thermoe"))
    module, name = part.rsplit(".", 1)
    right = getattr(__import__(module, fromlist=[name]), name)

    def wrong(first, *rest, **more):
        return right(first + 0.3 * torch.randn_like(first), *rest, **more)

    monkeypatch.setattr(part, wrong)
    assert bench.rel_error() > 1e-2


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


def test_parts_of_the_expert_mlp_add_up_to_its_operations():
    whole = find_operation(make_case()).flops(make_case())
    first, second = (find_operation(c).flops(c) for c in (make_case(op="linear_fc1"), make_case(op="linear_fc2")))
    assert first == 2 * second
    assert first + second == whole


def test_bytes_of_codes_count_their_scales_once_per_touched_expert():
    case = expert_case("expert_mlp", "thermoe", (256, 128, 8, 2), 4, 3, dtype="int4")
    assert case.group_size == 64  # 128 would give the second matrix one group a row
    scales = 2 * (2 * 128 * 4 + 256 * 2)
    assert case.expert_bytes == 3 * 256 * 128 / 2 + scales
    assert find_operation(case).bytes_moved(case) == 3 * case.expert_bytes + 2 * 4 * 256 * 2


@pytest.mark.parametrize("dtype", WEIGHT_BITS)
def test_weights_take_the_memory_that_is_counted(dtype):
    case = expert_case("expert_mlp", "thermoe", (256, 128, 3, 2), 4, 3, dtype=dtype)
    (layer,) = WeightCache(torch.device("cpu"), 1e9).layers(case, 1)
    assert num_bytes(layer) == held_bytes(case)


def test_a_bank_is_made_once_for_all_its_precisions_and_old_layers_make_room():
    cases = {b: expert_case("expert_mlp", "thermoe", (256, 128, 3, 2), 4, 3, dtype=f"bank{b}") for b in (8, 4, 2)}
    cache = WeightCache(torch.device("cpu"), held_bytes(cases[8]) * 1.5)
    layers = {b: cache.layers(case, 1)[0] for b, case in cases.items()}
    assert layers[8].fc1 is layers[2].fc1
    assert [int(layers[b].bits_E[0]) for b in (8, 4, 2)] == [8, 4, 2]
    cache.layers(expert_case("expert_mlp", "thermoe", (256, 128, 3, 2), 4, 3), 1)
    assert cache.layers(cases[8], 1)[0].fc1 is not layers[8].fc1


def test_steps_read_every_expert_of_every_copy_before_any_again():
    case = expert_case("expert_mlp", "thermoe", (24, 10, 8, 2), 8, 2, dtype="float32")
    setup = make_setup(steps=8, cache_bytes=2 * held_bytes(case))
    routed = Routed(case, setup, weights=True)
    assert len(routed.layers) == 2
    read = [(step % 2, expert) for step in range(8) for expert in set(routed.ids_SR[step].tolist())]
    assert len(read) == len(set(read)) == 16


def test_operands_are_copied_until_no_cache_holds_them_but_never_beyond_the_memory():
    setup = make_setup(steps=10, cache_bytes=100.0)
    assert [setup.copies(size) for size in (1.0, 20.0, 30.0, 1e9, 1e12)] == [10, 5, 4, 1, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"op": "sing"}, "unknown operation sing"),
        ({"impl": "magic"}, "no implementation magic"),
        ({"op": "activation", "impl": "torch", "dtype": "int4"}, "knows no dtype int4"),
        ({"distinct_experts": 8}, "between 1 and the 7"),
        ({"distinct_experts": 0}, "between 1"),
        ({"dtype": "int1"}, "choose from"),
        ({"load": "uneven"}, "choose from"),
        ({"routed_rows": 0}, "at least 1"),
        ({"context": 1.5}, "whole number"),
    ],
)
def test_wrong_cases_are_refused_in_one_line(changes, words):
    with pytest.raises(ConfigError, match=words) as err:
        find_operation(make_case(**changes))
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    "case",
    [
        make_case(impl="thermoe", routed_rows=38),
        row_case("attention_decode", "torch", 3, 500, 256, dtype="float32"),
        expert_case("ttha_update", "host", (len(FEATURES), 9, 7, 1), 35, 7, dtype="float32"),
    ],
)
def test_sizes_that_an_operation_cannot_take_are_refused_in_one_line(case):
    with pytest.raises(ConfigError) as err:
        build(case)
    assert "\n" not in str(err.value)


def test_a_case_reads_back_from_its_fields():
    case = expert_case("expert_mlp", "loop", SIZES, 39, 5, dtype="float16", load="zipf")
    assert type(case).from_dict(case.as_dict()) == case
