"""The grouped kernel's own source, run thread by thread on a CPU (grouped_on_cpu.h), against the float64 reference.

What this cannot show: that the device's copies, matrix products and memory order are as the stand-ins say. For that
there is test_cuda_grouped.py on a GPU.
"""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from mlp_cases import Case, drawn, relative_error, wanted
from on_cpu import cpu_library
from torch import Tensor

from thermoe.kernels.combine import combine
from thermoe.kernels.dispatch import dispatch_plan
from thermoe.kernels.expert_mlp import Activation, ExpertWeights, PlaneMatrices
from thermoe.kernels.expert_mlp.cuda_grouped.build import SOURCES, Build
from thermoe.kernels.expert_mlp.cuda_grouped.problem import (
    COUNTER_WORDS,
    Problem,
    fill,
    layer_refusal,
    source_columns,
    weights_of,
)

HERE = Path(__file__).parent
BF16 = torch.bfloat16
TOLERANCE = 5e-3  # one rounding of h and one of the output
NARROW = Build(tokens=32)
CODES = Build(tokens=32, planes=2, lead=1)
ALONE = Build(tokens=32, pair=False, ahead=3)  # blocks that share nothing, weights asked for ahead
ALL = 1000  # a lag beyond every expert: all first products come first

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the stand-in with"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="session")
def kernel_of(tmp_path_factory):
    """Builds the kernel for a cut of the work, once a session."""
    built: dict[Build, ctypes.CDLL] = {}

    def kernel(build: Build) -> ctypes.CDLL:
        if build not in built:
            library = tmp_path_factory.mktemp("grouped_on_cpu") / "kernel.so"
            macros = build.source().split("#include")[0]
            source = f'#define THERMOE_MACHINE "grouped_on_cpu.h"\n{macros}#include "grouped_on_cpu.cpp"\n'
            built[build] = cpu_library(source, library, SOURCES, HERE)
        return built[build]

    return kernel


def quantized(x_RC: Tensor) -> tuple[Tensor, Tensor]:
    scale_R = x_RC.float().abs().amax(1) / 448
    return (x_RC.float() / scale_R[:, None]).nan_to_num().to(torch.float8_e4m3fn), scale_R


