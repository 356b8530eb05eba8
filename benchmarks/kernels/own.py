"""Thermoe's kernels through their public functions; an operation that is not there says so.

Shapes: T tokens, K experts per token, N = T K slots, E experts, D model width.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels.cell import Cell, slot_rows
from benchmarks.kernels.formats import FORMATS
from benchmarks.kernels.registry import OWN, Entry, Output, Run, UnavailableError
from thermoe.kernels.expert_mlp.planes import dequantize


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

    def run(layer: int) -> Output:
        given = cell.input(layer)
        return (combine(rows[layer], given.weights_TK, given.ids_TK),)

    return run


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
    Entry(op="dispatch", impl=OWN, dtypes=("i64",), build=_dispatch),
    Entry(op="combine", impl=OWN, dtypes=("bf16",), build=_combine),
    Entry(op="dequantize", impl=OWN, dtypes=tuple(n for n in FORMATS if n != "bf16"), build=_dequantize),
]
