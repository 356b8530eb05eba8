"""The decode kernel's own source, run thread by thread on a CPU (cuda_on_cpu.h), against the float64 reference.

What this cannot show: that the device's copies, matrix products and memory order are as the stand-ins say. For that
there is test_cuda_decode.py on a GPU.
"""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from mlp_cases import Case, drawn, relative_error, wanted
from on_cpu import cpu_library
from torch import Tensor

from thermoe.kernels.expert_mlp import Activation, ExpertWeights
from thermoe.kernels.expert_mlp.cuda.boxes import Boxes, described
from thermoe.kernels.expert_mlp.cuda.build import SOURCES
from thermoe.kernels.expert_mlp.cuda.geometry import Geometry, geometry
from thermoe.kernels.expert_mlp.cuda.problem import COUNTER_WORDS, SCALE_MAP, ZERO_MAP, Problem, fill

HERE = Path(__file__).parent
BF16 = torch.bfloat16
TOLERANCE = 5e-3  # one rounding of h and one of the output

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the stand-in with"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="session")
def kernel_of(tmp_path_factory):
    """Builds the kernel for a format and a number of warps, once a session."""
    built: dict[tuple[str, int], ctypes.CDLL] = {}

    def kernel(format_name: str, warps: int) -> ctypes.CDLL:
        if (format_name, warps) not in built:
            library = tmp_path_factory.mktemp("cuda_on_cpu") / "kernel.so"
            source = (
                f'#define THERMOE_MACHINE "cuda_on_cpu.h"\n#define THERMOE_WARPS {warps}\n'
                f'#define THERMOE_FORMAT {format_name}\n#include "cuda_on_cpu.cpp"\n'
            )
            built[format_name, warps] = cpu_library(source, library, SOURCES, HERE)
        return built[format_name, warps]

    return kernel


def describe(tensor: Tensor, boxes: Boxes, tensor_map: ctypes.Array) -> None:
    """As copy_tile and copy_rows of cuda_on_cpu.h read it."""
    sizes, box, unit = boxes.sizes, boxes.box, boxes.element_bytes
    words = (tensor.data_ptr(), *sizes, box[0])
    if not boxes.swizzled:
        words = (tensor.data_ptr(), sizes[0] * unit, unit, sizes[1], sizes[3], box[0] * unit, sizes[2], box[2])
    for word, value in enumerate(words):
        tensor_map[word] = value


class Launch:
    """A kernel with its poisoned output and workspace, ready to run any number of times."""

    def __init__(
        self,
        kernel: ctypes.CDLL,
        cut: Geometry,
        x_TD: Tensor,
        ids_TK: Tensor,
        weights_TK: Tensor,
        experts: ExpertWeights,
    ) -> None:
        slots = ids_TK.numel()
        self.kernel = kernel
        self.out_TD = torch.empty_like(x_TD)
        self.hidden_NI = torch.empty(slots, experts.inter_size, dtype=BF16)
        self.product_SND = torch.empty(cut.splits, slots, experts.d_model)
        self.counters = torch.zeros(COUNTER_WORDS, dtype=torch.int32)
        self.inputs = (x_TD, ids_TK, weights_TK, experts)  # keeps what the pointers point to
        self.problem = fill(cut, experts, x_TD, ids_TK, weights_TK, self.out_TD)
        self.problem.hidden, self.problem.product = self.hidden_NI.data_ptr(), self.product_SND.data_ptr()
        self.problem.counters = self.counters.data_ptr()
        self.problem.ring = 2 + x_TD.shape[0] % 3
        for m, matrices in enumerate((experts.fc1, experts.fc2)):
            maps = described(matrices, m)
            for plane, weights in enumerate(maps.weights):
                describe(*weights, self.problem.map[m][plane])
            for values, place in ((maps.scale, SCALE_MAP), (maps.zero, ZERO_MAP)):
                if values is not None:
                    describe(*values, self.problem.map[m][place])

    def run(self, *, blocks: int, seed: int, uneven: bool = False) -> Tensor:
        for tensor in (self.out_TD, self.hidden_NI, self.product_SND):
            tensor.fill_(float("nan"))
        ended = self.kernel.run_on_cpu(ctypes.byref(self.problem), blocks, ctypes.c_uint32(seed), int(uneven)) == 0
        assert ended, "a deadlock, or a barrier or an address misused: see stderr"
        return self.out_TD.clone()


