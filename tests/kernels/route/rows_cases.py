"""Rows and routers whose logits are known."""

import torch
from fused_cases import Case, drawn
from torch import Tensor


def router_for(case: Case, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weights and a bias of bf16 that give exactly the logits of the case: each expert reads columns of its own.

    The bias is taken off again in a second column, so that a bias, a column or an expert that is left out shows.
    """
    logits_TE, _, _ = drawn(case, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    experts = case.experts
    columns_2E = torch.randperm(width, generator=generator)[: 2 * experts].view(2, experts)
    x_TD = torch.randn(case.tokens, width, generator=generator).to(torch.bfloat16)
    x_TD[:, columns_2E[0]] = logits_TE.to(torch.bfloat16)
    x_TD[:, columns_2E[1]] = 1.0
    weight_ED = torch.zeros(experts, width, dtype=torch.bfloat16)
    weight_ED[torch.arange(experts), columns_2E[0]] = 1.0
    weight_ED[torch.arange(experts), columns_2E[1]] = -0.25
    return x_TD, weight_ED, torch.full((experts,), 0.25, dtype=torch.bfloat16)
