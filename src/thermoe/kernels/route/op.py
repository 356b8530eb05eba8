"""Fused routing as a torch custom op, so that torch.compile and CUDA graphs take it as one node."""

import torch
from torch import Tensor

from thermoe.kernels.route.cuda import rows
from thermoe.kernels.route.launch import Outputs, launch, outputs


@torch.library.custom_op("thermoe::route_logits", mutates_args=("sums",), device_types="cuda")
def route_logits_op(
    logits_TE: Tensor,
    knob_row: Tensor,
    correction_E: Tensor | None,
    live_T: Tensor | None,
    sums: Tensor | None,
    top_k: int,
    columns: int,
    flags: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`launch.outputs`, written; `flags` are sigmoid, groups, groups kept, renormalise, union."""
    out = outputs(logits_TE, top_k, columns)
    launch(logits_TE, knob_row, correction_E, live_T, sums, top_k, columns, flags, scale, out)
    return out


@route_logits_op.register_fake
def _(
    logits_TE: Tensor,
    knob_row: Tensor,
    correction_E: Tensor | None,
    live_T: Tensor | None,
    sums: Tensor | None,
    top_k: int,
    columns: int,
    flags: list[int],
    scale: float,
) -> Outputs:
    return outputs(logits_TE, top_k, columns)


@torch.library.custom_op("thermoe::route_rows", mutates_args=("sums",), device_types="cuda")
def route_rows_op(
    x_TD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None,
    knob_row: Tensor,
    correction_E: Tensor | None,
    live_T: Tensor | None,
    sums: Tensor | None,
    top_k: int,
    flags: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits, and `launch.outputs`, written; `flags` as above."""
    logits_TE = x_TD.new_empty(x_TD.shape[0], weight_ED.shape[0])
    out = outputs(logits_TE, top_k, 1)
    if live_T is not None and live_T.element_size() == 1:
        live_T = live_T.view(torch.uint8)
    rows.run(x_TD, weight_ED, bias_E, knob_row, correction_E, live_T, sums, top_k, flags, scale, logits_TE, out)
    return (logits_TE, *out)


@route_rows_op.register_fake
def _(
    x_TD: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None,
    knob_row: Tensor,
    correction_E: Tensor | None,
    live_T: Tensor | None,
    sums: Tensor | None,
    top_k: int,
    flags: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits_TE = x_TD.new_empty(x_TD.shape[0], weight_ED.shape[0])
    return (logits_TE, *outputs(logits_TE, top_k, 1))
