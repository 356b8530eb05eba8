"""compute_energy_loss against full enumeration of independent draws, and its gradients."""

import itertools

import pytest
import torch

from thermoe.errors import ConfigError
from thermoe.routing.energy_loss import compute_energy_loss


def enumerated(logits_TE, energy_j_E, top_k, load_energy_j):
    """Expected energy when every token draws k experts independently from its gates: all outcomes, one by one."""
    gates = logits_TE.softmax(-1)
    tokens, experts = gates.shape
    total = 0.0
    for draws in itertools.product(range(experts), repeat=tokens * top_k):
        chance, rows = 1.0, 0
        for token in range(tokens):
            own = draws[token * top_k : (token + 1) * top_k]
            rows += len(set(own))
            for expert in own:
                chance *= float(gates[token, expert])
        energy = sum(float(energy_j_E[e]) for e in set(draws)) + load_energy_j * rows
        total += chance * energy
    return total


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 3, 1), (1, 3, 2), (3, 3, 1), (2, 3, 2), (2, 2, 3)])
def test_it_is_the_expectation_over_independent_draws(tokens, experts, top_k):
    generator = torch.Generator().manual_seed(7)
    logits = 1.5 * torch.randn(tokens, experts, generator=generator, dtype=torch.float64)
    energy = torch.rand(experts, generator=generator, dtype=torch.float64)
    got = compute_energy_loss(logits, energy, top_k, load_energy_j=0.3)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(enumerated(logits, energy, top_k, 0.3), rel=1e-12)


def test_gradients():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    energy = torch.rand(5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, c: compute_energy_loss(x, c, 2, 0.1), (logits, energy))


def test_dearer_experts_cost_more_and_descent_leaves_them():
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cheap, dear = torch.ones(8), torch.ones(8)
    dear[3] = 5.0
    loss = compute_energy_loss(logits, dear, 2)
    assert loss > compute_energy_loss(logits, cheap, 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    before = logits.softmax(-1)[:, 3]
    after = (logits - 0.5 * gradient).softmax(-1)[:, 3]
    assert (after < before).all()


def test_certain_and_half_precision_routers_stay_finite():
    logits = torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = compute_energy_loss(logits, torch.tensor([2.0, 1.0, 1.0]), 2)
    assert float(loss.detach()) == pytest.approx(2.0, abs=1e-4)
    loss.backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "energy", "top_k"),
    [((3, 4), (5,), 2), ((4,), (4,), 2), ((3, 4), (3, 4), 2), ((3, 4), (4,), 0)],
)
def test_shapes_that_do_not_belong_together(logits, energy, top_k):
    with pytest.raises(ConfigError):
        compute_energy_loss(torch.zeros(logits), torch.zeros(energy), top_k)
