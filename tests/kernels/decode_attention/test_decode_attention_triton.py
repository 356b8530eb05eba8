"""The kernel against float64: on a GPU, or run by test_decode_attention_interpreted.py."""

import pytest
import torch
from attention_cases import CASES, Case, drawn, in_float64

from thermoe.kernels.decode_attention.triton import Tiling, decode_attention_triton, tiling_for

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter does not round to bf16


TILINGS = [(Tiling(16, 3, 4, 2), torch.float32), (Tiling(32, 1, 2, 1), HALF), (None, torch.float32)]


@pytest.mark.parametrize(("tiling", "dtype"), TILINGS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_with_nothing_left_unwritten(case, tiling, dtype):
    *given, norms = drawn(case, dtype, DEVICE)
    wanted, key, value = in_float64(case, *given, norms, 0.3, dtype)
    counts = torch.zeros(case.batch * case.groups, dtype=torch.int32, device=DEVICE)
    for _ in range(2):  # the second launch finds the counts as the first did
        out = torch.full((case.batch, case.heads * case.width), float("nan"), dtype=dtype, device=DEVICE)
        got = decode_attention_triton(
            *given, num_heads=case.heads, scale=0.3, norms=norms, counts=counts, tiling=tiling, out=out
        )
        rtol, atol = (1e-5, 3e-6) if dtype is torch.float32 else (2**-7, 1e-2)
        torch.testing.assert_close(got.double().cpu(), wanted, atol=atol, rtol=rtol)
        torch.testing.assert_close(given[3][:, :, case.place].double().cpu(), key, atol=atol, rtol=rtol)
        assert torch.equal(given[4][:, :, case.place].double().cpu(), value)
        assert not counts.any()


@pytest.mark.parametrize(("place", "nearest"), [(70, 69), (2**40, 69), (-1, 0), (-(2**40), 0)])
def test_a_place_outside_the_cache_counts_as_the_nearest_inside(place, nearest):
    results = []
    for asked in (place, nearest):
        *given, norms = drawn(Case(1, 16, 1, 70, 64, 69, normed=True), torch.float32, DEVICE)
        given[5] = torch.tensor([asked], device=DEVICE)
        out = decode_attention_triton(*given, num_heads=16, scale=0.3, norms=norms, counts=None)
        results.append((out, given[3], given[4]))
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


def test_parts_fill_the_processors_of_a_large_gpu():
    assert tiling_for(64, 704).parts == 4
    assert tiling_for(4, 704).parts == 8
    assert tiling_for(4, 100_000).parts == 32
    assert tiling_for(1000, 704).parts == 2
