"""Which tokens of a forward count, however the model is called."""

import pytest
import torch
from recording import attached, ranked_own_ids, shape_of, union_knobs
from tiny_models import EOS, PAD, routers, tiny_model, token_ids
from transformers import StaticCache

from thermoe.integrations.batch_context import BatchContext, UnionScope

ROWS, COLUMNS = 3, 6


def left_padded(pads=(2, 0, 4)) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = token_ids(ROWS, COLUMNS), torch.ones(ROWS, COLUMNS, dtype=torch.long)
    for row, count in enumerate(pads):
        ids[row, :count], mask[row, :count] = PAD, 0
    return ids, mask


def right_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = left_padded()
    return ids.flip(1), mask.flip(1)


def causal_4d(mask: torch.Tensor, additive: bool) -> torch.Tensor:
    seen = torch.ones(COLUMNS, COLUMNS, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min) if additive else seen


def call_model(model, way: str, ids: torch.Tensor, mask: torch.Tensor) -> None:
    embeds = model.get_input_embeddings()(ids)
    ways = {
        "keywords": lambda: model(input_ids=ids, attention_mask=mask),
        "positional": lambda: model(ids, mask),
        "inner keywords": lambda: model.model(input_ids=ids, attention_mask=mask),
        "inner positional": lambda: model.model(ids, mask),
        "embeddings": lambda: model(inputs_embeds=embeds, attention_mask=mask),
        "inner embeddings": lambda: model.model(inputs_embeds=embeds, attention_mask=mask),
        "4-d": lambda: model(ids, attention_mask=causal_4d(mask, additive=False)),
        "4-d additive": lambda: model(ids, attention_mask=causal_4d(mask, additive=True)),
    }
    with torch.no_grad():
        ways[way]()


WAYS = ["keywords", "positional", "inner keywords", "inner positional", "embeddings", "inner embeddings"]


@pytest.mark.parametrize("way", [*WAYS, "4-d", "4-d additive"])
@pytest.mark.parametrize("padding", [left_padded, right_padded])
def test_padding_is_not_live_however_the_model_is_called(way: str, padding) -> None:
    model, (ids, mask) = tiny_model("mixtral"), padding()
    with attached(model) as (hooks, recording):
        call_model(model, way, ids, mask)
        statistics = hooks.counters.drain()
    assert recording.live[0].tolist() == mask.bool().flatten().tolist()
    assert statistics.num_tokens == mask.sum()
    assert statistics.num_groups == 1
    assert (statistics.tokens_per_expert.sum(1) == mask.sum().item() * hooks.shape.top_k).all()


@pytest.mark.parametrize("way", ["positional", "inner embeddings"])
def test_without_a_mask_everything_is_live(way: str) -> None:
    model, ids = tiny_model("mixtral"), token_ids(ROWS, COLUMNS)
    with attached(model) as (hooks, recording):
        call_model(model, way, ids, None)
        assert hooks.counters.drain().num_tokens == ROWS * COLUMNS
    assert recording.live == [None]


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("padding", [left_padded, right_padded])
def test_padding_adds_no_expert_to_any_position(name: str, padding) -> None:
    model, (ids, mask) = tiny_model(name), padding()
    with attached(model, union_knobs(shape_of(model)), UnionScope.POSITIONS) as (_, recording):
        call_model(model, "keywords", ids, mask)
    for router, calls in zip(routers(model), recording.calls, strict=True):
        first = ranked_own_ids(router, calls[0])[:, 0].unflatten(0, ids.shape)
        final = calls[0].final[2].unflatten(0, ids.shape)
        for position in range(COLUMNS):
            live = mask[:, position].bool()
            used = set(final[live, position].flatten().tolist())
            assert used == set(first[live, position].tolist())
            if live.any():  # padding goes where the others go
                assert set(final[:, position].flatten().tolist()) == used


def test_padded_positions_route_like_padded_steps() -> None:
    model, (ids, mask) = tiny_model("qwen3_moe"), left_padded()
    knobs = union_knobs(shape_of(model))
    with attached(model, knobs, UnionScope.POSITIONS) as (_, together):
        call_model(model, "keywords", ids, mask)
    with attached(model, knobs, UnionScope.POSITIONS) as (_, stepped):
        cache = None
        for position in range(COLUMNS):
            with torch.no_grad():
                cache = model(
                    ids[:, position : position + 1],
                    attention_mask=mask[:, : position + 1],
                    past_key_values=cache,
                    use_cache=True,
                ).past_key_values
    final = together.calls[1][0].final[2].unflatten(0, ids.shape)
    for position, call in enumerate(stepped.calls[1]):
        live = mask[:, position].bool()
        assert stepped.live[position].tolist() == live.tolist()
        assert torch.equal(call.final[2][live].sort(-1).values, final[live, position].sort(-1).values)


