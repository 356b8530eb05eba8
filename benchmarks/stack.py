"""A stack of MoE layers with random weights, without attention: decode as far as routing and experts go.

It runs on the project's kernels ("thermoe": routing in one launch, then the fused experts) or on plain torch operations
("torch"), from the same weights and knobs.

Shapes: T tokens, D model width, E experts, k experts per token, R = T * k routed rows, I expert width.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from thermoe.kernels.expert_mlp import DenseMatrices, ExpertWeights, expert_mlp
from thermoe.kernels.route import Routing, route
from thermoe.profiling.draw import Draw
from thermoe.profiling.operations import combine, dispatch, expert_mlp_reference, grouped_mm, relative_error
from thermoe.runtime.knobs import DeviceCounters, DeviceKnobs
from thermoe.types import MoEShape, RoutingKnobs

IMPLS = ("thermoe", "torch")


class MoeStack:
    """Residual MoE layers on a static input; one step runs all of them and never waits for the host.

    Attributes:
        impl: What runs, one of `IMPLS`; a captured graph keeps it.
        x_TD: The input; copy a batch into it before a step.
        out_TD: The output of the last step.
        union: Whether union policies act; decides which operations run, so a captured graph keeps it.
        knobs, counters: What a step reads from and adds to device memory.
    """

    def __init__(
        self, shape: MoEShape, num_tokens: int, device: torch.device, dtype: torch.dtype, impl: str = IMPLS[0]
    ) -> None:
        self.shape, self.device, self.dtype, self.union, self.impl = shape, device, dtype, False, impl
        L, E, D, I = shape.num_layers, shape.num_experts, shape.hidden_size, shape.inter_size  # noqa: E741
        draw = Draw(device, dtype)
        self.router_ED = [draw.weights(E, D) for _ in range(L)]
        self.gate_up_EHD = [draw.weights(E, 2 * I, D) for _ in range(L)]
        self.down_EDI = [draw.weights(E, D, I) for _ in range(L)]
        self._experts = [
            ExpertWeights(fc1=DenseMatrices(weight_ENC=gate_up_EHD), fc2=DenseMatrices(weight_ENC=down_EDI))
            for gate_up_EHD, down_EDI in zip(self.gate_up_EHD, self.down_EDI, strict=True)
        ]
        self.x_TD = draw.normal(num_tokens, D)
        self.out_TD = torch.empty_like(self.x_TD)
        self._experts_E = torch.arange(E, device=device)
        self.knobs = DeviceKnobs(RoutingKnobs.neutral(L, E, shape.top_k), device)
        self.counters = DeviceCounters(L, E, device)

    def step(self) -> None:
        """Run all layers."""
        hidden_TD = self.x_TD
        for layer in range(self.shape.num_layers):
            hidden_TD = hidden_TD + self.run_layer(layer, hidden_TD)[0]
        self.out_TD.copy_(_rms_norm(hidden_TD))

    def run_layer(self, layer: int, hidden_TD: Tensor) -> tuple[Tensor, Routing, Tensor]:
        """One layer: what it adds to the residual stream, its routing and its normalised input."""
        n_TD = _rms_norm(hidden_TD)
        logits_TE = n_TD @ self.router_ED[layer].T
        if self.impl == "torch":
            return (*self._run_torch(layer, n_TD, logits_TE.float()), n_TD)
        knobs = self.knobs.layer(layer, union=self.union)
        routing = self.counters.route(layer, logits_TE, knobs, top_k=self.shape.top_k)
        y_TD = expert_mlp(n_TD, routing.ids_TK, routing.weights_TK, self._experts[layer], plan=routing.plan)
        return y_TD, routing, n_TD

    def _run_torch(self, layer: int, n_TD: Tensor, logits_TE: Tensor) -> tuple[Tensor, Routing]:
        gates_TE = logits_TE.softmax(dim=-1)
        knobs = self.knobs.layer(layer, union=self.union)
        routing = route(logits_TE, gates_TE, knobs, top_k=self.shape.top_k)
        self.counters.add(layer, routing, gates_TE, None, 1, routing.own_ids_TK)
        x_RD, order_R, offs_E = dispatch(n_TD, routing.ids_TK.flatten(), self._experts_E, self.shape.top_k)
        gate, up = grouped_mm(x_RD, self.gate_up_EHD[layer].transpose(-2, -1), offs_E).chunk(2, dim=-1)
        y_RD = grouped_mm(nn_functional.silu(gate) * up, self.down_EDI[layer].transpose(-2, -1), offs_E)
        return combine(y_RD, order_R, routing.weights_TK.to(y_RD.dtype)), routing

    def warm_up(self) -> None:
        """Run once each way with every policy switched on, so that a capture meets no operation for the first time."""
        before, host = self.union, self.knobs.host
        everything = replace(
            host,
            union=True,
            bias=np.full_like(host.bias, 1e-3),
            price=np.full_like(host.price, 0.1),
            max_experts=np.full_like(host.max_experts, 2),
            gate_mass=np.full_like(host.gate_mass, 0.9),
        )
        self.knobs.write(everything)
        for self.union in (False, True):
            self.step()
        self.union = before
        self.knobs.write(host)
        self.counters.drain()

    def own_routing_errors(self) -> tuple[int, float]:
        """Under the knobs of now, against plain softmax top-k in float64 on the same scores.

        Returns:
            Tokens that got an expert of lower gate than they could have, and the weights' largest error.
            Experts of exactly the same gate may stand for each other.
        """
        hidden_TD, wrong, worst = self.x_TD, 0, 0.0
        for layer in range(self.shape.num_layers):
            y_TD, routing, n_TD = self.run_layer(layer, hidden_TD)
            gates_TE = (n_TD @ self.router_ED[layer].T).double().softmax(dim=-1)
            want_TK = gates_TE.topk(self.shape.top_k, dim=-1).values
            got_TK = gates_TE.gather(1, routing.ids_TK).sort(dim=-1, descending=True).values
            wrong += int((got_TK != want_TK).any(dim=-1).sum())
            want_TK = want_TK / want_TK.sum(dim=-1, keepdim=True)
            worst = max(worst, float((want_TK - routing.weights_TK).abs().max()))
            hidden_TD = hidden_TD + y_TD
        return wrong, worst

    def rel_error(self) -> float:
        """Largest relative error of a layer's output against a float64 loop over experts with the same routing."""
        hidden_TD, worst = self.x_TD, 0.0
        for layer in range(self.shape.num_layers):
            y_TD, routing, n_TD = self.run_layer(layer, hidden_TD)
            rows_RD = n_TD.repeat_interleave(self.shape.top_k, dim=0)
            weights = self.gate_up_EHD[layer], self.down_EDI[layer]
            want_RD = expert_mlp_reference(rows_RD, routing.ids_TK.flatten(), *weights)
            want_TKD = want_RD.view(*routing.ids_TK.shape, -1) * routing.weights_TK.double().unsqueeze(-1)
            worst = max(worst, relative_error(y_TD, want_TKD.sum(dim=1)))
            hidden_TD = hidden_TD + y_TD
        return worst


def _rms_norm(x_TD: Tensor) -> Tensor:
    return nn_functional.rms_norm(x_TD, x_TD.shape[-1:], eps=1e-6)
