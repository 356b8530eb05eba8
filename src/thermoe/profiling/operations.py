"""The operations of an MoE layer that can be measured, each able to build, run and check itself.

Shapes: T tokens, k slots per token, R routed rows, E experts, D model width, I expert width, N layers in the rotation.
Values are drawn from normal distributions, never zeros: power depends on them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from thermoe.errors import ConfigError
from thermoe.profiling.case import Case, draw_expert_ids, load_skew
from thermoe.profiling.draw import Draw

KERNEL_REVISION = "1"
INPUT_DISTRIBUTION = "normal(0,1); weights normal(0,1/fan_in)"
CHECKED_ROWS = 64


class Workbench(Protocol):
    """Inputs and weights of several like layers, ready to run."""

    skew: float

    def run(self, layer: int) -> Tensor:
        """Execute the operation once on one layer's data."""

    def rel_error(self) -> float:
        """Error of layer 0 against float64 on the same values, relative to their root mean square."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of the registry.

    Attributes:
        build: Makes a workbench of a number of layers on a device.
        implementations: Names that `Case.impl` may have.
        flops, bytes_moved: Floating-point operations and least memory traffic [byte] of one execution.
        layer_bytes: Bytes that one layer of the rotation reads and no other layer does [byte].
        resident_bytes: Device memory of one layer [byte].
    """

    build: "Callable[[Case, torch.device, int], Workbench]"
    implementations: tuple[str, ...]
    flops: Callable[[Case], float]
    bytes_moved: Callable[[Case], float]
    layer_bytes: Callable[[Case], float]
    resident_bytes: Callable[[Case], float]


class ExpertMlp:
    """SwiGLU experts on rows that are already in expert order: (R, D) to (R, D)."""

    def __init__(self, case: Case, device: torch.device, num_layers: int) -> None:
        dtype = _dtype(case)
        E, D, I = case.num_experts, case.hidden_size, case.inter_size  # noqa: E741
        ids_NR = [np.sort(draw_expert_ids(case, seed=layer)) for layer in range(num_layers)]
        self.skew = float(np.mean([load_skew(ids) for ids in ids_NR]))
        self._run = _EXPERT_MLPS[case.impl]
        draw = Draw(device, dtype)
        self._x_RD = draw.normal(case.routed_rows, D)
        self._ids = [torch.as_tensor(ids, device=device) for ids in ids_NR]
        self._offsets = [
            torch.as_tensor(np.bincount(ids, minlength=E).cumsum(), device=device, dtype=torch.int32) for ids in ids_NR
        ]
        self._gate_up = [draw.weights(E, 2 * I, D) for _ in range(num_layers)]
        self._down = [draw.weights(E, D, I) for _ in range(num_layers)]

    def run(self, layer: int) -> Tensor:
        """Execute one layer."""
        weights = self._gate_up[layer], self._down[layer]
        return self._run(self._x_RD, self._ids[layer], self._offsets[layer], *weights)

    def rel_error(self) -> float:
        """Relative error of a sample of rows against float64."""
        got_RD = self.run(0)
        sample = torch.linspace(0, len(got_RD) - 1, min(CHECKED_ROWS, len(got_RD)), device=got_RD.device).long()
        ids = self._ids[0][sample]
        want_RD = expert_mlp_reference(self._x_RD[sample], ids, self._gate_up[0], self._down[0])
        return relative_error(got_RD[sample], want_RD)


