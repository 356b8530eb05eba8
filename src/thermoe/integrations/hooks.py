"""The data plane inside a Transformers model: one hook per router, two around the decoder.

T tokens, E experts, K experts per token.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from thermoe.errors import UnsupportedModelError
from thermoe.integrations.batch_context import BatchContext, UnionScope
from thermoe.integrations.families import Family, weighed_in_turn
from thermoe.integrations.inspect import Routers, find_routers, routers_bypassed, unknown_router_output
from thermoe.kernels.route import RouterRows, Routing, is_fused, route
from thermoe.runtime.counters import DeviceCounters
from thermoe.runtime.knobs import DeviceKnobs
from thermoe.types import MoEShape, RoutingKnobs

Function = TypeVar("Function", bound=Callable[..., Any])

# torch says this where it was asked for a graph without breaks.
_WHY_EAGER = "Thermoe's hooks run between compiled graphs; compile the model with fullgraph=False"


def _eager(function: Function) -> Function:
    """A hook that torch.compile leaves as it is: it counts calls and reads host values."""
    return cast(Function, torch.compiler.disable(function, reason=_WHY_EAGER))


def forget_compiled_code() -> None:
    """Have everything that torch.compile compiled in this process compiled anew when next called.

    Code that was compiled without hooks goes on without them: torch guards on none added since. Code compiled around
    hooks stays in pieces once they are gone. It is kept by function, for all models of a class, so that one
    model's cannot be told apart. Free where nothing was compiled. Call it between forwards.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.convert_frame.input_codes.seen:
        dynamo.reset_code_caches()


class _Uncopied:
    """Part of an attachment: it belongs to one model, with device memory and locks, and is neither copied nor saved."""

    def __reduce__(self) -> NoReturn:
        raise UnsupportedModelError(
            "a model cannot be copied or pickled while Thermoe is attached: detach first, then copy or save it"
        )


