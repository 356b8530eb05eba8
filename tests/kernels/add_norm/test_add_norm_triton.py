"""The kernel against float64: on a GPU, or run by test_add_norm_interpreted.py."""

import pytest
import torch
from add_norm_cases import CASES, drawn, in_float64

from thermoe.kernels.add_norm.triton import add_norm_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter does not round to bf16


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sum_and_norm_with_nothing_left_unwritten(case, adds, dtype):
    x, added, weight = drawn(*case, dtype, DEVICE)
    out = tuple(torch.full_like(x, float("nan")) for _ in range(2))
    total, norm = add_norm_triton(x, added if adds else None, weight, 1e-6, out)
    assert torch.equal(total, x + added if adds else x)
    rtol = 1e-5 if dtype is torch.float32 else 2**-8
    torch.testing.assert_close(norm.double(), in_float64(total, weight, 1e-6), atol=1e-6, rtol=rtol)
