"""How each supported model family scores its experts, so that a choice can be changed and nothing else.

T tokens, E experts, K experts per token. Every function here restates what the family's router in
Transformers 5.17 to 5.23 computes; `tests/integrations` compares them with the routers themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thermoe.kernels.route import SOFTMAX, LayerKnobs, Routing, Scoring

Scores = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Family:
    """One scoring rule.

    Attributes:
        scores: (router, logits_TE) -> (ranks_TE, gates_TE), float32: what experts are ranked by, -inf where the
            family rules an expert out, and the unbiased positive gates.
        renormalises: whether chosen gates are scaled to sum to one.
        scale: factor on the weights.
        picks_in_turn: the gates of later picks depend on earlier ones (sparsemixer): the weights
            come from `weighed_in_turn`.
        is_softmax: gates are the softmax of the logits, which weigh the chosen where gates underflow.
        scoring: router -> the same scores as the fused kernel knows them; None where it does not.
    """

    scores: Scores
    renormalises: Callable[[nn.Module], bool]
    scale: Callable[[nn.Module], float]
    picks_in_turn: bool = False
    is_softmax: bool = False
    scoring: Callable[[nn.Module], Scoring] | None = None


def _attribute(module: nn.Module, name: str) -> Any:
    """An attribute of a router class that the type checker knows nothing of."""
    return getattr(module, name)


def _softmax_scores(router: nn.Module, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    logits_TE = logits_TE.float()
    return logits_TE, logits_TE.softmax(dim=-1)


def _keep_groups(ranks_TE: Tensor, group_scores_TG: Tensor, groups_kept: int) -> Tensor:
    """Ranks with every expert outside the best groups at -inf."""
    num_groups = group_scores_TG.shape[1]
    best = group_scores_TG.topk(groups_kept, dim=-1).indices
    kept_TG = torch.zeros_like(group_scores_TG, dtype=torch.bool).scatter_(1, best, value=True)
    kept_TE = kept_TG.repeat_interleave(ranks_TE.shape[1] // num_groups, dim=1)
    return ranks_TE.masked_fill(~kept_TE, float("-inf"))


def _deepseek_v2_scores(router: nn.Module, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    ranks_TE, gates_TE = _softmax_scores(router, logits_TE)
    if _attribute(router, "topk_method") == "group_limited_greedy":
        num_groups = int(_attribute(router, "num_group"))
        group_scores_TG = gates_TE.unflatten(1, (num_groups, -1)).amax(dim=-1)
        ranks_TE = _keep_groups(ranks_TE, group_scores_TG, int(_attribute(router, "topk_group")))
    return ranks_TE, gates_TE


def _corrected_sigmoid_scores(router: nn.Module, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    gates_TE = logits_TE.float().sigmoid()
    ranks_TE = gates_TE + _attribute(router, "e_score_correction_bias")
    num_groups = int(_attribute(router, "num_group"))
    group_scores_TG = ranks_TE.unflatten(1, (num_groups, -1)).topk(2, dim=-1).values.sum(dim=-1)
    return _keep_groups(ranks_TE, group_scores_TG, int(_attribute(router, "topk_group"))), gates_TE


def _softmax(router: nn.Module) -> Scoring:
    return SOFTMAX


def _grouped_softmax(router: nn.Module) -> Scoring:
    if _attribute(router, "topk_method") != "group_limited_greedy":
        return SOFTMAX
    return Scoring(groups=int(_attribute(router, "num_group")), groups_kept=int(_attribute(router, "topk_group")))


def _corrected_sigmoid(router: nn.Module) -> Scoring:
    return Scoring(
        sigmoid=True,
        correction_E=_attribute(router, "e_score_correction_bias").float(),
        groups=int(_attribute(router, "num_group")),
        groups_kept=int(_attribute(router, "topk_group")),
    )


def sparsemixer(router: nn.Module, logits_TE: Tensor, usable_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Phi-MoE's sparsemixer (arXiv 2409.12136) at inference: one masked softmax for each pick.

    Experts outside `usable_TE` count as -inf. Returns ids (T, K), in order of logits, and weights
    (T, K) in the logits' dtype, in which the jitter's threshold has to be compared to agree with
    the model. Picks beyond the usable experts mean nothing.
    """
    jitter = 2.0 * float(_attribute(router, "router_jitter_noise"))
    barred = torch.finfo(logits_TE.dtype).min
    left_TE = reference_TE = logits_TE.masked_fill(~usable_TE, barred)
    ids, weights = [], []
    for _ in range(top_k):
        best_T1, pick_T1 = left_TE.max(dim=-1, keepdim=True)
        distance_TE = (best_T1 - reference_TE) / reference_TE.abs().clamp(min=best_T1)
        gates_TE = left_TE.masked_fill(distance_TE > jitter, float("-inf")).softmax(dim=-1)
        ids.append(pick_T1)
        weights.append(gates_TE.gather(1, pick_T1))
        left_TE = left_TE.scatter(1, pick_T1, barred)
    return torch.cat(ids, dim=1), torch.cat(weights, dim=1)


