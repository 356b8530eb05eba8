"""Loading a Hugging Face model and its tokenizer, with one line for everything a user can get wrong."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from thermoe.errors import ConfigError, UnsupportedModelError

#: What the libraries raise on files that are cut, edited or of another model.
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
#: Tensors named in one message.
_LISTED = 3


def load_model(name: str, device: str, dtype: str = "auto") -> tuple[nn.Module, Any]:
    """A causal language model in eval mode and its tokenizer.

    Args:
        name: Folder, or id on the hub.
        device: `cpu` or `cuda`.
        dtype: `float32` or `bfloat16`; `auto` takes float32 on the CPU, so that figures do not depend on the
            machine, and bfloat16 on a GPU.

    Raises:
        ConfigError: Nothing there, or it cannot be loaded, or some of its weights are missing.
        UnsupportedModelError: Its weights are quantised.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    check_device(device)
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise ConfigError(f"model {name} holds no config.json: give the folder of a Hugging Face model")
    if not path.exists() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise ConfigError(f"model folder {name} does not exist: give an existing folder or a hub id such as owner/name")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen = _DTYPES[dtype] or (torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        _refuse_quantised(name, AutoConfig.from_pretrained(name))
        model, loading = AutoModelForCausalLM.from_pretrained(name, dtype=chosen, output_loading_info=True)
    except _BROKEN as err:
        reason = " ".join(str(err).split())[:300].rstrip(".!")
        raise ConfigError(f"model {name} cannot be loaded: {reason}; give the folder or hub id of a whole one") from err
    _refuse_random(name, loading)
    if not tokenizer.encode("a", add_special_tokens=False):  # what comes of a folder without tokenizer files
        raise ConfigError(f"model {name} comes without a tokenizer: add its tokenizer.json")
    tokenizer.model_max_length = 1 << 40  # a whole text is encoded at once and cut into blocks afterwards
    return model.eval().to(device), tokenizer


def _refuse_quantised(name: str, config: Any) -> None:
    """Refuse quantised weights before Transformers asks for a quantiser that would not help."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is None:
        return
    found = quantisation if isinstance(quantisation, dict) else vars(quantisation)
    method = getattr(found.get("quant_method"), "value", found.get("quant_method"))
    raise UnsupportedModelError(
        f"model {name} is stored quantised ({method or 'unknown method'}): its MoE layers may bypass their routers; "
        "give a copy with weights in bfloat16 or float32"
    )


def _refuse_random(name: str, loading: Mapping[str, Collection[Any]]) -> None:
    """Refuse a checkpoint that leaves weights as they were initialised; tied ones count as loaded."""
    for what, found in (("lacks", loading["missing_keys"]), ("has in another shape", loading["mismatched_keys"])):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found)
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            raise ConfigError(
                f"the checkpoint of model {name} {what} {', '.join(names[:_LISTED])}{more}, which would be random: "
                "give a whole one"
            )


def check_device(device: str) -> None:
    """Refuse a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "no GPU: --device cuda was asked for and torch sees none; use --device cpu, or see thermoe doctor"
        )
