"""Measures on calibration text how much each expert of a model matters and what thrift costs.

B sequences, S positions, T = B * S tokens, L layers, E experts, K experts per token, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from thermoe.errors import DataError, UnsupportedModelError
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.hooks import RouterHooks, forget_compiled_code
from thermoe.routing.calibration import Calibration, FrontierPoint
from thermoe.types import FloatArray, RoutingKnobs

VALUE_POWER = 2.0
PROTECTED_K0 = 2
SENSITIVITY_POWER = 0.75
"""Chosen on wikitext-2 and public-domain text among 0.5, 0.75 and 1: docs/concepts/routing.md."""
PRICES = tuple(float(p) for p in np.geomspace(1e-3, 0.06, 9))
MIN_TOKENS = 256
JUDGED_LOSS_PCT = 4.0
"""Protected choices are judged where opportunistic activation loses less than this."""


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
    protected: Sequence[int] = (PROTECTED_K0,),
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Sensitivities by one backward pass over the text, then the frontier of fixed policies.

    The sensitivity of an expert is the mean square, over the tokens that chose it, of the change in
    the loss to first order when the expert is dropped and the others take over its weight, per unit of
    weight: g . (w y_e - y), with g the gradient at the experts' output y, y_e the expert's own
    output and w the sum of the token's weights. Every position is a batch of B tokens, so all blocks
    need the same B. Parameters, their gradient flags and the training mode are left as they were.

    Where several numbers of `protected` first choices are given, all are judged at every price and the one that
    loses least at the experts that opportunistic activation touches is kept, as far as it reaches that low.

    Raises:
        DataError: Less text than needed, or blocks of different B.
        UnsupportedModelError: The model cannot be attached to.
    """
    num_tokens = sum(b.input_ids.numel() for b in batches)
    if num_tokens < MIN_TOKENS:
        raise DataError(f"{num_tokens} tokens of calibration text; needed at least {MIN_TOKENS}: give more text")
    rows = sorted({int(b.input_ids.shape[0]) for b in batches})
    if len(rows) > 1:
        raise DataError(f"calibration blocks of {rows} sequences: all need the same number, drop the last block")
    say = progress or (lambda _: None)
    hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
    with ExitStack() as undo:
        undo.callback(hooks.remove)
        undo.enter_context(_still(model))
        say("sensitivities")
        squares, counts = torch.zeros(2, hooks.shape.num_layers, hooks.shape.num_experts, dtype=torch.float64)
        for batch in batches:
            _add_sensitivities(model, batch, squares, counts)
        sensitivity = _normalised(squares.numpy(), counts.numpy())
        say("the model's own routing")
        own_nll, own_distinct = _judge(model, hooks, batches, None)

        def judged(policies: Iterator[tuple[str, float, RoutingKnobs]]) -> list[FrontierPoint]:
            points = []
            for policy, value, knobs in policies:
                say(f"{policy} {value:.4g}")
                nll, distinct = _judge(model, hooks, batches, knobs)
                loss_pct = 100.0 * float(np.expm1(nll - own_nll))
                counts = tuple(float(d) for d in distinct)
                points.append(FrontierPoint(policy=policy, value=value, loss_pct=loss_pct, distinct_experts=counts))
            return points

        rivals = judged(_rival_policies(hooks))
        choices = sorted({min(k0, hooks.shape.top_k) for k0 in protected})
        priced = {k0: judged(_priced_policies(hooks, sensitivity, prices, k0)) for k0 in choices}
        kept = min(choices, key=lambda k0: _loss_beside(priced[k0], rivals))
    return Calibration(
        model_type=hooks.family_name,
        batch_size=int(batches[0].input_ids.shape[0]),
        num_tokens=num_tokens,
        sensitivity=sensitivity,
        value_power=VALUE_POWER,
        protected_k0=kept,
        own_distinct=own_distinct,
        own_perplexity=float(np.exp(own_nll)),
        frontier=(*priced[kept], *rivals),
    )


def _priced_policies(
    hooks: RouterHooks, sensitivity: FloatArray, prices: Sequence[float], protected_k0: int
) -> Iterator[tuple[str, float, RoutingKnobs]]:
    """Priced unions with one number of protected first choices."""
    neutral, layers = _neutral(hooks), np.ones(hooks.shape.num_layers)
    for price in prices:
        knobs = replace(
            neutral,
            union=True,
            price=price * layers,
            cost=1.0 / sensitivity,
            value_power=VALUE_POWER,
            protected_k0=(protected_k0 * layers).astype(np.int64),
        )
        yield "priced", price, knobs


