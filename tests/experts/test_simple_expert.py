"""`SimpleExpert` against float64 sums written out by hand."""

import math

import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.experts import ExpertKind, SimpleExpert


def by_hand(expert: SimpleExpert, row: list[float]) -> list[float]:
    """The expert on one row, in Python floats."""
    fc1, fc2 = expert.fc1.double().tolist(), expert.fc2.double().tolist()
    first = [sum(w * x for w, x in zip(weights, row, strict=True)) for weights in fc1]
    if expert.kind is ExpertKind.RELU:
        hidden = [max(h, 0.0) for h in first]
    else:
        half = len(first) // 2
        hidden = [g / (1 + math.exp(-g)) * u for g, u in zip(first[:half], first[half:], strict=True)]
    return [sum(w * h for w, h in zip(weights, hidden, strict=True)) for weights in fc2]


@pytest.mark.parametrize("kind", list(ExpertKind))
@pytest.mark.parametrize(("d_model", "inter_size", "rows"), [(1, 1, 1), (7, 5, 3), (33, 19, 1)])
def test_forward_matches_the_formula(kind, d_model, inter_size, rows):
    torch.manual_seed(0)
    expert = SimpleExpert(d_model, inter_size, kind=kind)
    x = torch.randn(rows, d_model)
    want = torch.tensor([by_hand(expert, row) for row in x.double().tolist()])
    torch.testing.assert_close(expert(x), want, atol=1e-5, rtol=1e-4)
    if d_model > 1:
        assert want.abs().max() > 0.05  # zeros must not pass


def test_gate_comes_first_in_fc1():
    expert = SimpleExpert(1, 1)
    with torch.no_grad():
        expert.fc1.copy_(torch.tensor([[2.0], [-3.0]]))
        expert.fc2.fill_(1.0)
    gate = 2.0
    assert expert(torch.ones(1, 1)).item() == pytest.approx(gate / (1 + math.exp(-gate)) * -3.0)


@pytest.mark.parametrize(
    ("kind", "dtype", "num_bytes", "flops"),
    [(ExpertKind.SWIGLU, torch.bfloat16, 3 * 6 * 10 * 2, 360), (ExpertKind.RELU, torch.float32, 2 * 6 * 10 * 4, 240)],
)
def test_bytes_and_operations(kind, dtype, num_bytes, flops):
    expert = SimpleExpert(6, 10, kind=kind, dtype=dtype)
    assert expert.num_bytes == num_bytes
    assert expert.flops_per_row == flops


def test_seed_fixes_the_weights():
    first, second = SimpleExpert(8, 4), SimpleExpert(8, 4)
    assert not torch.equal(first.fc1, second.fc1)
    for expert in (first, second):
        expert.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(first.fc1, second.fc1)
    assert torch.equal(first.fc2, second.fc2)


@pytest.mark.parametrize(("d_model", "inter_size"), [(0, 4), (4, 0), (-1, 2)])
def test_sizes_that_are_no_sizes_are_refused(d_model, inter_size):
    with pytest.raises(ConfigError, match="1 or more"):
        SimpleExpert(d_model, inter_size)
