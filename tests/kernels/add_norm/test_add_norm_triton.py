"""The kernel against float64: on a GPU, or run by test_add_norm_interpreted.py."""

import pytest
import torch
from add_norm_cases import CASES, drawn, in_float64

from thermoe.kernels.add_norm.triton import add_norm_project_triton, add_norm_triton

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


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 1, 1), (3, 100, 7), (16, 384, 64), (33, 130, 5)])
def test_products_with_the_norm(rows, width, outputs, adds, dtype):
    x, added, weight = drawn(rows, width, dtype, DEVICE)
    matrix = torch.randn(outputs, width, generator=torch.Generator().manual_seed(3)).to(dtype).to(DEVICE)
    out = (*(torch.full_like(x, float("nan")) for _ in range(2)), x.new_full((rows, outputs), float("nan")))
    total, norm, products = add_norm_project_triton(x, added if adds else None, weight, 1e-6, matrix, out)
    assert torch.equal(total, x + added if adds else x)
    rtol = 1e-5 if dtype is torch.float32 else 2**-8
    torch.testing.assert_close(norm.double(), in_float64(total, weight, 1e-6), atol=1e-6, rtol=rtol)
    torch.testing.assert_close(products.double(), norm.double() @ matrix.double().T, atol=2e-4, rtol=rtol)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2, 3])
def test_weights_brought_ahead_change_nothing(count):
    x, added, weight = (part.cuda() for part in drawn(5, 384, torch.bfloat16))
    ahead = [torch.randn(n, 384, device="cuda", dtype=torch.bfloat16) for n in (1, 100, 1000)][:count]
    out = tuple(torch.full_like(x, float("nan")) for _ in range(2))
    got = add_norm_triton(x, added, weight, 1e-6, out, ahead)
    wanted = add_norm_triton(x, added, weight, 1e-6, tuple(torch.empty_like(x) for _ in range(2)))
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
