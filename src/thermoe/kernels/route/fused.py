"""The fused routing of a forward: from router logits to slots, dispatch plan and counters.

Shapes: T = R x C tokens (token = row * C + column), E experts, K slots per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from thermoe.kernels.dispatch import DispatchPlan, dispatch_plan_reference
from thermoe.kernels.route.checks import check, check_beside
from thermoe.kernels.route.reference import LayerKnobs, Routing, route_reference

MAX_TOP_K = 16
MAX_EXPERTS = 512

_HAS_TRITON = find_spec("triton") is not None  # asked here: torch.compile does not trace the question


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How a model turns logits into ranks and gates.

    Attributes:
        sigmoid: gates are the sigmoid of the logits and rank the experts; otherwise gates are their softmax, and the
            logits rank them.
        correction_E: (E,) float32 added to the ranks of sigmoid gates; None for none.
        groups, groups_kept: equal groups of neighbouring experts, of which a token may use the best: by the sum of
            their two best ranks (sigmoid) or their best one (softmax).
    """

    sigmoid: bool = False
    correction_E: Tensor | None = None
    groups: int = 1
    groups_kept: int = 1


SOFTMAX = Scoring()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """A routing with what is made beside it.

    Attributes:
        routing: what was decided; it carries the plan too.
        plan: the dispatch plan of its slots.
        last_3C: (3, C) float32 distinct experts, routed rows and mean gate mass kept of each batch's live tokens; None
            where no sums were given.
    """

    routing: Routing
    plan: DispatchPlan
    last_3C: Tensor | None


def route_logits(
    logits_TE: Tensor,
    knobs: LayerKnobs,
    *,
    top_k: int,
    scoring: Scoring = SOFTMAX,
    columns: int = 1,
    live_T: Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
    sums: Tensor | None = None,
) -> Fused:
    """Route from logits, plan the dispatch and count, all in one launch where the batch fits one program.

    The decision is that of `route` on the scores that `scoring` makes of the logits; the kernels give ties to the lower
    index, plain PyTorch as `topk` does on the device. A token with NaN or infinite logits keeps one slot with a NaN
    weight. Nothing waits for the host.

    Args:
        logits_TE: (T, E) router logits, bf16, f16 or f32.
        knobs: the layer's knobs.
        top_k: the model's own number of experts per token (K).
        scoring: how the model scores.
        columns: batches in this forward (C); T must be a multiple of it.
        live_T: (T,) not 0 for tokens that count; None for all.
        renormalise: whether the chosen gates are scaled to sum to one.
        scale: factor on the weights.
        sums: (2 E + 4,) running sums that this forward is added to, in float64 or float32: live rows of each expert,
            batches that loaded it, batches with a live token, live tokens, gate mass kept, share of slots changed.

    Raises:
        ConfigError: shapes, types or devices that do not fit.
    """
    check(logits_TE, knobs, top_k, columns, live_T)
    check_beside(logits_TE, scoring, sums)
    if not is_fused(logits_TE, top_k, scoring, columns) or (sums is not None and sums.dtype is not torch.float64):
        return _by_reference(logits_TE, knobs, top_k, scoring, columns, live_T, renormalise, scale, sums)
    from thermoe.kernels.route.op import route_logits_op

    out = route_logits_op(
        logits_TE,
        knob_row(knobs),
        scoring.correction_E,
        live_T,
        sums,
        top_k,
        columns,
        flags_of(scoring, knobs, renormalise=renormalise),
        scale,
    )
    return fused_of(out, knobs, counted=sums is not None)


def flags_of(scoring: Scoring, knobs: LayerKnobs, *, renormalise: bool) -> list[int]:
    """As the custom ops take them."""
    return [int(scoring.sigmoid), scoring.groups, scoring.groups_kept, int(renormalise), int(knobs.union)]


def fused_of(out: Sequence[Tensor], knobs: LayerKnobs, *, counted: bool) -> Fused:
    """What `launch.outputs` holds after a launch."""
    ids_TK, weights_TK, kept_TK, own_ids_TK, loaded_CE, slot_N, offsets_E1, last_3C = out
    plan = DispatchPlan(slot_N=slot_N, offsets_E1=offsets_E1)
    routing = Routing(
        ids_TK=ids_TK,
        weights_TK=weights_TK,
        kept_TK=kept_TK,
        own_ids_TK=own_ids_TK,
        loaded_CE=loaded_CE if knobs.union else None,
        plan=plan,
    )
    return Fused(routing=routing, plan=plan, last_3C=last_3C if counted else None)


def is_fused(logits_TE: Tensor, top_k: int, scoring: Scoring, columns: int) -> bool:
    """Whether the kernels serve this forward: on a GPU with Triton, without a gradient, in sizes that fit a program."""
    num_tokens, num_experts = logits_TE.shape
    if not logits_TE.is_cuda or (logits_TE.requires_grad and torch.is_grad_enabled()) or not _HAS_TRITON:
        return False
    return fits(num_tokens, num_experts, top_k, scoring, columns)


