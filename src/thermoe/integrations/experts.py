"""Thermoe's name in the experts interface of Transformers, and what computes under it.

T tokens, E experts, K experts per token, D model width, I expert width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from thermoe.integrations.experts_held import DENSE_DTYPES, dense_weights, quantised_experts
from thermoe.kernels.expert_mlp import expert_mlp

EXPERTS_IMPLEMENTATION = "thermoe"
FUSED_DEVICES = {"cuda"}


def register_experts() -> str:
    """Make `experts_implementation="thermoe"` known to Transformers, and return that name.

    On a GPU the fused kernels of `thermoe.kernels.expert_mlp` compute, one call for a layer; elsewhere, and for what
    they do not know, the library's own grouped matrix product does (`experts_report` says where and why). Under its
    own name `generate()` leaves it alone: on a GPU that function swaps `grouped_mm` for an implementation that
    copies the weights of every token's experts. Calling this again changes nothing.
    """
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(EXPERTS_IMPLEMENTATION, experts_forward)
    return EXPERTS_IMPLEMENTATION


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """(T, D) tokens through the experts of a block, by (T, K) ids and weights: the signature of the interface."""
    quantised = quantised_experts(self)
    if quantised is not None:
        if _needs_gradients(self, hidden_states, top_k_weights):
            return quantised.with_gradients(hidden_states, top_k_index, top_k_weights)
        return quantised(hidden_states, top_k_index, top_k_weights)
    if why_not_fused(self, hidden_states) is None and not _needs_gradients(self, hidden_states, top_k_weights):
        weights, _ = dense_weights(self)
        if weights is not None:
            return expert_mlp(hidden_states, top_k_index, top_k_weights, weights)
    from transformers.integrations.moe import grouped_mm_experts_forward

    done: Tensor = grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    return done


def why_not_fused(block: nn.Module, hidden_states: Tensor) -> str | None:
    """Why these tokens cannot go through the fused kernel with the block's own weights; None if they can."""
    if hidden_states.device.type not in FUSED_DEVICES:
        return f"tokens on {hidden_states.device.type}: the kernels run on {', '.join(sorted(FUSED_DEVICES))}"
    return _why_not_dtype(block, hidden_states.dtype)


def _why_not_dtype(block: Any, dtype: torch.dtype) -> str | None:
    held: torch.dtype = block.down_proj.dtype
    if held not in DENSE_DTYPES or dtype != held:
        return f"tokens of {dtype} for weights of {held}: the kernels need both in one of bfloat16, float16, float32"
    return None


def _needs_gradients(block: nn.Module, hidden_states: Tensor, top_k_weights: Tensor) -> bool:
    """Whether autograd would follow this call, which the kernels do not."""
    if not torch.is_grad_enabled():
        return False
    inputs = (hidden_states, top_k_weights)
    return any(t.requires_grad for t in inputs) or any(p.requires_grad for p in block.parameters(recurse=False))
