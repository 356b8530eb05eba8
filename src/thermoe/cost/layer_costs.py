"""Costs of one layer by expert: what routing asks of the cost model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thermoe.cost.prediction import CostArrays, CostPrediction
from thermoe.cost.questions import loads_of, numbers, usual_bits
from thermoe.cost.work import check_shape
from thermoe.errors import CostError
from thermoe.types import FloatArray, MoEShape, SysState

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from thermoe.cost.kernel_cost_model import KernelCostModel


class LayerCosts:
    """Costs of a layer whose experts may hold weights of different precision. Shapes: E experts.

    Args:
        model: What predicts.
        shape: Sizes of the layer.
        bits: Precision of all experts, or of each (E,) [bit]; as in `KernelCostModel.predict` where None.
        impl: Implementation; the one with most measurements where None.

    Raises:
        CostError: No shape, not one precision, nor one for each expert.
    """

    def __init__(
        self, model: "KernelCostModel", shape: MoEShape, bits: "ArrayLike | None" = None, impl: str | None = None
    ) -> None:
        check_shape(shape)
        each = numbers("bits", usual_bits(model.operations_, "expert_mlp", impl) if bits is None else bits)
        if each.shape not in ((), (shape.num_experts,)) or not (np.isfinite(each).all() and (each > 0).all()):
            raise CostError(f"bits of shape {each.shape}: need one positive number, or {shape.num_experts}")
        self.model, self.shape, self.impl = model, shape, impl
        self.bits_E: FloatArray = np.broadcast_to(each, (shape.num_experts,))

    def predict(
        self, expert_id: int, input_shape: Sequence[int], system_state: SysState | None = None
    ) -> CostPrediction:
        """Cost of one expert alone on rows of this shape.

        Args:
            expert_id: In [0, E).
            input_shape: Rows and width of the input, (rows, D).
            system_state: Temperature and power limit to predict for; as measured where None.

        Raises:
            CostError: No such expert, or a shape that is not (rows, D).
        """
        if not isinstance(expert_id, int | np.integer) or not 0 <= expert_id < self.shape.num_experts:
            raise CostError(f"expert {expert_id}: the layer has experts 0 to {self.shape.num_experts - 1}")
        if not _is_input(input_shape, self.shape.hidden_size):
            raise CostError(f"input of shape {input_shape}: needs (rows, {self.shape.hidden_size})")
        bits = float(self.bits_E[expert_id])
        return self.model.predict(
            "expert_mlp", self.shape, input_shape[0], 1, bits=bits, state=system_state, impl=self.impl
        )

    def cost_per_expert(self, loads: "ArrayLike", system_state: SysState | None = None) -> CostArrays:
        """Cost of each expert under its load in rows, (..., E), by the convex view of its precision."""
        n = loads_of(loads, self.shape.num_experts)
        latency_s, energy_j = np.zeros(n.shape), np.zeros(n.shape)
        for bits in np.unique(self.bits_E):
            costs = self.model.cost_per_expert(self.shape, n, system_state, bits=float(bits))
            chosen = self.bits_E == bits
            latency_s[..., chosen], energy_j[..., chosen] = costs.latency_s[..., chosen], costs.energy_j[..., chosen]
        return CostArrays(latency_s, energy_j)


def _is_input(shape: object, hidden_size: int) -> bool:
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 2:
        return False
    return all(isinstance(size, int | np.integer) for size in shape) and shape[0] >= 1 and shape[1] == hidden_size
