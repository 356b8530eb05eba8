"""Slots for the dispatch plan, and the plan in plain Python."""

import torch
from torch import Tensor

CASES = {
    "one slot": {"tokens": 1, "top_k": 1, "experts": 1},
    "awkward": {"tokens": 63, "top_k": 3, "experts": 7},
    "all to one expert": {"tokens": 33, "top_k": 2, "experts": 9, "only": 4},
    "all dropped": {"tokens": 5, "top_k": 2, "experts": 4, "dropped": 1.0},
    "more experts than slots": {"tokens": 2, "top_k": 2, "experts": 100},
    "int32 and bf16": {"tokens": 17, "top_k": 4, "experts": 16, "narrow": True},
}


def drawn(
    *, tokens: int, top_k: int, experts: int, only: int | None = None, dropped: float = 0.2, narrow: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """Ids, some of them out of range, weights, some of them zero, and the number of experts."""
    generator = torch.Generator().manual_seed(seed)
    ids_TK = torch.randint(-1, experts + 1, (tokens, top_k), generator=generator)
    if only is not None:
        ids_TK.fill_(only)
    weights_TK = torch.rand(tokens, top_k, generator=generator) + 0.1
    weights_TK *= torch.rand(tokens, top_k, generator=generator) >= dropped
    return (ids_TK.int(), weights_TK.bfloat16(), experts) if narrow else (ids_TK, weights_TK, experts)


def restated(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> tuple[list[int], list[int]]:
    """Slots and offsets by appending each slot to its expert's list."""
    lists: list[list[int]] = [[] for _ in range(num_experts + 1)]
    for slot, (expert, weight) in enumerate(zip(ids_TK.flatten().tolist(), weights_TK.flatten().tolist(), strict=True)):
        lists[expert if weight != 0 and 0 <= expert < num_experts else num_experts].append(slot)
    offsets = [0]
    for part in lists[:-1]:
        offsets.append(offsets[-1] + len(part))
    return [slot for part in lists for slot in part], offsets
