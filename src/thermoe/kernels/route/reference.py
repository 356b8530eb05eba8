"""Routing policy in plain PyTorch: the readable reference of the fused routing kernel.

Shapes: T tokens = R rows x C columns, token t = row * C + column; the R tokens of one column are
one batch and share its set S of loaded experts. E experts, K experts per token.
No operation here waits for the host, so that a captured CUDA graph reads new knobs at its replay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thermoe.kernels.dispatch import DispatchPlan
from thermoe.kernels.route.checks import check, check_scores

_BARRED = torch.finfo(torch.float32).min
# Experts that the model rules out for a token (groups) rank from -2e30 to -1e30, by gate: below every score of
# a permitted expert, above every barred one. They serve only a token that has nothing else in its batch's set.
_OUTSIDE = -1e30
_TINY = torch.finfo(torch.float32).tiny
# Chosen gates that sum to less have lost digits to underflow: above it, those lost weigh less than 1e-8 of the sum.
_FAINT = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerKnobs:
    """The knobs of one layer, as views of device memory (see `thermoe.types.RoutingKnobs`).

    `price`, `top_k`, `protected_k0`, `max_experts`, `gate_mass`, `skip_ratio` and `value_power` are
    0-d float32 tensors; `cost`, `bias` and `allowed` (1 or 0) are (E,) float32. `union` is a host
    value: it decides which operations run at all.

    The last four are what the host knows of the values: they leave out operations that would
    change nothing. Their defaults promise nothing and are always right.

    Attributes:
        biased: whether any bias or mask may differ from none.
        priced: whether the price may be finite.
        ranked: whether `max_experts` may be positive.
        slots_kept: no rule drops any of a token's first `slots_kept` slots.
        row: (3 E + 7,) the same knobs in one piece, cost, bias, allowed, then the scalars, for the fused kernels; None
            where they lie apart.
    """

    price: Tensor
    cost: Tensor
    bias: Tensor
    allowed: Tensor
    top_k: Tensor
    protected_k0: Tensor
    max_experts: Tensor
    gate_mass: Tensor
    skip_ratio: Tensor
    value_power: Tensor
    union: bool
    biased: bool = True
    priced: bool = True
    ranked: bool = True
    slots_kept: int = 0
    row: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What was decided.

    Attributes:
        ids_TK: (T, K) expert of each slot, best first; a dropped slot repeats the token's first
            expert, so that it loads nothing of its own.
        weights_TK: (T, K) float32 gates of the slots, 0 in dropped slots.
        kept_TK: (T, K) whether the slot is used; the first always is.
        own_ids_TK: (T, K) the choice by biased scores before any expert was withheld.
        loaded_CE: (C, E) the set S of each batch; None where every token chose freely.
        plan: the dispatch plan of the slots, where it was made with them.
    """

    ids_TK: Tensor
    weights_TK: Tensor
    kept_TK: Tensor
    own_ids_TK: Tensor
    loaded_CE: Tensor | None
    plan: DispatchPlan | None = None


def route_reference(
    ranks_TE: Tensor,
    gates_TE: Tensor,
    knobs: LayerKnobs,
    *,
    top_k: int,
    columns: int = 1,
    live_T: Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
    log_gates_TE: Tensor | None = None,
) -> Routing:
    """Choose experts by biased ranks within what the batch loads; weigh them by their unbiased gates.

    Args:
        ranks_TE: (T, E) scores by which the model ranks experts; -inf for an expert it rules out.
        gates_TE: (T, E) positive, unbiased gates, at most 1.
        knobs: the layer's knobs.
        top_k: the model's own number of experts per token (K).
        columns: batches in this forward (C); T must be a multiple of it.
        live_T: (T,) not 0 for tokens that count; None for all. The others choose within the same set.
        renormalise: whether the chosen gates are scaled to sum to one, as the model does.
        scale: factor on the weights (routed scaling).
        log_gates_TE: (T, E) logarithms of the gates up to a constant per token (softmax: the
            logits), for chosen gates that are renormalised and too small for float32.

    Raises:
        ConfigError: Scores, knobs, mask or numbers that do not fit each other.
    """
    check(ranks_TE, knobs, top_k, columns, live_T)
    check_scores(ranks_TE, gates_TE, log_gates_TE)
    ranks_TE, gates_TE = ranks_TE.float(), gates_TE.float()
    with torch.no_grad():
        scores_TE = _scores(ranks_TE, gates_TE, knobs)
        slot_scores_TK, own_ids_TK = scores_TE.topk(top_k, dim=-1)
        ids_TK, loaded_CE = own_ids_TK, None
        if knobs.union:
            loaded_CE = loaded_experts(own_ids_TK, slot_scores_TK > _OUTSIDE, gates_TE, live_T, knobs, columns)
            by_batch_RCE = scores_TE.reshape(-1, columns, scores_TE.shape[1])
            scores_TE = by_batch_RCE.masked_fill(~loaded_CE, _BARRED).reshape_as(scores_TE)
            slot_scores_TK, ids_TK = scores_TE.topk(top_k, dim=-1)
    gates_TK = gates_TE.gather(1, ids_TK)
    kept_TK = kept_slots(slot_scores_TK > _OUTSIDE, gates_TK.detach(), knobs)
    weights_TK = gates_TK.masked_fill(~kept_TK, 0.0)
    if renormalise:
        if log_gates_TE is not None and (knobs.union or knobs.biased):  # else the best gate is among the chosen
            log_gates_TK = log_gates_TE.gather(1, ids_TK).float().masked_fill(~kept_TK, float("-inf"))
            weights_TK = _unless_faint(weights_TK, log_gates_TK)
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True).clamp_min(_TINY)
    return Routing(
        ids_TK=torch.where(kept_TK, ids_TK, ids_TK[:, :1]),
        weights_TK=weights_TK if scale == 1.0 else weights_TK * scale,
        kept_TK=kept_TK,
        own_ids_TK=own_ids_TK,
        loaded_CE=loaded_CE,
    )


