"""Measures on calibration text how much each expert of a model matters and what thrift costs.

B sequences, S positions, T = B * S tokens, L layers, E experts, K experts per token, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from thermoe.errors import DataError, UnsupportedModelError
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.hooks import RouterHooks
from thermoe.routing.calibration import Calibration, FrontierPoint
from thermoe.types import FloatArray, RoutingKnobs

VALUE_POWER = 2.0
PROTECTED_K0 = 2
SENSITIVITY_POWER = 0.75
"""Chosen on wikitext-2 and public-domain text among 0.5, 0.75 and 1: docs/concepts/routing.md."""
PRICES = tuple(float(p) for p in np.geomspace(1e-3, 0.06, 9))
MIN_TOKENS = 256


class ScoredBatch(Protocol):
    """A block of text: `input_ids` (B, S) and `target_ids` (B, S)."""

    @property
    def input_ids(self) -> Tensor:
        """(B, S) tokens."""
        ...
    @property
    def target_ids(self) -> Tensor:
        """(B, S) the token that follows each."""
        ...


def calibrate(
    model: Any,
    batches: Sequence[ScoredBatch],
    *,
    prices: Sequence[float] = PRICES,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Sensitivities by one backward pass over the text, then the frontier of fixed policies.

    The sensitivity of an expert is the mean square, over the tokens that chose it, of the change in
    the loss to first order when the expert is dropped and the others' gates are renormalised:
    g . (y_e - y), with g the gradient at the layer's output y and y_e the expert's own output.
    Only equal block lengths are used, so that every position is a batch of B tokens.

    Raises:
        DataError: Less text than needed.
        UnsupportedModelError: The model cannot be attached to.
    """
    num_tokens = sum(b.input_ids.numel() for b in batches)
    if num_tokens < MIN_TOKENS:
        raise DataError(f"{num_tokens} tokens of calibration text; needed at least {MIN_TOKENS}: give more text")
    say = progress or (lambda _: None)
    hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
    try:
        say("sensitivities")
        squares, counts = torch.zeros(2, hooks.shape.num_layers, hooks.shape.num_experts, dtype=torch.float64)
        for batch in batches:
            _add_sensitivities(model, batch, squares, counts)
        sensitivity = _normalised(squares.numpy(), counts.numpy())
        say("the model's own routing")
        own_nll, own_distinct = _judge(model, hooks, batches, None)
        frontier = []
        for policy, value, knobs in _policies(hooks, sensitivity, prices):
            say(f"{policy} {value:.4g}")
            nll, distinct = _judge(model, hooks, batches, knobs)
            frontier.append(
                FrontierPoint(
                    policy=policy,
                    value=value,
                    loss_pct=100.0 * float(np.expm1(nll - own_nll)),
                    distinct_experts=tuple(float(d) for d in distinct),
                )
            )
    finally:
        hooks.remove()
    return Calibration(
        model_type=hooks.family_name,
        batch_size=int(batches[0].input_ids.shape[0]),
        num_tokens=num_tokens,
        sensitivity=sensitivity,
        value_power=VALUE_POWER,
        protected_k0=min(PROTECTED_K0, hooks.shape.top_k),
        own_distinct=own_distinct,
        own_perplexity=float(np.exp(own_nll)),
        frontier=tuple(frontier),
    )


