"""The decode loop on Transformers models: `generate()`'s tokens, live knobs, and what it refuses."""

import copy
from dataclasses import replace

import pytest
import torch
from attach_helpers import hooks_of
from recording import union_knobs
from tiny_models import LAYERS, NAMES, PAD, tiny_model, token_ids
from transformers import masking_utils

import thermoe
from thermoe.errors import ConfigError, UnsupportedModelError
from thermoe.integrations.decoding import Decoder, TransformersSteps
from thermoe.integrations.experts_quantised import quantise_experts
from thermoe.integrations.hooks import RouterHooks
from thermoe.runtime.step_graph import NoHostDecisions

NEW = 12
MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 9, "top_p": 0.8, "temperature": 1.3},
    "sampling with the defaults": {"do_sample": True},
}


def prompts(rows=3, columns=7):
    """Padded on the left by 3, 0 and 1."""
    ids, mask = token_ids(rows, columns), torch.ones(rows, columns, dtype=torch.long)
    for row, count in ((0, 3), (2, 1)):
        ids[row, :count], mask[row, :count] = PAD, 0
    return ids, mask


def generated(model, ids, mask, **settings):
    torch.manual_seed(7)
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **settings)


def decoded(decoder, ids, mask, **settings):
    torch.manual_seed(7)
    return decoder.decode(ids, attention_mask=mask, max_new_tokens=NEW, **settings)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_generate(name, mode):
    model, (ids, mask) = tiny_model(name), prompts()
    decoder = Decoder(model)
    wanted = generated(model, ids, mask, **MODES[mode])
    assert torch.equal(decoded(decoder, ids, mask, **MODES[mode]), wanted)
    loop = decoder.loop
    again = decoded(decoder, *(part[:, 2:] for part in (ids, mask)), **MODES[mode])  # nothing is left of the first
    assert decoder.loop is loop
    assert torch.equal(again, generated(model, ids[:, 2:], mask[:, 2:], **MODES[mode]))


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "phimoe", "gpt_oss"])
def test_steered_tokens_and_counts_are_those_of_generate(name):
    model, (ids, mask) = tiny_model(name), prompts()
    hooks, seen = RouterHooks(model), []
    try:
        hooks.set_knobs(union_knobs(hooks.shape))
        decoder = Decoder(model, hooks=hooks)
        runs = (lambda: generated(model, ids, mask), lambda: decoded(decoder, ids, mask))
        seen.extend((run(), hooks.counters.drain()) for run in runs)
        assert hooks.ended_token_ids is None
    finally:
        hooks.remove()
    (tokens, counted), (wanted, wanted_counts) = seen
    assert torch.equal(tokens, wanted)
    assert (counted.tokens_per_expert == wanted_counts.tokens_per_expert).all()
    assert (counted.loads_per_expert == wanted_counts.loads_per_expert).all()
    assert counted.num_tokens == wanted_counts.num_tokens
    assert (counted.changed_slots > 0).all()


def test_rows_that_have_ended_are_padded_and_load_nothing():
    model, (ids, mask) = tiny_model("qwen3_moe"), prompts()
    own = generated(model, ids, mask)
    stop = int(own[1, 7 + 3])  # row 1 ends here at the latest
    ends = [(own[row, 7:] == stop).nonzero().flatten().tolist() for row in range(3)]
    settings = {"eos_token_id": stop, "pad_token_id": PAD}
    hooks = RouterHooks(model)
    try:
        hooks.ended_token_ids = (stop, PAD)
        wanted, by_generate = generated(model, ids, mask, **settings), hooks.counters.drain()
        hooks.ended_token_ids = None  # the loop says it itself
        got, by_loop = decoded(Decoder(model, hooks=hooks), ids, mask, stop_token_ids=[stop]), hooks.counters.drain()
    finally:
        hooks.remove()
    assert torch.equal(got, wanted)
    assert any(ends)
    assert not all(ends)
    assert (by_loop.tokens_per_expert == by_generate.tokens_per_expert).all()
    assert by_loop.num_tokens < int(mask.sum()) + 3 * (NEW - 1)


def test_it_stops_with_the_last_row_to_end():
    model, ids = tiny_model("mixtral"), token_ids(1, 5)
    own = generated(model, ids, None)
    stop = int(own[0, 5 + 4])
    wanted = generated(model, ids, None, eos_token_id=stop, pad_token_id=PAD)
    steps = []
    got = Decoder(model).decode(ids, max_new_tokens=NEW, stop_token_ids=[stop], between_steps=steps.append)
    assert torch.equal(got, wanted)
    assert got.shape[1] < 5 + NEW
    assert steps == list(range(1, got.shape[1] - 5))


