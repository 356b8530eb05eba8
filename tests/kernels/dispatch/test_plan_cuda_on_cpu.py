"""The CUDA kernel's own source, thread by thread on a CPU, against the plan in plain Python.

What this cannot show: that the device's memory order and collectives are as the stand-ins say. For that there is
test_plan_gpu.py.
"""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import CASES, drawn, restated
from plan_emulator import PlanEmulator

from thermoe.kernels.dispatch import dispatch_plan_reference
from thermoe.kernels.dispatch.cuda import Layout, layout_for

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the stand-in with"),
    pytest.mark.timeout(300),
]
ALONE = Layout(4, 1, 1)
ALONE_STEPS = Layout(2, 1, 3)
GRID = Layout(2, 5, 1)
STEPS = Layout(2, 3, 4)
MANY_BLOCKS = Layout(1, 35, 1)  # more blocks than lanes
LAYOUTS = {"alone": ALONE, "alone in steps": ALONE_STEPS, "grid": GRID, "steps": STEPS}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    return PlanEmulator(tmp_path_factory.mktemp("plan_on_cpu"))


def check(emulator, layout, ids_TK, weights_TK, num_experts, seed=1):
    slot_N, offsets_E1 = emulator.run(layout, ids_TK, weights_TK, num_experts, seed)
    slots, offsets = restated(ids_TK, weights_TK, num_experts)
    assert offsets_E1.tolist() == offsets
    assert slot_N.tolist() == slots


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_plan(emulator, layout, case):
    ids_TK, weights_TK, num_experts = drawn(**case)
    kept = layout.capacity // ids_TK.shape[1]
    check(emulator, layout, ids_TK[:kept], weights_TK[:kept], num_experts)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_full_last_partly_filled_and_idle_blocks(emulator, layout):
    for count in (0, 1, 31, 32, 33, layout.capacity // 2 + 1, layout.capacity - 1, layout.capacity):
        check(emulator, layout, *drawn(tokens=count, top_k=1, experts=60, seed=count), seed=count)


@pytest.mark.parametrize("experts", [31, 32, 33, 128, 512])
def test_numbers_of_experts(emulator, experts):
    check(emulator, GRID, *drawn(tokens=100, top_k=3, experts=experts, seed=experts))


def test_more_blocks_than_a_warp_has_lanes(emulator):
    check(emulator, MANY_BLOCKS, *drawn(tokens=279, top_k=4, experts=60, seed=5))


def test_one_expert_takes_more_slots_than_a_short_count_holds(emulator):
    """Nearly all go to the second of two experts whose counts share a word; all blocks need more than half."""
    layout = Layout(4, 9, 64)
    ids_TK = torch.full((layout.capacity // 8, 8), 31)
    assert ids_TK.numel() > 65536
    ids_TK[7, 3], ids_TK[-1, -1] = 30, 99
    check(emulator, layout, ids_TK, torch.ones(ids_TK.shape), 32)


@pytest.mark.parametrize("layout", [GRID, STEPS], ids=["grid", "steps"])
def test_launches_in_a_row_on_one_workspace_in_any_order_of_the_blocks(emulator, layout):
    for seed in range(9):  # marks come round every fourth launch
        check(emulator, layout, *drawn(tokens=15 + 3 * seed, top_k=4, experts=60, seed=seed), seed=seed)


def test_ids_far_out_of_range_and_weights_next_to_zero(emulator):
    """An id counts with all its bits, a weight with all but its sign."""
    ids_TK = torch.tensor([[2**40, 2**32 + 1, -1, 3], [-(2**63), 2**63 - 1, 1, 2], [3, 3, 3, 3]])
    weights_TK = torch.tensor([[1.0] * 4, [1.0] * 4, [-0.0, 1e-45, float("nan"), 0.0]])
    for narrower in (torch.float32, torch.float64):
        check(emulator, GRID, ids_TK, weights_TK.to(narrower), 4)
    tiny_TK = torch.tensor([[6e-8, -6e-8, 0.0, -0.0]] * 3)
    check(emulator, GRID, (ids_TK % 4).int(), tiny_TK.half(), 4)


@st.composite
def slots(draw):
    """Ids in and out of range, often the same, weights with zeros of both signs, and a seed of the schedule."""
    count, seed = draw(st.integers(0, GRID.capacity)), draw(st.integers(0, 2**31))
    few = draw(st.lists(st.integers(-2, 33), min_size=1, max_size=6))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(few)[torch.randint(len(few), (count, 1), generator=generator)]
    weight = draw(st.lists(st.sampled_from([0.0, -0.0, 0.5, float("nan")]), min_size=1, max_size=4))
    return ids, torch.tensor(weight)[torch.randint(len(weight), (count, 1), generator=generator)], seed


@settings(max_examples=25, deadline=None)
@given(slots())
def test_any_slots_give_the_plan_of_the_reference(emulator, given_slots):
    ids_TK, weights_TK, seed = given_slots
    slot_N, offsets_E1 = emulator.run(GRID, ids_TK, weights_TK, 32, seed)
    want = dispatch_plan_reference(ids_TK, weights_TK, 32)
    assert torch.equal(slot_N, want.slot_N)
    assert torch.equal(offsets_E1, want.offsets_E1)


@pytest.mark.parametrize("processors", [132, 108, 20])
def test_layouts_hold_all_slots_in_blocks_that_are_all_resident(processors):
    for num_slots in [*range(3000), 4096, 4097, 32768, 32769, 65536, 65537, 131072]:
        layout = layout_for(num_slots, processors)
        assert layout is not None
        assert layout.capacity >= num_slots
        assert layout.blocks <= processors
    assert layout_for(1 << 20, 132) is not None
    assert layout_for((1 << 20) + 1, 132) is None
