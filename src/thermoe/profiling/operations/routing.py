"""Operations around the experts: router gate, routing with top-k and plan, dispatch, combine.

Shapes: T tokens, k slots per token, R routed rows, E experts, D model width.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from thermoe.kernels.combine import combine as combine_rows
from thermoe.kernels.dispatch import dispatch_plan
from thermoe.kernels.route import LayerKnobs, route_logits
from thermoe.kernels.route.fused import knob_row
from thermoe.profiling.case import Case
from thermoe.profiling.draw import Draw
from thermoe.profiling.operations.bench import (
    CHECKED_ROWS,
    FLOATS,
    Operation,
    Setup,
    Workbench,
    activation_dtype,
    relative_error,
)
from thermoe.profiling.operations.routed import Routed, whole_tokens
from thermoe.profiling.operations.torch_moe import combine, dispatch
from thermoe.runtime.knobs import DeviceKnobs
from thermoe.types import RoutingKnobs

TORCH, OWN, UNION = "torch", "thermoe", "thermoe_union"


class RouterGate:
    """Scores of all experts: (T, D) by (E, D)."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        draw = Draw(setup.device, activation_dtype(case))
        self._x_TD = draw.normal(case.tokens, case.hidden_size)
        copies = setup.copies(_gate_bytes(case))
        self._gates = [draw.weights(case.num_experts, case.hidden_size) for _ in range(copies)]

    def run(self, step: int) -> Tensor:
        """Once."""
        return self._x_TD @ self._gates[step % len(self._gates)].T

    def rel_error(self) -> float:
        """A sample of tokens against float64."""
        return relative_error(
            self.run(0)[:CHECKED_ROWS], self._x_TD[:CHECKED_ROWS].double() @ self._gates[0].double().T
        )


