"""The CUDA kernels' own sources, thread by thread on a CPU, against the reference.

What this cannot show: that the device's barriers, memory order and exponentials are as the stand-ins say. For that
there is test_route_gpu.py.
"""

import shutil
from functools import partial

import pytest
import torch
from cuda_emulator import Emulator
from fused_cases import MIXED, POLICIES, SCORINGS, Case, check, drawn, flags_of, layer_knobs

from thermoe.kernels.route.cuda import Layout, layout_for

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the stand-in with"),
    pytest.mark.timeout(300),
]
CLUSTER = Layout(4, 4, 1, cluster=True)
ALONE = Layout(4, 1, 1, cluster=True)
GRID = Layout(4, 5, 1, cluster=False)
STEPS = Layout(4, 3, 2, cluster=False)
LAYOUTS = {"cluster": (CLUSTER, 14), "grid": (GRID, 19), "steps": (STEPS, 22)}


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("route_on_cpu"))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_policies(emulator, layout, policy):
    spread, tokens = LAYOUTS[layout]
    check(partial(emulator.run, spread), Case(tokens=tokens, **POLICIES[policy]))


@pytest.mark.parametrize("scoring", SCORINGS)
def test_scorings(emulator, scoring):
    case = Case(tokens=9, dtype=torch.float32, knobs={"protected_k0": 2.0}, **SCORINGS[scoring])
    check(partial(emulator.run, CLUSTER), case)


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_one_block_without_a_cluster(emulator, tokens):
    check(partial(emulator.run, ALONE), Case(tokens=tokens, knobs=MIXED))


@pytest.mark.parametrize("tokens", [1, 5, 15, 16])
def test_blocks_that_are_partly_or_wholly_idle(emulator, tokens):
    check(partial(emulator.run, CLUSTER), Case(tokens=tokens, knobs=MIXED, live=0.7))


SIZES = [("cluster", 60, 4, 0), ("grid", 17, 1, 3), ("steps", 200, 9, 0)]
MORE_SIZES = [
    ("cluster", 17, 1, 3),
    ("cluster", 200, 9, 0),
    ("grid", 60, 4, 0),
    ("grid", 200, 16, 0),
    ("steps", 60, 4, 3),
]


@pytest.mark.parametrize(
    ("layout", "experts", "top_k", "stride"), [*SIZES, *(pytest.param(*s, marks=pytest.mark.slow) for s in MORE_SIZES)]
)
def test_awkward_sizes(emulator, layout, experts, top_k, stride):
    spread, tokens = LAYOUTS[layout]
    case = Case(tokens=tokens, experts=experts, top_k=top_k, stride=stride, dtype=torch.float16, knobs=MIXED, live=0.7)
    check(partial(emulator.run, spread), case)


@pytest.mark.parametrize("layout", ["cluster", "grid"])
def test_launches_in_a_row_on_one_workspace_in_any_order_of_the_blocks(emulator, layout):
    spread, tokens = LAYOUTS[layout]
    for seed in range(4):
        check(partial(emulator.run, spread, seed=seed), Case(tokens=tokens, knobs=MIXED, live=0.7), seed)
        check(partial(emulator.run, spread, seed=seed), Case(tokens=tokens, union=False), seed)


@pytest.mark.parametrize("layout", ["cluster", "grid"])
def test_poisoned_logits_stay_with_their_token(emulator, layout):
    spread, tokens = LAYOUTS[layout]
    case = Case(tokens=tokens, knobs={"protected_k0": 2.0, "price": 0.2})
    logits_TE, _, scoring = drawn(case)
    poisoned = [2, 5, 9]
    for row, where, value in zip(poisoned, (slice(None), 7, slice(None)), ("nan", "inf", "-inf"), strict=True):
        logits_TE[row, where] = float(value)
    sums = torch.zeros(2 * case.experts + 4, dtype=torch.float64)
    out = emulator.run(spread, logits_TE, layer_knobs(case).row, None, None, sums, 8, 1, flags_of(case, scoring), 1.0)
    clean = [row for row in range(tokens) if row not in poisoned]
    live_T = torch.zeros(tokens, dtype=torch.bool)
    live_T[clean] = True
    apart = emulator.run(
        spread, drawn(case)[0], layer_knobs(case).row, None, live_T, None, 8, 1, flags_of(case, scoring), 1.0
    )
    assert out[0].min() >= 0
    assert out[0].max() < case.experts
    assert out[1][poisoned, 0].isnan().all()
    assert out[2][poisoned].sum() == len(poisoned)
    assert torch.equal(out[4], apart[4])  # a token without a usable gate asks for nothing
    first = int(out[4][0].nonzero()[0])
    assert first < 8  # among what such a token would choose by itself
    assert (out[0][poisoned, 0] == first).all()
    for which in range(4):
        assert torch.equal(out[which][clean], apart[which][clean])
    assert out[5].sort().values.tolist() == list(range(8 * tokens))
    assert sums.isfinite().all()


def test_some_logits_of_minus_infinity_rank_last_and_weigh_nothing(emulator):
    case = Case(tokens=6, dtype=torch.float32, union=False)
    logits_TE, _, scoring = drawn(case)
    logits_TE[:, 5:] = float("-inf")
    out = emulator.run(CLUSTER, logits_TE, layer_knobs(case).row, None, None, None, 8, 1, flags_of(case, scoring), 1.0)
    assert torch.equal(out[0][:, :5], logits_TE[:, :5].sort(descending=True).indices)
    torch.testing.assert_close(out[1][:, :5], logits_TE[:, :5].softmax(-1).sort(descending=True).values)
    assert (out[1][:, 5:] == 0).all()
    assert out[6][-1] == 6 * 5  # a slot without a weight is dropped from the plan


@pytest.mark.parametrize("experts", [128, 256])
def test_layouts_hold_every_token_and_no_idle_block(experts):
    for tokens in [*range(1, 300), 1056, 1057, 2112, 4096, 4224, 4225, 20000, 33000]:
        layout = layout_for(tokens, experts, 132)
        assert layout is not None
        held = layout.warps * layout.blocks * layout.steps
        assert held >= tokens
        assert layout.cluster or held - tokens < layout.warps * layout.steps
        assert layout.blocks <= (8 if layout.cluster else 132)
    assert layout_for(70000, experts, 132) is None
