"""The kernel against complex numbers: on a GPU, or run by test_rotary_interpreted.py."""

import pytest
import torch
from rotary_cases import CASES, by_complex_numbers, drawn

from thermoe.kernels.rotary.triton import rotary_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_are_turned_and_nothing_is_left_unwritten(case, shared):
    q, k, cos, sin = (part.to(DEVICE) for part in drawn(*case, shared=shared))
    wanted = [by_complex_numbers(own, cos, sin) for own in (q, k)]
    unwritten = tuple(torch.full(own.shape, float("nan"), device=DEVICE) for own in (q, k))
    got = rotary_triton(q, k, cos, sin, out=unwritten)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-6, rtol=1e-5)
