"""The experts of one layer as the dense weights that kernels and quantisers take.

Shapes: E experts, D model width, I expert width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError, UnsupportedModelError
from thermoe.experts.simple import ExpertKind, SimpleExpert
from thermoe.kernels.expert_mlp import Activation, DenseMatrices, ExpertWeights

_GATED = {
    "SiLU": Activation.SWIGLU,
    "SiLUActivation": Activation.SWIGLU,
    "GELUTanh": Activation.GEGLU,
    "NewGELUActivation": Activation.GEGLU,
    "PytorchGELUTanh": Activation.GEGLU,
}
_CLAMP_ALPHA, _CLAMP_LIMIT = 1.702, 7.0


def dense_experts(
    fc1_END: Tensor,
    fc2_EDI: Tensor,
    *,
    activation: Activation = Activation.SWIGLU,
    bias1_EN: Tensor | None = None,
    bias2_ED: Tensor | None = None,
) -> ExpertWeights:
    """Fused weights, checked: (E, 2 I, D) with gate rows first, or (E, I, D) without a gate; and (E, D, I).

    Raises:
        ConfigError: shapes, dtypes or devices that do not belong together.
    """
    if activation not in set(Activation):
        raise ConfigError(f"activation {activation}: choose from {', '.join(Activation)}")
    activation = Activation(activation)
    inter_size = fc2_EDI.shape[-1] if fc2_EDI.ndim else 0
    rows = inter_size * (2 if activation.gated else 1)
    wanted = (fc2_EDI.shape[0], rows, fc2_EDI.shape[1]) if fc2_EDI.ndim == 3 else None
    if fc1_END.ndim != 3 or wanted != tuple(fc1_END.shape):
        raise ConfigError(
            f"expert weights of shapes {tuple(fc1_END.shape)} and {tuple(fc2_EDI.shape)} with {activation}: need "
            f"(experts, {'2 x ' if activation.gated else ''}width, model width) and (experts, model width, width)"
        )
    if fc1_END.dtype != fc2_EDI.dtype or fc1_END.device != fc2_EDI.device or not fc1_END.is_floating_point():
        raise ConfigError(
            f"expert weights of {fc1_END.dtype} on {fc1_END.device} and {fc2_EDI.dtype} on {fc2_EDI.device}: need one "
            "floating-point dtype on one device"
        )
    for bias, shape in ((bias1_EN, fc1_END.shape[:2]), (bias2_ED, fc2_EDI.shape[:2])):
        if bias is not None and (bias.shape != shape or bias.device != fc1_END.device):
            raise ConfigError(
                f"bias of shape {tuple(bias.shape)} on {bias.device}: need {tuple(shape)} on {fc1_END.device}"
            )
    return ExpertWeights(
        fc1=DenseMatrices(weight_ENC=fc1_END.detach().contiguous()),
        fc2=DenseMatrices(weight_ENC=fc2_EDI.detach().contiguous()),
        activation=activation,
        bias1_EN=None if bias1_EN is None else bias1_EN.detach().float().contiguous(),
        bias2_ED=None if bias2_ED is None else bias2_ED.detach().float().contiguous(),
    )


def experts_of(module: nn.Module) -> ExpertWeights:
    """The weights of an experts block of Transformers, or of a list of `SimpleExpert` of one kind.

    Raises:
        UnsupportedModelError: the block computes something that the expert kernels do not.
    """
    if isinstance(module, nn.ModuleList):
        return _from_list(module)
    block: Any = module
    name = type(module).__name__
    if not all(isinstance(getattr(block, part, None), Tensor) for part in ("gate_up_proj", "down_proj")):
        raise UnsupportedModelError(f"{name} has no fused gate_up_proj and down_proj: give the experts of an MoE layer")
    if getattr(block, "has_post_expert_norm", False) or not getattr(block, "has_gate", True):
        raise UnsupportedModelError(f"{name} has no gate or a norm behind its experts: such blocks are not supported")
    fc1, fc2 = block.gate_up_proj.detach(), block.down_proj.detach()
    if not fc1.is_floating_point() or fc1.element_size() < 2:
        raise UnsupportedModelError(f"{name} holds {fc1.dtype} weights: load the model dequantised, in bfloat16")
    if getattr(block, "is_transposed", False):
        fc1, fc2 = fc1.transpose(1, 2), fc2.transpose(1, 2)
    bias1 = block.gate_up_proj_bias if getattr(block, "has_bias", False) else None
    bias2 = block.down_proj_bias if bias1 is not None else None
    if not getattr(block, "is_concatenated", True):
        fc1 = torch.cat([fc1[:, ::2], fc1[:, 1::2]], dim=1)
        bias1 = None if bias1 is None else torch.cat([bias1[:, ::2], bias1[:, 1::2]], dim=1)
    return dense_experts(fc1, fc2, activation=_activation(block, name), bias1_EN=bias1, bias2_ED=bias2)


def _activation(block: Any, name: str) -> Activation:
    alpha, limit = getattr(block, "alpha", None), getattr(block, "limit", None)
    if alpha is not None or limit is not None:
        if (alpha, limit) == (_CLAMP_ALPHA, _CLAMP_LIMIT):
            return Activation.SWIGLU_CLAMPED
        raise UnsupportedModelError(
            f"{name} clamps with slope {alpha} and limit {limit}: only {_CLAMP_ALPHA} and {_CLAMP_LIMIT} are supported"
        )
    function = type(getattr(block, "act_fn", None)).__name__
    own_gate = getattr(type(block), "_apply_gate", None)
    if function in _GATED and (own_gate is None or own_gate.__module__ == "transformers.integrations.moe"):
        return _GATED[function]
    raise UnsupportedModelError(
        f"{name} gates with {function if function != 'NoneType' else 'a function of its own'}: "
        f"supported are {', '.join(sorted(_GATED))} and the clamp of GPT-OSS"
    )


def _from_list(experts: nn.ModuleList) -> ExpertWeights:
    kinds = {expert.kind for expert in experts if isinstance(expert, SimpleExpert)}
    if len(kinds) != 1 or not all(isinstance(expert, SimpleExpert) for expert in experts):
        raise UnsupportedModelError(
            f"{len(experts)} experts of {len({type(e) for e in experts})} classes and {len(kinds)} kinds: give "
            "SimpleExpert of one kind"
        )
    sizes = {(tuple(expert.get_parameter("fc1").shape), expert.get_parameter("fc1").dtype) for expert in experts}
    if len(sizes) != 1:
        raise UnsupportedModelError(f"experts of {len(sizes)} shapes and dtypes: give SimpleExpert of one size")
    fc1 = torch.stack([expert.get_parameter("fc1").detach() for expert in experts])
    fc2 = torch.stack([expert.get_parameter("fc2").detach() for expert in experts])
    gated = kinds == {ExpertKind.SWIGLU}
    return dense_experts(fc1, fc2, activation=Activation.SWIGLU if gated else Activation.RELU)
