"""A cache of fixed size whose layers share one place to write at.

Shapes: B sequences, H key heads, S positions of a forward, L positions of the cache, W width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer


class _SharedLayer(StaticLayer):  # type: ignore[misc]
    """A layer that writes where the whole cache stands; the last layer of a forward moves that on."""

    cumulative_length: Tensor

    def __init__(self, max_length: int, shared: dict[str, Tensor], *, last: bool) -> None:
        super().__init__(max_cache_len=max_length)
        self._shared, self._last = shared, last

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate; the first layer to do so allocates the place for all."""
        super().lazy_initialization(key_states, value_states)
        self.cumulative_length = self._shared.setdefault("length", self.cumulative_length)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, H, S, W) keys and values, and return all of them, (B, H, L, W)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_new = key_states.shape[-2]
        place_S = self.cumulative_length.view(1)
        if num_new > 1:
            place_S = place_S + torch.arange(num_new, device=self.device)
        self.keys.index_copy_(2, place_S, key_states)
        self.values.index_copy_(2, place_S, value_states)
        self.wrote(num_new)
        return self.keys, self.values

    def room(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B, H, L, W), and the (1,) place of the next position, for one who writes them himself."""
        return self.keys, self.values, self.cumulative_length.view(1)

    def wrote(self, num_new: int) -> None:
        """Tell that so many positions are there now."""
        if self._last:
            self.cumulative_length.add_(num_new)


def shared_cache(num_layers: int, max_length: int) -> Cache:
    """A cache of `max_length` positions in every layer, for forwards that run all layers in order."""
    shared: dict[str, Tensor] = {}
    return Cache(layers=[_SharedLayer(max_length, shared, last=i == num_layers - 1) for i in range(num_layers)])