def _policies(
    hooks: RouterHooks, sensitivity: FloatArray, prices: Sequence[float]
) -> Iterator[tuple[str, float, RoutingKnobs]]:
    """Every policy that is judged, with its knobs."""
    shape = hooks.shape
    neutral = RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k)
    changes = neutral.__class__.__dataclass_fields__  # every field is carried over but those set below

    def knobs(**replaced: Any) -> RoutingKnobs:
        return RoutingKnobs(**{name: getattr(neutral, name) for name in changes} | replaced)

    layers = np.ones(shape.num_layers)
    for price in prices:
        yield (
            "priced",
            price,
            knobs(
                union=True,
                price=price * layers,
                cost=1.0 / sensitivity,
                value_power=VALUE_POWER,
                protected_k0=(min(PROTECTED_K0, shape.top_k) * layers).astype(np.int64),
            ),
        )
    for k0 in range(shape.top_k - 1, 0, -1) if shape.top_k <= 4 else range(shape.top_k - 2, 1, -1):
        yield (
            "opportunistic",
            float(k0),
            knobs(union=True, price=np.inf * layers, protected_k0=(k0 * layers).astype(np.int64)),
        )
    for k in {shape.top_k - 1, (3 * shape.top_k) // 4} - {0, shape.top_k}:
        yield "top_k", float(k), knobs(top_k=(k * layers).astype(np.int64))


@torch.no_grad()
def _judge(
    model: Any, hooks: RouterHooks, batches: Sequence[ScoredBatch], knobs: RoutingKnobs | None
) -> tuple[float, FloatArray]:
    """Mean negative log-likelihood [nats] and (L,) mean distinct experts of one policy."""
    hooks.set_knobs(knobs)
    hooks.counters.drain()
    total, count = 0.0, 0
    for batch in batches:
        total += float(_nll_sum(model, batch.input_ids.to(hooks.device), batch.target_ids.to(hooks.device)))
        count += batch.target_ids.numel()
    return total / count, hooks.counters.drain().distinct_experts


def _nll_sum(model: Any, input_ids: Tensor, target_ids: Tensor, **inputs: Any) -> Tensor:
    logits = model(**(inputs or {"input_ids": input_ids}), use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), target_ids.flatten(), reduction="sum")


def _add_sensitivities(model: Any, batch: ScoredBatch, squares: Tensor, counts: Tensor) -> None:
    """Add the squared first-order changes of one block to (L, E) sums."""
    seen: list[tuple[nn.Module, tuple[Tensor, ...], Tensor]] = []

    def remember(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((module, tuple(args), output))

    device = next(model.parameters()).device
    input_ids, target_ids = batch.input_ids.to(device), batch.target_ids.to(device)
    experts = experts_modules(model)
    handles = [module.register_forward_hook(remember) for module in experts]
    try:
        with _frozen(model), torch.enable_grad():
            embedded = model.get_input_embeddings()(input_ids).detach().requires_grad_()
            loss = _nll_sum(model, input_ids, target_ids, inputs_embeds=embedded)
            gradients = torch.autograd.grad(loss, [output for _, _, output in seen])
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for layer, ((module, args, output), gradient) in enumerate(zip(seen, gradients, strict=True)):
            hidden, ids_TK = args[0].detach(), args[1]
            grad_TD = gradient.reshape(ids_TK.shape[0], -1).float()
            mixed_T = (grad_TD * output.reshape(grad_TD.shape).float()).sum(-1)
            for slot in range(ids_TK.shape[1]):
                one_T1 = torch.ones_like(args[2][:, :1])
                alone = module(hidden, ids_TK[:, slot : slot + 1].contiguous(), one_T1).reshape(grad_TD.shape)
                change_T = ((grad_TD * alone.float()).sum(-1) - mixed_T).double().cpu()
                squares[layer].index_add_(0, ids_TK[:, slot].cpu(), change_T**2)
                counts[layer].index_add_(0, ids_TK[:, slot].cpu(), torch.ones_like(change_T))


def _normalised(squares: FloatArray, counts: FloatArray) -> FloatArray:
    """(L, E) sensitivities to the power that calibration found best, geometric mean 1.

    Experts hardly seen take their layer's mean; outliers at the low end are lifted to the second
    percentile, or noise would make an expert worthless.
    """
    mean = squares / np.maximum(counts, 1.0)
    layer_mean = squares.sum(axis=1, keepdims=True) / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    mean = np.where(counts >= 8, mean, layer_mean)
    mean = np.maximum(mean, np.quantile(mean, 0.02))
    if not (mean > 0).all():
        raise DataError("the loss does not depend on the experts' outputs: is this a trained model?")
    scaled = mean**SENSITIVITY_POWER
    return np.asarray(scaled / np.exp(np.log(scaled).mean()))


def experts_modules(model: nn.Module) -> list[nn.Module]:
    """The experts of every MoE layer, in layer order: called with (hidden, ids, weights)."""
    found = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] == "experts"]
    if not found:
        raise UnsupportedModelError("no module named `experts` was found: this model cannot be calibrated")
    return found


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient meanwhile; the flags come back as they were."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
