"""Work of steps that nobody has observed yet, and the least energy that routing could bring a token to.

L layers.
"""

import numpy as np

from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.types import FloatArray, MoEShape, StepWork

LARGEST_BATCH = 65_536
"""More tokens than one step of a GPU has: what a step takes besides them is shared by so many."""


def batch_work(
    shape: MoEShape, num_tokens: int, distinct_experts: FloatArray, experts_per_token: int, bits: float
) -> StepWork:
    """A step of a batch that touches (L,) distinct experts, at a precision of the weights [bit]."""
    return StepWork(
        shape=shape,
        num_tokens=num_tokens,
        distinct_experts=[float(d) for d in distinct_experts],
        routed_rows=[float(num_tokens * experts_per_token)] * shape.num_layers,
        bits=bits,
    )


def least_energy_j_per_token(cost_model: KernelCostModel, shape: MoEShape, bits: float) -> float:
    """Predicted energy of a token of the largest batch, all of whose tokens share one expert in each layer [J].

    Arrivals decide how many tokens a step has, so that nothing higher can be called out of reach beforehand.
    """
    work = batch_work(shape, LARGEST_BATCH, np.ones(shape.num_layers), 1, bits)
    return cost_model.predict_step(work).energy_j / LARGEST_BATCH