def test_a_mask_of_a_whole_static_cache_is_read_where_the_tokens_stand() -> None:
    model, (ids, mask) = tiny_model("mixtral"), left_padded()
    whole = torch.cat([mask, torch.zeros(ROWS, 6, dtype=torch.long)], dim=1)
    cache = StaticCache(config=model.config, max_cache_len=COLUMNS + 6)
    with attached(model) as (_, recording), torch.no_grad():
        model(ids, attention_mask=whole, past_key_values=cache)
        whole[:, COLUMNS] = torch.tensor([1, 0, 1])
        model(ids[:, :1] + 3, attention_mask=whole, past_key_values=cache)
    assert recording.live[0].tolist() == mask.bool().flatten().tolist()
    assert recording.live[1].tolist() == [True, False, True]


def test_the_second_chunk_of_a_prompt_is_read_at_its_own_place() -> None:
    model, (ids, mask) = tiny_model("mixtral"), left_padded((2, 0, 5))
    with attached(model) as (_, recording), torch.no_grad():
        cache = model(ids[:, :4], attention_mask=mask[:, :4], use_cache=True).past_key_values
        model(ids[:, 4:], attention_mask=mask, past_key_values=cache)
    assert recording.live[1].tolist() == mask[:, 4:].bool().flatten().tolist()


@pytest.mark.parametrize("positional", [False, True])
def test_one_position_forwards_know_ended_rows(positional: bool) -> None:
    model = tiny_model("mixtral")
    step = torch.tensor([[5], [EOS], [PAD]])
    with attached(model) as (_, recording), torch.no_grad():
        cache = model(token_ids(3, 4), use_cache=True).past_key_values
        model.model(step, None, None, cache) if positional else model(step, past_key_values=cache)
    assert recording.live[1].tolist() == [True, False, False]


def test_given_text_has_no_ended_rows() -> None:
    context = BatchContext(UnionScope.POSITIONS)
    context.note({"input_ids": torch.tensor([[5], [EOS]]), "past_key_values": None}, (EOS,))
    assert context.live_T is None


class _Cache:
    """What a cache tells of itself."""

    def __init__(self, length, is_sliding=(False,)) -> None:
        self.length, self.is_sliding = length, list(is_sliding)

    def get_seq_length(self):
        return self.length


@pytest.mark.parametrize("past", [0, 4, torch.tensor(0), torch.tensor(4), torch.tensor([4])])
def test_the_past_may_be_a_number_or_a_tensor(past) -> None:
    context = BatchContext(UnionScope.DECODE)
    context.note({"input_ids": torch.tensor([[5], [EOS]]), "past_key_values": _Cache(past)}, (EOS,))
    live = [True, True] if context.live_T is None else context.live_T.tolist()
    assert live == ([True, True] if int(past) == 0 else [True, False])


def test_masks_that_cannot_be_read_leave_everything_live() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    for mask in (torch.zeros(2, 2), torch.zeros(5, 3), torch.zeros(2, 3, 3), "flash", {}):
        context = BatchContext(UnionScope.DECODE)
        context.note({"input_ids": ids, "attention_mask": mask}, ())
        assert context.live_T is None, mask


def test_a_mask_too_short_for_a_static_cache_is_read_within_its_bounds() -> None:
    context = BatchContext(UnionScope.DECODE)
    mask = torch.tensor([[1, 1], [1, 0]])
    context.note(
        {"input_ids": torch.ones(2, 1), "attention_mask": mask, "past_key_values": _Cache(torch.tensor(4))}, ()
    )
    assert context.live_T.tolist() == [True, False]


def test_masks_by_kind_of_layer_and_of_a_sliding_window() -> None:
    ids, (_, mask) = torch.ones(ROWS, COLUMNS, dtype=torch.long), left_padded()
    full = causal_4d(mask, additive=False)
    window = full[..., -4:]
    for given, cache in (
        ({"sliding_attention": window, "full_attention": full}, _Cache(0)),
        ({"sliding_attention": full}, _Cache(0)),
        (full, _Cache(0, is_sliding=[True, True])),
    ):
        context = BatchContext(UnionScope.DECODE)
        context.note({"input_ids": ids, "attention_mask": given, "past_key_values": cache}, ())
        assert context.live_T.tolist() == mask.bool().flatten().tolist()
    context.note({}, ())
    assert (context.columns, context.live_T) == (1, None)
