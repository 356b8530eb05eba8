"""Routing from the rows that the router multiplies: logits and choice in one launch where it fits, in two elsewhere.

Shapes: T tokens, D model width, E experts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thermoe.errors import ConfigError
from thermoe.kernels.few_linear import few_linear
from thermoe.kernels.route.checks import check, check_beside
from thermoe.kernels.route.fused import (
    SOFTMAX,
    Fused,
    Scoring,
    fits,
    flags_of,
    fused_of,
    knob_row,
    route_logits,
)
from thermoe.kernels.route.reference import LayerKnobs


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterRows:
    """What a router multiplies.

    Attributes:
        x_TD: Hidden states, contiguous.
        weight_ED, bias_E: Of the router, in the dtype of the hidden states.
    """

    x_TD: Tensor
    weight_ED: Tensor
    bias_E: Tensor | None = None

    def logits(self) -> Tensor:
        """(T, E) in a launch of their own."""
        return few_linear(self.x_TD, [self.weight_ED], [self.bias_E])


def route_rows(
    rows: RouterRows,
    knobs: LayerKnobs,
    *,
    top_k: int,
    scoring: Scoring = SOFTMAX,
    live_T: Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
    sums: Tensor | None = None,
) -> tuple[Tensor, Fused]:
    """The logits of one batch, and the routing that `route_logits` makes of them.

    In one launch for up to 16 tokens of a bf16 router on a GPU of capability 9.0. There the logits are summed in an
    order of their own, always the same, and everything but `rows.x_TD` is read before the launch just before this one
    has ended: only the hidden states may come from that launch.

    Args:
        rows: What the router multiplies.
        knobs, top_k, scoring, live_T, renormalise, scale, sums: As for `route_logits`.

    Returns:
        (T, E) logits, accumulated in float32 and rounded once, and the routing.

    Raises:
        ConfigError: Shapes, dtypes or devices that do not fit.
    """
    _check_rows(rows)
    one_TE = rows.x_TD.new_empty(1).expand(rows.x_TD.shape[0], rows.weight_ED.shape[0])  # has the logits' shape
    check(one_TE, knobs, top_k, 1, live_T)
    check_beside(one_TE, scoring, sums)
    options: dict[str, Any] = {"live_T": live_T, "renormalise": renormalise, "scale": scale, "sums": sums}
    if not _in_one_launch(rows, knobs, live_T, top_k, scoring, sums):
        logits_TE = rows.logits()
        return logits_TE, route_logits(logits_TE, knobs, top_k=top_k, scoring=scoring, **options)
    from thermoe.kernels.route.op import route_rows_op

    logits_TE, *out = route_rows_op(
        rows.x_TD,
        rows.weight_ED,
        rows.bias_E,
        knob_row(knobs),
        scoring.correction_E,
        live_T,
        sums,
        top_k,
        flags_of(scoring, knobs, renormalise=renormalise),
        scale,
    )
    return logits_TE, fused_of(out, knobs, counted=sums is not None)


def _in_one_launch(
    rows: RouterRows, knobs: LayerKnobs, live_T: Tensor | None, top_k: int, scoring: Scoring, sums: Tensor | None
) -> bool:
    x_TD, weight_ED, bias_E = rows.x_TD, rows.weight_ED, rows.bias_E
    if not x_TD.is_cuda or (sums is not None and sums.dtype is not torch.float64):
        return False
    if knobs.row is None or not _as_it_is(live_T):  # what is converted first comes from the launch just before
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_TD, weight_ED, bias_E)):
        return False
    from thermoe.kernels.route.cuda.rows import supports

    sizes = x_TD.shape[0], weight_ED.shape[0], top_k, scoring, 1
    return fits(*sizes) and supports(x_TD, weight_ED, bias_E, top_k, scoring.groups)


def _as_it_is(live_T: Tensor | None) -> bool:
    """Whether the kernel reads this mask without a conversion."""
    return live_T is None or (live_T.is_contiguous() and (live_T.element_size() == 1 or live_T.dtype is torch.float32))


def _check_rows(rows: RouterRows) -> None:
    x_TD, weight_ED, bias_E = rows.x_TD, rows.weight_ED, rows.bias_E
    if x_TD.ndim != 2 or weight_ED.ndim != 2 or x_TD.shape[1] != weight_ED.shape[1]:
        raise ConfigError(
            f"rows {tuple(x_TD.shape)} for a router of {tuple(weight_ED.shape)}: needed (T, D) and (E, D)"
        )
    given = [x_TD, weight_ED] + ([] if bias_E is None else [bias_E])
    if any(t.dtype != x_TD.dtype or t.device != x_TD.device for t in given):
        raise ConfigError("rows and router need one dtype and one device")
    if bias_E is not None and bias_E.shape != weight_ED.shape[:1]:
        raise ConfigError(f"a bias of shape {tuple(bias_E.shape)} for {len(weight_ED)} experts: needed one each")
