"""Decoder layers of one position in a handful of launches: norms with the sums before them, projections side by side,
and attention from the projections to the heads' outputs.

Shapes: B sequences, D model width, L positions of the cache, W width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from thermoe.integrations.decode_probe import composes_as_usual, is_rms_norm, same_attention
from thermoe.kernels.add_norm import add_norm
from thermoe.kernels.decode_attention import HeadNorms, decode_attention
from thermoe.kernels.few_linear import MOST_ROWS, few_linear

_LINEAR_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(kw_only=True, slots=True)
class _Step:
    """What the layers of one step share.

    Attributes:
        pending_BD: Output of the last experts, which the next norm adds.
        fits: Whether this step runs fused: decided by its first layer.
        counts: Zeros between launches of the attention.
    """

    pending_BD: Tensor | None = None
    fits: bool = False
    counts: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The modules and numbers of a self-attention that the fused one takes.

    Attributes:
        module: The attention of a layer.
        norms: Of queries and keys, if any.
    """

    module: Any
    norms: HeadNorms | None

    @classmethod
    def of(cls, module: Any) -> "AttentionParts | None":
        """None where the attention has other parts."""
        if not isinstance(module, nn.Module):
            return None
        parts = [getattr(module, name, None) for name in _LINEAR_PARTS]
        if any(type(part) is not nn.Linear or _is_watched(part) for part in parts) or _is_watched(module):
            return None
        if getattr(module, "sinks", None) is not None or not isinstance(getattr(module, "scaling", None), float):
            return None
        query, key = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
        if query is None and key is None:
            return cls(module, None)
        if query is None or key is None or not (is_rms_norm(query) and is_rms_norm(key)):
            return None
        width = module.head_dim
        if query.weight.shape != (width,) or key.weight.shape != (width,):
            return None
        return cls(module, HeadNorms(query.weight, key.weight, query.variance_epsilon))

    def __call__(
        self, x_BD: Tensor, place: tuple[Tensor, Tensor], cache: Any, mask: Tensor, counts: Tensor | None = None
    ) -> Tensor:
        """(B, D): the output of the attention for normed hidden states; `place` holds cosines and sines."""
        own = self.module
        linears = own.q_proj, own.k_proj, own.v_proj
        qkv_BN = few_linear(x_BD, [linear.weight for linear in linears], [linear.bias for linear in linears])
        cos, sin = (part.flatten(0, 1).contiguous() for part in place)
        keys, values, where = cache.room()
        heads_BN = decode_attention(
            qkv_BN,
            cos,
            sin,
            keys,
            values,
            where,
            mask.flatten(0, 2),
            num_heads=own.q_proj.out_features // own.head_dim,
            scale=own.scaling,
            norms=self.norms,
            counts=counts,
        )
        cache.wrote(1)
        return few_linear(heads_BN, [own.o_proj.weight], [own.o_proj.bias])


@dataclass(kw_only=True, slots=True)
class LayerFusion:
    """The layers of a decoder that can run fused, all or none: each leaves the sum with its experts to the next.

    Attributes:
        layers: Each with its attention.
        final: The norm behind the last one.
    """

    layers: list[tuple[Any, AttentionParts]]
    final: Any
    _step: _Step = field(default_factory=_Step)

    @classmethod
    def of(cls, decoder: Any) -> "LayerFusion | None":
        """None where a layer does something else than these kernels."""
        final, found = getattr(decoder, "norm", None), []
        if final is None or not is_rms_norm(final) or _is_watched(final):
            return None
        for layer in getattr(decoder, "layers", ()):
            norms = getattr(layer, "input_layernorm", None), getattr(layer, "post_attention_layernorm", None)
            attention = AttentionParts.of(getattr(layer, "self_attn", None))
            if attention is None or _is_watched(layer) or not all(is_rms_norm(n) and not _is_watched(n) for n in norms):
                return None
            if not composes_as_usual(layer) or not same_attention(attention, len(decoder.layers)):
                return None
            found.append((layer, attention))
        return cls(layers=found, final=final) if found else None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the fused forwards in, and take them out again."""
        before = [module.__dict__.get("forward") for module in self._modules()]
        for index, (layer, _) in enumerate(self.layers):
            layer.__dict__["forward"] = partial(self._layer, index, layer.forward)
        self.final.__dict__["forward"] = partial(self._norm, self.final.forward)
        try:
            yield
        finally:
            self._step.pending_BD = None
            for module, forward in zip(self._modules(), before, strict=True):
                module.__dict__.pop("forward")
                if forward is not None:
                    module.__dict__["forward"] = forward

    def _modules(self) -> list[Any]:
        return [*(layer for layer, _ in self.layers), self.final]

    def _layer(self, index: int, own: Any, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        layer, attention = self.layers[index]
        step = self._step
        cache = _cache_layer(named, attention)
        if index == 0:
            step.pending_BD, step.fits = None, _fits(hidden_states, args, named, cache)
            if step.fits and step.counts is None and hidden_states.is_cuda:
                step.counts = torch.zeros(
                    MOST_ROWS * cache.keys.shape[1], dtype=torch.int32, device=hidden_states.device
                )
        if not step.fits:
            return own(hidden_states, *args, **named)
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        sum_BD, x_BD = add_norm(hidden_states.flatten(0, 1), step.pending_BD, before.weight, before.variance_epsilon)
        out_BD = attention(x_BD, named["position_embeddings"], cache, named["attention_mask"], step.counts)
        sum_BD, x_BD = add_norm(sum_BD, out_BD, after.weight, after.variance_epsilon)
        step.pending_BD = layer.mlp(x_BD.unsqueeze(1)).flatten(0, 1)
        return sum_BD.unsqueeze(1)

    def _norm(self, own: Any, hidden_states: Tensor) -> Any:
        pending_BD, self._step.pending_BD = self._step.pending_BD, None
        if pending_BD is None:
            return own(hidden_states)
        norm = self.final
        return add_norm(hidden_states.flatten(0, 1), pending_BD, norm.weight, norm.variance_epsilon)[1].unsqueeze(1)


def _is_watched(module: Any) -> bool:
    """Whether somebody's hooks have to see what goes in and out."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _cache_layer(named: dict[str, Any], attention: AttentionParts) -> Any:
    cache = named.get("past_key_values")
    return None if cache is None else cache.layers[attention.module.layer_idx]


def _fits(hidden_states: Tensor, args: tuple[Any, ...], named: dict[str, Any], cache: Any) -> bool:
    """Whether this is a step of few sequences over a cache with a mask that is added."""
    place, mask = named.get("position_embeddings"), named.get("attention_mask")
    if args or hidden_states.shape[0] > MOST_ROWS or hidden_states.shape[1] != 1 or not hidden_states.is_contiguous():
        return False
    if not hasattr(cache, "room") or not cache.is_initialized or not isinstance(place, tuple):
        return False
    if place[0].shape[-1] != cache.keys.shape[-1]:  # only part of a head is turned
        return False
    return isinstance(mask, Tensor) and mask.is_floating_point() and mask.shape[1:3] == (1, 1)
