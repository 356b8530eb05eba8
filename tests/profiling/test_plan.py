from collections import Counter

import numpy as np
import pytest
from profiling_cases import expert_case

from thermoe.cost.parts import find_calls
from thermoe.cost.rows import CostRow, DeviceKey
from thermoe.profiling.candidates import gpu_candidates, touched_experts
from thermoe.profiling.case import Case
from thermoe.profiling.design import order
from thermoe.profiling.models import MODELS
from thermoe.profiling.operations import OPERATIONS, find_operation
from thermoe.profiling.plan import cpu_plan, gpu_plan, smoke_plan
from thermoe.types import Kind

KEY = DeviceKey(gpu="Test GPU", driver="1", torch="2", triton="3", kernel_revision="2")


def row_of(case: Case, energy_mj=None) -> CostRow:
    return CostRow(
        device=KEY,
        op=case.op,
        impl=case.impl,
        dtype=case.dtype,
        hidden_size=case.hidden_size,
        inter_size=case.inter_size,
        num_experts=case.num_experts,
        top_k=case.top_k,
        tokens=case.tokens,
        routed_rows=case.routed_rows,
        active_experts=case.distinct_experts,
        load=case.load,
        context=case.context,
        skew=1.0,
        latency_us=5.0,
        latency_low_us=5.0,
        latency_high_us=5.0,
        repeats=1,
        spread_pct=0.0,
        input_distribution="normal",
        kind=Kind.MEASURED,
        energy_mj=energy_mj,
    )


@pytest.fixture(scope="module")
def ten_minutes():
    return gpu_plan(10.0)


@pytest.mark.parametrize("plan", [gpu_plan(1.0), cpu_plan(), smoke_plan("cuda"), smoke_plan("cpu")])
def test_plans_name_known_operations_and_no_case_twice(plan):
    assert all(find_operation(case) for case in plan)
    assert len({(case.key, case.energy) for case in plan}) == len(plan)


def test_candidates_are_valid_and_cover_every_operation():
    candidates = gpu_candidates()
    assert {find_operation(case) and case.op for case in candidates} == set(OPERATIONS)
    assert len({case.key for case in candidates}) == len(candidates)
    assert len(gpu_candidates(compiled=True)) > len(candidates)


def test_smoke_plan_runs_every_operation_and_implementation_that_a_gpu_has():
    wanted = {(op, impl) for op, o in OPERATIONS.items() for impl in o.implementations if impl != "loop"}
    assert {(c.op, c.impl) for c in smoke_plan("cuda")} >= wanted - {
        ("linear_fc1", "batched_mm"),
        ("linear_fc2", "batched_mm"),
    }


def test_ten_minutes_hold_thousands_of_latencies_and_enough_energies_over_many_shapes(ten_minutes):
    energies = [case for case in ten_minutes if case.energy]
    assert len(ten_minutes) > 1300
    assert 70 <= len(energies) <= 100
    shapes = Counter(case.sizes for case in energies if case.op == "expert_mlp")
    assert len(shapes) >= 8
    assert {case.op for case in energies} >= set(OPERATIONS)


