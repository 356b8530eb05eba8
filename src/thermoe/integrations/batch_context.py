"""What a batch is: which tokens of a forward share the set of experts that is loaded, and which count.

R rows (sequences), C columns (positions) of one forward; tokens are flattened row by row. Nothing
here waits for the device.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

# Additive attention masks hold 0 where a token may look and at least float16's lowest value where it may not.
_ATTENDED = -1e4


class UnionScope(StrEnum):
    """Over which tokens a union policy chooses experts.

    DECODE: the sequences of a one-position forward; forwards of several positions (prefill) keep every token's own
    choice and count as one batch. POSITIONS: each position of a forward is one batch (teacher forcing, the same
    figures as decoding the same text step by step). FORWARD: all tokens of a forward are one batch.
    """

    DECODE = "decode"
    POSITIONS = "positions"
    FORWARD = "forward"


class BatchContext:
    """Layout and live tokens of the forward that is running, noted before its first layer."""

    def __init__(self, scope: UnionScope) -> None:
        self.scope = scope
        self.rows, self.positions = 0, 1
        self.live_T: Tensor | None = None

    @property
    def columns(self) -> int:
        """Batches of this forward."""
        return self.positions if self.scope is UnionScope.POSITIONS else 1

    @property
    def union_allowed(self) -> bool:
        """Whether union policies act on this forward."""
        return self.scope is not UnionScope.DECODE or self.positions == 1

    def layout_for(self, num_tokens: int) -> tuple[int, Tensor | None]:
        """Batches and live tokens for a router that got `num_tokens`; one batch of all where it was called by hand."""
        return (self.columns, self.live_T) if num_tokens == self.rows * self.positions else (1, None)

    def note(self, arguments: Mapping[str, Any], ended_token_ids: Collection[int] = ()) -> None:
        """Read the layout of a forward from the decoder's own arguments, by name.

        Live is every token that the attention mask lets see itself. In a one-position forward that
        continues a cache, a row that is fed one of `ended_token_ids` has ended as well, since
        `generate()` goes on feeding such rows with the mask at one. POSITIONS leaves the last
        rule out: there the text is given, and a separator within it is a token like any other.
        """
        input_ids = arguments.get("input_ids")
        tokens = input_ids if input_ids is not None else arguments.get("inputs_embeds")
        if tokens is None:
            self.rows, self.positions, self.live_T = 0, 1, None
            return
        self.rows, self.positions = rows, positions = int(tokens.shape[0]), int(tokens.shape[1])
        cache = arguments.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        mask = arguments.get("attention_mask")
        sees_self_RC = _sees_self(mask, rows, positions, past, _slides(cache))
        live_RC = sees_self_RC
        if positions == 1 and input_ids is not None and self.scope is not UnionScope.POSITIONS:
            live_RC = _not_ended(input_ids, past, ended_token_ids, sees_self_RC)
        self.live_T = None if live_RC is None else live_RC.reshape(-1)


def _sees_self(mask: Any, rows: int, positions: int, past: int | Tensor, slides: bool) -> Tensor | None:
    """(R, C) whether the mask lets each token see itself, which it does unless the token is padding; None for all.

    Column j of a mask belongs to position j of the cache, so the tokens of this forward stand at
    `past`, not at the end: a mask made for a static cache is longer than what is written.
    """
    if isinstance(mask, Mapping):  # one mask for each kind of layer
        slides = "full_attention" not in mask
        mask = next(iter(mask.values()), None) if slides else mask["full_attention"]
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4) or mask.shape[0] not in (1, rows):
        return None
    if mask.dim() == 4 and (slides or mask.shape[2] != positions):
        # Columns of a sliding window are no positions. Left padding sees nothing at all, which is still visible.
        return _visible(mask).any(dim=1).any(dim=-1).expand(rows, -1) if mask.shape[2] == positions else None
    if not isinstance(past, Tensor):
        if mask.shape[-1] < past + positions:
            return None
        own = mask[..., past : past + positions]
    else:
        place = past.reshape(1).to(mask.device) + torch.arange(positions, device=mask.device)
        own = mask.index_select(-1, place.clamp(max=mask.shape[-1] - 1))
    if mask.dim() == 2:
        return (own > 0).expand(rows, -1)
    return _visible(own[:, 0]).diagonal(dim1=-2, dim2=-1).expand(rows, -1)


def _visible(mask: Tensor) -> Tensor:
    """Where a mask of truth values or of additive terms lets a token look."""
    return mask if mask.dtype is torch.bool else mask > _ATTENDED


def _slides(cache: Any) -> bool:
    """Whether the cache keeps a window only, in every layer."""
    sliding = list(getattr(cache, "is_sliding", None) or [False])
    return all(sliding)


def _not_ended(
    input_ids: Tensor, past: int | Tensor, ended_token_ids: Collection[int], live_RC: Tensor | None
) -> Tensor | None:
    """(R, 1) live rows less those fed an end or padding token; a first forward has ended nothing."""
    if not ended_token_ids or (not isinstance(past, Tensor) and past == 0):
        return live_RC
    ended = torch.zeros_like(input_ids, dtype=torch.bool)
    for token_id in ended_token_ids:
        ended = ended | (input_ids == token_id)
    if isinstance(past, Tensor):
        ended = ended & (past.reshape(1, 1) > 0)
    return ~ended if live_RC is None else live_RC & ~ended
