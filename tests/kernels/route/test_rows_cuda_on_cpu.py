"""The CUDA source of logits and routing in one launch, thread by thread on a CPU, against the reference.

What this cannot show: that the matrix unit and the order of memory are as the stand-ins say. For that there is
test_rows_gpu.py.
"""

import shutil

import pytest
import torch
from fused_cases import MIXED, POLICIES, SCORINGS, Case, compare, drawn, flags_of, layer_knobs
from rows_cases import router_for
from rows_emulator import RowsEmulator

from thermoe.kernels.route import Scoring
from thermoe.kernels.route.cuda import Layout
from thermoe.kernels.route.cuda.rows import fits
from thermoe.kernels.route.fused import _by_reference

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the stand-in with"),
    pytest.mark.timeout(300),
]
WHOLE, SMALL = Layout(8, 8, 1, cluster=True), Layout(4, 2, 1, cluster=True)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    return RowsEmulator(tmp_path_factory.mktemp("rows_on_cpu"))


def check(emulator, layout, case, width, *, biased=True, seed=0):
    x_TD, weight_ED, bias_E = router_for(case, width, seed)
    if not biased:
        x_TD[:, weight_ED.amin(0) < 0] = 0.0
        bias_E = None
    logits_TE, live_T, scoring = drawn(case, seed)
    sums = torch.full((2 * case.experts + 4,), 3.0, dtype=torch.float64) if case.counted else None
    got_TE, out = emulator.run(
        layout, (x_TD, weight_ED, bias_E), layer_knobs(case).row, scoring.correction_E, live_T, sums, case.top_k,
        flags_of(case, scoring), case.scale, seed=seed + 1,
    )  # fmt: skip
    assert torch.equal(got_TE, logits_TE)
    compare(out, sums, case, seed)


@pytest.mark.parametrize("policy", ["neutral", "everything", "most valuable"])  # each layout routes as the others
def test_policies(emulator, policy):
    check(emulator, SMALL, Case(tokens=7, **POLICIES[policy]), 256)


@pytest.mark.parametrize("scoring", ["corrected"])
def test_scorings(emulator, scoring):
    check(emulator, SMALL, Case(tokens=5, knobs={"protected_k0": 2.0}, **SCORINGS[scoring]), 256)


@pytest.mark.parametrize(
    ("layout", "tokens", "experts", "top_k"),
    [(WHOLE, 16, 128, 8), (SMALL, 7, 64, 4), (SMALL, 1, 128, 8), (SMALL, 8, 32, 2)],
)
def test_sizes(emulator, layout, tokens, experts, top_k):
    case = Case(tokens=tokens, experts=experts, top_k=top_k, knobs=MIXED, live=0.7)
    check(emulator, layout, case, 512, biased=tokens != 8, seed=tokens)


def test_logits_of_any_numbers_and_the_routing_of_exactly_these(emulator):
    generator = torch.Generator().manual_seed(5)
    x_TD, weight_ED = (torch.randn(n, 512, generator=generator).to(torch.bfloat16) for n in (7, 128))
    weight_ED /= 16.0
    case = Case(tokens=7, knobs=MIXED)
    flags, knobs = flags_of(case, Scoring()), layer_knobs(case)
    given = (x_TD, weight_ED, None), knobs.row, None, None, None, 8, flags, 1.0
    logits_TE, out = emulator.run(SMALL, *given)
    torch.testing.assert_close(logits_TE.double(), x_TD.double() @ weight_ED.double().T, rtol=2**-8, atol=1e-4)
    want = _by_reference(logits_TE, knobs, 8, Scoring(), 1, None, True, 1.0, None)
    assert torch.equal(out[0], want.routing.ids_TK)
    assert torch.equal(out[5], want.plan.slot_N)
    again_TE, others = emulator.run(SMALL, *given, seed=2)
    assert torch.equal(again_TE, logits_TE)
    assert all(torch.equal(one, other) for one, other in zip(out[:7], others[:7], strict=True))


def test_what_fits_the_registers():
    assert [fits(experts, 2048) for experts in (128, 64, 32, 96, 256)] == [True, True, True, False, False]
    assert [fits(128, width) for width in (512, 1536, 2000, 4096)] == [True, True, False, False]
    assert fits(64, 4096)
