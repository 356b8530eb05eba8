"""The CUDA kernel's own source, thread by thread on a CPU, against float64.

What this cannot show: that the copy engine, the matrix unit and the order of memory are as the stand-ins say. For that
there is test_decode_attention_gpu.py.
"""

import shutil

import pytest
import torch
from attention_cases import Case, drawn, in_float64
from attention_emulator import AttentionEmulator

from thermoe.kernels.decode_attention.cuda import Layout, Shape, layout_for

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the stand-in with"),
    pytest.mark.timeout(300),
]
LAYOUTS = [Layout(4, 4, 2), Layout(1, 2, 1), Layout(2, 1, 3)]
PLACES = [
    Case(1, 8, 1, 512, 128, 0, normed=True),
    Case(2, 8, 1, 160, 128, 16, normed=True, shared=True),
    Case(1, 6, 2, 201, 128, 200),
    Case(1, 5, 1, 900, 128, 811, normed=True),
]


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    return AttentionEmulator(tmp_path_factory.mktemp("attention_on_cpu"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", PLACES, ids=str)
def test_attention_with_projections_that_come_late(emulator, case, layout):
    *given, norms = drawn(case, torch.bfloat16)
    wanted, key, value = in_float64(case, *given, norms, 0.1, torch.bfloat16)
    before = given[3].clone(), given[4].clone()
    for seed in range(2):
        got = emulator.run(layout, tuple(given), num_heads=case.heads, scale=0.1, norms=norms, seed=seed)
        torch.testing.assert_close(got.double(), wanted, atol=1e-2, rtol=2**-7)
        torch.testing.assert_close(given[3][:, :, case.place].double(), key, atol=1e-2, rtol=2**-7)
        assert torch.equal(given[4][:, :, case.place].double(), value)
    for was, now in zip(before, given[3:5], strict=True):
        others = [place for place in range(case.length) if place != case.place]
        assert torch.equal(was[:, :, others].nan_to_num(), now[:, :, others].nan_to_num())


@pytest.mark.parametrize(("place", "nearest"), [(90, 89), (2**40, 89), (-1, 0)])
def test_a_place_outside_the_cache_counts_as_the_nearest_inside(emulator, place, nearest):
    results = []
    for asked in (place, nearest):
        *given, norms = drawn(Case(1, 4, 1, 90, 128, 89, normed=True), torch.bfloat16)
        given[5] = torch.tensor([asked])
        out = emulator.run(Layout(2, 1, 3), tuple(given), num_heads=4, scale=0.1, norms=norms)
        results.append((out, given[3], given[4]))
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_masks_of_other_types(emulator, dtype):
    case = Case(1, 4, 1, 90, 128, 70)
    *given, norms = drawn(case, torch.bfloat16)
    given[6] = given[6].clamp_min(-6e4).to(dtype)
    wanted, _, _ = in_float64(case, *given, norms, 0.1, torch.bfloat16)
    got = emulator.run(Layout(2, 1, 3), tuple(given), num_heads=4, scale=0.1)
    torch.testing.assert_close(got.double(), wanted, atol=1e-2, rtol=2**-7)


def test_blocks_fill_a_large_gpu_twice_and_fit_it():
    assert [layout_for(heads, 4096).blocks for heads in (4, 16, 32, 64, 128, 256)] == [8, 8, 8, 4, 2, 1]
    assert [layout_for(64, length).slots for length in (100, 512, 704, 4096)] == [1, 2, 3, 3]
    assert 2 * (Shape(8, 4, 4, 3, 1, 1).shared_bytes() + 1024) <= 228 * 1024