def test_knobs_changed_in_the_middle_change_what_later_steps_load():
    model, ids = tiny_model("olmoe"), token_ids(6, 4)
    hooks, loads = RouterHooks(model), []
    shape = hooks.shape
    narrow = union_knobs(shape, allowed=torch.arange(8).lt(3).expand(LAYERS, 8).numpy())

    def between(num_new):
        loads.append(hooks.counters.drain().loads_per_expert)
        if num_new == 4:
            hooks.set_knobs(narrow)
        if num_new == 8:
            hooks.set_knobs(None)

    try:
        Decoder(model, hooks=hooks).decode(ids, max_new_tokens=NEW, stop_token_ids=[], between_steps=between)
    finally:
        hooks.remove()
    assert all((load[:, 3:].sum(axis=1) > 0).all() for load in loads[:4])
    assert all((load[:, 3:] == 0).all() and (load.sum(axis=1) > 0).all() for load in loads[4:8])
    assert all((load[:, 3:].sum(axis=1) > 0).all() for load in loads[8:])


@pytest.mark.parametrize("experts", [None, "int4", "bank4"])
def test_an_attached_handle_decodes_and_restores(experts):
    model, (ids, mask) = copy.deepcopy(tiny_model("qwen3_moe")), prompts()
    before, hooks_before = generated(model, ids, mask), hooks_of(model)
    settings = {"strategy": "baseline", "telemetry": "simulated", "experts": experts}
    with thermoe.attach(model, **settings) as handle:
        got = handle.decode(ids, attention_mask=mask, max_new_tokens=NEW)
        assert torch.equal(got, generated(model, ids, mask))
        assert handle.summary()["distinct_experts_mean"] > 0
        assert (handle.experts is None) == (experts is None)
        if experts is None:
            assert torch.equal(got, before)
        else:
            assert handle.experts.held_as == experts
            assert handle.experts.num_bytes > 0
    with pytest.raises(ConfigError, match="detached"):
        handle.decode(ids, max_new_tokens=1)
    assert torch.equal(generated(model, ids, mask), before)
    assert hooks_of(model) == hooks_before


def test_an_attachment_that_fails_leaves_no_quantised_experts():
    model, (ids, mask) = copy.deepcopy(tiny_model("qwen3_moe")), prompts()
    before = generated(model, ids, mask)
    with pytest.raises(ConfigError, match="int5"):
        thermoe.attach(model, "baseline", telemetry="simulated", experts="int5")
    with pytest.raises(ConfigError, match="experts is 4"):
        thermoe.attach(model, "baseline", telemetry="simulated", experts=4)
    assert torch.equal(generated(model, ids, mask), before)
    thermoe.attach(model, "baseline", telemetry="simulated").detach()


def test_watched_and_steered_steps_have_graphs_of_their_own():
    model = tiny_model("mixtral")
    hooks = RouterHooks(model)
    try:
        steps = TransformersSteps(model, max_length=64, hooks=hooks)
        watched = steps.variant()
        hooks.set_knobs(union_knobs(hooks.shape))
        steered = steps.variant()
        hooks.set_knobs(union_knobs(hooks.shape, k0=2))
        assert watched != steered == steps.variant()
    finally:
        hooks.remove()


def test_what_changed_between_two_calls_drops_the_captured_steps():
    model = copy.deepcopy(tiny_model("mixtral"))
    steps = TransformersSteps(model, max_length=64)
    seen = [steps.identity()]
    hooks = RouterHooks(model)
    seen.append(steps.identity())
    hooks.remove()
    with quantise_experts(model, "int4", group_size=32):
        seen.append(steps.identity())
    model.set_experts_implementation("batched_mm")
    seen.append(steps.identity())
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    seen.append(steps.identity())
    assert len(set(seen)) == 5
    assert steps.identity() == steps.identity()