class RouterTopk:
    """Softmax over the experts and the renormalised k best, as most families do it; ids are computed with them."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        self._top_k = case.top_k
        self._logits = _draw_logits(case, setup)

    def run(self, step: int) -> Tensor:
        """The renormalised weights (T, k)."""
        weights_TK, _ = self._logits[step % len(self._logits)].float().softmax(dim=-1).topk(self._top_k, dim=-1)
        return weights_TK / weights_TK.sum(dim=-1, keepdim=True)

    def rel_error(self) -> float:
        """Against a full sort in float64."""
        return relative_error(self.run(0), _best_weights(self._logits[0], self._top_k))


class FusedRouting:
    """Thermoe's routing, its dispatch plan included; `thermoe_union` loads the first half of each token's choices."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.skew = 1.0
        self._top_k, self._union = case.top_k, case.impl == UNION
        self._logits = _draw_logits(case, setup)
        host = RoutingKnobs.neutral(1, case.num_experts, case.top_k)
        if self._union:
            first = np.full(1, max(1, case.top_k // 2))
            host = replace(host, union=True, price=np.full(1, np.inf), protected_k0=first)
        self._knobs = _general(DeviceKnobs(host, setup.device).layer(0, union=self._union))

    def run(self, step: int) -> Tensor:
        """The weights (T, k)."""
        logits_TE = self._logits[step % len(self._logits)]
        return route_logits(logits_TE, self._knobs, top_k=self._top_k).routing.weights_TK

    def rel_error(self) -> float:
        """Neutral: against a full sort in float64. Union: each token's weights must sum to one."""
        weights_TK = self.run(0)
        if self._union:
            return relative_error(weights_TK.sum(dim=1), torch.ones_like(weights_TK[:, 0], dtype=torch.float64))
        best_TK = weights_TK.sort(dim=-1, descending=True).values
        return relative_error(best_TK, _best_weights(self._logits[0], self._top_k))


class Dispatch:
    """From ids to rows in expert order: a plan (thermoe), or sort, offsets and gather (torch)."""

    def __init__(self, case: Case, setup: Setup) -> None:
        whole_tokens(case)
        routed = Routed(case, setup, weights=False)
        self.skew = routed.skew
        self._own, self._num_experts, self._top_k = case.impl == OWN, case.num_experts, case.top_k
        self._ids_STK, self._gates_TK = routed.slots(), routed.gates()
        self._experts_E = torch.arange(case.num_experts, device=setup.device)
        self._x_TD = Draw(setup.device, activation_dtype(case)).normal(case.tokens, case.hidden_size)

    def run(self, step: int) -> Tensor:
        """Offsets (E + 1,) of a plan, or rows (R, D)."""
        if self._own:
            return dispatch_plan(self._ids_STK[step], self._gates_TK, self._num_experts).slot_N
        return dispatch(self._x_TD, self._ids_STK[step].flatten(), self._experts_E, self._top_k)[0]

    def rel_error(self) -> float:
        """The order must be that of a stable sort."""
        ids_R = self._ids_STK[0].flatten()
        got = self.run(0)
        if self._own:
            return 0.0 if torch.equal(ids_R[got.long()], ids_R.sort().values) else float("inf")
        order_R = torch.sort(ids_R).indices
        return relative_error(got, self._x_TD.double()[order_R // self._top_k])


class Combine:
    """Each token's rows, weighted and summed."""

    def __init__(self, case: Case, setup: Setup) -> None:
        whole_tokens(case)
        routed = Routed(case, setup, weights=False)
        self.skew = routed.skew
        self._own, self._num_experts = case.impl == OWN, case.num_experts
        self._ids_STK, self._gates_TK = routed.slots(), routed.gates()
        draw = Draw(setup.device, activation_dtype(case))
        copies = setup.copies(_row_bytes(case))
        self._rows = [draw.normal(case.routed_rows, case.hidden_size) for _ in range(copies)]
        self._order_SR = torch.sort(self._ids_STK.flatten(1), dim=1).indices

    def run(self, step: int) -> Tensor:
        """(T, D)."""
        rows_RD = self._rows[step % len(self._rows)]
        if self._own:
            return combine_rows(rows_RD, self._gates_TK, self._ids_STK[step], self._num_experts)
        return combine(rows_RD, self._order_SR[step], self._gates_TK.to(rows_RD.dtype))

    def rel_error(self) -> float:
        """Against the weighted sum in float64."""
        rows_RD = self._rows[0].double()
        if not self._own:
            rows_RD = torch.empty_like(rows_RD).index_copy_(0, self._order_SR[0], rows_RD)
        by_token = rows_RD.view(*self._gates_TK.shape, -1)
        return relative_error(self.run(0), (by_token * self._gates_TK.double().unsqueeze(-1)).sum(dim=1))


class DispatchCombine:
    """Everything around the experts in torch: sort rows by expert, offsets, gather; later the sum per token."""

    def __init__(self, case: Case, setup: Setup) -> None:
        whole_tokens(case)
        routed = Routed(case, setup, weights=False)
        self.skew = routed.skew
        self._top_k, self._experts_E = case.top_k, torch.arange(case.num_experts, device=setup.device)
        self._ids_STK = routed.slots()
        self._x_TD = Draw(setup.device, activation_dtype(case)).normal(case.tokens, case.hidden_size)
        self._gate_TK = routed.gates().to(self._x_TD.dtype)

    def run(self, step: int) -> Tensor:
        """Dispatch and combine with experts that return their input."""
        x_RD, order_R, _ = dispatch(self._x_TD, self._ids_STK[step].flatten(), self._experts_E, self._top_k)
        return combine(x_RD, order_R, self._gate_TK)

    def rel_error(self) -> float:
        """Against the weighted sum written out in float64."""
        gate_T1 = self._gate_TK.double().sum(dim=1, keepdim=True)
        return relative_error(self.run(0), self._x_TD.double() * gate_T1)


def _build_routing(case: Case, setup: Setup) -> Workbench:
    return RouterTopk(case, setup) if case.impl == TORCH else FusedRouting(case, setup)


def _draw_logits(case: Case, setup: Setup) -> list[Tensor]:
    draw = Draw(setup.device, activation_dtype(case))
    return [draw.normal(case.tokens, case.num_experts) for _ in range(setup.copies(_logits_bytes(case)))]


def _best_weights(logits_TE: Tensor, top_k: int) -> Tensor:
    best_TK = logits_TE.double().softmax(dim=-1).sort(dim=-1, descending=True).values[:, :top_k]
    return best_TK / best_TK.sum(dim=-1, keepdim=True)


def _general(knobs: LayerKnobs) -> LayerKnobs:
    """As a captured graph needs it: any values may be written later."""
    general = replace(knobs, biased=True, priced=True, ranked=True, slots_kept=0)
    return replace(general, row=knob_row(general))


def _gate_bytes(c: Case) -> float:
    return float(c.num_experts * c.hidden_size * c.element_bytes)


def _logits_bytes(c: Case) -> float:
    return float(c.tokens * c.num_experts * c.element_bytes)


def _row_bytes(c: Case) -> float:
    return float(c.routed_rows * c.hidden_size * c.element_bytes)


def _token_bytes(c: Case) -> float:
    return float(c.tokens * c.hidden_size * c.element_bytes)


ROUTING_OPERATIONS = {
    "router_gate": Operation(
        build=RouterGate,
        implementations=(TORCH,),
        dtypes=FLOATS,
        flops=lambda c: 2.0 * c.tokens * c.hidden_size * c.num_experts,
        bytes_moved=lambda c: _gate_bytes(c) + _token_bytes(c) + _logits_bytes(c),
        step_bytes=_gate_bytes,
    ),
    "router_topk": Operation(
        build=_build_routing,
        implementations=(TORCH, OWN, UNION),
        dtypes=FLOATS,
        flops=lambda c: 5.0 * c.tokens * c.num_experts,
        bytes_moved=lambda c: _logits_bytes(c) + 12.0 * c.tokens * c.top_k,
        step_bytes=_logits_bytes,
    ),
    "dispatch": Operation(
        build=Dispatch,
        implementations=(OWN, TORCH),
        dtypes=FLOATS,
        flops=lambda c: 0.0,
        bytes_moved=lambda c: 12.0 * c.routed_rows + (0.0 if c.impl == OWN else _token_bytes(c) + _row_bytes(c)),
        step_bytes=lambda c: 8.0 * c.routed_rows,
    ),
    "combine": Operation(
        build=Combine,
        implementations=(OWN, TORCH),
        dtypes=FLOATS,
        flops=lambda c: 2.0 * c.routed_rows * c.hidden_size,
        bytes_moved=lambda c: _row_bytes(c) + _token_bytes(c) + 12.0 * c.routed_rows,
        step_bytes=_row_bytes,
    ),
    "dispatch_combine": Operation(
        build=DispatchCombine,
        implementations=(TORCH,),
        dtypes=FLOATS,
        flops=lambda c: 2.0 * c.routed_rows * c.hidden_size,
        bytes_moved=lambda c: 2.0 * (_token_bytes(c) + _row_bytes(c)),
        step_bytes=lambda c: 8.0 * c.routed_rows,
    ),
}
