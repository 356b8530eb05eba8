"""A small self-contained MoE layer whose choices go through the same `route` as Hugging Face models.

Shapes: B sequences, S positions, T = B * S tokens, D model width, E experts, K experts per token,
N = T * K routed rows. The B tokens of one position are one batch and share a union of experts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thermoe.errors import ConfigError
from thermoe.experts import ExpertFormat, ExpertKind, make_experts
from thermoe.kernels.route import SOFTMAX, Routing, is_fused, route
from thermoe.runtime.batch_metrics import BatchMetrics, MetricsBuffer
from thermoe.runtime.knobs import DeviceCounters, DeviceKnobs
from thermoe.types import MoEShape, RoutingKnobs, SysState

KnobPolicy = Callable[[SysState], RoutingKnobs | None]
Formats = ExpertFormat | str | Sequence[ExpertFormat | str]


class SharedRouting:
    """Knobs and counters that the MoE layers of one model share, and who sets the knobs.

    Args:
        shape: Sizes of the layers.
        device: Where knobs and counters live.
        policy: Asked once per `SysState` that is given to a forward, on the host; the knobs it
            answers are written before the layer routes, None leaves them as they are.
    """

    def __init__(
        self, shape: MoEShape, *, device: torch.device | str = "cpu", policy: KnobPolicy | None = None
    ) -> None:
        self.shape = shape
        self.knobs = DeviceKnobs(RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k), device)
        self.counters = DeviceCounters(shape.num_layers, shape.num_experts, device)
        self.policy = policy
        self._seen: SysState | None = None

    def observe(self, sys_state: SysState | None) -> None:
        """Shows the state to the policy, unless it has seen this very object already."""
        if sys_state is None or sys_state is self._seen or self.policy is None:
            return
        self._seen = sys_state
        knobs = self.policy(sys_state)
        if knobs is not None:
            self.knobs.write(knobs)


class SimpleMoELayer(nn.Module):
    """Linear router, softmax gates, and E experts, each held in a format of its own.

    Experts run one after the other on their own rows, which reads the rows per expert back to the
    host once per forward; the router and the counters never wait.

    Args:
        shape: Sizes (D, I, E, K); `num_layers` only matters when `shared` is not given.
        expert_kind: SwiGLU or ReLU.
        formats: How the experts are held: one `ExpertFormat` for all, or one for each.
        renormalise: Whether the chosen gates are scaled to sum to one.
        seed: Of the weights, drawn before they are compressed; the same on every device and in every format.
        shared: Knobs and counters shared with the model's other layers; own ones if None.
        layer_index: This layer's row in them.
        metrics_capacity: Forwards that `metrics` keeps.
        device, dtype: Of router and dense experts; compressed ones compute in the dtype of the tokens.

    Attributes:
        formats: How each expert is held.

    Raises:
        ConfigError: top_k exceeds the experts, the layer index the layers, the sizes disagree, or unknown formats.
    """

    def __init__(
        self,
        shape: MoEShape,
        *,
        expert_kind: ExpertKind = ExpertKind.SWIGLU,
        formats: Formats = ExpertFormat.DENSE,
        renormalise: bool = True,
        seed: int = 0,
        shared: SharedRouting | None = None,
        layer_index: int = 0,
        metrics_capacity: int = 1024,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.shared = SharedRouting(shape, device=device) if shared is None else shared
        self.layer_index = layer_index
        self.renormalise = renormalise
        self.metrics = MetricsBuffer(metrics_capacity)
        _check(shape, self.shared.shape, layer_index)
        self.router = nn.Linear(shape.hidden_size, shape.num_experts, bias=False, device=device, dtype=dtype)
        held_as = _for_each(formats, shape.num_experts)
        self.experts = make_experts(
            shape.hidden_size,
            shape.inter_size,
            held_as,
            kind=expert_kind,
            device=device,
            dtype=dtype,
            generator=self._draw_router(seed),
        )
        self.formats = tuple(ExpertFormat(f) for f in held_as)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draws router and experts anew from the seed; logits of unit-variance tokens have unit variance."""
        generator = self._draw_router(seed)
        expert: Any
        for expert in self.experts:
            expert.reset_parameters(generator)

    @torch.no_grad()
    def _draw_router(self, seed: int) -> torch.Generator:
        """Draws the router; what it drew from goes on to the experts."""
        generator = torch.Generator().manual_seed(seed)
        weight = self.router.weight
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
        return generator

    def forward(self, x: Tensor, sys_state: SysState | None = None, *, live: Tensor | None = None) -> Tensor:
        """The weighted sum of each token's experts, in the shape and dtype of `x`.

        Args:
            x: (T, D), one batch of T tokens; or (B, S, D), S batches of B tokens.
            sys_state: State of the hardware, for the policy and the metrics.
            live: (T,) or (B, S): tokens that count towards the union and the counters; None for all.
        """
        self.shared.observe(sys_state)
        columns = 1 if x.ndim == 2 else x.shape[1]
        x_TD = x.reshape(-1, x.shape[-1])
        live_T = None if live is None else live.reshape(-1)
        routing = self._route(x_TD, columns, live_T)
        self._record(routing, x_TD.shape[0], live_T, sys_state)
        return self._run_experts(x_TD, routing).view_as(x)

    def _route(self, x_TD: Tensor, columns: int, live_T: Tensor | None) -> Routing:
        logits_TE = self.router(x_TD)
        knobs, top_k = self.shared.knobs.layer(self.layer_index), self.shape.top_k
        if is_fused(logits_TE, top_k, SOFTMAX, columns):
            options = {"top_k": top_k, "columns": columns, "live_T": live_T, "renormalise": self.renormalise}
            return self.shared.counters.route(self.layer_index, logits_TE, knobs, **options)
        logits_TE = logits_TE.float()
        gates_TE = logits_TE.softmax(dim=-1)
        routing = route(
            logits_TE,
            gates_TE,
            knobs,
            top_k=top_k,
            columns=columns,
            live_T=live_T,
            renormalise=self.renormalise,
            log_gates_TE=logits_TE,
        )
        with torch.no_grad():
            own_ids_TK = logits_TE.topk(top_k, dim=-1).indices
            self.shared.counters.add(self.layer_index, routing, gates_TE, live_T, columns, own_ids_TK)
        return routing

    @torch.no_grad()
    def _record(self, routing: Routing, num_tokens: int, live_T: Tensor | None, sys_state: SysState | None) -> None:
        distinct_C, _, mass_C = self.shared.counters.last[self.layer_index]
        used_TK = routing.kept_TK.float() * (1.0 if live_T is None else live_T.float().unsqueeze(-1))
        tokens_E = used_TK.new_zeros(self.shape.num_experts)
        tokens_E.index_add_(0, routing.ids_TK.flatten(), used_TK.flatten())
        self.metrics.append(
            BatchMetrics(
                index=self.metrics.num_forwards,
                num_tokens=num_tokens,
                tokens_per_expert=tokens_E,
                distinct_experts=distinct_C,
                gate_mass_kept=mass_C.detach(),
                sys_state=sys_state,
            )
        )

    def _run_experts(self, x_TD: Tensor, routing: Routing) -> Tensor:
        num_experts = self.shape.num_experts
        # Dropped slots sort behind the last expert and are left out.
        ids_N = routing.ids_TK.masked_fill(~routing.kept_TK, num_experts).flatten()
        rows_per_expert = torch.bincount(ids_N, minlength=num_experts + 1).tolist()[:num_experts]
        order_N = ids_N.argsort(stable=True)[: sum(rows_per_expert)]
        parts = x_TD[order_N // self.shape.top_k].split(rows_per_expert)
        done_ND = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True) if len(part)])
        # Back to token order, so that each token adds its experts in the order of its slots.
        y_ND = done_ND.new_zeros(ids_N.shape[0], done_ND.shape[1]).index_copy(0, order_N, done_ND)
        y_TKD = y_ND.view(*routing.ids_TK.shape, -1).float()
        return (y_TKD * routing.weights_TK.unsqueeze(-1)).sum(dim=1).to(x_TD.dtype)


def _for_each(formats: Formats, num_experts: int) -> list[ExpertFormat | str]:
    given = [formats] * num_experts if isinstance(formats, str) else list(formats)
    if len(given) != num_experts:
        raise ConfigError(f"{len(given)} formats for {num_experts} experts: give one for each, or one for all")
    return given


def _check(shape: MoEShape, shared: MoEShape, layer_index: int) -> None:
    if not 1 <= shape.top_k <= shape.num_experts:
        raise ConfigError(f"top_k = {shape.top_k} of {shape.num_experts} experts: choose 1 to {shape.num_experts}")
    if (shape.num_experts, shape.top_k) != (shared.num_experts, shared.top_k):
        raise ConfigError(
            f"layer with {shape.num_experts} experts, top-{shape.top_k}, but shared knobs for "
            f"{shared.num_experts}, top-{shared.top_k}: build both from one shape"
        )
    if not 0 <= layer_index < shared.num_layers:
        raise ConfigError(
            f"layer index {layer_index} of {shared.num_layers} layers: choose 0 to {shared.num_layers - 1}"
        )