def describe(matrix: Tensor, tensor_map: ctypes.Array) -> None:
    row_bytes = matrix.shape[-1] * matrix.element_size()
    for word, value in enumerate((matrix.data_ptr(), row_bytes, matrix.numel() // matrix.shape[-1])):
        tensor_map[word] = value


def in_code_order(x_TC: Tensor) -> Tensor:
    """Of codes.cuh: positions are slot & 1, slot / 2, word, odd, q, second; columns slot, q, word, second, odd."""
    position = torch.arange(128)
    bit = [position >> i & 1 for i in range(7)]
    second, q, odd, word, slot_high, slot_low = bit[0], position >> 1 & 3, bit[3], bit[4], bit[5], bit[6]
    column = 32 * (2 * slot_high + slot_low) + 8 * q + 4 * word + 2 * second + odd
    chunks_TG128 = torch.nn.functional.pad(x_TC, (0, -x_TC.shape[1] % 128)).unflatten(1, (-1, 128))
    return chunks_TG128[..., column].flatten(1).contiguous()


class Layer:
    """A case with poisoned memory between and behind its products."""

    def __init__(self, kernel_of, case: Case, build: Build = NARROW) -> None:
        self.kernel, self.eight, self.team = kernel_of(build), build.eight, 1 + build.pair
        self.x_TD, self.ids_TK, self.weights_TK, self.experts = drawn(case)
        self.want_TD = wanted(self.x_TD, self.ids_TK, self.weights_TK, self.experts)
        assert layer_refusal(self.experts, self.ids_TK.numel()) is None
        self.plan = dispatch_plan(self.ids_TK, self.weights_TK, case.experts)
        self.planes = bool(build.planes)
        self.hidden_NI = torch.empty(self.ids_TK.numel(), source_columns(self.experts)[1], dtype=BF16)
        self.y_ND = torch.empty(self.ids_TK.numel(), case.d_model, dtype=BF16)
        self.counters = torch.zeros(COUNTER_WORDS, dtype=torch.int32)
        self.problem = fill(self.experts, self.plan, case.top_k, self.hidden_NI, self.y_ND)
        self.problem.counters = self.counters.data_ptr()
        for m, matrices in enumerate((self.experts.fc1, self.experts.fc2)):
            if not build.planes:
                describe(weights_of(matrices), self.problem.map[m])
                continue
            for part, plane in enumerate(matrices.planes):
                describe(plane, self.problem.plane[m][part])

    def run(self, *, teams: int = 2, seed: int = 0, uneven: bool = False, lag: int | None = ALL) -> Tensor:
        """(T, D) with both products in one launch, or in two where `lag` is None."""
        self.hidden_NI.fill_(float("nan")), self.y_ND.fill_(float("nan"))
        machine = (teams * self.team, ctypes.c_uint32(seed), int(uneven))
        if lag is None or self.eight:
            self._launch(self.x_TD, self.x_TD, 1, 0, machine)
            self._launch(self.hidden_NI, self.hidden_NI, 2, 0, machine)
        else:
            self._launch(self.x_TD, self.hidden_NI, 3, min(lag, self.experts.num_experts), machine)
        kept = int(self.plan.offsets_E1[-1])
        assert self.hidden_NI[kept:].isnan().all()
        assert self.y_ND[self.plan.slot_N[kept:].long()].isnan().all()
        return combine(self.y_ND, self.weights_TK, self.ids_TK, self.experts.num_experts)

    def _launch(self, first: Tensor, second: Tensor, parts: int, lag: int, machine: tuple) -> None:
        self.problem.parts, self.problem.lag = parts, lag
        read = []
        for m, source in enumerate((first, second)):
            code, scale = quantized(source) if self.eight else (source, torch.empty(0))
            if self.planes and m == 0:
                code = in_code_order(source)
            self.problem.source_scale[m] = scale.data_ptr()
            if m == 0:
                self.problem.tokens = code.data_ptr()
            else:
                describe(code, self.problem.hidden_map)
            read += [code, scale]
        ended = self.kernel.run_on_cpu(ctypes.byref(self.problem), *machine) == 0
        assert ended, "a deadlock, or a barrier or an address misused: see stderr"
        assert not self.counters.any()
        assert read


def case(**changes) -> Case:
    return Case(**{"dtype": BF16, "tokens": 40, "top_k": 2, "experts": 5, "d_model": 256, "inter_size": 128} | changes)


CASES = {
    "dropped slots": (case(routing="dropped", biases=True), {}),
    "all tokens to one expert": (case(routing="one"), {}),
    "widths that fill no tile": (case(d_model=288, inter_size=200, biases=True), {}),
    "several blocks of rows": (case(tokens=20, d_model=544, inter_size=264), {"teams": 3}),
    "two launches": (case(), {"lag": None}),
    "each second product after its first": (case(), {"lag": 0, "teams": 3}),
    "second products three experts later": (case(), {"lag": 3, "teams": 3}),
    "more blocks than tiles": (case(tokens=2, top_k=1, experts=2), {"teams": 3}),
    "more experts than lanes": (case(tokens=30, experts=70, d_model=32, inter_size=16), {}),
}


@pytest.mark.parametrize(("shape", "options"), CASES.values(), ids=CASES.keys())
def test_the_source_gives_the_reference(kernel_of, shape, options):
    layer = Layer(kernel_of, shape)

    got = layer.run(**options)

    assert relative_error(got, layer.want_TD) < TOLERANCE
    assert relative_error(torch.zeros_like(got), layer.want_TD) > 0.5


BUILDS = {
    "clamped": (case(activation=Activation.SWIGLU_CLAMPED, biases=True), Build(tokens=32, activation=2)),
    "geglu, two stages, no lead": (
        case(activation=Activation.GEGLU),
        Build(tokens=16, activation=1, stages=2, lead=0),
    ),
    "widest tiles": (case(tokens=300, top_k=1, experts=2, d_model=128, inter_size=64), Build()),
}


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "build"), BUILDS.values(), ids=BUILDS.keys())
def test_every_build_gives_the_reference(kernel_of, shape, build):
    layer = Layer(kernel_of, shape, build)

    assert relative_error(layer.run(), layer.want_TD) < TOLERANCE


def test_e4m3_tokens_meet_e4m3_weights(kernel_of):
    layer = Layer(kernel_of, case(format="fp8-channel", biases=True, inter_size=144), Build(tokens=32, eight=True))

    assert relative_error(layer.run(), layer.want_TD) < 6e-2  # 3 bits of mantissa, twice


CODED = {
    "whole tiles": {"biases": True},
    "widths that fill no tile": {"d_model": 288, "inter_size": 200, "routing": "dropped"},
    "part of a chunk": {"d_model": 64, "inter_size": 48},
    "many chunks, one warpgroup ahead": {"d_model": 1056, "tokens": 9, "experts": 2},
}