def launch_of(kernel_of, case: Case, *, warps: int = 8, seed: int = 0) -> tuple[Launch, Tensor]:
    x_TD, ids_TK, weights_TK, experts = drawn(case, seed)
    cut = geometry(experts, warps)
    assert isinstance(cut, Geometry), cut
    launch = Launch(kernel_of(cut.format, warps), cut, x_TD, ids_TK, weights_TK, experts)
    return launch, wanted(x_TD, ids_TK, weights_TK, experts)


def case(**changes) -> Case:
    return Case(**{"dtype": BF16, "tokens": 5, "top_k": 2, "experts": 5, "d_model": 256, "inter_size": 128} | changes)


CASES = {
    "one token": (case(tokens=1, top_k=4), 3),
    "one token, one expert four times": (case(tokens=1, top_k=4, routing="one"), 2),
    "widths that fill no job": (case(tokens=4, d_model=288, inter_size=80, biases=True), 2),
    "clamped": (case(activation=Activation.SWIGLU_CLAMPED, biases=True), 2),
    "geglu": (case(activation=Activation.GEGLU), 1),
    "two tiles of tokens": (case(tokens=12, top_k=1, experts=1), 2),
    "more tokens than a segment holds": (case(tokens=20, experts=3, routing="one"), 2),
    "dropped slots": (case(tokens=21, experts=6, routing="dropped"), 5),
    "split columns": (case(tokens=2, top_k=1, experts=2, d_model=64, inter_size=2304, biases=True), 3),
    "few slots, more of an expert than a segment holds": (
        case(tokens=12, top_k=1, experts=3, d_model=6144, inter_size=16, routing="one"),
        2,
    ),
    "two waves, planned by a warp": (
        case(format="int4", tokens=3, top_k=4, experts=20, inter_size=256, routing="random"),
        3,
    ),
    "two waves, planned by a block": (
        case(format="int4", tokens=9, top_k=4, experts=200, inter_size=256, routing="random"),
        3,
    ),
    "512 slots of one expert": (case(tokens=64, top_k=8, experts=9, d_model=32, inter_size=16, routing="one"), 3),
    "512 experts and a token": (case(tokens=1, top_k=8, experts=512, d_model=32, inter_size=16), 7),
    "three splits": (case(tokens=3, top_k=1, experts=2, d_model=64, inter_size=4224, format="int4"), 2),
    "an odd number of scales a row": (case(format="int4", d_model=384, inter_size=128, group_size=128), 2),
    "more tokens of an expert than tiles of codes take": (
        case(format="bank8", tokens=37, top_k=1, experts=2, d_model=256, inter_size=64, group_size=64, routing="one"),
        2,
    ),
    "bank of 2, 4 and 8 bits": (case(format="bank8", tokens=7, d_model=512, inter_size=256, group_size=64), 3),
    "bank, columns that fill no job": (
        case(format="bank8", d_model=384, inter_size=128, group_size=64, routing="dropped"),
        2,
    ),
    "e4m3 in blocks": (case(format="fp8-block", tokens=9, d_model=288, inter_size=208), 2),
}


@pytest.mark.parametrize(("shape", "blocks"), CASES.values(), ids=CASES.keys())
def test_the_source_gives_the_reference(kernel_of, shape, blocks):
    launch, want = launch_of(kernel_of, shape)

    got = launch.run(blocks=blocks, seed=1)

    assert relative_error(got, want) < TOLERANCE
    assert relative_error(torch.zeros_like(got), want) > 0.5


