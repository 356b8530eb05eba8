"""What an experts block of Transformers holds for the kernels: its own weights as they read them, or a quantised copy.

T tokens, E experts, K experts per token, D model width, I expert width.
"""

from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from thermoe.errors import UnsupportedModelError
from thermoe.experts import ExpertBank, experts_of
from thermoe.kernels.expert_mlp import DenseMatrices, ExpertWeights, expert_mlp, expert_mlp_reference
from thermoe.kernels.expert_mlp.op import flatten

DENSE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_PARAMETERS = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")
# In the block's __dict__, where neither the state dict nor `.to()` looks.
_DENSE, _QUANTISED = "_thermoe_dense", "_thermoe_quantised"


class _Dense:
    """A block's own weights, built once; copies and pickles of the block begin without."""

    def __init__(
        self, key: tuple[Any, ...] = (), weights: ExpertWeights | None = None, reason: str | None = None
    ) -> None:
        self.key, self.weights, self.reason = key, weights, reason

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


class QuantisedBlock:
    """A quantised copy of a block's experts, which computes in their place.

    Args:
        weights: What the kernels read.
        bank: The bank that these are views of, if they are.
    """

    def __init__(self, weights: ExpertWeights, bank: ExpertBank | None = None) -> None:
        self.weights, self.bank = weights, bank

    def __call__(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """(T, D) through the fused kernels; on a CPU through their reference."""
        if self.bank is not None and self.bank.kept_fc1 is not None:
            beside: Tensor = self.bank(x_TD, ids_TK, weights_TK)
            return beside
        return expert_mlp(x_TD, ids_TK, weights_TK, self.weights)

    def with_gradients(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The same by plain torch operations, slowly: gradients flow to the tokens and to the routing weights.

        Raises:
            UnsupportedModelError: experts kept in bf16 beside a bank.
        """
        if self.bank is not None and self.bank.kept_fc1 is not None:
            raise UnsupportedModelError(
                "a bank with experts kept in bf16 gives no gradients: run under torch.no_grad()"
            )
        return expert_mlp_reference(x_TD, ids_TK, weights_TK, self.weights, dtype=torch.float32).to(x_TD.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, scales and biases [byte]."""
        fc1, fc2, extras, _ = flatten(self.weights, None)
        beside = () if self.bank is None else (self.bank.kept_fc1, self.bank.kept_fc2)
        return sum(t.numel() * t.element_size() for t in (*fc1, *fc2, *extras, *beside) if t is not None)

    def __reduce__(self) -> NoReturn:
        raise UnsupportedModelError(
            "a model cannot be copied or pickled while its experts are quantised: take the quantised experts out first"
        )


def expert_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The experts blocks of a Transformers model by name, in layer order.

    Raises:
        UnsupportedModelError: there are none that the experts interface of Transformers runs.
    """
    found = {name: module for name, module in model.named_modules() if _is_block(module)}
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no experts with gate_up_proj and down_proj that Transformers runs through its "
            "experts interface: give a Mixture-of-Experts model as Transformers loads it"
        )
    return found


def quantised_experts(block: nn.Module) -> QuantisedBlock | None:
    """The quantised copy that stands in for this block, if there is one."""
    held: QuantisedBlock | None = block.__dict__.get(_QUANTISED)
    return held


def set_quantised_experts(block: nn.Module, quantised: QuantisedBlock | None) -> None:
    """Have a quantised copy compute in place of the block's own weights; None gives these back."""
    block.__dict__.pop(_QUANTISED, None)
    if quantised is not None:
        block.__dict__[_QUANTISED] = quantised


def dense_weights(block: nn.Module) -> tuple[ExpertWeights | None, str | None]:
    """The block's own weights as the kernels read them, or None and the reason why they cannot.

    Views where the layout fits. A transposed or interleaved layout (GPT-OSS) is rearranged into a copy, once;
    it is made anew when a parameter was changed or moved. Code that torch.compile traces takes the views from the
    parameters themselves, and a rearranged copy only where a call outside has made it.
    """
    held: _Dense | None = block.__dict__.get(_DENSE)
    if torch.compiler.is_compiling():
        if _fits(block):
            return experts_of(block), None
        return (None, "not rearranged yet") if held is None else (held.weights, held.reason)
    key = tuple(_identity(getattr(block, name, None)) for name in _PARAMETERS)
    if held is None or held.key != key:
        block.__dict__.pop(_DENSE, None)  # an older copy gives its memory back before a new one is made
        try:
            held = _Dense(key, experts_of(block))
        except UnsupportedModelError as err:
            held = _Dense(key, None, str(err))
        block.__dict__[_DENSE] = held
    return held.weights, held.reason


def extra_bytes(block: Any) -> int:
    """Bytes held beside the block's own parameters: a rearranged copy, a quantised copy [byte]."""
    held: _Dense | None = block.__dict__.get(_DENSE)
    total = 0
    if held is not None and held.weights is not None:
        pairs = ((held.weights.fc1, block.gate_up_proj), (held.weights.fc2, block.down_proj))
        for matrices, parameter in pairs:
            assert isinstance(matrices, DenseMatrices)
            if matrices.weight_ENC.data_ptr() != parameter.data_ptr():
                total += matrices.weight_ENC.numel() * matrices.weight_ENC.element_size()
    quantised = quantised_experts(block)
    return total + (0 if quantised is None else quantised.num_bytes)


def _is_block(module: Any) -> bool:
    parts = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    return all(isinstance(part, Tensor) and part.ndim == 3 for part in parts) and hasattr(module, "_apply_gate")


def _fits(block: Any) -> bool:
    return bool(getattr(block, "is_concatenated", True)) and not getattr(block, "is_transposed", False)


def _identity(parameter: Any) -> tuple[Any, ...]:
    """Changes when the parameter is replaced, moved, cast or written to."""
    if not isinstance(parameter, Tensor):
        return ()
    version = 0 if parameter.is_inference() else parameter._version
    return parameter.data_ptr(), parameter.dtype, tuple(parameter.shape), version
