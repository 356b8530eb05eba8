# mypy: ignore-errors
"""Which routing kernels a forward launches, and into what.

Shapes: T = R x C tokens, E experts, K slots per token, B blocks of rows.
"""

import torch
import triton
from torch import Tensor

from thermoe.kernels.dispatch.triton import dispatch_plan_triton
from thermoe.kernels.route.cuda import run, supports
from thermoe.kernels.route.triton import route_kernel
from thermoe.kernels.route.triton_large import choose_kernel, place_kernel, vote_kernel

_TILE = 2048  # elements of the (tokens, experts) tile of a program: larger ones spill
_MAX_BLOCKS = 256

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def outputs(logits_TE: Tensor, top_k: int, columns: int) -> Outputs:
    """Unwritten ids, weights, kept, own ids, loaded set, slots and offsets of the plan, and figures of the batches."""
    (num_tokens, num_experts), empty = logits_TE.shape, logits_TE.new_empty
    slots = (num_tokens, top_k)
    return (
        empty(slots, dtype=torch.int64),
        empty(slots, dtype=torch.float32),
        empty(slots, dtype=torch.bool),
        empty(slots, dtype=torch.int64),
        empty((columns, num_experts), dtype=torch.bool),
        empty(num_tokens * top_k, dtype=torch.int32),
        empty(num_experts + 1, dtype=torch.int32),
        empty((3, columns), dtype=torch.float32),
    )


def launch(
    logits_TE: Tensor,
    knob_row: Tensor,
    correction_E: Tensor | None,
    live_T: Tensor | None,
    sums: Tensor | None,
    top_k: int,
    columns: int,
    flags: list[int],
    scale: float,
    out: Outputs,
) -> None:
    """Route into `out` (see `outputs`); arguments as for the custom op."""
    num_tokens, num_experts = logits_TE.shape
    if logits_TE.stride(1) != 1:
        logits_TE = logits_TE.contiguous()
    sigmoid, groups, groups_kept, renormalise, union = flags
    if live_T is not None:
        live_T = live_T.contiguous()
        live_T = live_T.view(torch.uint8) if live_T.element_size() == 1 else live_T.float()
    if supports(logits_TE, top_k, groups, columns):
        run(logits_TE, knob_row, correction_E, live_T, sums, top_k, flags, scale, out)
        return
    scoring = {
        "SIGMOID": bool(sigmoid),
        "CORRECTED": correction_E is not None,
        "GROUPS": groups,
        "KEPT_GROUPS": groups_kept,
    }
    rows = num_tokens // columns
    sizes = {
        "HAS_LIVE": live_T is not None,
        "TOP_K": top_k,
        "E": triton.next_power_of_2(num_experts),
        "K": triton.next_power_of_2(top_k),
    }
    optional = [knob_row if t is None else t for t in (correction_E, live_T)]  # never read where it stands in
    inputs = (logits_TE, knob_row, *optional)
    weighing = {"RENORMALISE": bool(renormalise), "TALLY": sums is not None}
    if columns > 1 or triton.next_power_of_2(rows) * sizes["E"] <= _TILE:
        _launch_small(inputs, sums, rows, columns, union, scale, out, {**scoring, **sizes, **weighing})
    else:
        _launch_large(inputs, sums, union, scale, out, {**scoring, **sizes}, weighing)


def _launch_small(inputs, sums, rows, columns, union, scale, out, options) -> None:  # noqa: ANN001
    logits_TE = inputs[0]
    ids_TK, weights_TK, kept_TK, own_TK, loaded_CE, slot_N, offsets_E1, last_3C = out
    num_experts, tile_rows = logits_TE.shape[1], triton.next_power_of_2(rows)
    scratch = torch.empty((columns, options["E"]), dtype=torch.float32, device=logits_TE.device)
    totals = scratch if sums is None else sums
    if sums is not None and columns > 1:
        totals = torch.empty((columns, sums.shape[0]), dtype=sums.dtype, device=sums.device)
    route_kernel[(columns,)](
        *inputs, ids_TK, weights_TK, kept_TK.view(torch.uint8), own_TK, loaded_CE.view(torch.uint8), scratch,
        slot_N, offsets_E1, totals, last_3C, logits_TE.stride(0), rows, num_experts, scale, union,
        ALONE=columns == 1, R=tile_rows, num_warps=_warps(tile_rows * options["E"]), **options,
    )  # fmt: skip
    if columns > 1:
        plan = dispatch_plan_triton(ids_TK, weights_TK, num_experts)
        slot_N.copy_(plan[0])
        offsets_E1.copy_(plan[1])
        if sums is not None:
            sums += totals.sum(0)


def _launch_large(inputs, sums, union, scale, out, options, weighing) -> None:  # noqa: ANN001
    logits_TE = inputs[0]
    ids_TK, weights_TK, kept_TK, own_TK, loaded_CE, slot_N, offsets_E1, last_3C = out
    (num_tokens, num_experts), top_k = logits_TE.shape, options["TOP_K"]
    tile_rows = max(1, _TILE // options["E"])
    steps = triton.cdiv(num_tokens, tile_rows * _MAX_BLOCKS)
    blocks = triton.cdiv(num_tokens, tile_rows * steps)
    counts_e = triton.next_power_of_2(num_experts + 1)
    empty = logits_TE.new_empty
    votes, values = empty((blocks, options["E"]), dtype=torch.int32), empty((blocks, options["E"]), dtype=torch.float32)
    counts, tally = empty((blocks, counts_e), dtype=torch.int32), empty((blocks, options["E"] + 4), dtype=torch.float32)
    scratch = empty((blocks, options["E"]), dtype=torch.float32)
    stride = logits_TE.stride(0)
    if union:
        vote_kernel[(blocks,)](
            *inputs, votes, values, stride, num_tokens, num_experts, steps, R=tile_rows, num_warps=8, **options
        )
    choose_kernel[(blocks,)](
        *inputs, ids_TK, weights_TK, kept_TK.view(torch.uint8), own_TK, loaded_CE.view(torch.uint8), scratch, votes,
        values, counts, tally, stride, num_tokens, num_experts, blocks, steps, scale, union, R=tile_rows,
        COUNTS_E=counts_e, num_warps=8, **options, **weighing,
    )  # fmt: skip
    totals = tally if sums is None else sums
    place_kernel[(blocks,)](
        ids_TK, weights_TK, slot_N, counts, offsets_E1, tally, totals, last_3C, num_tokens * top_k, num_experts, blocks,
        steps * top_k, TALLY=sums is not None, STEP=tile_rows, COUNTS_E=counts_e, E=options["E"], num_warps=8,
    )  # fmt: skip


def _warps(elements: int) -> int:
    """Warps of a program, for 8 elements in a thread."""
    return max(1, min(8, elements // 256))
