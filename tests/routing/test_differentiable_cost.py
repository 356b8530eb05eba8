import numpy as np
import pytest
import torch

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.routing.differentiable_cost import DifferentiableCost
from thermoe.types import NAMED_SHAPES

QWEN3 = NAMED_SHAPES["qwen3-30b-a3b"]


@pytest.mark.parametrize("num_tokens", [1, 16, 4096])
def test_it_is_the_convex_view_at_whole_loads(num_tokens):
    view = KernelCostModel.shipped().routing_cost(QWEN3, num_tokens)
    load_E = np.random.default_rng(0).multinomial(num_tokens * 8, np.full(128, 1 / 128)).astype(float)
    latency, energy = DifferentiableCost(view)(torch.tensor(load_E, dtype=torch.float32))
    want = view.layer(load_E)
    assert float(latency) == pytest.approx(float(want.latency_s), rel=1e-5)
    assert float(energy) == pytest.approx(float(want.energy_j), rel=1e-5)


def test_its_gradient_is_the_price_of_one_more_row_and_never_negative():
    cost = DifferentiableCost(KernelCostModel.shipped().routing_cost(QWEN3, 16))
    load_E = torch.linspace(0.05, 900.0, 128, requires_grad=True)
    _, energy = cost(load_E)
    energy.backward()
    step = 1e-2
    for e in (0, 60, 127):
        above = load_E.detach().clone()
        above[e] += step
        assert float(load_E.grad[e]) == pytest.approx(
            float(cost(above.double())[1] - cost(load_E.detach().double())[1]) / step, rel=0.05
        )
    assert (load_E.grad >= 0).all()
    assert load_E.grad[0] > load_E.grad[60]  # below one row, more load is more likely a touch


def test_batches_of_loads_keep_their_shape():
    cost = DifferentiableCost(KernelCostModel().routing_cost(QWEN3, 16))
    latency, energy = cost(torch.ones(3, 2, 128))
    assert latency.shape == energy.shape == (3, 2)