def weighed_in_turn(router: nn.Module, logits_TE: Tensor, routing: Routing, knobs: LayerKnobs, columns: int) -> Routing:
    """The same chosen experts as in `routing`, weighed by the sparsemixer over what the token could have had.

    Experts outside the batch's set count as -inf, and so do those that rank above a chosen one by
    the model's own logits but were not chosen: a bias moves the choice, never a weight.
    """
    top_k = routing.ids_TK.shape[1]
    chosen_TE = torch.zeros_like(logits_TE, dtype=torch.bool).scatter_(1, routing.ids_TK, value=True)
    lowest_T1 = logits_TE.masked_fill(~chosen_TE, float("inf")).amin(dim=-1, keepdim=True)
    offered_CE = knobs.allowed > 0 if routing.loaded_CE is None else routing.loaded_CE
    offered_RCE = (logits_TE <= lowest_T1).reshape(-1, columns, logits_TE.shape[1]) & offered_CE
    ids_TK, weights_TK = sparsemixer(router, logits_TE, chosen_TE | offered_RCE.reshape_as(chosen_TE), top_k)
    # The sparsemixer picks in order of logits, so the chosen experts come first and the dropped slots last.
    kept_TK = torch.arange(top_k, device=ids_TK.device) < routing.kept_TK.sum(dim=-1, keepdim=True)
    return Routing(
        ids_TK=torch.where(kept_TK, ids_TK, ids_TK[:, :1]),
        weights_TK=weights_TK.masked_fill(~kept_TK, 0.0),
        kept_TK=kept_TK,
        own_ids_TK=routing.own_ids_TK,
        loaded_CE=routing.loaded_CE,
    )


def _always(router: nn.Module) -> bool:
    return True


def _norm_topk_prob(router: nn.Module) -> bool:
    return bool(_attribute(router, "norm_topk_prob"))


def _never(router: nn.Module) -> bool:
    return False


def _one(router: nn.Module) -> float:
    return 1.0


def _routed_scaling(router: nn.Module) -> float:
    return float(_attribute(router, "routed_scaling_factor"))


_SOFTMAX = Family(_softmax_scores, _always, _one, is_softmax=True, scoring=_softmax)
_SOFTMAX_OPTIONAL = Family(_softmax_scores, _norm_topk_prob, _one, is_softmax=True, scoring=_softmax)
_GROUPED_SOFTMAX = Family(_deepseek_v2_scores, _never, _routed_scaling, scoring=_grouped_softmax)
_CORRECTED_SIGMOID = Family(_corrected_sigmoid_scores, _norm_topk_prob, _routed_scaling, scoring=_corrected_sigmoid)

FAMILIES: dict[str, tuple[str, Family]] = {
    "mixtral": ("MixtralTopKRouter", _SOFTMAX),
    "qwen2_moe": ("Qwen2MoeTopKRouter", _SOFTMAX_OPTIONAL),
    "qwen3_moe": ("Qwen3MoeTopKRouter", _SOFTMAX_OPTIONAL),
    "olmoe": ("OlmoeTopKRouter", _SOFTMAX_OPTIONAL),
    "deepseek_v2": ("DeepseekV2TopkRouter", _GROUPED_SOFTMAX),
    "deepseek_v3": ("DeepseekV3TopkRouter", _CORRECTED_SIGMOID),
    "glm4_moe": ("Glm4MoeTopkRouter", _CORRECTED_SIGMOID),
    "gpt_oss": ("GptOssTopKRouter", _SOFTMAX),
    "phimoe": ("PhimoeTopKRouter", Family(_softmax_scores, _never, _one, picks_in_turn=True)),
    "granitemoe": ("GraniteMoeTopKRouter", _SOFTMAX),
}
"""Supported `config.model_type` -> (class of its router, how it scores)."""
