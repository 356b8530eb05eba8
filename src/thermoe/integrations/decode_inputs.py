"""What `decode` takes: refused in one line here, before anything reaches the device.

Shapes: B sequences, S positions of a prompt.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from thermoe.errors import ConfigError

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_prompts(input_ids: Any, attention_mask: Any, vocabulary: int) -> None:
    """Refuse prompts that are no (B, S) tensor of known tokens, and a mask that is no tensor.

    Raises:
        ConfigError: What was got and needed.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype not in _WHOLE:
        raise ConfigError(
            f"input_ids {_described(input_ids)}: needed an integer tensor of shape (sequences, positions)"
        )
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        raise ConfigError(f"attention_mask {_described(attention_mask)}: needed a tensor as the tokenizer gives it")
    if attention_mask is not None and not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ConfigError("attention_mask with other values than 0 and 1: needed 1 for a token, 0 for padding")
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < vocabulary:
        raise ConfigError(
            f"token {int(input_ids.max())} or {int(input_ids.min())} for a vocabulary of {vocabulary}: "
            "encode the prompt with the model's own tokenizer"
        )


def checked_count(value: Any, max_positions: int) -> int:
    """`max_new_tokens`, a whole number that memory may hold.

    Raises:
        ConfigError: It is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= max_positions:
        raise ConfigError(f"max_new_tokens = {value!r}: needed a whole number from 1 to {max_positions}")
    return value


def checked_stops(value: Any) -> tuple[int, ...]:
    """`stop_token_ids` as whole numbers.

    Raises:
        ConfigError: They are none.
    """
    found = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    if found is None or not all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**63 for i in found):
        raise ConfigError(f"stop_token_ids = {value!r}: needed a sequence of token ids, such as [2]")
    return found


def check_callback(value: Any) -> None:
    """Refuse a `between_steps` that cannot be called.

    Raises:
        ConfigError: It cannot.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"between_steps = {value!r}: needed a function of the number of new tokens")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"of shape {tuple(value.shape)} and type {value.dtype}"
    return f"of type {type(value).__name__}"
