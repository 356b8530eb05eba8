"""K3, routing: scores to expert ids and weights under the knobs of one layer; from logits in one launch."""

from thermoe.kernels.route.from_rows import RouterRows, route_rows
from thermoe.kernels.route.fused import SOFTMAX, Fused, Scoring, is_fused, route_logits
from thermoe.kernels.route.reference import LayerKnobs, Routing, loaded_experts, route_reference

route = route_reference

__all__ = [
    "SOFTMAX",
    "Fused",
    "LayerKnobs",
    "RouterRows",
    "Routing",
    "Scoring",
    "is_fused",
    "loaded_experts",
    "route",
    "route_logits",
    "route_reference",
    "route_rows",
]
