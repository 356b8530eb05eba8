"""Finds the routers of a Transformers model, or says why it cannot be attached to."""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from thermoe.errors import UnsupportedModelError
from thermoe.integrations.families import FAMILIES, Family
from thermoe.types import MoEShape


@dataclass(frozen=True, slots=True)
class Routers:
    """The routers of a model in layer order, the decoder that runs them, and their sizes."""

    model_type: str
    family: Family
    modules: list[nn.Module]
    decoder: nn.Module
    shape: MoEShape


def find_routers(model: nn.Module) -> Routers:
    """The routers of a supported model; anything else is an `UnsupportedModelError` with the reason."""
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", type(model).__name__))
    supported = ", ".join(sorted(FAMILIES))
    if model_type not in FAMILIES:
        if not _has_experts(model):
            raise UnsupportedModelError(
                f"model type '{model_type}' has no experts to route; needed a Mixture-of-Experts model of: {supported}"
            )
        raise UnsupportedModelError(f"model family '{model_type}' is not supported; supported are: {supported}")
    _refuse_bypasses(model, config)
    class_name, family = FAMILIES[model_type]
    modules = [m for m in model.modules() if type(m).__name__ == class_name]
    if not modules:
        raise UnsupportedModelError(
            f"model type '{model_type}' was built without a {class_name}: its MoE layers were replaced or it has "
            "none; load it without use_kernels and with at least one MoE layer"
        )
    num_experts = {int(m.num_experts) for m in modules}  # type: ignore[arg-type]
    top_k = {int(m.top_k) for m in modules}  # type: ignore[arg-type]
    if len(num_experts) > 1 or len(top_k) > 1:
        raise UnsupportedModelError(
            f"layers differ in experts {sorted(num_experts)} or top_k {sorted(top_k)}; needed the same in all"
        )
    if num_experts == top_k:
        raise UnsupportedModelError(f"every token uses all {num_experts.pop()} experts: there is nothing to choose")
    shape = MoEShape(
        num_layers=len(modules),
        hidden_size=int(getattr(config, "hidden_size")),  # noqa: B009
        inter_size=int(getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size")),  # noqa: B009
        num_experts=num_experts.pop(),
        top_k=top_k.pop(),
    )
    return Routers(model_type, family, modules, _decoder(model, modules), shape)


def routers_bypassed(fired: int, needed: int) -> UnsupportedModelError:
    """The error for a forward in which routers did not run."""
    return UnsupportedModelError(
        f"{fired} of {needed} routers ran in the last forward: something replaced the MoE layers "
        "(kernels, a quantiser or parallelism); load the model without it. Thermoe has detached itself"
    )


def unknown_router_output(output: Any, num_experts: int) -> UnsupportedModelError:
    """The error for a router whose output is not (logits, weights, ids) in some order."""
    got = [tuple(getattr(x, "shape", ())) or type(x).__name__ for x in output]
    return UnsupportedModelError(
        f"a router returned {got}; needed logits (T, {num_experts}), weights (T, k) and integer ids (T, k): "
        "this Transformers version is not supported, see `thermoe doctor`"
    )


def _decoder(model: nn.Module, routers: list[nn.Module]) -> nn.Module:
    """The innermost module that takes tokens and runs all routers, whatever wraps it."""
    found = model
    for module in model.modules():  # outer modules come first
        if "inputs_embeds" in inspect.signature(module.forward).parameters and _contains(module, routers):
            found = module
    return found


def _contains(module: nn.Module, wanted: list[nn.Module]) -> bool:
    inside = {id(m) for m in module.modules()}
    return all(id(m) in inside for m in wanted)


def _has_experts(model: nn.Module) -> bool:
    return any("expert" in type(m).__name__.lower() or "moe" in type(m).__name__.lower() for m in model.modules())


def _refuse_bypasses(model: nn.Module, config: Any) -> None:
    """Refuse models whose MoE layers do not go through router and experts as the hooks need."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None or getattr(model, "is_quantized", False):
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        method = method or getattr(quantisation, "quant_method", None) or "unknown method"
        raise UnsupportedModelError(
            f"the model is quantised ({getattr(method, 'value', method)}): its MoE layers may bypass their routers; "
            "load it dequantised (MXFP4: quantization_config=Mxfp4Config(dequantize=True))"
        )
    if _any_has(model, "_use_kernels"):
        raise UnsupportedModelError(
            "the model was loaded with use_kernels=True, which may replace MoE layers; load it without"
        )
    sharded = _any_has(model, "_device_mesh") or any((getattr(m, "_tp_size", None) or 1) > 1 for m in model.modules())
    if sharded or _any_has(model, "_is_expert_parallel") or _any_has(model, "_is_hooked"):
        raise UnsupportedModelError(
            "the model is loaded with tensor or expert parallelism, which rewrites expert ids after the router; "
            "load it on one device, without a distributed_config"
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise UnsupportedModelError(f"the model is spread over {', '.join(devices)}; load it on one device")
    if devices == ["meta"]:
        raise UnsupportedModelError("the model has no weights (device 'meta'); load them before attaching")


def _any_has(model: nn.Module, flag: str) -> bool:
    """Whether a module of the model carries this mark of Transformers, set to something."""
    return any(getattr(module, flag, None) not in (None, False) for module in model.modules())