@pytest.mark.parametrize("changes", CODED.values(), ids=CODED.keys())
def test_codes_of_four_bits_are_widened(kernel_of, changes):
    layer = Layer(kernel_of, case(format="int4", group_size=128, **changes), CODES)
    got = layer.run()

    assert relative_error(got, layer.want_TD) < TOLERANCE
    assert all(torch.equal(got, layer.run(teams=3, lag=1, seed=seed, uneven=True)) for seed in range(2))


FORMATS = {
    "int2": Build(tokens=32, planes=1, lead=1, pair=False),
    "int8": Build(tokens=32, planes=3, lead=1, stages=3),
    "bank8": Build(tokens=32, planes=3, lead=1, stages=3, nested=True),
    "bank4": Build(tokens=32, planes=2, lead=1, nested=True, pair=False, ahead=1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "bank8" else pytest.mark.slow) for name in FORMATS]
)
def test_codes_of_every_precision(kernel_of, name):
    layer = Layer(kernel_of, case(format=name, group_size=128, inter_size=136, biases=True), FORMATS[name])

    assert relative_error(layer.run(), layer.want_TD) < TOLERANCE


def test_scales_of_zero_give_nothing_and_great_steps_of_scale_lose_nothing(kernel_of):
    layer = Layer(kernel_of, case(format="int4", group_size=128, d_model=512), CODES)
    scale_EGN = layer.experts.fc1.scale_PEGN[0]
    scale_EGN[:, 1:3, ::3] = 0.0
    scale_EGN[:, 0, 1::3] = 2.0**-24
    scale_EGN[:, :, 2::3] *= -1
    layer.want_TD = wanted(layer.x_TD, layer.ids_TK, layer.weights_TK, layer.experts)

    assert relative_error(layer.run(), layer.want_TD) < TOLERANCE


UNEVEN = {
    "many steps, one warpgroup ahead": (case(tokens=20, d_model=576, inter_size=520, routing="dropped"), 2, 1),
    "a tile of few steps": (case(d_model=64, inter_size=48), 3, 2),
    "all firsts first": (case(tokens=70, top_k=1, d_model=64, inter_size=48), 2, ALL),
}


@pytest.mark.parametrize(("shape", "teams", "lag"), UNEVEN.values(), ids=UNEVEN.keys())
@pytest.mark.parametrize("build", [NARROW, ALONE], ids=["pairs", "alone"])
def test_warps_far_apart_and_copies_long_under_way_change_nothing(kernel_of, shape, teams, lag, build):
    layer = Layer(kernel_of, shape, build)
    even = layer.run(teams=teams, lag=lag)

    results = [layer.run(teams=teams, lag=lag, seed=seed, uneven=True) for seed in range(2)]

    assert relative_error(even, layer.want_TD) < TOLERANCE
    assert all(torch.equal(even, result) for result in results)


def test_numbers_that_32_bits_do_not_hold_are_refused():
    def matrices(rows: int, columns: int) -> PlaneMatrices:
        chunks = -(-columns // 128)
        planes = torch.empty(512, chunks, rows, 32, dtype=torch.uint8, device="meta")
        scale_PEGN = torch.empty(1, 512, chunks, rows, dtype=torch.float16, device="meta")
        return PlaneMatrices(planes=(planes,), scale_PEGN=scale_PEGN, zero_PEGN=None, columns=columns, group_size=128)

    def layer(D: int, I: int) -> ExpertWeights:  # noqa: E741
        return ExpertWeights(fc1=matrices(2 * I, D), fc2=matrices(D, I))

    assert layer_refusal(layer(16384, 2**14 - 8), 512) is None
    assert "rows of pieces" in layer_refusal(layer(16384, 2**14), 512)
    assert layer_refusal(layer(32, 8), 2**27 - 1) is None
    assert "slots of widths" in layer_refusal(layer(32, 8), 2**27)


def test_slots_that_are_all_dropped_leave_everything_as_it_was(kernel_of):
    shape = case(tokens=3)
    layer = Layer(kernel_of, shape)
    layer.weights_TK.zero_()
    layer.plan = dispatch_plan(layer.ids_TK, layer.weights_TK, shape.experts)
    layer.problem.offsets = layer.plan.offsets_E1.data_ptr()

    assert torch.equal(layer.run(), torch.zeros(3, shape.d_model, dtype=BF16))


def test_problem_is_as_large_as_the_kernel_thinks(kernel_of):
    assert kernel_of(NARROW).problem_bytes() == ctypes.sizeof(Problem)
