"""Decoding of Transformers models through `thermoe.runtime.decode`: `handle.decode(...)` and `Decoder(model)`.

Shapes: B sequences, S positions of the prompt, L positions of the cache, V vocabulary.
"""

import inspect
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError, UnsupportedModelError
from thermoe.integrations.decode_attention import capturable_masks, grouped_heads
from thermoe.integrations.decode_fusions import StepFusions
from thermoe.integrations.decode_inputs import check_callback, check_prompts, checked_count, checked_stops
from thermoe.integrations.hooks import RouterHooks
from thermoe.runtime.decode import DecodeLoop
from thermoe.runtime.sampling import Sampling

LENGTH_STEP = 64
"""The cache is rounded up to so many positions, so that prompts of similar length share a captured step."""
MOST_NEW_TOKENS = 1 << 20
"""Beyond it a cache would not fit any memory, and the allocator's message would say less."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_ATTENTIONS = {"sdpa", "eager"}
_NEUTRAL = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_new_tokens": (None, 0),
    "min_length": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "typical_p": (None, 1.0),
    "min_p": (None, 0.0),
    "penalty_alpha": (None,),
}
"""Settings of a generation config that the loop does not know, and the values at which they do nothing."""


class TransformersSteps:
    """A causal language model with a cache of fixed size, as `DecodeLoop` drives it.

    Every layer's cache holds all positions; a sliding window is then a matter of the mask, which unlike a cache that
    rolls is the same operation at every step.

    Args:
        model: A causal language model of Transformers in evaluation, on one device.
        max_length: L.
        hooks: Thermoe's, where it is attached.
        fuse: Whether a step computes norms, rotary embedding and attention by fewer operations.

    Raises:
        UnsupportedModelError: Layers or an attention whose step depends on the host.
    """

    def __init__(self, model: Any, *, max_length: int, hooks: RouterHooks | None = None, fuse: bool = True) -> None:
        _refuse_unsupported(model)
        self._model, self._hooks, self._max_length = model, hooks, max_length
        self._cache = _empty_cache(model, max_length)
        self._fusions = StepFusions(model, hooks) if fuse else None
        self._keeps = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def prefill(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Logits (B, V) after the prompts; they are the only thing in the cache afterwards."""
        self._cache.reset()
        position_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        return self._logits(ids_BS, position_BS, mask_BS)

    def step(self, token_B1: Tensor, position_B1: Tensor, mask_BL: Tensor) -> Tensor:
        """Logits (B, V) after one more token."""
        with ExitStack() as undo:
            undo.enter_context(capturable_masks())
            if self._fusions is not None:
                undo.enter_context(grouped_heads(self._model))
                undo.enter_context(self._fusions.in_place())
            return self._logits(token_B1, position_B1, mask_BL)

    def variant(self) -> Hashable:
        """Whether the hooks route or only watch."""
        return None if self._hooks is None else self._hooks.active

    def identity(self) -> Hashable:
        """The hooks of all modules, where the parameters lie, and what computes the experts."""
        modules = [
            (*module._forward_hooks, -1, *module._forward_pre_hooks, id(module.__dict__.get("_thermoe_quantised")))
            for module in self._model.modules()
        ]
        places = [parameter.data_ptr() for parameter in self._model.parameters()]
        config = self._model.config
        implementations = getattr(config, "_experts_implementation", None), config._attn_implementation
        ended = None if self._hooks is None else self._hooks.ended_token_ids
        return implementations, ended, tuple(places), tuple(modules)

    def _logits(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            **self._keeps,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


class Decoder:
    """Decodes prompts with one model; keeps the loop of the last sizes, and with it the captured step.

    Args:
        model: A causal language model of Transformers in evaluation, on one device.
        hooks: Thermoe's, where it is attached.
        lock: Held while a step is captured.
        graph: Whether to capture the step; None on a GPU only.
        fuse: Whether a step computes norms, rotary embedding and attention by fewer operations, which round less often
            than the model's own.

    Attributes:
        loop: The loop that ran last.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hooks: RouterHooks | None = None,
        lock: AbstractContextManager[Any] | None = None,
        graph: bool | None = None,
        fuse: bool = True,
    ) -> None:
        self._model: Any = model
        self._hooks, self._lock, self._graph, self._fuse = hooks, lock, graph, fuse
        self.loop: DecodeLoop | None = None
        self._key: Hashable = None

    def decode(
        self,
        input_ids: Tensor,
        *,
        max_new_tokens: int,
        attention_mask: Tensor | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_token_ids: Sequence[int] | None = None,
        between_steps: Callable[[int], None] | None = None,
    ) -> Tensor:
        """The prompts and what follows them, (B, S + new tokens), as `model.generate()` returns them.

        Args:
            input_ids: (B, S) prompts, padded on the left.
            max_new_tokens: Tokens per row at most.
            attention_mask: (B, S) 1 for a token, 0 for padding; None takes the padding token as padding.
            do_sample, temperature, top_k, top_p: As in `generate()`; None takes the model's generation config.
            stop_token_ids: Tokens that end a row; None takes the end tokens of the generation config.
            between_steps: Called on the host with the number of new tokens before each step after the prompt.

        Raises:
            ConfigError: Prompts, settings or a generation config that the loop does not know.
            UnsupportedModelError: A model whose step cannot be captured.
        """
        _refuse_unsupported(self._model)
        check_prompts(input_ids, attention_mask, int(self._model.config.get_text_config().vocab_size))
        max_new_tokens = checked_count(max_new_tokens, MOST_NEW_TOKENS)
        check_callback(between_steps)
        config = self._model.generation_config
        _refuse_settings(config)
        given = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        sampling = _sampling(config, given)
        stops = _ids_of(config.eos_token_id) if stop_token_ids is None else checked_stops(stop_token_ids)
        pad = (*_ids_of(config.pad_token_id), *stops, None)[0]
        ids_BS = input_ids.to(self._model.device).long()
        mask_BS = _mask_of(ids_BS, attention_mask, pad, stops)
        length = -(-(ids_BS.shape[-1] + max_new_tokens) // LENGTH_STEP) * LENGTH_STEP
        loop = self._loop_for(int(ids_BS.shape[0]), length, sampling, stops, pad)
        with self._told(stops, pad):
            return loop.generate(ids_BS, mask_BS=mask_BS, max_new_tokens=max_new_tokens, between_steps=between_steps)

    def forget(self) -> None:
        """Give the memory of the last loop back, its cache and captured step."""
        self.loop, self._key = None, None

    def _loop_for(
        self, batch_size: int, length: int, sampling: Sampling, stops: tuple[int, ...], pad: int | None
    ) -> DecodeLoop:
        key = batch_size, length, sampling, stops, pad
        if self.loop is None or key != self._key:
            self.forget()  # before the next cache comes
            self.loop = DecodeLoop(
                TransformersSteps(self._model, max_length=length, hooks=self._hooks, fuse=self._fuse),
                batch_size=batch_size,
                max_length=length,
                device=self._model.device,
                sampling=sampling,
                stop_token_ids=stops,
                pad_token_id=pad,
                graph=self._graph,
                lock=self._lock,
            )
            self._key = key
        return self.loop

    def _told(self, stops: tuple[int, ...], pad: int | None) -> AbstractContextManager[Any]:
        """While it is open, the hooks know which tokens are fed to rows that have ended."""
        if self._hooks is None:
            return nullcontext()
        return _EndedTokens(self._hooks, (*stops, *(() if pad is None else (pad,))))


class _EndedTokens:
    """Sets the hooks' end tokens and puts back what they were."""

    def __init__(self, hooks: RouterHooks, ended: tuple[int, ...]) -> None:
        self._hooks, self._ended, self._before = hooks, tuple(dict.fromkeys(ended)), hooks.ended_token_ids

    def __enter__(self) -> None:
        self._hooks.ended_token_ids = self._ended

    def __exit__(self, *raised: object) -> None:
        self._hooks.ended_token_ids = self._before


def _empty_cache(model: Any, max_length: int) -> Any:
    from thermoe.integrations.decode_cache import shared_cache

    return shared_cache(model.config.num_hidden_layers, max_length)


def _refuse_unsupported(model: Any) -> None:
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False) or not hasattr(model, "generation_config"):
        raise UnsupportedModelError(f"{type(model).__name__} is no causal language model of Transformers: give one")
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if kinds:
        raise UnsupportedModelError(
            f"layers of {', '.join(sorted(kinds))}: the decode loop knows full_attention and sliding_attention; "
            "use model.generate()"
        )
    if config._attn_implementation not in _ATTENTIONS:
        raise UnsupportedModelError(
            f"attention by {config._attn_implementation}: the decode loop needs sdpa or eager, "
            'call model.set_attn_implementation("sdpa")'
        )


def _refuse_settings(config: Any) -> None:
    for name, neutral in _NEUTRAL.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise ConfigError(
                f"generation config has {name} = {value}: the decode loop does not know it, set it to {neutral[-1]}"
            )


def _sampling(config: Any, given: dict[str, Any]) -> Sampling:
    found = {name: getattr(config, name, None) if value is None else value for name, value in given.items()}
    if not found["do_sample"]:
        return Sampling()
    if found["top_k"] is None:
        found["top_k"] = 50  # what `generate()` takes where nothing is said
    return Sampling(**{name: value for name, value in found.items() if value is not None})


def _ids_of(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    values = value.tolist() if isinstance(value, Tensor) else value
    return tuple(int(v) for v in values) if isinstance(values, (list, tuple)) else (int(values),)


def _mask_of(ids_BS: Tensor, given: Tensor | None, pad: int | None, stops: tuple[int, ...]) -> Tensor:
    """As `generate()` infers it: a padding token that cannot end a row is padding."""
    if given is not None:
        return given.to(ids_BS.device).long()
    if pad is None or pad in stops:
        return torch.ones_like(ids_BS)
    return (ids_BS != pad).long()
