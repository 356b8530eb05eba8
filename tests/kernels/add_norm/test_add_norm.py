import pytest
import torch
from add_norm_cases import CASES, drawn, in_float64

from thermoe.errors import ConfigError
from thermoe.kernels.add_norm import add_norm


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sum_and_norm(case):
    x, added, weight = drawn(*case, torch.float32)
    total, norm = add_norm(x, added, weight, 1e-6)
    assert torch.equal(total, x + added)
    torch.testing.assert_close(norm.double(), in_float64(total, weight, 1e-6), atol=1e-6, rtol=1e-5)
    same, norm = add_norm(x, None, weight, 1e-6)
    assert same is x
    torch.testing.assert_close(norm.double(), in_float64(x, weight, 1e-6), atol=1e-6, rtol=1e-5)


def test_bad_input_is_refused():
    x, added, weight = drawn(3, 8, torch.float32)
    for wrong in ((x[0], None, weight), (x, added[:2], weight), (x, None, weight[:7])):
        with pytest.raises(ConfigError, match="shapes"):
            add_norm(*wrong, 1e-6)
    for wrong in ((x, added.double(), weight), (x, None, weight.half()), (x.t().contiguous().t(), None, weight)):
        with pytest.raises(ConfigError, match=r"contiguous|one floating-point dtype"):
            add_norm(*wrong, 1e-6)