def _unless_faint(gates_TK: Tensor, log_gates_TK: Tensor) -> Tensor:
    """(T, K) the gates; those of a token whose gates underflowed in units of its largest instead."""
    largest_T1 = log_gates_TK.detach().amax(dim=-1, keepdim=True).clamp_min(_BARRED)  # -inf less -inf is no number
    faint_T1 = gates_TK.sum(dim=-1, keepdim=True) < _FAINT
    return torch.where(faint_T1, (log_gates_TK - largest_T1).exp(), gates_TK)


def _scores(ranks_TE: Tensor, gates_TE: Tensor, knobs: LayerKnobs) -> Tensor:
    """(T, E) finite scores that order all experts: permitted ones by biased rank, then ruled-out, then barred ones."""
    biased_TE = ranks_TE + knobs.bias if knobs.biased else ranks_TE
    scores_TE = torch.maximum(biased_TE, (gates_TE - 2.0) * -_OUTSIDE)
    return scores_TE.masked_fill(knobs.allowed <= 0, _BARRED) if knobs.biased else scores_TE


def loaded_experts(
    own_ids_TK: Tensor, usable_TK: Tensor, gates_TE: Tensor, live_T: Tensor | None, knobs: LayerKnobs, columns: int
) -> Tensor:
    """(C, E) the set S of experts that each batch loads; everything allowed where nothing was asked for.

    `usable_TK` tells which of a token's own slots hold an expert that it may use: none where a
    mask bars it, the model rules it out, or the token's gates are NaN.
    """
    shape_TE, position_K = gates_TE.shape, torch.arange(own_ids_TK.shape[1], device=own_ids_TK.device)
    if live_T is not None:
        usable_TK = usable_TK & (live_T != 0).unsqueeze(-1)
    protected_TK = usable_TK & (position_K < knobs.protected_k0)
    loaded_CE = _by_batch(own_ids_TK, protected_TK, shape_TE, columns).any(dim=0)
    if knobs.priced or knobs.ranked:
        value_CE = _batch_values(own_ids_TK, usable_TK, gates_TE, knobs, columns)
        if knobs.priced:
            loaded_CE = loaded_CE | ((value_CE > 0) & (value_CE >= knobs.price * knobs.cost))
        if knobs.ranked:
            place_CE = value_CE.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
            loaded_CE = loaded_CE | ((place_CE < knobs.max_experts) & (value_CE > 0))
    return torch.where(loaded_CE.any(dim=-1, keepdim=True), loaded_CE, knobs.allowed > 0)


def _batch_values(ids_TK: Tensor, usable_TK: Tensor, gates_TE: Tensor, knobs: LayerKnobs, columns: int) -> Tensor:
    """(C, E) value of each expert to each batch: normalised gates to a power, summed; times exp(bias)."""
    gates_TK = gates_TE.gather(1, ids_TK).masked_fill(~usable_TK, 0.0)
    share_TK = gates_TK / gates_TK.sum(dim=-1, keepdim=True).clamp_min(_TINY)
    value_TK = share_TK.pow(knobs.value_power).masked_fill(~usable_TK, 0.0)
    value_CE = _by_batch(ids_TK, value_TK, gates_TE.shape, columns).sum(dim=0)
    # No value times an infinite factor is still no value.
    return (value_CE * knobs.bias.exp()).nan_to_num(nan=0.0) if knobs.biased else value_CE


def _by_batch(ids_TK: Tensor, values_TK: Tensor, shape_TE: torch.Size, columns: int) -> Tensor:
    """(R, C, E) the values of a token's slots at their experts, 0 elsewhere."""
    by_expert_TE = torch.zeros(shape_TE, device=ids_TK.device, dtype=values_TK.dtype)
    return by_expert_TE.scatter_(1, ids_TK, values_TK).view(-1, columns, shape_TE[1])


def kept_slots(available_TK: Tensor, gates_TK: Tensor, knobs: LayerKnobs) -> Tensor:
    """(T, K) slots that are used: within `top_k`, not below the skip ratio, not beyond the gate mass.

    The slots are in order of rank, and "best" means the first. The first slot is always used.
    """
    position_K = torch.arange(gates_TK.shape[1], device=gates_TK.device)
    first_K = position_K == 0
    if knobs.slots_kept >= gates_TK.shape[1]:
        return available_TK | first_K
    gates_TK = gates_TK.masked_fill(~available_TK, 0.0)
    kept_TK = available_TK & (position_K < knobs.top_k) & (gates_TK >= knobs.skip_ratio * gates_TK[:, :1])
    before_TK = gates_TK.cumsum(dim=-1) - gates_TK
    # At gate_mass = 1 rounding must not drop the last slot, so 1 means "keep all".
    enough_TK = (before_TK >= knobs.gate_mass * gates_TK.sum(dim=-1, keepdim=True)) & (knobs.gate_mass < 1)
    return (kept_TK & ~enough_TK) | first_K
