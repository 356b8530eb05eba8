"""Calibration of tiny models: sensitivities against finite differences, and a model left as it was."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tiny_models import EXPERTS, LAYERS, NAMES, tiny_model, token_ids

import thermoe.integrations.calibrate as calibrating
from thermoe.errors import DataError, UnsupportedModelError
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.calibrate import calibrate, experts_modules, first_order_changes
from thermoe.integrations.hooks import RouterHooks
from thermoe.routing.calibration import Calibration
from thermoe.types import RoutingKnobs


@dataclass
class Block:
    input_ids: torch.Tensor
    target_ids: torch.Tensor


def block(rows=4, columns=65, seed=0) -> Block:
    ids = token_ids(rows, columns, seed)
    return Block(ids[:, :-1], ids[:, 1:])


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def loss_of(model, given: Block) -> torch.Tensor:
    logits = model(input_ids=given.input_ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), given.target_ids.flatten(), reduction="sum")


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "olmoe"])
def test_changes_are_the_derivative_of_the_loss(name):
    """Move a token's output of one layer towards one expert's own output and look at the loss of the whole text."""
    model, given = tiny_model(name).double(), block(2, 6)
    implementation = model.config._experts_implementation
    model.set_experts_implementation("eager")  # the others have no float64
    layer, seen = 1, {}
    module = experts_modules(model)[layer]

    def remember(module, args, output):
        seen.update(args=args, output=output)

    try:
        handle = module.register_forward_hook(remember)
        loss = loss_of(model, given)
        (gradient,) = torch.autograd.grad(loss, seen["output"])
        handle.remove()
        changes = first_order_changes(module, seen["args"], seen["output"], gradient)
        assert changes.dtype == torch.float64
        hidden, ids, weights = (a.detach() for a in seen["args"])
        tiny = 0.3  # these models compute their norms in float32, and their experts move the loss little
        for token, slot in ((0, 0), (3, 1), (7, ids.shape[1] - 1)):
            with torch.no_grad():
                alone = module(
                    hidden[token : token + 1], ids[token : token + 1, slot : slot + 1], weights.new_ones(1, 1)
                )
                shape = seen["output"].shape
                mixed = seen["output"].detach().reshape(len(ids), -1)
                towards = torch.zeros_like(mixed)
                towards[token] = weights[token].sum() * alone.reshape(-1) - mixed[token]
                sides = []
                for sign in (1, -1):

                    def nudge(module, args, output, sign=sign, towards=towards, shape=shape):
                        return output + sign * tiny * towards.reshape(shape)

                    handle = module.register_forward_hook(nudge)
                    sides.append(float(loss_of(model, given)))
                    handle.remove()
            assert float(changes[token, slot]) == pytest.approx((sides[0] - sides[1]) / (2 * tiny), rel=0.02, abs=3e-6)
    finally:
        model.set_experts_implementation(implementation)
        model.float()


def test_sensitivities_are_mean_squares_of_the_changes():
    model, given = tiny_model("qwen3_moe"), block()
    seen = []
    handles = [
        m.register_forward_hook(lambda m, args, output: seen.append((m, args, output))) for m in experts_modules(model)
    ]
    loss = loss_of(model, given)
    gradients = torch.autograd.grad(loss, [output for _, _, output in seen])
    for handle in handles:
        handle.remove()
    squares, counts = np.zeros((LAYERS, EXPERTS)), np.zeros((LAYERS, EXPERTS))
    for layer, ((module, args, output), gradient) in enumerate(zip(list(seen), gradients, strict=True)):
        changes = first_order_changes(module, args, output, gradient)
        for token, ids in enumerate(args[1].tolist()):
            for slot, expert in enumerate(ids):
                squares[layer, expert] += float(changes[token, slot]) ** 2
                counts[layer, expert] += 1
    assert (counts >= 8).all()
    mean = squares / counts
    mean = np.maximum(mean, np.quantile(mean, 0.02))
    scaled = mean**calibrating.SENSITIVITY_POWER
    wanted = scaled / np.exp(np.log(scaled).mean())

    np.testing.assert_allclose(calibrate(model, [given], prices=(0.01, 0.1)).sensitivity, wanted, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_calibrates_and_is_left_as_it_was(name):
    model, given = tiny_model(name), block(4, 65)
    flags = [(p.requires_grad, p.detach().clone()) for p in model.parameters()]
    before = hooks_of(model)
    with torch.no_grad():
        logits = model(given.input_ids).logits

    got = calibrate(model, [given], prices=(1e-3, 1e-2, 1e-1))

    assert hooks_of(model) == before
    for parameter, (flag, value) in zip(model.parameters(), flags, strict=True):
        assert parameter.requires_grad == flag
        assert parameter.grad is None
        assert torch.equal(parameter, value)
    with torch.no_grad():
        assert torch.equal(model(given.input_ids).logits, logits)
    assert got.num_tokens == 256
    assert got.batch_size == 4
    assert got.sensitivity.shape == (LAYERS, EXPERTS)
    assert np.log(got.sensitivity).mean() == pytest.approx(0.0, abs=1e-9)
    distinct = [p.mean_distinct for p in got.priced()]
    assert distinct == sorted(distinct, reverse=True)
    assert distinct[0] <= got.own_distinct.mean()
    assert Calibration.from_dict(got.to_dict()).to_dict() == got.to_dict()


def test_the_frontier_is_the_loss_that_the_policies_really_have(monkeypatch):
    model, given = tiny_model("qwen3_moe"), block()
    uneven = np.exp(np.random.default_rng(0).normal(size=(LAYERS, EXPERTS)))  # a random model's hardly differ
    monkeypatch.setattr(calibrating, "_normalised", lambda squares, counts: uneven)
    got = calibrate(model, [given], prices=(1e-9, 0.05))
    with torch.no_grad():
        own = float(loss_of(model, given)) / 256
    assert got.own_perplexity == pytest.approx(np.exp(own), rel=1e-5)
    free, dear = got.priced()
    assert free.loss_pct == pytest.approx(0.0, abs=1e-3)  # a price of nothing withholds nothing
    assert free.distinct_experts == pytest.approx(tuple(got.own_distinct))
    hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
    try:
        neutral = RoutingKnobs.neutral(LAYERS, EXPERTS, hooks.shape.top_k)
        hooks.set_knobs(
            replace(
                neutral,
                union=True,
                price=np.full(LAYERS, 0.05),
                cost=1.0 / got.sensitivity,
                protected_k0=np.full(LAYERS, got.protected_k0),
            )
        )
        with torch.no_grad():
            loss = float(loss_of(model, given)) / 256
        distinct = hooks.counters.drain().distinct_experts
    finally:
        hooks.remove()
    assert dear.distinct_experts == tuple(distinct)
    assert (distinct < free.distinct_experts).all()
    assert dear.loss_pct == pytest.approx(100 * np.expm1(loss - own), abs=1e-4)
    assert {(p.policy, p.value) for p in got.frontier} >= {
        ("opportunistic", 2.0),
        ("opportunistic", 1.0),
        ("top_k", 2.0),
    }


def test_a_failure_half_way_leaves_nothing_behind(monkeypatch):
    model, before = tiny_model("mixtral"), hooks_of(tiny_model("mixtral"))
    first = next(model.parameters())
    first.requires_grad_(False)
    model.train()
    try:
        for broken in ("_nll_sum", "first_order_changes", "_judge"):
            with monkeypatch.context() as patched:
                patched.setattr(calibrating, broken, _fail)
                with pytest.raises(RuntimeError, match="half-way"):
                    calibrate(model, [block()])
            assert hooks_of(model) == before
            assert model.training
            assert all(m.training for m in model.modules())
            assert not first.requires_grad
            assert all(p.requires_grad for p in model.parameters() if p is not first)
    finally:
        first.requires_grad_(True)
        model.eval()


def _fail(*args, **kwargs):
    raise RuntimeError("half-way")


def test_it_works_where_gradients_are_switched_off():
    model, given = tiny_model("mixtral"), block()
    wanted = calibrate(model, [given], prices=(0.01, 0.1)).sensitivity
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            got = calibrate(model, [Block(given.input_ids.clone(), given.target_ids.clone())], prices=(0.01, 0.1))
        np.testing.assert_allclose(got.sensitivity, wanted, rtol=1e-5)


@pytest.mark.parametrize("blocks", [[], [block(1, 33)], [block(4, 65), block(3, 65)]])
def test_text_that_cannot_be_used(blocks):
    with pytest.raises(DataError):
        calibrate(tiny_model("mixtral"), blocks)


def test_a_model_whose_loss_ignores_its_experts():
    model = tiny_model("granitemoe")
    kept = [p.detach().clone() for m in experts_modules(model) for p in m.parameters()]
    try:
        with torch.no_grad():
            for module in experts_modules(model):
                for parameter in module.parameters():
                    parameter.zero_()
        with pytest.raises(DataError, match="trained model"):
            calibrate(model, [block()])
    finally:
        with torch.no_grad():
            for parameter, value in zip([p for m in experts_modules(model) for p in m.parameters()], kept, strict=True):
                parameter.copy_(value)


def test_a_model_without_experts():
    with pytest.raises(UnsupportedModelError, match="experts"):
        experts_modules(torch.nn.Linear(2, 2))