def fits(num_tokens: int, num_experts: int, top_k: int, scoring: Scoring, columns: int) -> bool:
    """Whether the kernels serve these sizes."""
    if not 0 < num_tokens < 2**24 or top_k > MAX_TOP_K or num_experts > MAX_EXPERTS:
        return False
    whole = num_experts & (num_experts - 1) == 0  # groups are cut from a power of two
    rows_fit = columns == 1 or num_tokens // columns <= 64
    return rows_fit and (scoring.groups == 1 or (whole and scoring.groups & (scoring.groups - 1) == 0))


def knob_row(knobs: LayerKnobs) -> Tensor:
    """(3 E + 7,) the knobs of a layer as one row: cost, bias, allowed, then the scalars."""
    if knobs.row is not None:
        return knobs.row
    scalars = [knobs.price, knobs.top_k, knobs.protected_k0, knobs.max_experts]
    scalars += [knobs.gate_mass, knobs.skip_ratio, knobs.value_power]
    return torch.cat([knobs.cost, knobs.bias, knobs.allowed, torch.stack(scalars)])


def scores(logits_TE: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Ranks and gates (T, E) in float32, as `route` takes them."""
    logits_TE = logits_TE.float()
    if scoring.sigmoid:
        gates_TE = logits_TE.sigmoid()
        ranks_TE = gates_TE if scoring.correction_E is None else gates_TE + scoring.correction_E
    else:
        ranks_TE, gates_TE = logits_TE, logits_TE.softmax(dim=-1)
    if scoring.groups == 1:
        return ranks_TE, gates_TE
    by_group = ranks_TE.unflatten(1, (scoring.groups, -1))
    group_scores_TG = by_group.topk(2, dim=-1).values.sum(-1) if scoring.sigmoid else by_group.amax(-1)
    best = group_scores_TG.topk(scoring.groups_kept, dim=-1).indices
    kept_TG = torch.zeros_like(group_scores_TG, dtype=torch.bool).scatter_(1, best, value=True)
    kept_TE = kept_TG.repeat_interleave(by_group.shape[2], dim=1)
    return ranks_TE.masked_fill(~kept_TE, float("-inf")), gates_TE


def _by_reference(
    logits_TE: Tensor,
    knobs: LayerKnobs,
    top_k: int,
    scoring: Scoring,
    columns: int,
    live_T: Tensor | None,
    renormalise: bool,
    scale: float,
    sums: Tensor | None,
) -> Fused:
    ranks_TE, gates_TE = scores(logits_TE, scoring)
    routing = route_reference(
        ranks_TE,
        gates_TE,
        knobs,
        top_k=top_k,
        columns=columns,
        live_T=live_T,
        renormalise=renormalise,
        scale=scale,
        log_gates_TE=None if scoring.sigmoid else logits_TE,
    )
    with torch.no_grad():
        plan = dispatch_plan_reference(routing.ids_TK, routing.weights_TK, logits_TE.shape[1])
        last_3C = None
        if sums is not None:
            model_ids_TK = ranks_TE.topk(top_k, dim=-1).indices
            row, last_3C = tally(routing, gates_TE, model_ids_TK, live_T, columns)
            sums += row
    return Fused(routing=replace(routing, plan=plan), plan=plan, last_3C=last_3C)


def tally(
    routing: Routing, gates_TE: Tensor, model_ids_TK: Tensor, live_T: Tensor | None, columns: int
) -> tuple[Tensor, Tensor]:
    """What a forward adds to the sums (2 E + 4,) float32, and (3, C) the figures of its batches; see `route_logits`.

    `model_ids_TK` is the model's own choice, before any knob.
    """
    ids_TK, kept_TK = routing.ids_TK, routing.kept_TK
    (num_tokens, top_k), num_experts = ids_TK.shape, gates_TE.shape[1]
    live_T1 = (gates_TE.new_ones(num_tokens) if live_T is None else (live_T != 0).float()).unsqueeze(1)
    own_mass_T = gates_TE.gather(1, model_ids_TK).sum(-1)
    mass_T = (gates_TE.gather(1, ids_TK) * kept_TK).sum(-1) / own_mass_T
    same_TK = (ids_TK.unsqueeze(2) == model_ids_TK.unsqueeze(1)).any(-1) & kept_TK
    # Padding may carry NaN, and one token's NaN must not spoil the sums of all.
    shares_T2 = torch.stack([mass_T.nan_to_num(nan=0.0), 1.0 - same_TK.sum(-1) / top_k], dim=1) * live_T1
    shares_C2 = shares_T2.view(-1, columns, 2).sum(0)
    column_T1 = torch.arange(num_tokens, device=ids_TK.device).unsqueeze(1) % columns
    counts = gates_TE.new_zeros(columns * num_experts)
    # Counts are whole numbers in float32, so the order of a parallel sum changes nothing; dropped slots add zero.
    counts.scatter_add_(0, (ids_TK + column_T1 * num_experts).flatten(), (kept_TK * live_T1).flatten())
    tokens_CE = counts.view(columns, num_experts)
    loads_CE = (tokens_CE > 0).float()
    live_C = live_T1.view(-1, columns).sum(0)
    batches = torch.stack([(live_C > 0).sum(), live_C.sum()])
    row = torch.cat([tokens_CE.sum(0), loads_CE.sum(0), batches, shares_C2.sum(0)])
    return row, torch.stack([loads_CE.sum(-1), tokens_CE.sum(-1), shares_C2[:, 0] / live_C.clamp_min(1.0)])
