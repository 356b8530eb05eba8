"""Fused routing as a torch custom op, so that torch.compile and CUDA graphs take it as one node."""

import torch
from torch import Tensor

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
