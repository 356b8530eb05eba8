"""Rows to combine, with dropped slots whose rows are NaN, and the sum written out slot by slot.

Shapes: T tokens, K slots per token, N = T * K slots, D width.
"""

import torch
from torch import Tensor

NUM_EXPERTS = 6


def drawn(num_tokens: int, top_k: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) rows, (T, K) weights and ids: every seventh slot is dropped in each of four ways, its row NaN."""
    generator = torch.Generator().manual_seed(num_tokens + 100 * width)
    y_ND = torch.randn(num_tokens * top_k, width, generator=generator).to(dtype)
    weights_TK = 0.1 + torch.rand(num_tokens, top_k, generator=generator)
    ids_TK = torch.randint(0, NUM_EXPERTS, (num_tokens, top_k), generator=generator)
    slot_TK = torch.arange(num_tokens * top_k).view(num_tokens, top_k)
    weights_TK[slot_TK % 7 == 1] = 0.0
    for residue, outside in ((2, -1), (3, NUM_EXPERTS), (4, 2**40)):
        ids_TK[slot_TK % 7 == residue] = outside
    y_ND[(slot_TK % 7 >= 1).flatten() & (slot_TK % 7 <= 4).flatten()] = float("nan")
    return y_ND, weights_TK, ids_TK


def by_hand(y_ND: Tensor, weights_TK: Tensor, ids_TK: Tensor) -> Tensor:
    """(T, D) float64."""
    num_tokens, top_k = ids_TK.shape
    out_TD = torch.zeros(num_tokens, y_ND.shape[1], dtype=torch.float64)
    for token in range(num_tokens):
        for k in range(top_k):
            weight, expert = float(weights_TK[token, k]), int(ids_TK[token, k])
            if weight != 0 and 0 <= expert < NUM_EXPERTS:
                out_TD[token] += weight * y_ND[token * top_k + k].double()
    return out_TD
