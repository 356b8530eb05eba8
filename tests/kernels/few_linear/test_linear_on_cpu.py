"""The CUDA kernel's own source, run thread by thread on a CPU (linear_on_cpu.h), against float64.

What this cannot show: that the device's copies, matrix products and memory order are as the stand-ins say. For that
there is test_few_linear_cuda.py on a GPU.
"""

import ctypes
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from few_linear_cases import drawn, in_float64
from on_cpu import cpu_library

from thermoe.kernels.few_linear.cuda.launch import SOURCES, Problem, fill, num_tiles
from thermoe.kernels.few_linear.cuda.layout import SHARED_BYTES, Build, build_for, cut_for

HERE = Path(__file__).parent
BF16 = torch.bfloat16

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the stand-in with"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="session")
def kernel_of(tmp_path_factory):
    """Builds each kernel once a session."""
    built: dict[Build, ctypes.CDLL] = {}

    def kernel(build: Build) -> ctypes.CDLL:
        if build not in built:
            library = tmp_path_factory.mktemp("linear_on_cpu") / "kernel.so"
            unit = build.source().replace("linear.cu", "linear_on_cpu.cpp")
            source = f'#define THERMOE_MACHINE "linear_on_cpu.h"\n{unit}'
            built[build] = cpu_library(source, library, SOURCES, HERE)
        return built[build]

    return kernel


def run(kernel_of, case, *, clusters, room=SHARED_BYTES, biased=True, early=None, seed=0, uneven=False, **changes):
    """The kernel's result beside that of float64; `changes` of the build."""
    x, weights, biases = drawn(*case, BF16)
    biases = biases if biased else [None] * len(weights)
    build = replace(build_for(x.shape[1], x.shape[0]), **changes)
    kernel = kernel_of(build)
    cut = cut_for(build, num_tiles(weights), clusters, room)
    assert cut is not None
    assert kernel.problem_bytes() == ctypes.sizeof(Problem)
    assert kernel.pitch() == build.pitch
    assert kernel.head_bytes() <= cut.inbox_at
    later = torch.full_like(x, float("nan"))  # what the launch before has not yet written
    out = torch.full((x.shape[0], sum(w.shape[0] for w in weights)), float("nan"), dtype=BF16)
    problem = fill(cut, later, weights, biases, out, early)
    ended = kernel.run_on_cpu(
        ctypes.byref(problem), clusters * build.cluster, cut.shared_bytes, ctypes.c_void_p(x.data_ptr()),
        ctypes.c_int64(2 * x.numel()), ctypes.c_uint32(seed), int(uneven),
    )  # fmt: skip
    assert ended == 0, "a deadlock, or a barrier or an address misused: see stderr"
    return out, in_float64(x, weights, biases), cut


def close(got, want):
    torch.testing.assert_close(got.double(), want, atol=2e-2, rtol=2**-7)


CASES = {
    "one token": ((1, 512, (24,)), 1),
    "odd numbers, three matrices": ((16, 384, (19, 8, 5)), 2),
    "one output": ((3, 512, (1,)), 1),
    "an empty matrix": ((9, 384, (16, 0, 7)), 1),
    "gaps at the ends of rows": ((7, 328, (40,)), 1),
    "fewer columns than blocks": ((5, 40, (24,)), 1),
    "two tiles of tokens": ((17, 256, (32,)), 1),
    "all tokens": ((64, 512, (40,)), 1),
}


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("case", "clusters"), CASES.values(), ids=CASES.keys())
def test_matches_float64(kernel_of, case, clusters, uneven):
    got, want, _ = run(kernel_of, case, clusters=clusters, uneven=uneven, seed=len(case[2]))
    close(got, want)


SHARED = {  # the same rows, held in other ways
    "all at once": {},
    "no more than one before the tokens": {"early": 1},
    "none before the tokens": {"early": 0},
    "in rounds": {"room": 68 * 1024},
    "in a ring": {"room": 40 * 1024},
    "in a ring of two": {"room": 26 * 1024},
    "in one cluster of one block": {"cluster": 1},
    "in one cluster of one block, in a ring": {"cluster": 1, "room": 70 * 1024},
    "in clusters of two, by three groups of two": {"cluster": 2, "slices": 2, "groups": 3},
    "in clusters of eight, by one group and one asker": {"cluster": 8, "groups": 1, "askers": 1},
}


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("changes", SHARED.values(), ids=SHARED.keys())
def test_ways_to_hold_the_weights(kernel_of, changes, uneven):
    got, want, cut = run(kernel_of, (5, 512, (150, 33)), clusters=1, uneven=uneven, seed=3, **changes)
    close(got, want)
    assert (cut.round_tiles < 23) == ("room" in changes)


def test_rounds_with_parts_apart_and_no_ring(kernel_of):
    got, want, cut = run(kernel_of, (33, 512, (140,)), clusters=1, room=100 * 1024)
    close(got, want)
    assert cut.apart
    assert cut.stages == 9
    assert cut.round_tiles == 4


def test_blocks_that_begin_late_are_waited_for(kernel_of):
    for seed in range(8):  # a send before all have begun fails the run
        got, want, _ = run(kernel_of, (3, 512, (1,)), clusters=1, uneven=True, seed=seed)
        close(got, want)


def test_the_same_bits_in_every_schedule(kernel_of):
    first, *others = (
        run(kernel_of, (16, 384, (70,)), clusters=2, seed=seed, uneven=seed % 2 == 1)[0] for seed in range(5)
    )
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("tokens", [1, 8, 9, 16, 31, 64])
@pytest.mark.parametrize("columns", [32, 40, 512, 2048, 2880, 4096, 5120, 7168, 8192, 16384])
@pytest.mark.parametrize("outputs", [1, 128, 2048, 5120, 151936])
def test_what_is_laid_out_fits(columns, tokens, outputs):
    build = build_for(columns, tokens)
    if build is None:
        assert columns * tokens > 4096 * 32, "a common size is refused"
        return
    tiles = -(-outputs // 8)
    clusters = min(32, tiles)
    cut = cut_for(build, tiles, clusters)
    if cut is None:
        assert columns > 8192
        return
    most = -(-tiles // clusters)
    held = cut.rows >= 8 * most
    assert cut.shared_bytes <= SHARED_BYTES
    assert cut.apart or held
    assert held or cut.stages >= 2
    assert cut.round_tiles % 2 == 0
    assert cut.round_tiles >= most or cut.round_tiles * build.token_tiles >= build.cluster
