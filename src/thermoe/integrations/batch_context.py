"""What a batch is: which tokens of a forward share the set of experts that is loaded.

R rows (sequences), C columns (positions) of one forward; tokens are flattened row by row.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor


class UnionScope(StrEnum):
    """Over which tokens a union policy chooses experts.

    DECODE: the sequences of a one-position forward; forwards of several positions (prefill) keep
    every token's own choice. POSITIONS: each position of a forward is one batch (teacher forcing,
    the same figures as decoding step by step). FORWARD: all tokens of a forward are one batch.
    """

    DECODE = "decode"
    POSITIONS = "positions"
    FORWARD = "forward"


class BatchContext:
    """Layout and live tokens of the forward that is running, noted before its first layer."""

    def __init__(self, scope: UnionScope, ended_token_ids: Collection[int] = ()) -> None:
        self.scope = scope
        self.ended_token_ids = tuple(ended_token_ids)
        self.positions = 1
        self.live_T: Tensor | None = None

    @property
    def columns(self) -> int:
        """Batches of this forward."""
        return 1 if self.scope is UnionScope.FORWARD else self.positions

    @property
    def union_allowed(self) -> bool:
        """Whether union policies act on this forward."""
        return self.scope is not UnionScope.DECODE or self.positions == 1

    def note(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Any) -> None:
        """Read the layout of a forward from the model's own arguments.

        Live is what the 2-d attention mask calls real; in a one-position forward a row that is fed
        an end or padding token has ended (`generate()` goes on feeding such rows).
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:
            self.positions, self.live_T = 1, None
            return
        rows, self.positions = int(tokens.shape[0]), int(tokens.shape[1])
        live: Tensor | None = None
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and attention_mask.shape[0] == rows:
            # A static cache's mask may be longer than what is written; a one-position forward is
            # always real (its row was padded in the past, not now).
            if self.positions > 1 and attention_mask.shape[1] >= self.positions:
                live = attention_mask[:, -self.positions :].reshape(-1) > 0
        if self.positions == 1 and input_ids is not None and self.ended_token_ids:
            ended = torch.zeros_like(input_ids.reshape(-1), dtype=torch.bool)
            for token_id in self.ended_token_ids:
                ended = ended | (input_ids.reshape(-1) == token_id)
            live = ~ended
        self.live_T = live