def test_a_sweep_cut_after_a_quarter_has_seen_every_operation_and_most_shapes(ten_minutes):
    quarter = ten_minutes[: len(ten_minutes) // 4]
    assert {case.op for case in quarter} >= set(OPERATIONS) - {"ttha_adapter_forward", "ttha_update"}
    assert len({case.sizes for case in quarter if case.op == "expert_mlp"}) > 0.8 * len(MODELS)


def test_energies_come_first_so_that_a_slow_machine_leaves_out_latencies(ten_minutes):
    last = max(i for i, case in enumerate(ten_minutes) if case.energy)
    assert last < 0.6 * len(ten_minutes)
    assert {case.op for case in ten_minutes[last + 1 :]} >= {"expert_mlp", "gemm", "copy", "norm"}


def test_energies_of_experts_are_those_of_random_routing_and_most_take_long(ten_minutes):
    energies = [case for case in ten_minutes if case.energy and case.op in ("expert_mlp", "linear_fc1", "linear_fc2")]
    assert len(energies) >= 30
    for case in energies:
        expected = case.num_experts * (1 - (1 - case.top_k / case.num_experts) ** case.tokens)
        assert case.load == "random"
        assert abs(case.distinct_experts - expected) < 1.0
    read_bytes = [case.distinct_experts * case.expert_bytes for case in energies]
    assert sum(amount > 4e8 for amount in read_bytes) > len(energies) / 3  # a tenth of a millisecond of reading


def test_a_second_occasion_measures_other_cases(ten_minutes):
    rows = [row_of(case, energy_mj=1.0 if case.energy else None) for case in ten_minutes]
    again = gpu_plan(2.0, known=rows)
    seen = {case.key for case in ten_minutes}
    assert [case.key in seen for case in again if not case.energy] == [False] * sum(not c.energy for c in again)
    with_energy = {case.key for case in ten_minutes if case.energy}
    repeated = [case for case in again if case.energy and case.key in with_energy]
    assert len(repeated) <= 3  # the calibration is measured on every occasion


@pytest.mark.parametrize(("share", "wanted"), [(0.0, {False}), (1.0, {True})])
def test_latency_and_energy_can_be_had_alone(share, wanted):
    assert {case.energy for case in gpu_plan(1.0, energy_share=share)} == wanted


def test_the_design_goes_where_least_is_known():
    cases = [expert_case("gemm", "torch", (2**i, 2**j, 1, 1), 64, 1) for i in range(8, 13) for j in range(8, 13)]
    first = order(cases, count=5)
    corners = {(256, 256), (256, 4096), (4096, 256), (4096, 4096)}
    assert len({(c.hidden_size, c.inter_size) for c in first} & corners) >= 3
    known = [row_of(case) for case in cases if case.hidden_size < 4096]
    assert order(cases, known, count=1)[0].hidden_size == 4096


def test_the_design_follows_the_models_uncertainty():
    cases = [expert_case("gemm", "torch", (2**i, 1024, 1, 1), 64, 1) for i in range(8, 13)]
    assert order(cases, uncertainty=lambda c: 1.0 if c.hidden_size == 1024 else 0.01, count=1)[0].hidden_size == 1024


def test_the_design_leaves_less_variance_than_a_random_choice():
    cases = [
        expert_case("gemm", "torch", (2**i, 2**j, 1, 1), 2**m, 1)
        for i in range(8, 13)
        for j in range(8, 13)
        for m in range(0, 13, 2)
    ]

    def farthest(chosen):
        at = np.array([[np.log2(c.hidden_size) / 2, np.log2(c.inter_size) / 2, np.log2(c.tokens) / 3] for c in chosen])
        everywhere = np.array(
            [[np.log2(c.hidden_size) / 2, np.log2(c.inter_size) / 2, np.log2(c.tokens) / 3] for c in cases]
        )
        return np.sqrt(((everywhere[:, None] - at[None]) ** 2).sum(-1)).min(1).max()

    rng = np.random.default_rng(0)
    random = [farthest([cases[i] for i in rng.permutation(len(cases))[:20]]) for _ in range(20)]
    assert farthest(order(cases, count=20)) < np.quantile(random, 0.1)


def test_touched_experts_lie_between_what_a_token_needs_and_what_can_be_reached():
    for sizes in MODELS.values():
        for tokens in (1, 16, 4096):
            touched = touched_experts(sizes, tokens)
            assert min(touched) >= sizes[3]
            assert max(touched) <= min(sizes[2], tokens * sizes[3])


def complete_calls(cases):
    """Calls of Thermoe's kernel and of torch's products whose parts are all among the cases."""
    calls = find_calls(row_of(case) for case in cases)
    return [call for call in calls if not call.missing]


def test_calls_and_their_parts_are_measured_at_the_same_loads(ten_minutes):
    energies = [case for case in ten_minutes if case.energy]
    calls = complete_calls(energies)
    assert {(call.row.impl, call.row.dtype) for call in calls} >= {
        ("thermoe", "bfloat16"),
        ("thermoe", "int4"),
        ("grouped_mm", "bfloat16"),
    }
    everything = complete_calls(ten_minutes)
    assert {call.row.dtype for call in everything} >= {"bfloat16", "fp8", "int8", "int4", "int2", "bank4"}
    assert len({(c.row.hidden_size, c.row.inter_size) for c in everything}) >= 4
    assert sum(c.energy for c in ten_minutes if c.op == "expert_mlp") > 20  # the rest is spread as before


def test_a_second_occasion_takes_the_energies_of_other_calls(ten_minutes):
    rows = [row_of(case, energy_mj=1.0 if case.energy else None) for case in ten_minutes]
    first = {call.row.case_key for call in complete_calls([c for c in ten_minutes if c.energy])}
    again = gpu_plan(10.0, known=rows)
    second = {call.row.case_key for call in complete_calls([c for c in again if c.energy])}
    assert len(second) >= 3
    assert not first & second


def test_parts_alone_can_be_asked_for_beside_what_tells_the_board():
    long, product, short, *others = gpu_plan(1.0, ops=("linear_fc1",))
    assert {case.op for case in others} == {"linear_fc1"}
    assert (long.op, product.op, short.op) == ("copy", "gemm", "copy")
    assert all(case.energy for case in (long, product, short))
    assert long.routed_rows * long.hidden_size > 2**29 > 2**11 > short.routed_rows * short.hidden_size
    assert {case.op for case in gpu_plan(1.0, energy_share=0.0, ops=("linear_fc1",))} == {"linear_fc1"}


def test_a_cpu_measures_every_operation_at_shapes_of_which_some_can_be_left_out():
    plan = cpu_plan()
    assert {case.op for case in plan} == set(OPERATIONS)
    for op in set(OPERATIONS) - {"attention_decode", "ttha_adapter_forward", "ttha_update"}:
        assert len({case.sizes for case in plan if case.op == op}) >= 3, op
    calls = complete_calls(plan)
    assert len({(c.row.hidden_size, c.row.impl) for c in calls}) >= 6


def test_a_cpu_sweep_that_is_cut_short_has_seen_every_operation_at_every_shape():
    plan = cpu_plan()
    half = plan[: len(plan) // 2 + 1]
    shapes = {c.sizes for c in plan if c.op == "expert_mlp"}
    assert len(shapes) == 3
    assert {c.sizes for c in half if c.op == "expert_mlp"} == shapes
    assert {(c.op, c.impl, c.dtype) for c in half} == {(c.op, c.impl, c.dtype) for c in plan}
    for op in ("gemm", "router_topk", "linear_fc1"):
        assert len({c.sizes for c in half if c.op == op}) == 3


def test_no_case_of_a_cpu_gathers_the_weights_of_many_rows():
    gathered = [c.routed_rows * c.expert_bytes for c in cpu_plan() if c.impl == "batched_mm"]
    assert gathered
    assert max(gathered) < 50e6  # bytes that one call copies
