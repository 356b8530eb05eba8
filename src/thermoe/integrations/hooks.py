"""The data plane inside a Transformers model: one hook per router, one before the decoder.

T tokens, E experts, K experts per token.
"""

from typing import Any

import torch
from torch import Tensor, nn

from thermoe.integrations.batch_context import BatchContext, UnionScope
from thermoe.integrations.families import Family, in_turn
from thermoe.integrations.inspect import Routers, find_routers, routers_bypassed, unknown_router_output
from thermoe.kernels.route import LayerKnobs, Routing, kept_slots, loaded_experts, route
from thermoe.runtime.knobs import DeviceCounters, DeviceKnobs
from thermoe.types import MoEShape, RoutingKnobs


class RouterHooks:
    """Watches, and when given knobs changes, which experts the tokens of a model use.

    Without knobs the routers' outputs are returned untouched and only counted. Parameters, experts
    implementation and module structure are never changed.
    """

    def __init__(self, model: nn.Module, *, scope: UnionScope = UnionScope.DECODE) -> None:
        routers = find_routers(model)
        self.shape: MoEShape = routers.shape
        self.family_name: str = routers.model_type
        self.context = BatchContext(scope, _ended_token_ids(model))
        self.device = next(routers.modules[0].parameters()).device
        self.counters = DeviceCounters(self.shape.num_layers, self.shape.num_experts, self.device)
        self.active = False
        neutral = RoutingKnobs.neutral(self.shape.num_layers, self.shape.num_experts, self.shape.top_k)
        self.knobs = DeviceKnobs(neutral, self.device)
        self._fired = self.shape.num_layers
        self._handles = self._register(model, routers)

    def _register(self, model: nn.Module, routers: Routers) -> list[Any]:
        handles = [
            module.register_forward_hook(_RouterHook(self, index, routers.family))
            for index, module in enumerate(routers.modules)
        ]
        handles.append(routers.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
        return handles

    def set_knobs(self, knobs: RoutingKnobs | None) -> None:
        """New knobs from the next forward on; None returns to the model's own routing, bit for bit."""
        self.active = knobs is not None
        if knobs is not None:
            self.knobs.write(knobs)

    def remove(self) -> None:
        """Take every hook out; harmless when called again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._fired < self.shape.num_layers:
            self.remove()
            raise routers_bypassed(self._fired, self.shape.num_layers)
        self._fired = 0
        input_ids = args[0] if args else kwargs.get("input_ids")
        self.context.note(input_ids, kwargs.get("inputs_embeds"), kwargs.get("attention_mask"))

    def fired(self) -> None:
        """One router has run in this forward."""
        self._fired += 1


class _RouterHook:
    """Forward hook of one router: finds logits, weights and ids by structure, and rewrites the last two."""

    def __init__(self, hooks: RouterHooks, layer: int, family: Family) -> None:
        self.hooks, self.layer, self.family = hooks, layer, family

    @torch.compiler.disable
    def __call__(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hooks, context = self.hooks, self.hooks.context
        hooks.fired()
        fields = router_fields(output, hooks.shape.num_experts)
        logits_TE, weights_TK, ids_TK = (output[i] for i in fields)
        # A sequence length that is no multiple (a module called by hand) is one batch.
        columns = context.columns if logits_TE.shape[0] % context.columns == 0 else 1
        live_T = context.live_T
        if live_T is not None and live_T.shape[0] != logits_TE.shape[0]:
            live_T = None
        with torch.no_grad():
            ranks_TE, gates_TE = self.family.scores(router, logits_TE)
            if not hooks.active:
                own = Routing(
                    ids_TK=ids_TK,
                    weights_TK=weights_TK,
                    kept_TK=torch.ones_like(ids_TK, dtype=torch.bool),
                    own_ids_TK=ids_TK,
                    loaded_CE=None,
                )
                hooks.counters.add(self.layer, own, gates_TE, live_T, columns, ids_TK)
                return None
            knobs = hooks.knobs.layer(self.layer, union=context.union_allowed)
            routing = self._choose(router, logits_TE, ranks_TE, gates_TE, knobs, columns, live_T)
            hooks.counters.add(self.layer, routing, gates_TE, live_T, columns, ids_TK)
        changed = list(output)
        changed[fields[1]] = routing.weights_TK.to(weights_TK.dtype)
        changed[fields[2]] = routing.ids_TK.to(ids_TK.dtype)
        return tuple(changed)

    def _choose(
        self,
        router: nn.Module,
        logits_TE: Tensor,
        ranks_TE: Tensor,
        gates_TE: Tensor,
        knobs: LayerKnobs,
        columns: int,
        live_T: Tensor | None,
    ) -> Routing:
        top_k = self.hooks.shape.top_k
        if not self.family.picks_in_turn:
            return route(
                ranks_TE,
                gates_TE,
                knobs,
                top_k=top_k,
                columns=columns,
                live_T=live_T,
                renormalise=self.family.renormalises(router),
                scale=self.family.scale(router),
            )
        own_ids_TK, _ = in_turn(router, logits_TE, None, top_k)
        loaded_TE = (knobs.allowed > 0).expand_as(logits_TE)
        if knobs.union:
            live = torch.ones_like(ranks_TE[:, 0]) if live_T is None else live_T.to(ranks_TE.dtype)
            loaded_CE = loaded_experts(own_ids_TK, gates_TE, live, knobs, columns)
            loaded_TE = loaded_TE & loaded_CE.repeat(logits_TE.shape[0] // columns, 1)
        ids_TK, weights_TK = in_turn(router, logits_TE, loaded_TE, top_k)
        kept_TK = kept_slots(loaded_TE.gather(1, ids_TK), gates_TE.gather(1, ids_TK), knobs)
        return Routing(
            ids_TK=torch.where(kept_TK, ids_TK, ids_TK[:, :1]),
            weights_TK=weights_TK * kept_TK,
            kept_TK=kept_TK,
            own_ids_TK=own_ids_TK,
            loaded_CE=None,
        )


def router_fields(output: Any, num_experts: int) -> tuple[int, int, int]:
    """Positions of (logits, weights, ids) in a router's output, found by structure.

    Ids are integers; weights have their shape; logits end in the number of experts. The order
    changed between Transformers releases, the structure did not.
    """
    fields: dict[str, int] = {}
    ids_shape = next((x.shape for x in output if isinstance(x, Tensor) and not x.is_floating_point()), None)
    for position, value in enumerate(output):
        if not isinstance(value, Tensor):
            continue
        if not value.is_floating_point():
            fields["ids"] = position
        elif value.shape == ids_shape:
            fields["weights"] = position
        elif value.shape[-1] == num_experts:
            fields["logits"] = position
    if set(fields) != {"ids", "weights", "logits"}:
        raise unknown_router_output(output, num_experts)
    return fields["logits"], fields["weights"], fields["ids"]


def _ended_token_ids(model: nn.Module) -> tuple[int, ...]:
    """Tokens that `generate()` feeds to sequences that have ended: its padding and end tokens."""
    config = getattr(model, "generation_config", None)
    found: list[int] = []
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        if value is not None:
            found.extend(value if isinstance(value, list) else [value])
    return tuple(dict.fromkeys(int(v) for v in found))
