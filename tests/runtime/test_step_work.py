"""The least energy of a token: below every batch that could be routed, and found where prices hardly matter."""

import numpy as np
import pytest

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.runtime.step_work import batch_work, least_energy_j_per_token
from thermoe.types import NAMED_SHAPES


@pytest.mark.parametrize("name", NAMED_SHAPES)
@pytest.mark.parametrize("bits", [16.0, 4.0])
def test_no_batch_takes_less_for_a_token(name, bits):
    shape, model = NAMED_SHAPES[name], KernelCostModel.shipped()
    least = least_energy_j_per_token(model, shape, bits)
    for num_tokens in (1, 16, 257, 4096):
        for distinct in (1, shape.num_experts // 2):
            work = batch_work(shape, num_tokens, np.full(shape.num_layers, distinct), shape.top_k, bits)
            assert model.predict_step(work).energy_j / num_tokens > least > 0