MORE = {
    "e4m3 by row": case(format="fp8-channel", d_model=512, inter_size=256),
    "int2": case(format="int2", d_model=512, inter_size=256, group_size=64),
    "int4 in groups of 128": case(format="int4", d_model=512, inter_size=256, group_size=128),
    "int4 in groups of 32": case(format="int4", d_model=512, inter_size=256, group_size=32),
    "int8": case(format="int8", d_model=512, inter_size=256, group_size=128),
    "zeros": case(format="int4-zeros", d_model=512, inter_size=256, group_size=64),
    "zeros at 8 bits": case(format="bank8-zeros", d_model=512, inter_size=256, group_size=64),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", MORE.values(), ids=MORE.keys())
def test_every_format_gives_the_reference(kernel_of, shape):
    launch, want = launch_of(kernel_of, shape)

    assert relative_error(launch.run(blocks=3, seed=1), want) < TOLERANCE


@pytest.mark.slow
def test_more_warps_than_a_unit_has_jobs(kernel_of):
    launch, want = launch_of(kernel_of, case(d_model=1984, inter_size=32, tokens=3), warps=12)

    assert relative_error(launch.run(blocks=2, seed=1), want) < TOLERANCE


@pytest.mark.slow
def test_a_second_block_of_activations_leaves_each_of_twelve_warps_a_slot(kernel_of):
    shape = case(format="bank8-zeros", tokens=13, top_k=1, experts=1, d_model=1280, inter_size=16, group_size=32)
    launch, want = launch_of(kernel_of, shape, warps=12)

    assert relative_error(launch.run(blocks=1, seed=1), want) < TOLERANCE


@pytest.mark.parametrize("tokens", [4, 20], ids=["planned by a warp", "planned by a block"])
def test_precisions_that_a_bank_does_not_have_read_the_one_below(kernel_of, tokens):
    launch, _ = launch_of(kernel_of, case(format="bank8", tokens=tokens, experts=8, group_size=64))
    x_TD, ids_TK, weights_TK, experts = launch.inputs
    ids_TK.copy_(torch.arange(ids_TK.numel()).view_as(ids_TK) % 8)
    experts.bits_E.copy_(torch.tensor([3, 5, -1, 16, 65538, 100_000, -65_532, 0]))

    assert relative_error(launch.run(blocks=2, seed=1), wanted(x_TD, ids_TK, weights_TK, experts)) < TOLERANCE


def test_launches_leave_the_counters_ready_and_repeat_bit_for_bit(kernel_of):
    launch, want = launch_of(kernel_of, case(tokens=9, biases=True))

    results = [launch.run(blocks=3, seed=seed) for seed in range(4)]

    assert relative_error(results[0], want) < TOLERANCE
    assert all(torch.equal(results[0], other) for other in results[1:])


UNEVEN = {  # jobs of a unit, tokens of an expert
    "a ring that warps would share": (case(tokens=2, top_k=1, experts=2, d_model=2048, inter_size=96), 1, 8),
    "six jobs, a token": (case(tokens=2, top_k=1, experts=2, d_model=768, inter_size=192), 1, 8),
    "seven jobs, three tiles of tokens": (case(tokens=20, top_k=1, experts=1, d_model=896, inter_size=128), 1, 8),
    "four jobs, three tiles of tokens": (case(tokens=20, top_k=1, experts=1, d_model=512, inter_size=256), 1, 8),
    "thirteen jobs of twelve warps": (case(tokens=10, top_k=1, experts=1, d_model=1664, inter_size=96), 1, 12),
    "splits, twelve warps": (case(tokens=3, top_k=1, experts=1, d_model=64, inter_size=2304), 2, 12),
    "more slots than segments hold": (
        case(tokens=40, top_k=1, experts=2, d_model=96, inter_size=48, routing="one"),
        2,
        8,
    ),
    "shares of a warp that go to two others, a run apart": (
        case(tokens=16, top_k=4, experts=8, inter_size=256, routing="random"),
        8,
        8,
    ),
    "three blocks": (case(tokens=9, top_k=2, experts=4, d_model=288, inter_size=80, routing="dropped"), 3, 8),
    "scales and zeros beside the codes": (
        case(format="int4-zeros", tokens=9, d_model=1024, inter_size=64, experts=2),
        1,
        8,
    ),
}


@pytest.mark.parametrize(("shape", "blocks", "warps"), UNEVEN.values(), ids=UNEVEN.keys())
def test_warps_far_apart_and_copies_long_under_way_change_nothing(kernel_of, shape, blocks, warps):
    launch, want = launch_of(kernel_of, shape, warps=warps)
    even = launch.run(blocks=blocks, seed=0)

    results = [launch.run(blocks=blocks, seed=seed, uneven=True) for seed in range(8)]

    assert relative_error(even, want) < TOLERANCE
    assert all(torch.equal(even, result) for result in results)


def test_slots_that_are_all_dropped_give_zeros(kernel_of):
    launch, _ = launch_of(kernel_of, case())
    launch.inputs[2].zero_()

    assert torch.equal(launch.run(blocks=2, seed=0), torch.zeros_like(launch.out_TD))


def test_problem_is_as_large_as_the_kernel_thinks(kernel_of):
    assert kernel_of("Bf16", 8).problem_bytes() == ctypes.sizeof(Problem)
