"""The convex view of an expert layer's cost inside a torch graph, for adaptation that learns by gradients."""

import torch
from torch import Tensor, nn

from thermoe.cost.prediction import RoutingCost


class DifferentiableCost(nn.Module):
    """Latency and energy of a layer as functions of real-valued loads; moves and casts like any module.

    The jump at the first row becomes a ramp: an expert with an expected load of n < 1 rows is touched with
    probability n, so the ramp is the expected cost. At whole loads it is `RoutingCost.layer`.

    Args:
        view: Convex view to put into the graph.
    """

    fixed: Tensor
    touch: Tensor

    def __init__(self, view: RoutingCost) -> None:
        super().__init__()
        self.num_experts = view.shape.num_experts
        self.register_buffer("fixed", torch.tensor([view.fixed_latency_s, view.fixed_energy_j]))
        self.register_buffer("touch", torch.tensor([view.latency_s, view.energy_j]))
        for name, hinges in (("latency", view.load_latency_s), ("energy", view.load_energy_j)):
            self.register_buffer(f"{name}_slopes", torch.as_tensor(hinges.slopes, dtype=torch.float32))
            self.register_buffer(f"{name}_offsets", torch.as_tensor(hinges.offsets, dtype=torch.float32))

    def per_expert(self, load_E: Tensor) -> tuple[Tensor, Tensor]:
        """Latency [s] and energy [J] of each expert, as (..., E); loads in rows, at least 0."""
        touched = load_E.clamp(min=0.0, max=1.0)
        latency = touched * self.touch[0] + self._load_part("latency", load_E)
        return latency, touched * self.touch[1] + self._load_part("energy", load_E)

    def forward(self, load_E: Tensor) -> tuple[Tensor, Tensor]:
        """Latency [s] and energy [J] of the layer, (...), from loads (..., E)."""
        latency, energy = self.per_expert(load_E)
        return self.fixed[0] + latency.sum(dim=-1), self.fixed[1] + energy.sum(dim=-1)

    def _load_part(self, name: str, load_E: Tensor) -> Tensor:
        slopes, offsets = self.get_buffer(f"{name}_slopes"), self.get_buffer(f"{name}_offsets")
        lines = load_E.unsqueeze(-1) * slopes - offsets
        return lines.clamp(min=0.0).amax(dim=-1)
