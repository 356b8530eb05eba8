"""Implementations that thermoe is compared with: torch's own operations and those of Transformers.

Shapes: T tokens, K experts per token, N = T K slots, E experts, D model width, I expert width.
They read dense weights and take gates in the dtype of x, as the routers they belong to give them.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from benchmarks.kernels.cell import Cell, slot_rows, union_knobs
from benchmarks.kernels.registry import Entry, Output, Run, UnavailableError
from thermoe.kernels.expert_mlp.weights import DenseMatrices, ExpertWeights
from thermoe.kernels.route import route_reference
from thermoe.profiling.operations import combine, dispatch, grouped_mm
from thermoe.runtime.knobs import DeviceKnobs
from thermoe.types import MoEShape

GATHER_LIMIT_BYTES = 24e9


def _dense(experts: ExpertWeights) -> tuple[Tensor, Tensor]:
    assert isinstance(experts.fc1, DenseMatrices)
    assert isinstance(experts.fc2, DenseMatrices)
    return experts.fc1.weight_ENC, experts.fc2.weight_ENC


def _activate(h_NH: Tensor) -> Tensor:
    gate, up = h_NH.chunk(2, dim=-1)
    return nn_functional.silu(gate) * up


def _torch_grouped_mm(*, plan_included: bool) -> Callable[[Cell, str, int], Run]:
    """Sort by expert, two grouped products, the weighted sum; or with the order and offsets given."""

    def build(cell: Cell, dtype: str, num_layers: int) -> Run:
        layers = [_dense(experts) for experts in cell.store.layers(dtype, num_layers)]
        experts_E = torch.arange(cell.shape.num_experts, device=cell.device)
        top_k = cell.shape.top_k
        plans = []
        for layer in range(num_layers):
            given = cell.input(layer)
            plans.append(dispatch(given.x_TD, given.ids_TK.flatten(), experts_E, top_k)[1:])

        def run(layer: int) -> Output:
            given, (fc1_EHD, fc2_EDI) = cell.input(layer), layers[layer]
            if plan_included:
                x_ND, order_N, offsets_E = dispatch(given.x_TD, given.ids_TK.flatten(), experts_E, top_k)
            else:
                order_N, offsets_E = plans[layer]
                x_ND = given.x_TD[order_N // top_k]
            h_NI = _activate(grouped_mm(x_ND, fc1_EHD.transpose(-2, -1), offsets_E))
            y_ND = grouped_mm(h_NI, fc2_EDI.transpose(-2, -1), offsets_E)
            return (combine(y_ND, order_N, given.weights_TK.to(y_ND.dtype)),)

        return run

    return build


def _torch_dense(cell: Cell, dtype: str, num_layers: int) -> Run:
    """All experts on all tokens; what was not routed counts zero times."""
    layers = [_dense(experts) for experts in cell.store.layers(dtype, num_layers)]
    num_experts = cell.shape.num_experts

    def run(layer: int) -> Output:
        given, (fc1_EHD, fc2_EDI) = cell.input(layer), layers[layer]
        x_TD = given.x_TD
        gates_TE = torch.zeros(len(x_TD), num_experts, dtype=x_TD.dtype, device=x_TD.device)
        gates_TE = gates_TE.scatter(1, given.ids_TK, given.weights_TK.to(x_TD.dtype))
        h_ETI = _activate(torch.bmm(x_TD.expand(num_experts, -1, -1), fc1_EHD.transpose(-2, -1)))
        h_ETI = h_ETI * gates_TE.T.unsqueeze(-1)
        return (torch.bmm(h_ETI, fc2_EDI.transpose(-2, -1)).sum(dim=0),)

    return run


def _transformers(name: str) -> Callable[[Cell, str, int], Run]:
    """An experts implementation of Transformers on the module that models use it with."""

    def build(cell: Cell, dtype: str, num_layers: int) -> Run:
        if name.startswith("batched"):
            _refuse_large_gathers(cell)
        forward = _experts_forward(f"{name}_experts_forward")
        modules = [_experts_module(cell.shape, experts) for experts in cell.store.layers(dtype, num_layers)]
        gates = [cell.input(layer).weights_TK.to(cell.input(layer).x_TD.dtype) for layer in range(num_layers)]

        def run(layer: int) -> Output:
            given = cell.input(layer)
            return (forward(modules[layer], given.x_TD, given.ids_TK, gates[layer]),)

        return run

    return build


def _refuse_large_gathers(cell: Cell) -> None:
    gathered_bytes = cell.num_tokens * cell.shape.top_k * cell.shape.expert_bytes()
    if gathered_bytes > GATHER_LIMIT_BYTES:
        raise UnavailableError(f"gathers a copy of the weights for every slot: {gathered_bytes / 1e9:.0f} GB")


def _experts_forward(name: str) -> Callable[..., Tensor]:
    try:
        module = importlib.import_module("transformers.integrations.moe")
    except ImportError as err:
        raise UnavailableError(f"Transformers cannot be imported ({err})") from err
    forward: Callable[..., Tensor] | None = getattr(module, name, None)
    if forward is None:
        raise UnavailableError(f"this Transformers has no {name}")
    return forward


def _experts_module(shape: MoEShape, experts: ExpertWeights) -> Any:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=shape.hidden_size, moe_intermediate_size=shape.inter_size, num_experts=shape.num_experts
    )
    with torch.device("meta"):
        module = Qwen3MoeExperts(config)
    fc1_EHD, fc2_EDI = _dense(experts)
    module.gate_up_proj = torch.nn.Parameter(fc1_EHD, requires_grad=False)
    module.down_proj = torch.nn.Parameter(fc2_EDI, requires_grad=False)
    return module


def _torch_topk(*, plan: bool) -> Callable[[Cell, str, int], Run]:
    """Softmax, top-k, renormalise; with a plan by a stable sort and a search of its bounds."""

    def build(cell: Cell, dtype: str, num_layers: int) -> Run:
        edges_E1 = torch.arange(cell.shape.num_experts + 1, device=cell.device)

        def run(layer: int) -> Output:
            weights_TK, ids_TK = cell.input(layer).logits_TE.softmax(dim=-1).topk(cell.shape.top_k, dim=-1)
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
            return (ids_TK, weights_TK, *(_sorted_plan(ids_TK, weights_TK, edges_E1) if plan else (None, None)))

        return run

    return build


def _sorted_plan(ids_TK: Tensor, weights_TK: Tensor, edges_E1: Tensor) -> tuple[Tensor, Tensor]:
    dropped_last_TK = ids_TK.where(weights_TK != 0, len(edges_E1) - 1)
    sorted_N, slot_N = torch.sort(dropped_last_TK.flatten(), stable=True)
    return slot_N, torch.searchsorted(sorted_N, edges_E1, out_int32=True)


def _torch_union(cell: Cell, dtype: str, num_layers: int) -> Run:
    """The union policy in separate torch operations, then the sorted plan; any knobs may be written later."""
    knobs = DeviceKnobs(union_knobs(cell.shape, num_layers), cell.device)
    views = [
        replace(knobs.layer(layer), biased=True, priced=True, ranked=True, slots_kept=0) for layer in range(num_layers)
    ]
    edges_E1 = torch.arange(cell.shape.num_experts + 1, device=cell.device)

    def run(layer: int) -> Output:
        logits_TE = cell.input(layer).logits_TE
        routing = route_reference(logits_TE, logits_TE.softmax(dim=-1), views[layer], top_k=cell.shape.top_k)
        return (routing.ids_TK, routing.weights_TK, *_sorted_plan(routing.ids_TK, routing.weights_TK, edges_E1))

    return run


def _torch_dispatch(cell: Cell, dtype: str, num_layers: int) -> Run:
    edges_E1 = torch.arange(cell.shape.num_experts + 1, device=cell.device)

    def run(layer: int) -> Output:
        given = cell.input(layer)
        return _sorted_plan(given.ids_TK, given.weights_TK, edges_E1)

    return run


def _torch_combine(cell: Cell, dtype: str, num_layers: int) -> Run:
    rows = [slot_rows(cell, layer) for layer in range(num_layers)]

    def run(layer: int) -> Output:
        weights_TK = cell.input(layer).weights_TK
        rows_TKD = rows[layer].view(*weights_TK.shape, -1)
        return ((rows_TKD * weights_TK.to(rows_TKD.dtype).unsqueeze(-1)).sum(dim=1),)

    return run


RIVALS = [
    Entry(op="expert_mlp", impl="torch_grouped_mm", dtypes=("bf16",), build=_torch_grouped_mm(plan_included=True)),
    Entry(
        op="expert_mlp",
        impl="torch_grouped_mm",
        dtypes=("bf16",),
        build=_torch_grouped_mm(plan_included=False),
        plan_included=False,
    ),
    Entry(op="expert_mlp", impl="transformers_batched_mm", dtypes=("bf16",), build=_transformers("batched_mm")),
    Entry(op="expert_mlp", impl="transformers_grouped_mm", dtypes=("bf16",), build=_transformers("grouped_mm")),
    Entry(op="expert_mlp", impl="torch_dense", dtypes=("bf16",), build=_torch_dense),
    Entry(
        op="routing", impl="torch", dtypes=("f32",), build=_torch_topk(plan=False), plan_included=False, policy="top_k"
    ),
    Entry(op="routing", impl="torch", dtypes=("f32",), build=_torch_topk(plan=True), policy="top_k"),
    Entry(op="routing", impl="torch", dtypes=("f32",), build=_torch_union, policy="union"),
    Entry(op="dispatch", impl="torch", dtypes=("i64",), build=_torch_dispatch),
    Entry(op="combine", impl="torch", dtypes=("bf16",), build=_torch_combine),
]
