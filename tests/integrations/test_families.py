import numpy as np
import pytest
import torch
from recording import attached, dense, expected_weights, ranked_own_ids, shape_of, union_knobs
from tiny_models import NAMES, routers, tiny_model, token_ids
from transformers.models.phimoe import modeling_phimoe

from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.families import FAMILIES, sparsemixer
from thermoe.integrations.hooks import RouterHooks
from thermoe.types import RoutingKnobs

each_family = pytest.mark.parametrize("name", NAMES)


def hook_counts(model) -> dict:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    tables += ("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")
    return {(name, table): list(getattr(m, table)) for name, m in model.named_modules() for table in tables}


def forward(model, ids, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def test_every_supported_family_is_tested() -> None:
    assert {tiny_model(name).config.model_type for name in NAMES} == set(FAMILIES)


@each_family
def test_watched_logits_are_the_bare_models_bit_for_bit(name: str) -> None:
    model, ids = tiny_model(name), token_ids(5, 7)
    bare = forward(model, ids)
    with attached(model) as (hooks, recording):
        assert torch.equal(forward(model, ids), bare)
        statistics = hooks.counters.drain()
    for layer, calls in enumerate(recording.calls):
        counts = np.bincount(calls[0].own[2].flatten(), minlength=hooks.shape.num_experts)
        np.testing.assert_array_equal(statistics.tokens_per_expert[layer], counts)
    assert statistics.gate_mass_kept.tolist() == [1.0] * hooks.shape.num_layers


@each_family
@pytest.mark.parametrize("scope", list(UnionScope))
def test_neutral_knobs_give_the_routers_own_choice(name: str, scope: UnionScope) -> None:
    model, ids = tiny_model(name), token_ids(5, 7)
    shape = shape_of(model)
    knobs = RoutingKnobs.neutral(shape.num_layers, shape.num_experts, shape.top_k)
    with attached(model, knobs, scope) as (hooks, recording):
        forward(model, ids)
        statistics = hooks.counters.drain()
    for calls in recording.calls:
        (_, own_weights, own_ids), (_, weights, chosen) = calls[0].own, calls[0].final
        assert weights.dtype is own_weights.dtype
        assert chosen.dtype is own_ids.dtype
        own, final = own_ids.sort(-1), chosen.sort(-1)
        assert torch.equal(own.values, final.values)
        own_weights = own_weights.gather(1, own.indices).numpy()
        weights = weights.gather(1, final.indices).numpy()
        assert (np.abs(weights - own_weights) <= 2 * np.spacing(own_weights)).all()
    assert statistics.changed_slots.tolist() == [0.0] * shape.num_layers
    np.testing.assert_allclose(statistics.gate_mass_kept, 1.0, rtol=1e-6)


POLICIES = ["opportunistic", "priced", "dropping"]


def policy_knobs(policy: str, shape) -> RoutingKnobs:
    rng = np.random.default_rng(1)
    tables = (shape.num_layers, shape.num_experts)
    if policy == "opportunistic":
        return union_knobs(shape)
    priced = {"price": 0.4, "cost": rng.uniform(0.2, 5.0, tables), "bias": rng.normal(0.0, 0.3, tables)}
    if policy == "priced":
        return union_knobs(shape, **priced)
    allowed = np.ones(tables, dtype=bool)
    allowed[:, 3] = False
    dropping = {"skip_ratio": np.full(shape.num_layers, 0.4), "top_k": np.full(shape.num_layers, shape.top_k - 1)}
    return union_knobs(shape, **priced, **dropping, allowed=allowed)


@each_family
@pytest.mark.parametrize("policy", POLICIES)
def test_union_in_decode_loads_fewer_experts_and_weighs_as_the_family_does(name: str, policy: str) -> None:
    model, ids = tiny_model(name), token_ids(6, 6)
    shape = shape_of(model)
    knobs = policy_knobs(policy, shape)
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
    with attached(model, knobs) as (hooks, recording):
        forward(model, ids[:, 5:], past_key_values=cache)
        distinct, _, _ = hooks.counters.last_forward()
    distinct_own = 0
    for layer, (router, calls) in enumerate(zip(routers(model), recording.calls, strict=True)):
        call = calls[0]
        used = dense(call.final[2], call.final[1], shape.num_experts) > 0
        assert used.any(0).sum().item() == distinct[layer, 0]
        distinct_own += call.own[2].unique().numel()
        allowed = torch.from_numpy(knobs.allowed[layer])
        loaded = allowed.clone()
        if policy == "opportunistic":  # the set is then known by hand: everyone's first choice
            first = ranked_own_ids(router, call)[:, :1]
            assert used.gather(1, first).all()
            loaded = torch.zeros(shape.num_experts, dtype=torch.bool)
            loaded[first.flatten()] = True
        assert not used[:, ~loaded].any()
        if policy == "opportunistic" or not name.startswith("phimoe"):
            weights = dense(call.final[2], call.final[1], shape.num_experts)
            torch.testing.assert_close(weights, expected_weights(router, call, loaded), rtol=2e-6, atol=1e-8)
    assert distinct.sum() < distinct_own


@each_family
def test_each_families_bias_moves_the_choice_and_leaves_the_weights_of_the_chosen(name: str) -> None:
    model, ids = tiny_model(name), token_ids(5, 7)
    shape = shape_of(model)
    bias = np.random.default_rng(0).normal(0.0, 1.0, (shape.num_layers, shape.num_experts))
    everything = torch.ones(shape.num_experts, dtype=torch.bool)
    with attached(model, union_knobs(shape, k0=shape.top_k, price=0.0, bias=bias)) as (_, recording):
        forward(model, ids)
    router, call = routers(model)[0], recording.calls[0][0]
    assert not torch.equal(call.final[2].sort(-1).values, call.own[2].sort(-1).values)
    weights = dense(call.final[2], call.final[1], shape.num_experts)
    torch.testing.assert_close(weights, expected_weights(router, call, everything), rtol=2e-6, atol=1e-8)


@each_family
def test_one_expert_a_token_is_the_first_choice_with_the_familys_weight(name: str) -> None:
    model, ids = tiny_model(name), token_ids(5, 7)
    shape = shape_of(model)
    everything = torch.ones(shape.num_experts, dtype=torch.bool)
    knobs = union_knobs(shape, k0=shape.top_k, price=0.0, top_k=np.ones(shape.num_layers, dtype=np.int64))
    with attached(model, knobs) as (_, recording):
        forward(model, ids)
    router, call = routers(model)[0], recording.calls[0][0]
    first = ranked_own_ids(router, call)[:, :1]
    assert torch.equal(call.final[2], first.expand_as(call.final[2]))
    weights = dense(call.final[2], call.final[1], shape.num_experts)
    torch.testing.assert_close(weights, expected_weights(router, call, everything), rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sparsemixer_agrees_with_the_models_own(dtype: torch.dtype) -> None:
    router = routers(tiny_model("phimoe"))[0]
    logits_TE = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights_TK, ids_TK = modeling_phimoe.sparsemixer(logits_TE, router.router_jitter_noise, training=False, top_k=2)
    ids, weights = sparsemixer(router, logits_TE, torch.ones_like(logits_TE, dtype=torch.bool), 2)
    assert torch.equal(ids, ids_TK)
    assert torch.equal(weights, weights_TK)


@each_family
def test_detaching_restores_everything(name: str) -> None:
    model, ids = tiny_model(name), token_ids(4, 5)
    bare, hooks_before = forward(model, ids), hook_counts(model)
    parameters = {key: value.clone() for key, value in model.state_dict().items()}
    implementation = model.config._experts_implementation
    forwards = {key: module.forward for key, module in model.named_modules()}
    hooks = RouterHooks(model)
    hooks.set_knobs(union_knobs(hooks.shape))
    assert not torch.equal(forward(model, ids[:, :1]), bare[:, :1])
    hooks.remove()
    hooks.remove()
    assert hook_counts(model) == hooks_before
    assert model.config._experts_implementation == implementation
    assert {key: module.forward for key, module in model.named_modules()} == forwards
    for key, value in model.state_dict().items():
        assert value.numpy().tobytes() == parameters[key].numpy().tobytes(), key
    assert torch.equal(forward(model, ids), bare)


@each_family
def test_positions_in_one_forward_route_like_decoding_step_by_step(name: str) -> None:
    model, ids = tiny_model(name), token_ids(5, 9)
    ids[1, 4] = ids[3, 0] = model.config.eos_token_id  # separators within a text that is given
    knobs = union_knobs(shape_of(model))
    with attached(model, knobs, UnionScope.POSITIONS) as (_, together):
        logits = forward(model, ids, use_cache=False)
    with attached(model, knobs, UnionScope.POSITIONS) as (_, stepped):
        cache, steps = None, []
        for position in range(ids.shape[1]):
            with torch.no_grad():
                output = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), logits, rtol=1e-4, atol=1e-5)
    for layer in range(len(together.calls)):
        ids_RC = together.calls[layer][0].final[2].unflatten(0, ids.shape)
        for position, call in enumerate(stepped.calls[layer]):
            assert torch.equal(call.final[2].sort(-1).values, ids_RC[:, position].sort(-1).values)


@each_family
def test_scopes_differ_in_what_a_batch_is(name: str) -> None:
    model, ids = tiny_model(name), token_ids(3, 6)
    shape = shape_of(model)
    knobs = union_knobs(shape)
    bare = forward(model, ids)
    used = {}
    for scope in UnionScope:
        with attached(model, knobs, scope) as (_, recording):
            logits = forward(model, ids)
        call = recording.calls[0][0]
        first = ranked_own_ids(routers(model)[0], call)[:, 0].unflatten(0, ids.shape)
        used[scope] = (dense(call.final[2], call.final[1], shape.num_experts) > 0).unflatten(0, ids.shape), first
        if scope is UnionScope.DECODE:  # prefill stays the model's own choice
            torch.testing.assert_close(logits, bare, rtol=1e-5, atol=1e-6)
    by_position, first = used[UnionScope.POSITIONS]
    for position in range(ids.shape[1]):
        assert set(by_position[:, position].any(0).nonzero().flatten().tolist()) == set(first[:, position].tolist())
    whole, first = used[UnionScope.FORWARD]
    assert set(whole.any(0).any(0).nonzero().flatten().tolist()) == set(first.flatten().tolist())