class RouterHooks(_Uncopied):
    """Watches, and when given knobs changes, which experts the tokens of a model use.

    Without knobs the routers' outputs are returned untouched and only counted. Parameters, experts
    implementation and module structure are never changed. A compiled model is compiled anew, with the hooks
    or without them, at its first call after they come or go.

    Attributes:
        shape: sizes of the MoE layers.
        knobs: the knobs in device memory; neutral until `set_knobs`.
        counters: what the forwards have counted since they were last drained.
        context: layout of the forward that runs or ran last.
        rows: what the router that runs would multiply, where its logits were left to the hook; it takes them.
        ended_token_ids: tokens fed to sequences that have ended; None for those of the model's
            generation config, read at every forward. Set it where `generate()` is given others.

    Raises:
        UnsupportedModelError: the model cannot be attached to, or carries such hooks already.
    """

    def __init__(self, model: nn.Module, *, scope: UnionScope = UnionScope.DECODE) -> None:
        routers = find_routers(model)
        if any(isinstance(hook, _RouterHook) for module in routers.modules for hook in module._forward_hooks.values()):
            raise UnsupportedModelError(
                "the model is attached already: needed a model without Thermoe's hooks; detach the first handle"
            )
        self.shape: MoEShape = routers.shape
        self.family_name: str = routers.model_type
        self.context = BatchContext(scope)
        self.ended_token_ids: tuple[int, ...] | None = None
        self.device = next(routers.modules[0].parameters()).device
        self.counters = DeviceCounters(self.shape.num_layers, self.shape.num_experts, self.device)
        self.active = False
        self.rows: RouterRows | None = None
        neutral = RoutingKnobs.neutral(self.shape.num_layers, self.shape.num_experts, self.shape.top_k)
        self.knobs = DeviceKnobs(neutral, self.device)
        self.running = False
        self._fired = 0
        self._model = model
        self._argument_names = list(inspect.signature(routers.decoder.forward).parameters)
        self._handles = self._register(routers)
        forget_compiled_code()

    def _register(self, routers: Routers) -> list[Any]:
        handles: list[Any] = [
            module.register_forward_hook(_RouterHook(self, index, routers.family))
            for index, module in enumerate(routers.modules)
        ]
        handles.append(routers.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
        handles.append(routers.decoder.register_forward_hook(self._after_decoder))
        return handles

    def set_knobs(self, knobs: RoutingKnobs | None) -> None:
        """New knobs, from the next router that runs on; None returns to the model's own routing, bit for bit."""
        if knobs is not None:
            self.knobs.write(knobs)
        self.active = knobs is not None

    def remove(self) -> None:
        """Take every hook out; harmless when called again."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        forget_compiled_code()

    @_eager
    def _before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._fired, self.running = 0, True
        arguments = dict(zip(self._argument_names, args, strict=False)) | kwargs
        ended = _ended_token_ids(self._model) if self.ended_token_ids is None else self.ended_token_ids
        self.context.note(arguments, ended)

    @_eager
    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.running = False
        if self._fired < self.shape.num_layers:
            self.remove()
            raise routers_bypassed(self._fired, self.shape.num_layers)

    def fired(self) -> None:
        """One router has run in this forward."""
        self._fired += 1


class _RouterHook(_Uncopied):
    """Forward hook of one router: finds logits, weights and ids by structure, and rewrites the last two."""

    def __init__(self, hooks: RouterHooks, layer: int, family: Family) -> None:
        self.hooks, self.layer, self.family = hooks, layer, family

    @_eager
    def __call__(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hooks = self.hooks
        hooks.fired()
        fields = router_fields(output, hooks.shape.num_experts)
        logits_TE, weights_TK, ids_TK = (output[i] for i in fields)
        rows, hooks.rows = hooks.rows, None
        if logits_TE.device != hooks.device:
            raise UnsupportedModelError(
                f"the model was moved from {hooks.device} to {logits_TE.device} while attached; "
                "detach it, then attach again"
            )
        columns, live_T = hooks.context.layout_for(logits_TE.shape[0])
        if not hooks.active:
            if hooks.running:
                with torch.no_grad():
                    hooks.counters.watch(self.layer, ids_TK, live_T, columns)
            return None
        changed = list(output)
        changed[fields[0]], routing = self._choose(router, rows or logits_TE, ids_TK, columns, live_T)
        changed[fields[1]] = routing.weights_TK.to(weights_TK.dtype)
        changed[fields[2]] = routing.ids_TK.to(ids_TK.dtype)
        return tuple(changed)

    def _choose(
        self, router: nn.Module, given: Tensor | RouterRows, own_ids_TK: Tensor, columns: int, live_T: Tensor | None
    ) -> tuple[Tensor, Routing]:
        """The logits, and the routing under the knobs of now, counted; `own_ids_TK` is the model's own choice."""
        hooks, family = self.hooks, self.family
        knobs = hooks.knobs.layer(self.layer, union=hooks.context.union_allowed)
        options: dict[str, Any] = {
            "top_k": hooks.shape.top_k,
            "columns": columns,
            "live_T": live_T,
            "renormalise": family.renormalises(router),
            "scale": family.scale(router),
        }
        scoring = None if family.scoring is None else family.scoring(router)
        if isinstance(given, RouterRows) and hooks.running and scoring is not None and columns == 1:
            del options["columns"]
            return hooks.counters.route_rows(self.layer, given, knobs, scoring=scoring, **options)
        logits_TE = given.logits() if isinstance(given, RouterRows) else given
        # Outside a forward of the decoder (checkpointed layers run again for their gradients) nothing is counted twice.
        if hooks.running and scoring is not None and is_fused(logits_TE, hooks.shape.top_k, scoring, columns):
            return logits_TE, hooks.counters.route(self.layer, logits_TE, knobs, scoring=scoring, **options)
        ranks_TE, gates_TE = family.scores(router, logits_TE)
        routing = route(ranks_TE, gates_TE, knobs, log_gates_TE=logits_TE if family.is_softmax else None, **options)
        if family.picks_in_turn:
            routing = weighed_in_turn(router, logits_TE, routing, knobs, columns)
        if hooks.running:
            with torch.no_grad():
                hooks.counters.add(self.layer, routing, gates_TE, live_T, columns, own_ids_TK)
        return logits_TE, routing


def router_fields(output: Any, num_experts: int) -> tuple[int, int, int]:
    """Positions of (logits, weights, ids) in a router's output, found by structure.

    Ids are integers; weights have their shape; logits end in the number of experts. The order
    changed between Transformers releases, the structure did not.
    """
    fields: dict[str, int] = {}
    values = output if isinstance(output, (tuple, list)) else (output,)
    ids_shape = next((x.shape for x in values if isinstance(x, Tensor) and not x.is_floating_point()), None)
    for position, value in enumerate(values):
        if not isinstance(value, Tensor):
            continue
        if not value.is_floating_point():
            fields["ids"] = position
        elif value.shape == ids_shape:
            fields["weights"] = position
        elif value.shape[-1] == num_experts:
            fields["logits"] = position
    if set(fields) != {"ids", "weights", "logits"}:
        raise unknown_router_output(values, num_experts)
    return fields["logits"], fields["weights"], fields["ids"]


def _ended_token_ids(model: nn.Module) -> tuple[int, ...]:
    """Tokens that `generate()` feeds to sequences that have ended: its padding and end tokens."""
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    found: list[int] = []
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        if value is not None:
            found.extend(value if isinstance(value, (list, tuple)) else [value])
    return tuple(dict.fromkeys(int(v) for v in found))
