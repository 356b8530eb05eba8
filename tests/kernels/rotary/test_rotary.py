import pytest
import torch
from rotary_cases import CASES, by_complex_numbers, drawn

from thermoe.errors import ConfigError
from thermoe.kernels.rotary import rotary


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_are_turned(case, shared):
    q, k, cos, sin = drawn(*case, shared=shared)
    for got, own in zip(rotary(q, k, cos, sin), (q, k), strict=True):
        assert got.is_contiguous()
        torch.testing.assert_close(got.double(), by_complex_numbers(own, cos, sin), atol=1e-6, rtol=1e-5)


def test_bad_input_is_refused():
    q, k, cos, sin = drawn(3, 4, 2, 1, 8, shared=False)
    with pytest.raises(ConfigError, match="differ"):
        rotary(q, k[1:], cos, sin)
    with pytest.raises(ConfigError, match="differ"):
        rotary(q, k, cos[1:], sin[1:])
    with pytest.raises(ConfigError, match="width even"):
        rotary(q[..., :7], k[..., :7], cos, sin)
    with pytest.raises(ConfigError, match="contiguous"):
        rotary(q, k, cos.transpose(0, 2).contiguous().transpose(0, 2), sin)
