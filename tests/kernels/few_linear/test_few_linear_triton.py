"""The kernel against float64: on a GPU, or run by test_few_linear_interpreted.py."""

import pytest
import torch
from few_linear_cases import CASES, drawn, in_float64

from thermoe.kernels.few_linear.triton import Tiles, few_linear_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter does not round to bf16


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_with_nothing_left_unwritten(case, biased, dtype):
    x, weights, biases = drawn(*case, dtype, DEVICE)
    biases = biases if biased else [None] * len(weights)
    wanted = in_float64(x, weights, biases)
    out = torch.full(wanted.shape, float("nan"), dtype=dtype, device=DEVICE)
    got = few_linear_triton(x, weights, biases, out=out)
    rtol, atol = (1e-5, 1e-4) if dtype is torch.float32 else (2**-8, 1e-2)
    torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=rtol)


@pytest.mark.parametrize("tiles", [Tiles(16, 32, 2, 2), Tiles(32, 128, 4, 3), Tiles(64, 64, 8, 4)], ids=str)
def test_any_tiles_give_the_same(tiles):
    x, weights, biases = drawn(*CASES[2], torch.float32, DEVICE)
    got = few_linear_triton(x, weights, biases, tiles=tiles)
    torch.testing.assert_close(got.double(), in_float64(x, weights, biases), atol=1e-4, rtol=1e-5)