@pytest.fixture
def tracing(monkeypatch):
    """Let Transformers believe that a stream is being captured, as its masks are made differently then."""
    monkeypatch.setattr(masking_utils, "is_tracing", lambda tensor=None: True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("held_as", ["thermoe", "bank"])
@pytest.mark.parametrize("fuse", [True, False])
def test_no_step_needs_the_host(name, held_as, fuse, tracing, monkeypatch):
    model, ids = tiny_model(name), token_ids(3, 4)
    hooks = RouterHooks(model)
    try:
        with quantise_experts(model, "bank", group_size=32) if held_as == "bank" else _implemented_by(model, held_as):
            hooks.set_knobs(replace(union_knobs(hooks.shape, price=0.4), skip_ratio=_half(hooks.shape.num_layers)))
            steps = TransformersSteps(model, max_length=64, hooks=hooks, fuse=fuse)
            with torch.no_grad():
                steps.prefill(ids, torch.ones_like(ids))
                position, mask = torch.full((3, 1), 4), torch.ones(3, 64, dtype=torch.long)
                # Numbers that come from the host are copied from there, which no graph can hold.
                for maker in ("tensor", "as_tensor"):
                    monkeypatch.setattr(torch, maker, lambda *args, **more: pytest.fail("a number from the host"))
                with NoHostDecisions():
                    logits = steps.step(ids[:, :1], position, mask)
    finally:
        monkeypatch.undo()
        hooks.remove()
    assert logits.isfinite().all()


def test_experts_that_look_at_their_ids_on_the_host_are_refused(tracing):
    model, ids = tiny_model("qwen3_moe"), token_ids(3, 4)
    with _implemented_by(model, "eager"), torch.no_grad():
        steps = TransformersSteps(model, max_length=64)
        steps.prefill(ids, torch.ones_like(ids))
        with NoHostDecisions(), pytest.raises(UnsupportedModelError, match="Qwen3MoeExperts calls aten"):
            steps.step(ids[:, :1], torch.full((3, 1), 4), torch.ones(3, 64, dtype=torch.long))


def _implemented_by(model, name):
    return _Implementation(model, name)


class _Implementation:
    def __init__(self, model, name):
        self.model, self.name, self.before = model, name, model.config._experts_implementation

    def __enter__(self):
        thermoe.integrations.experts.register_experts()
        self.model.set_experts_implementation(self.name)

    def __exit__(self, *raised):
        self.model.set_experts_implementation(self.before)


def _half(layers):
    return torch.full((layers,), 0.5).double().numpy()


def test_padding_is_inferred_from_the_padding_token():
    model, (ids, mask) = tiny_model("glm4_moe"), prompts()
    assert torch.equal(decoded(Decoder(model), ids, None), generated(model, ids, mask))


def test_bad_input_is_refused():
    model, (ids, mask) = tiny_model("mixtral"), prompts()
    decoder = Decoder(model)
    with pytest.raises(ConfigError, match="padded on the right"):
        decoder.decode(ids.flip(1), attention_mask=mask.flip(1), max_new_tokens=2)
    with pytest.raises(ConfigError, match=r"mask of shape \(3, 6\)"):
        decoder.decode(ids, attention_mask=mask[:, 1:], max_new_tokens=2)
    with pytest.raises(ConfigError, match="max_new_tokens = 0"):
        decoder.decode(ids, attention_mask=mask, max_new_tokens=0)
    with pytest.raises(ConfigError, match="temperature 0"):
        decoder.decode(ids, max_new_tokens=2, do_sample=True, temperature=0.0)
    with pytest.raises(ConfigError, match="graph=True on cpu"):
        Decoder(model, graph=True).decode(ids, max_new_tokens=2)
    with pytest.raises(UnsupportedModelError, match="no causal language model"):
        Decoder(torch.nn.Linear(2, 2)).decode(ids, max_new_tokens=2)


def test_settings_of_generate_that_the_loop_does_not_know_are_refused(monkeypatch):
    model, ids = tiny_model("mixtral"), token_ids(2, 4)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.2)
    with pytest.raises(ConfigError, match=r"repetition_penalty = 1.2.*set it to 1.0"):
        Decoder(model).decode(ids, max_new_tokens=2)


def test_layers_and_attention_that_depend_on_the_host_are_refused(monkeypatch):
    model = tiny_model("qwen3_moe")
    monkeypatch.setattr(model.config, "layer_types", ["linear_attention", "full_attention"], raising=False)
    with pytest.raises(UnsupportedModelError, match="layers of linear_attention"):
        TransformersSteps(model, max_length=64)
    monkeypatch.undo()
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(UnsupportedModelError, match="attention by flex_attention"):
        TransformersSteps(model, max_length=64)