def expert_mlp_reference(x_RD: Tensor, expert_R: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    """SwiGLU of every row by its expert, in float64; the first half of H = 2I is the gate."""
    out_RD = torch.zeros_like(x_RD, dtype=torch.float64)
    for expert in expert_R.unique():
        rows = (expert_R == expert).nonzero().squeeze(1)
        gate, up = (x_RD[rows].double() @ gate_up_EHD[expert].double().T).chunk(2, dim=-1)
        out_RD[rows] = (nn_functional.silu(gate) * up) @ down_EDI[expert].double().T
    return out_RD


def relative_error(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference over that of `want`; infinite where `got` is not finite."""
    error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
    return float(error) if torch.isfinite(error) else float("inf")


def _grouped(x_RD: Tensor, ids_R: Tensor, offs_E: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    h_RH = grouped_mm(x_RD, gate_up_EHD.transpose(-2, -1), offs_E)
    gate, up = h_RH.chunk(2, dim=-1)
    return grouped_mm(nn_functional.silu(gate) * up, down_EDI.transpose(-2, -1), offs_E)


def grouped_mm(x_RK: Tensor, weight_EKN: Tensor, offs_E: Tensor) -> Tensor:
    """torch's grouped matrix product under whichever name this release has."""
    if hasattr(nn_functional, "grouped_mm"):
        return nn_functional.grouped_mm(x_RK, weight_EKN, offs=offs_E)
    return torch._grouped_mm(x_RK, weight_EKN, offs=offs_E)


def _batched(x_RD: Tensor, ids_R: Tensor, offs_E: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    h_RH = torch.bmm(gate_up_EHD[ids_R], x_RD.unsqueeze(-1)).squeeze(-1)
    gate, up = h_RH.chunk(2, dim=-1)
    return torch.bmm(down_EDI[ids_R], (nn_functional.silu(gate) * up).unsqueeze(-1)).squeeze(-1)


def _loop(x_RD: Tensor, ids_R: Tensor, offs_E: Tensor, gate_up_EHD: Tensor, down_EDI: Tensor) -> Tensor:
    out_RD, start = torch.empty_like(x_RD), 0
    for expert, end in enumerate(offs_E.tolist()):
        if end > start:
            gate, up = (x_RD[start:end] @ gate_up_EHD[expert].T).chunk(2, dim=-1)
            out_RD[start:end] = (nn_functional.silu(gate) * up) @ down_EDI[expert].T
        start = end
    return out_RD


_EXPERT_MLPS = {"grouped_mm": _grouped, "batched_mm": _batched, "loop": _loop}


class DispatchCombine:
    """Everything around the experts: sort rows by expert, offsets, gather; later the weighted sum per token."""

    def __init__(self, case: Case, device: torch.device, num_layers: int) -> None:
        if case.routed_rows % case.top_k:
            raise ConfigError(f"{case}: routed_rows must be a multiple of top_k to form whole tokens")
        ids_NR = [draw_expert_ids(case, seed=layer) for layer in range(num_layers)]
        self.skew = float(np.mean([load_skew(ids) for ids in ids_NR]))
        self._top_k, self._experts_E = case.top_k, torch.arange(case.num_experts, device=device)
        self._ids = [torch.as_tensor(ids, device=device) for ids in ids_NR]
        draw = Draw(device, _dtype(case))
        self._x_TD = draw.normal(case.tokens, case.hidden_size)
        self._gate_TK = draw.normal(case.tokens, case.top_k).sigmoid() / case.top_k

    def run(self, layer: int) -> Tensor:
        """Dispatch and combine with experts that return their input."""
        x_RD, order_R, _ = dispatch(self._x_TD, self._ids[layer], self._experts_E, self._top_k)
        return combine(x_RD, order_R, self._gate_TK)

    def rel_error(self) -> float:
        """Against the weighted sum written out in float64."""
        gate_T1 = self._gate_TK.double().sum(dim=1, keepdim=True)
        return relative_error(self.run(0), self._x_TD.double() * gate_T1)


def dispatch(x_TD: Tensor, ids_R: Tensor, experts_E: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in expert order (R, D), their order (R,) and the end of each expert's rows (E,)."""
    sorted_R, order_R = torch.sort(ids_R)
    offs_E = torch.searchsorted(sorted_R, experts_E, right=True, out_int32=True)
    return x_TD[order_R // top_k], order_R, offs_E


def combine(y_RD: Tensor, order_R: Tensor, gate_TK: Tensor) -> Tensor:
    """Sum each token's rows, weighted by its gates: (R, D) in expert order to (T, D)."""
    rows_RD = torch.empty_like(y_RD)
    rows_RD[order_R] = y_RD
    return (rows_RD.view(*gate_TK.shape, -1) * gate_TK.unsqueeze(-1)).sum(dim=1)


class RouterTopk:
    """Softmax over the experts and the renormalised k best, as most families do it."""

    def __init__(self, case: Case, device: torch.device, num_layers: int) -> None:
        self.skew = 1.0
        self._top_k = case.top_k
        draw = Draw(device, _dtype(case))
        self._logits = [draw.normal(case.tokens, case.num_experts) for _ in range(num_layers)]

    def run(self, layer: int) -> Tensor:
        """The renormalised weights (T, k); the ids are computed with them."""
        weights_TK, _ = self._logits[layer].float().softmax(dim=-1).topk(self._top_k, dim=-1)
        return weights_TK / weights_TK.sum(dim=-1, keepdim=True)

    def rel_error(self) -> float:
        """Against a full sort in float64."""
        probabilities_TE = self._logits[0].double().softmax(dim=-1)
        best_TK = probabilities_TE.sort(dim=-1, descending=True).values[:, : self._top_k]
        return relative_error(self.run(0), best_TK / best_TK.sum(dim=-1, keepdim=True))


class Copy:
    """Copy of a (tokens, D) matrix: the memory bandwidth beside which all else is read."""

    def __init__(self, case: Case, device: torch.device, num_layers: int) -> None:
        self.skew = 1.0
        self._source = Draw(device, _dtype(case)).normal(case.tokens, case.hidden_size)
        self._target = torch.empty_like(self._source)

    def run(self, layer: int) -> Tensor:
        """Copy once."""
        return self._target.copy_(self._source)

    def rel_error(self) -> float:
        """Exact, or it is broken."""
        return 0.0 if torch.equal(self.run(0), self._source) else float("inf")


class Matmul:
    """A plain (tokens, D) x (D, I) product: the arithmetic beside which all else is read."""

    def __init__(self, case: Case, device: torch.device, num_layers: int) -> None:
        self.skew = 1.0
        draw = Draw(device, _dtype(case))
        self._x = draw.normal(case.tokens, case.hidden_size)
        self._w = draw.weights(case.hidden_size, case.inter_size)

    def run(self, layer: int) -> Tensor:
        """Multiply once."""
        return self._x @ self._w

    def rel_error(self) -> float:
        """A sample of rows against float64."""
        return relative_error(self.run(0)[:CHECKED_ROWS], self._x[:CHECKED_ROWS].double() @ self._w.double())


def _expert_bytes_moved(c: Case) -> float:
    return c.distinct_experts * c.expert_bytes + 2.0 * c.routed_rows * c.hidden_size * c.element_bytes


def _activation_bytes(c: Case) -> float:
    return 2.0 * c.tokens * c.hidden_size * c.element_bytes


OPERATIONS: Mapping[str, Operation] = {
    "expert_mlp": Operation(
        build=ExpertMlp,
        implementations=tuple(_EXPERT_MLPS),
        flops=lambda c: 6.0 * c.routed_rows * c.hidden_size * c.inter_size,
        bytes_moved=_expert_bytes_moved,
        layer_bytes=lambda c: c.distinct_experts * c.expert_bytes,
        resident_bytes=lambda c: c.num_experts * c.expert_bytes,
    ),
    "dispatch_combine": Operation(
        build=DispatchCombine,
        implementations=("torch",),
        flops=lambda c: 2.0 * c.routed_rows * c.hidden_size,
        bytes_moved=lambda c: _activation_bytes(c) * (1 + c.top_k),
        layer_bytes=lambda c: 8.0 * c.routed_rows,
        resident_bytes=lambda c: 8.0 * c.routed_rows,
    ),
    "router_topk": Operation(
        build=RouterTopk,
        implementations=("torch",),
        flops=lambda c: 5.0 * c.tokens * c.num_experts,
        bytes_moved=lambda c: c.tokens * (c.num_experts * c.element_bytes + c.top_k * 12.0),
        layer_bytes=lambda c: float(c.tokens * c.num_experts * c.element_bytes),
        resident_bytes=lambda c: float(c.tokens * c.num_experts * c.element_bytes),
    ),
    "copy": Operation(
        build=Copy,
        implementations=("torch",),
        flops=lambda c: 0.0,
        bytes_moved=_activation_bytes,
        layer_bytes=_activation_bytes,
        resident_bytes=lambda c: 0.0,
    ),
    "matmul": Operation(
        build=Matmul,
        implementations=("torch",),
        flops=lambda c: 2.0 * c.tokens * c.hidden_size * c.inter_size,
        bytes_moved=lambda c: float(
            c.element_bytes * (c.tokens * (c.hidden_size + c.inter_size) + c.hidden_size * c.inter_size)
        ),
        layer_bytes=lambda c: float(c.element_bytes * c.hidden_size * c.inter_size),
        resident_bytes=lambda c: 0.0,
    ),
}


def find_operation(case: Case) -> Operation:
    """The operation of a case; a name that is not registered is a `ConfigError`."""
    operation = OPERATIONS.get(case.op)
    if operation is None:
        raise ConfigError(f"unknown operation {case.op}: choose from {', '.join(OPERATIONS)}")
    known = operation.implementations
    if case.impl not in known:
        raise ConfigError(f"{case.op} has no implementation {case.impl}: choose from {', '.join(known)}")
    return operation


def _dtype(case: Case) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, case.dtype)
    return dtype
