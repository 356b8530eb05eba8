"""Thermoe's kernels through their public functions; an operation that is not there says so.

Shapes: T tokens, K experts per token, N = T K slots, E experts, D model width.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cell import Cell, slot_rows, union_knobs
from benchmarks.kernels.formats import FORMATS
from benchmarks.kernels.registry import OWN, Entry, Output, Run, UnavailableError
from thermoe.kernels.expert_mlp.configs import MlpConfig, shape_of
from thermoe.kernels.expert_mlp.planes import dequantize
from thermoe.kernels.expert_mlp.weights import ExpertWeights
from thermoe.kernels.route import LayerKnobs
from thermoe.runtime.knobs import DeviceKnobs
from thermoe.types import RoutingKnobs


def public(module: str, name: str) -> Callable[..., Any]:
    """A function of `thermoe.kernels`, imported when it is needed.

    Raises:
        UnavailableError: There is no such function here.
    """
    try:
        found: Callable[..., Any] | None = getattr(importlib.import_module(f"thermoe.kernels.{module}"), name, None)
    except ImportError as err:
        raise UnavailableError(f"thermoe.kernels.{module} cannot be imported ({err})") from err
    if found is None:
        raise UnavailableError(f"thermoe.kernels.{module} has no {name}")
    return found


def _expert_mlp(*, plan_included: bool) -> Callable[[Cell, str, int], Run]:
    def build(cell: Cell, dtype: str, num_layers: int) -> Run:
        expert_mlp = public("expert_mlp", "expert_mlp")
        experts = cell.store.layers(dtype, num_layers)
        if not plan_included and shape_of(experts[0], cell.num_tokens, cell.shape.top_k).few:
            raise UnavailableError("finds the slots of few tokens by itself: there is no plan to leave out")
        outs = [torch.full_like(cell.input(layer).x_TD, float("nan")) for layer in range(num_layers)]
        plans = [None] * num_layers if plan_included else _plans(cell, num_layers)

        def run(layer: int) -> Output:
            given = cell.input(layer)
            return (
                expert_mlp(
                    given.x_TD, given.ids_TK, given.weights_TK, experts[layer], plan=plans[layer], out_TD=outs[layer]
                ),
            )

        return run

    return build


def run_configured(cell: Cell, dtype: str, num_layers: int, settings: Mapping[str, Any]) -> Run:
    """The expert MLP from hidden states, ids and weights, its plan included, as one configuration launches it."""
    config, experts = MlpConfig.from_dict(settings), cell.store.layers(dtype, num_layers)
    few = shape_of(experts[0], cell.num_tokens, cell.shape.top_k).few
    launch = _built_kernel(cell, experts[0]) if config.cuda else _portable(config, few=few)
    outs = [torch.full_like(cell.input(layer).x_TD, float("nan")) for layer in range(num_layers)]

    def run(layer: int) -> Output:
        given = cell.input(layer)
        launch(given.x_TD, given.ids_TK, given.weights_TK, experts[layer], outs[layer])
        return (outs[layer],)

    return run


def _portable(config: MlpConfig, *, few: bool) -> Callable[..., None]:
    launch = public("expert_mlp.triton_launch", "expert_mlp_few" if few else "expert_mlp_many")

    def run(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights, out_TD: Tensor) -> None:
        launch(x_TD, ids_TK, weights_TK, experts, config, out_TD)

    return run


def _built_kernel(cell: Cell, experts: ExpertWeights) -> Callable[..., None]:
    supports, run = (public("expert_mlp.cuda", name) for name in ("supports", "run"))
    if not supports(experts, cell.num_tokens, cell.shape.top_k, cell.input(0).x_TD.dtype):
        raise UnavailableError("the kernel built with nvcc is not there or does not take this size")
    return run


def _eight_by_eight(*, plan_included: bool) -> Callable[[Cell, str, int], Run]:
    """e4m3 weights by tokens quantised to e4m3: never chosen by itself, because it rounds more than bf16 does."""

    def build(cell: Cell, dtype: str, num_layers: int) -> Run:
        refusal, launch = (public("expert_mlp.cuda_grouped", name) for name in ("refusal", "run"))
        experts = cell.store.layers(dtype, num_layers)
        if reason := refusal(experts[0], cell.num_tokens, cell.shape.top_k, cell.input(0).x_TD.dtype):
            raise UnavailableError(reason)
        outs = [torch.full_like(cell.input(layer).x_TD, float("nan")) for layer in range(num_layers)]
        plans = [None] * num_layers if plan_included else _plans(cell, num_layers)

        def run(layer: int) -> Output:
            given = cell.input(layer)
            launch(given.x_TD, given.ids_TK, given.weights_TK, experts[layer], outs[layer], plan=plans[layer])
            return (outs[layer],)

        return run

    return build


def _plans(cell: Cell, num_layers: int) -> list[Any]:
    dispatch_plan = public("dispatch", "dispatch_plan")
    inputs = [cell.input(layer) for layer in range(num_layers)]
    return [dispatch_plan(given.ids_TK, given.weights_TK, cell.shape.num_experts) for given in inputs]


def _dispatch(cell: Cell, dtype: str, num_layers: int) -> Run:
    dispatch_plan = public("dispatch", "dispatch_plan")

    def run(layer: int) -> Output:
        given = cell.input(layer)
        plan = dispatch_plan(given.ids_TK, given.weights_TK, cell.shape.num_experts)
        return (plan.slot_N, plan.offsets_E1)

    return run


def _combine(cell: Cell, dtype: str, num_layers: int) -> Run:
    combine = public("combine", "combine")
    rows = [slot_rows(cell, layer) for layer in range(num_layers)]
    num_experts = cell.shape.num_experts

    def run(layer: int) -> Output:
        given = cell.input(layer)
        return (combine(rows[layer], given.weights_TK, given.ids_TK, num_experts),)

    return run


def _routing(*, union: bool, counted: bool = False) -> Callable[[Cell, str, int], Run]:
    """From scores to ids, weights and plan; `counted` adds the data plane's counters, as a model's layers do."""

    def build(cell: Cell, dtype: str, num_layers: int) -> Run:
        route_logits = public("route.fused", "route_logits")
        knobs = layer_knobs(cell, num_layers, union=union)
        top_k, num_experts = cell.shape.top_k, cell.shape.num_experts
        sums = [
            torch.zeros(2 * num_experts + 4, dtype=torch.float64, device=cell.device) if counted else None
            for _ in range(num_layers)
        ]

        def run(layer: int) -> Output:
            fused = route_logits(cell.input(layer).logits_TE, knobs[layer], top_k=top_k, sums=sums[layer])
            return (fused.routing.ids_TK, fused.routing.weights_TK, fused.plan.slot_N, fused.plan.offsets_E1)

        return run

    return build


def layer_knobs(cell: Cell, num_layers: int, *, union: bool) -> list[LayerKnobs]:
    """The union policy or neutral knobs in device memory, a row for each layer; any values may be written later."""
    host = union_knobs(cell.shape, num_layers)
    if not union:
        host = RoutingKnobs.neutral(num_layers, cell.shape.num_experts, cell.shape.top_k)
    device_knobs, knob_row = DeviceKnobs(host, cell.device), public("route.fused", "knob_row")
    views = [device_knobs.layer(layer, union=union) for layer in range(num_layers)]
    general = [replace(view, biased=True, priced=True, ranked=True, slots_kept=0) for view in views]
    return [replace(view, row=knob_row(view)) for view in general]


def _dequantize(cell: Cell, dtype: str, num_layers: int) -> Run:
    experts = cell.store.layers(dtype, num_layers)
    target = cell.input(0).x_TD.dtype

    def run(layer: int) -> Output:
        dequantize(experts[layer].fc1, experts[layer].bits_E, dtype=target)
        return (dequantize(experts[layer].fc2, experts[layer].bits_E, dtype=target),)

    return run


FORMAT_NAMES = tuple(FORMATS)
OWN_KERNELS = [
    Entry(op="expert_mlp", impl=OWN, dtypes=FORMAT_NAMES, build=_expert_mlp(plan_included=True)),
    Entry(op="expert_mlp", impl=OWN, dtypes=FORMAT_NAMES, build=_expert_mlp(plan_included=False), plan_included=False),
    Entry(op="expert_mlp", impl=f"{OWN}_w8a8", dtypes=("fp8",), build=_eight_by_eight(plan_included=True)),
    Entry(
        op="expert_mlp",
        impl=f"{OWN}_w8a8",
        dtypes=("fp8",),
        build=_eight_by_eight(plan_included=False),
        plan_included=False,
    ),
    Entry(op="routing", impl=OWN, dtypes=("f32",), build=_routing(union=True), policy="union"),
    Entry(op="routing", impl=OWN, dtypes=("f32",), build=_routing(union=True, counted=True), policy="union_counted"),
    Entry(op="routing", impl=OWN, dtypes=("f32",), build=_routing(union=False), policy="top_k"),
    Entry(op="dispatch", impl=OWN, dtypes=("i64",), build=_dispatch),
    Entry(op="combine", impl=OWN, dtypes=("bf16",), build=_combine),
    Entry(op="dequantize", impl=OWN, dtypes=tuple(n for n in FORMATS if n != "bf16"), build=_dequantize),
]
