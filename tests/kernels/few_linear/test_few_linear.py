import pytest
import torch
from few_linear_cases import CASES, drawn, in_float64

from thermoe.errors import ConfigError
from thermoe.kernels.few_linear import cuda, few_linear


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_side_by_side(case, biased):
    x, weights, biases = drawn(*case, torch.float32)
    got = few_linear(x, weights, biases if biased else ())
    wanted = in_float64(x, weights, biases if biased else [None] * len(weights))
    torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-5)


def test_bad_input_is_refused():
    x, weights, biases = drawn(3, 8, (5, 6), torch.float32)
    with pytest.raises(ConfigError, match="0 matrices"):
        few_linear(x, [])
    with pytest.raises(ConfigError, match="4 matrices"):
        few_linear(x, weights * 2)
    with pytest.raises(ConfigError, match="1 biases"):
        few_linear(x, weights, biases[:1])
    with pytest.raises(ConfigError, match=r"rows of shape \(3, 7\)"):
        few_linear(x[:, :7].contiguous(), weights)
    with pytest.raises(ConfigError, match="a bias of shape"):
        few_linear(x, weights, [biases[0][:4], None])
    for wrong in ((x.double(), weights), (x.t().contiguous().t(), weights), (x, [weights[0].half(), weights[1]])):
        with pytest.raises(ConfigError, match=r"contiguous|one floating-point dtype"):
            few_linear(*wrong)


def test_tensors_that_the_cuda_kernel_does_not_take_are_named():
    x, weights, _ = drawn(3, 64, (8, 5), torch.bfloat16)
    crooked = torch.empty(8 * 64 + 1, dtype=torch.bfloat16)[1:].view(8, 64)
    assert "runs on a GPU" in cuda.refusal(x, weights)
    assert "takes bf16" in cuda.refusal(x.half(), weights)
    assert "in eights" in cuda.refusal(x[:, :60], weights)
    assert "takes 1 to 64" in cuda.refusal(x[:0], weights)
    assert "takes 1 to 64" in cuda.refusal(torch.empty(64, 16384, dtype=torch.bfloat16), [])
    assert "multiple of 16" in cuda.refusal(x, [crooked])
    assert "outputs" in cuda.refusal(x, [torch.empty(1 << 24, 64, dtype=torch.bfloat16, device="meta"), weights[0]])
    with pytest.raises(ConfigError, match=r"takes bf16"):
        cuda.run(x.float(), weights, (), x)
