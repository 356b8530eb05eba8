"""Routing policy in plain PyTorch: the readable reference of the fused routing kernel.

Shapes: T tokens = R rows x C columns, token t = row * C + column; the R tokens of one column are
one batch and share its set S of loaded experts. E experts, K experts per token.
No operation here waits for the host, so that a captured CUDA graph reads new knobs at its replay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerKnobs:
    """The knobs of one layer, as views of device memory (see `thermoe.types.RoutingKnobs`).

    `price`, `top_k`, `protected_k0`, `max_experts`, `gate_mass`, `skip_ratio` and `value_power` are
    0-d float32 tensors; `cost`, `bias` and `allowed` (1 or 0) are (E,) float32. `union` is a host
    value: it decides which operations run at all.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What was decided.

    Attributes:
        ids_TK: (T, K) expert of each slot, best first; a dropped slot repeats the token's first
            expert, so that it loads nothing of its own.
        weights_TK: (T, K) float32 gates of the slots, 0 in dropped slots.
        kept_TK: (T, K) whether the slot is used.
        own_ids_TK: (T, K) the choice by biased scores before any expert was withheld.
        loaded_CE: (C, E) the set S of each batch; None where every token chose freely.
    """

    ids_TK: Tensor
    weights_TK: Tensor
    kept_TK: Tensor
    own_ids_TK: Tensor
    loaded_CE: Tensor | None


def batch_values(
    ids_TK: Tensor, gates_TK: Tensor, live_T: Tensor, num_experts: int, columns: int, power: Tensor
) -> Tensor:
    """(C, E) value of each expert to each batch: the sum of normalised gates to the given power."""
    share_TK = gates_TK / gates_TK.sum(dim=-1, keepdim=True).clamp_min(1e-20)
    value_TK = share_TK.pow(power) * live_T.unsqueeze(-1)
    return _sum_by_column(ids_TK, value_TK, num_experts, columns)


def loaded_experts(own_ids_TK: Tensor, gates_TE: Tensor, live_T: Tensor, knobs: LayerKnobs, columns: int) -> Tensor:
    """(C, E) the set S of experts that each batch loads; everything allowed where no token is live."""
    num_experts = gates_TE.shape[1]
    position_K = torch.arange(own_ids_TK.shape[1], device=own_ids_TK.device)
    protected_TK = (position_K < knobs.protected_k0).float() * live_T.unsqueeze(-1)
    protected_CE = _sum_by_column(own_ids_TK, protected_TK.expand_as(own_ids_TK), num_experts, columns) > 0

    gates_TK = gates_TE.gather(1, own_ids_TK)
    value_CE = batch_values(own_ids_TK, gates_TK, live_T, num_experts, columns, knobs.value_power) * knobs.bias.exp()
    worth_CE = (value_CE > 0) & (value_CE >= knobs.price * knobs.cost)
    place_CE = value_CE.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    most_valuable_CE = (place_CE < knobs.max_experts) & (value_CE > 0)

    loaded_CE = (protected_CE | worth_CE | most_valuable_CE) & (knobs.allowed > 0)
    return torch.where(loaded_CE.any(dim=-1, keepdim=True), loaded_CE, knobs.allowed > 0)


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
) -> Routing:
    """Choose experts by biased ranks within what the batch loads; weigh them by their unbiased gates.

    Args:
        ranks_TE: (T, E) scores by which the model ranks experts; -inf for an expert it rules out.
        gates_TE: (T, E) positive, unbiased gates.
        knobs: the layer's knobs.
        top_k: the model's own number of experts per token (K).
        columns: batches in this forward (C); T must be a multiple of it.
        live_T: (T,) tokens that count; None for all. The others choose within the same set.
        renormalise: whether the chosen gates are scaled to sum to one, as the model does.
        scale: factor on the weights (routed scaling).
    """
    ranks_TE, gates_TE = ranks_TE.float(), gates_TE.float()
    live_T = torch.ones_like(ranks_TE[:, 0]) if live_T is None else live_T.to(ranks_TE.dtype)
    barred = torch.finfo(torch.float32).min
    biased_TE = (ranks_TE + knobs.bias).masked_fill(knobs.allowed <= 0, barred).clamp_min(barred)

    own_ids_TK = biased_TE.topk(top_k, dim=-1).indices
    loaded_CE = None
    ids_TK, scores_TE = own_ids_TK, biased_TE
    if knobs.union:
        loaded_CE = loaded_experts(own_ids_TK, gates_TE, live_T, knobs, columns)
        loaded_TE = loaded_CE.repeat(ranks_TE.shape[0] // columns, 1)
        scores_TE = biased_TE.masked_fill(~loaded_TE, barred)
        ids_TK = scores_TE.topk(top_k, dim=-1).indices

    kept_TK = kept_slots(scores_TE.gather(1, ids_TK) > barred, gates_TE.gather(1, ids_TK), knobs)
    weights_TK = gates_TE.gather(1, ids_TK) * kept_TK
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True).clamp_min(1e-20)
    return Routing(
        ids_TK=torch.where(kept_TK, ids_TK, ids_TK[:, :1]),
        weights_TK=weights_TK * scale,
        kept_TK=kept_TK,
        own_ids_TK=own_ids_TK,
        loaded_CE=loaded_CE,
    )


def kept_slots(available_TK: Tensor, gates_TK: Tensor, knobs: LayerKnobs) -> Tensor:
    """(T, K) slots that are used: within `top_k`, not below the skip ratio, not beyond the gate mass."""
    position_K = torch.arange(gates_TK.shape[1], device=gates_TK.device)
    gates_TK = gates_TK * available_TK
    kept_TK = available_TK & (position_K < knobs.top_k)
    kept_TK = kept_TK & (gates_TK >= knobs.skip_ratio * gates_TK[:, :1])
    before_TK = gates_TK.cumsum(dim=-1) - gates_TK
    # At gate_mass = 1 rounding must not drop the last slot, so 1 means "keep all".
    enough_TK = (before_TK >= knobs.gate_mass * gates_TK.sum(dim=-1, keepdim=True)) & (knobs.gate_mass < 1)
    return (kept_TK & ~enough_TK) | (position_K == 0)


def _sum_by_column(ids_TK: Tensor, values_TK: Tensor, num_experts: int, columns: int) -> Tensor:
    """(C, E) sum of the values by batch and expert, in a fixed order of rows."""
    num_tokens, top_k = ids_TK.shape
    by_expert_TE = torch.zeros(num_tokens, num_experts, device=ids_TK.device, dtype=values_TK.dtype)
    by_expert_TE.scatter_(1, ids_TK, values_TK)
    return by_expert_TE.view(num_tokens // columns, columns, num_experts).sum(dim=0)
