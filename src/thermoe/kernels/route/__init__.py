"""K3, routing: scores to expert ids and weights under the knobs of one layer."""

from thermoe.kernels.route.reference import LayerKnobs, Routing, loaded_experts, route_reference

route = route_reference

__all__ = ["LayerKnobs", "Routing", "loaded_experts", "route", "route_reference"]
