"""The kernel against float64: on a GPU, or run by test_decode_attention_interpreted.py."""

import pytest
import torch
from attention_cases import CASES, drawn, in_float64

from thermoe.kernels.decode_attention.triton import decode_attention_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter does not round to bf16


@pytest.mark.parametrize(("positions", "dtype"), [(16, torch.float32), (64, HALF)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_with_nothing_left_unwritten(case, positions, dtype):
    *given, norms = drawn(case, dtype, DEVICE)
    wanted, key, value = in_float64(case, *given, norms, 0.3, dtype)
    counts = torch.zeros(case.batch * case.groups, dtype=torch.int32, device=DEVICE)
    for _ in range(2):  # the second launch finds the counts as the first did
        out = torch.full((case.batch, case.heads * case.width), float("nan"), dtype=dtype, device=DEVICE)
        got = decode_attention_triton(
            *given, num_heads=case.heads, scale=0.3, norms=norms, counts=counts, positions=positions, out=out
        )
        rtol, atol = (1e-5, 3e-6) if dtype is torch.float32 else (2**-7, 1e-2)
        torch.testing.assert_close(got.double().cpu(), wanted, atol=atol, rtol=rtol)
        torch.testing.assert_close(given[3][:, :, case.place].double().cpu(), key, atol=atol, rtol=rtol)
        assert torch.equal(given[4][:, :, case.place].double().cpu(), value)
        assert not counts.any()


@pytest.mark.gpu
def test_weights_brought_ahead_change_nothing():
    case = CASES[4]
    *given, norms = (part.cuda() if isinstance(part, torch.Tensor) else part for part in drawn(case, HALF, DEVICE))
    ahead = [torch.randn(1000, 512, device="cuda", dtype=torch.bfloat16)]
    got, wanted = (
        decode_attention_triton(*given, num_heads=case.heads, scale=0.3, norms=norms, positions=16, ahead=weights)
        for weights in (ahead, ())
    )
    assert torch.equal(got, wanted)
