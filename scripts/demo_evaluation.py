"""How good the demo model is, and how much its routing matters. Shapes: T tokens, E experts, k per token."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def routers(model: nn.Module) -> list[nn.Module]:
    """The routers of all MoE layers, in order."""
    return [layer.mlp.gate for layer in model.model.layers]


@torch.no_grad()
def negative_log_likelihood(model: nn.Module, ids: np.ndarray, block_size: int, rows: int = 16) -> tuple[float, int]:
    """Sum over predicted tokens of -ln p [nat] and their number, blocks of `block_size` with fresh context."""
    device = next(model.parameters()).device
    num_blocks = (len(ids) - 1) // block_size
    used = torch.from_numpy(ids[: num_blocks * block_size + 1])
    inputs, targets = used[:-1].view(num_blocks, block_size), used[1:].view(num_blocks, block_size)
    model.eval()
    total = 0.0
    for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
        logits = model(input_ids=x.to(device), use_cache=False).logits.float()
        total += nn.functional.cross_entropy(logits.flatten(0, 1), y.to(device).flatten(), reduction="sum").item()
    return total, targets.numel()


def perplexities(model: nn.Module, texts_ids: dict[str, np.ndarray], block_size: int) -> dict[str, float]:
    """Perplexity of each text and, under `all`, of all tokens together."""
    sums = {name: negative_log_likelihood(model, ids, block_size) for name, ids in texts_ids.items()}
    sums["all"] = (sum(s for s, _ in sums.values()), sum(n for _, n in sums.values()))
    return {name: round(math.exp(total / count), 4) for name, (total, count) in sums.items()}


@contextmanager
def experts_per_token(model: nn.Module, top_k: int) -> Iterator[None]:
    """Every token uses its best `top_k` experts, weights renormalised as the model does."""
    before = [router.top_k for router in routers(model)]
    for router in routers(model):
        router.top_k = top_k
    try:
        yield
    finally:
        for router, value in zip(routers(model), before, strict=True):
            router.top_k = value


def top_k_ablation(model: nn.Module, texts_ids: dict[str, np.ndarray], block_size: int) -> dict[str, float]:
    """Perplexity over all texts when each token uses fewer experts than the model was trained with."""
    top_k = model.config.num_experts_per_tok
    result = {}
    for fewer in sorted({top_k, max(top_k - 2, 1), max(top_k // 2, 1), max(top_k // 4, 1)}, reverse=True):
        with experts_per_token(model, fewer):
            result[str(fewer)] = perplexities(model, texts_ids, block_size)["all"]
    return result


class RouterLogits:
    """Keeps each router's logits (T, E) of the last forward, for the balance loss and for counting."""

    def __init__(self, model: nn.Module) -> None:
        self.by_layer: list[Tensor] = []
        self._handles = [router.register_forward_hook(self._keep) for router in routers(model)]

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        self.by_layer.append(output[0])

    def balance_loss(self, top_k: int) -> Tensor:
        """E * sum_e (share of slots) * (mean probability), mean over layers; 1 when perfectly even."""
        losses = []
        for logits_TE in self.by_layer:
            probs_TE = logits_TE.float().softmax(dim=-1)
            num_experts = probs_TE.shape[-1]
            ids_TK = probs_TE.topk(top_k, dim=-1).indices
            share_E = torch.bincount(ids_TK.flatten(), minlength=num_experts) / ids_TK.numel()
            losses.append(num_experts * (share_E * probs_TE.mean(dim=0)).sum())
        return torch.stack(losses).mean()

    def clear(self) -> None:
        """Forgets the last forward."""
        self.by_layer.clear()

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self.clear()


@torch.no_grad()
def expert_usage(model: nn.Module, ids: np.ndarray, block_size: int) -> list[dict[str, float]]:
    """For each layer: effective number of experts (exp of the entropy of the load), least and largest load share."""
    kept = RouterLogits(model)
    negative_log_likelihood(model, ids[: 16 * block_size + 1], block_size)
    usage = []
    for logits_TE in kept.by_layer:
        ids_TK = logits_TE.topk(model.config.num_experts_per_tok, dim=-1).indices
        share_E = torch.bincount(ids_TK.flatten(), minlength=logits_TE.shape[-1]).double() / ids_TK.numel()
        entropy = -(share_E * share_E.clamp(min=1e-12).log()).sum()
        usage.append(
            {
                "effective_experts": round(entropy.exp().item(), 2),
                "least_share": round(share_E.min().item(), 5),
                "largest_share": round(share_E.max().item(), 5),
            }
        )
    kept.close()
    return usage