def _rival_policies(hooks: RouterHooks) -> Iterator[tuple[str, float, RoutingKnobs]]:
    """Opportunistic activation and plain top-k."""
    neutral, layers, top_k = _neutral(hooks), np.ones(hooks.shape.num_layers), hooks.shape.top_k
    for k0 in range(top_k - 1, 0, -1) if top_k <= 4 else range(top_k - 2, 1, -1):
        k0_L = (k0 * layers).astype(np.int64)
        yield "opportunistic", float(k0), replace(neutral, union=True, price=np.inf * layers, protected_k0=k0_L)
    for k in sorted({top_k - 1, (3 * top_k) // 4} - {0, top_k}):
        yield "top_k", float(k), replace(neutral, top_k=(k * layers).astype(np.int64))


def _neutral(hooks: RouterHooks) -> RoutingKnobs:
    return RoutingKnobs.neutral(hooks.shape.num_layers, hooks.shape.num_experts, hooks.shape.top_k)


def _loss_beside(priced: Sequence[FrontierPoint], rivals: Sequence[FrontierPoint]) -> float:
    """Mean loss [%] of a priced frontier at the experts that opportunistic activation touches; inf beyond its reach."""
    points = sorted(priced, key=lambda p: p.mean_distinct)
    counts = [p.mean_distinct for p in rivals if p.policy == "opportunistic" and p.loss_pct < JUDGED_LOSS_PCT]
    losses = np.interp(counts, [p.mean_distinct for p in points], [p.loss_pct for p in points], left=np.inf)
    return float(losses.mean()) if counts else 0.0


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
    experts = experts_modules(model)
    if len(experts) != squares.shape[0]:
        raise UnsupportedModelError(
            f"{len(experts)} modules named `experts` in {squares.shape[0]} MoE layers: this model cannot be calibrated"
        )
    handles = [module.register_forward_hook(remember) for module in experts]
    forget_compiled_code()
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            input_ids, target_ids = (t.to(device).clone() for t in (batch.input_ids, batch.target_ids))
            embedded = model.get_input_embeddings()(input_ids).detach().requires_grad_()
            loss = _nll_sum(model, input_ids, target_ids, inputs_embeds=embedded)
            gradients = torch.autograd.grad(loss, [output for _, _, output in seen])
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for layer, ((module, args, output), gradient) in enumerate(zip(seen, gradients, strict=True)):
            change_TK = first_order_changes(module, args, output, gradient).double().cpu()
            ids_TK = args[1].cpu()
            squares[layer].index_add_(0, ids_TK.flatten(), change_TK.flatten() ** 2)
            counts[layer].index_add_(0, ids_TK.flatten(), torch.ones_like(change_TK.flatten()))


@torch.no_grad()
def first_order_changes(module: nn.Module, args: tuple[Any, ...], output: Tensor, gradient: Tensor) -> Tensor:
    """(T, K) change of the loss to first order, per unit of weight that moves from a token's mixture to one expert.

    Args:
        module: The experts of a layer.
        args: What they were called with: hidden (T, D), ids (T, K) and weights (T, K).
        output: What they returned, T * D values.
        gradient: Of the loss at `output`.
    """
    hidden, ids_TK, weights_TK = args[0].detach(), args[1], args[2].detach()
    precision = torch.promote_types(gradient.dtype, torch.float32)
    grad_TD = gradient.reshape(ids_TK.shape[0], -1).to(precision)
    mixed_T: Tensor = (grad_TD * output.detach().reshape(grad_TD.shape).to(precision)).sum(-1)
    one_T1 = torch.ones_like(weights_TK[:, :1])
    changes = []
    for slot in range(ids_TK.shape[1]):
        alone_TD = module(hidden, ids_TK[:, slot : slot + 1].contiguous(), one_T1).reshape(grad_TD.shape).to(precision)
        changes.append((grad_TD * alone_TD).sum(-1))
    total_T1: Tensor = weights_TK.to(precision).sum(-1, keepdim=True)
    return torch.stack(changes, dim=1) * total_T1 - mixed_T.unsqueeze(1)


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
def _still(model: nn.Module) -> Iterator[None]:
    """The model in evaluation, with no parameter asking for a gradient; all flags come back as they were."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    training = [m for m in model.modules() if m.training]
    for parameter in wanted:
        parameter.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
