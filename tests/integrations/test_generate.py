"""`generate()` while attached: the same tokens when only watched, and it works under a union policy."""

import pytest
import torch
from recording import attached, ranked_own_ids, shape_of, union_knobs
from tiny_models import EOS, LAYERS, NAMES, PAD, VOCAB, routers, tiny_model, token_ids
from transformers import CompileConfig

from thermoe.integrations.batch_context import UnionScope

MODES = {
    "greedy": {},
    "no_cache": {"use_cache": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 2},
    "static_cache": {"cache_implementation": "static"},
}
NEW = 4


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = token_ids(3, 5), torch.ones(3, 5, dtype=torch.long)
    for row, count in ((0, 2), (2, 1)):
        part = slice(0, count) if side == "left" else slice(5 - count, 5)
        ids[row, part], mask[row, part] = PAD, 0
    return ids, mask


def generate(model, ids, mask=None, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **settings)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("name", NAMES)
def test_generate_attached(name: str, mode: str, side: str) -> None:
    model, (ids, mask) = tiny_model(name), padded(side)
    bare = generate(model, ids, mask, **MODES[mode])
    with attached(model) as (hooks, _):
        assert torch.equal(generate(model, ids, mask, **MODES[mode]), bare)
        own = hooks.counters.drain()
        hooks.set_knobs(union_knobs(hooks.shape))
        restricted = generate(model, ids, mask, **MODES[mode])
        statistics = hooks.counters.drain()
        hooks.set_knobs(None)
        assert torch.equal(generate(model, ids, mask, **MODES[mode]), bare)
    assert torch.equal(restricted[:, :5], ids)
    assert restricted.max() < VOCAB
    # Without a cache every forward has several positions, and each token keeps its own choice.
    assert (statistics.changed_slots > 0).all() == (mode != "no_cache")
    assert own.changed_slots.tolist() == [0.0] * LAYERS
    if mode in ("greedy", "static_cache"):
        live_prompt = int(mask.sum())
        assert live_prompt < own.num_tokens <= live_prompt + 3 * (NEW - 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_static_and_growing_caches_route_alike(side: str) -> None:
    for name in ("mixtral", "gpt_oss", "deepseek_v3"):
        model, (ids, mask) = tiny_model(name), padded(side)
        knobs, seen = union_knobs(shape_of(model)), []
        for mode in ("greedy", "static_cache"):
            with attached(model, knobs) as (hooks, recording):
                seen.append((generate(model, ids, mask, **MODES[mode]), hooks.counters.drain(), recording.live))
        (tokens, counted, live), (static_tokens, static_counted, static_live) = seen
        assert torch.equal(tokens, static_tokens)
        assert (counted.tokens_per_expert == static_counted.tokens_per_expert).all()
        assert live[0].tolist() == static_live[0].tolist() == mask.flatten().bool().tolist()
        assert [x.tolist() for x in live[1:]] == [x.tolist() for x in static_live[1:]]


def ending(row_ends_at: dict[int, int], prompt: int, eos: int):
    """Rows that are made to end after so many new tokens; the others never do."""

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        if len(ids) - prompt == row_ends_at.get(row, -1):
            return [eos]
        return [t for t in range(3, VOCAB) if t != eos]

    return allowed


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    ("pad", "eos"), [(PAD, EOS), (EOS, EOS), (None, EOS), (PAD, [7, EOS]), (None, [EOS, 7])], ids=str
)
def test_rows_that_have_ended_add_no_expert(pad: int | None, eos, cache: str) -> None:
    model, prompt = tiny_model("qwen3_moe"), 4
    before = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = pad, eos
    settings = {"cache_implementation": "static"} if cache == "static" else {}
    rule = ending({1: 0, 2: 2}, prompt, EOS)
    try:
        with attached(model, union_knobs(shape_of(model))) as (_, recording):
            ids = token_ids(4, prompt)
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, prefix_allowed_tokens_fn=rule, **settings
            )
    finally:
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = before
    for step, live in enumerate(recording.live[1:]):  # after the prompt
        assert live.tolist() == [True, False, step < 2, True]
        for router, calls in zip(routers(model), recording.calls, strict=True):
            call = calls[step + 1]
            first = ranked_own_ids(router, call)[:, 0]
            assert set(call.final[2].flatten().tolist()) == set(first[live].tolist())


def test_end_tokens_given_to_generate_alone_are_told_to_the_hooks() -> None:
    model, prompt = tiny_model("mixtral"), 4
    with attached(model, union_knobs(shape_of(model))) as (hooks, recording):
        hooks.ended_token_ids = (11,)
        model.generate(
            token_ids(2, prompt),
            max_new_tokens=4,
            eos_token_id=11,
            pad_token_id=11,
            prefix_allowed_tokens_fn=ending({0: 0}, prompt, 11),
        )
    assert [live.tolist() for live in recording.live[1:]] == [[False, True]] * 3


@pytest.mark.parametrize("static", [False, True])
def test_a_prompt_of_one_token_has_not_ended(static: bool) -> None:
    """Some models begin with the token that ends others."""
    model = tiny_model("mixtral")
    ids = torch.full((2, 1), EOS)
    settings = {"cache_implementation": "static"} if static else {}
    with attached(model) as (_, recording):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, **settings)
    first = recording.live[0]
    assert first is None or first.all()


def test_ended_rows_do_not_move_the_live_ones() -> None:
    """With the ended rows taken away, the others decide the same."""
    model, prompt = tiny_model("olmoe"), 4
    ids, rule = token_ids(3, prompt), ending({2: 0}, prompt, EOS)
    knobs = union_knobs(shape_of(model))
    settings = {"max_new_tokens": 5, "prefix_allowed_tokens_fn": rule}
    with attached(model, knobs):
        with_ended = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        without = model.generate(ids[:2], attention_mask=torch.ones_like(ids[:2]), **settings)
    assert torch.equal(with_ended[:2], without)


def test_generate_in_compiled_steps_gives_the_same_tokens() -> None:
    model, (ids, mask) = tiny_model("qwen2_moe"), padded("left")
    compiled = CompileConfig(backend="eager", fullgraph=False, dynamic=True, mode=None)
    compiled._compile_all_devices = True
    torch._dynamo.reset()
    with attached(model, union_knobs(shape_of(model))) as (hooks, _):
        eager = generate(model, ids, mask, cache_implementation="static")
        counted = hooks.counters.drain()
        again = generate(model, ids, mask, cache_implementation="static", compile_config=compiled)
        counted_again = hooks.counters.drain()
    torch._dynamo.reset()
    assert torch.equal(eager, again)
    assert (counted.tokens_per_expert == counted_again.tokens_per_expert).all()


def test_union_over_positions_is_open_to_generation_too() -> None:
    model, (ids, mask) = tiny_model("granitemoe"), padded("left")
    with attached(model, union_knobs(shape_of(model)), UnionScope.FORWARD) as (hooks, _):
        assert generate(model, ids, mask, use_cache=False).shape == (3, 5 + NEW)
        assert (hooks.counters.drain().changed_slots > 0).all()
