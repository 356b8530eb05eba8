"""The decode loop around a model that can be worked out by hand, and its graphs with a stand-in for capture."""

from contextlib import nullcontext

import pytest
import torch

from thermoe.errors import ConfigError, UnsupportedModelError
from thermoe.runtime import step_graph
from thermoe.runtime.decode import DecodeLoop
from thermoe.runtime.sampling import Sampling
from thermoe.runtime.step_graph import NoHostDecisions, StepGraphs

VOCAB = 20


class Counting:
    """The token after t is t + 1, or t + `stride` where that was changed; remembers what it was given."""

    def __init__(self, length):
        self.length, self.stride, self.kind, self.name = length, torch.ones(1, dtype=torch.long), "a", 0
        self.positions, self.masks = [], []

    def logits(self, ids_B):
        return torch.eye(VOCAB)[(ids_B + self.stride) % VOCAB]

    def prefill(self, ids_BS, mask_BS):
        return self.logits(ids_BS[:, -1])

    def step(self, token_B1, position_B1, mask_BL):
        assert token_B1.shape == position_B1.shape
        assert mask_BL.shape[1] == self.length
        self.positions.append(position_B1.flatten().tolist())
        self.masks.append(mask_BL.clone())
        return self.logits(token_B1[:, 0])

    def variant(self):
        return self.kind

    def identity(self):
        return self.name


def loop_of(batch_size=2, length=16, **settings):
    model = Counting(length)
    return model, DecodeLoop(model, batch_size=batch_size, max_length=length, device="cpu", **settings)


def test_tokens_positions_and_masks_by_hand():
    model, loop = loop_of()
    ids = torch.tensor([[0, 3, 4], [7, 8, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    got = loop.generate(ids, mask_BS=mask, max_new_tokens=4)
    assert got.tolist() == [[0, 3, 4, 5, 6, 7, 8], [7, 8, 9, 10, 11, 12, 13]]
    assert model.positions == [[2, 3], [3, 4], [4, 5]]
    assert all(m[:, :3].equal(mask) and m[:, 3:].all() for m in model.masks)


def test_rows_end_by_themselves_and_the_loop_with_the_last():
    model, loop = loop_of(3, stop_token_ids=(9, 11), pad_token_id=0)
    got = loop.generate(torch.tensor([[7], [4], [10]]), max_new_tokens=15)
    assert got.tolist() == [[7, 8, 9, 0, 0, 0], [4, 5, 6, 7, 8, 9], [10, 11, 0, 0, 0, 0]]
    assert len(model.positions) == 4  # the prompt gave the first of five tokens


def test_without_a_padding_token_ended_rows_repeat_the_first_stop():
    _, loop = loop_of(stop_token_ids=(9,))
    assert loop.generate(torch.tensor([[8], [6]]), max_new_tokens=5).tolist() == [[8, 9, 9, 9], [6, 7, 8, 9]]


def test_a_batch_that_ends_at_once_is_one_token():
    _, loop = loop_of(1, stop_token_ids=(5,))
    assert loop.generate(torch.tensor([[4]]), max_new_tokens=9).tolist() == [[4, 5]]


@pytest.fixture
def captured(monkeypatch):
    """Stand-ins for CUDA graphs: a capture runs nothing, a replay repeats the step with the variant of its capture."""
    made = []

    class Graph:
        def __init__(self, step):
            self.step, self.replays = step, 0

        def replay(self):
            self.replays += 1
            self.step()

    def capture(step):
        made.append(Graph(step))
        return made[-1]

    monkeypatch.setattr(step_graph, "capture_step", capture)
    return made


def graphed(loop):
    """The loop as it is on a GPU."""
    loop.graphs = StepGraphs(loop._step, enabled=True, lock=nullcontext())
    return loop


def test_a_step_runs_once_and_is_then_replayed_with_live_values(captured):
    model, loop = loop_of(1, 32)
    graphed(loop)

    def between(num_new):
        if num_new == 3:
            model.stride.fill_(2)

    got = loop.generate(torch.tensor([[0]]), max_new_tokens=6, between_steps=between)
    assert got.tolist() == [[0, 1, 2, 3, 5, 7, 9]]
    assert [graph.replays for graph in captured] == [4]  # the prompt, one warm-up, then replays
    again = loop.generate(torch.tensor([[0]]), max_new_tokens=6)
    assert again.tolist() == [[0, 2, 4, 6, 8, 10, 12]]
    assert [graph.replays for graph in captured] == [4 + 5]


def test_each_variant_has_its_graph_and_a_changed_model_new_ones(captured):
    model, loop = loop_of(1, 32)
    graphed(loop)

    def between(num_new):
        model.kind = "ab"[num_new > 5]

    got = loop.generate(torch.tensor([[0]]), max_new_tokens=11, between_steps=between)
    assert got.tolist() == [list(range(12))]
    assert loop.graphs.num_graphs == 2
    assert [graph.replays for graph in captured] == [4, 4]
    model.name = 1
    loop.generate(torch.tensor([[0]]), max_new_tokens=4)
    assert loop.graphs.num_graphs == 1
    assert len(captured) == 3


def test_the_lock_is_held_while_capturing_alone(captured, monkeypatch):
    log = []
    capture = step_graph.capture_step
    monkeypatch.setattr(step_graph, "capture_step", lambda step: (log.append("capture"), capture(step))[1])

    class Lock:
        def __enter__(self):
            log.append("taken")

        def __exit__(self, *raised):
            log.append("given back")

    graphs = StepGraphs(lambda: log.append("step"), enabled=True, lock=Lock())
    for _ in range(3):
        graphs.run()
    assert log == ["step", "taken", "capture", "given back", "step", "step"]


DECIDING = {
    "item": lambda x: x.sum().item(),
    "nonzero": lambda x: x.nonzero(),
    "a mask of truth values": lambda x: x[x > 0],
    "writing by a mask": lambda x: x.index_put_((x > 0,), torch.zeros(())),
    "unique": lambda x: x.unique(),
    "if": lambda x: 1 if (x > 0).any() else 0,
}


@pytest.mark.parametrize("name", DECIDING)
def test_what_the_host_would_have_to_decide_is_refused_by_name(name):
    class Deciding(torch.nn.Module):
        def forward(self, x):
            return DECIDING[name](x)

    with NoHostDecisions(), pytest.raises(UnsupportedModelError, match=r"Deciding calls aten\."):
        Deciding()(torch.randn(3, 4))


def test_what_a_graph_can_hold_is_let_through():
    x, rows = torch.randn(3, 4), torch.tensor([2, 0])
    with NoHostDecisions():
        picked = x[rows]
        picked[torch.tensor([1])] = 0.0
        assert torch.where(picked > 0, picked, 0.0).topk(2).values.shape == (2, 2)


def test_sampling_keeps_the_tokens_it_should():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    torch.manual_seed(0)

    def shares(**settings):
        drawn = Sampling(do_sample=True, **settings).choose(logits)
        return (torch.bincount(drawn, minlength=4) / 4000).tolist()

    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_p=0.79) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_p=0.01) == [1, 0, 0, 0]
    assert shares(temperature=0.5) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)
    assert Sampling().choose(logits).unique().tolist() == [0]


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"temperature": "1"}])
def test_sampling_out_of_range_is_refused(bad):
    with pytest.raises(ConfigError, match="needed temperature above 0"):
        Sampling(do_sample=True, **bad)


def test_loops_and_prompts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="0 sequences"):
        loop_of(0)
    with pytest.raises(ConfigError, match="graph=True on cpu"):
        loop_of(graph=True)
    _, loop = loop_of()
    for ids, new, words in (
        (torch.zeros(3, 4, dtype=torch.long), 1, r"\(3, 4\).*needs \(2, 1 or more\)"),
        (torch.zeros(2, 0, dtype=torch.long), 1, "needs"),
        (torch.zeros(2, 10, dtype=torch.long), 7, "made for 16 positions"),
    ):
        with pytest.raises(ConfigError, match=words):
            loop.generate(ids, max_new_tokens=new)
    ids = torch.ones(2, 3, dtype=torch.long)
    for mask in ([[1, 1, 0], [1, 1, 1]], [[1, 0, 1], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]):
        with pytest.raises(ConfigError, match="pad on the left"):
            loop.generate(ids, mask_BS=torch.tensor(mask), max_new_tokens=1)


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 2.0}, {"batch_size": "2"}, {"length": 2.5}, {"stop_token_ids": ["a"]}, {"stop_token_ids": [1.5]},
     {"pad_token_id": "a"}, {"pad_token_id": 1.5}, {"stop_token_ids": [2**70]}],
)  # fmt: skip
def test_a_loop_of_no_size_or_tokens(settings):
    with pytest.raises(ConfigError, match="needed"):
        DecodeLoop(
            Counting(16), **({"batch_size": 2, "max_length": settings.pop("length", 16), "device": "cpu"} | settings)
        )


def test_prompts_masks_and_counts_of_another_type():
    _, loop = loop_of()
    ids = torch.tensor([[1, 2], [3, 4]])
    for count in (2.5, "2", None, True):
        with pytest.raises(ConfigError, match="whole numbers"):
            loop.generate(ids, max_new_tokens=count)
    with pytest.raises(ConfigError, match="whole numbers"):
        loop.generate(ids.float(), max_new_tokens=2)
    for first in (-1.0, 0.5, 2.0, float("nan")):
        with pytest.raises(ConfigError, match="0 and 1"):
            loop.generate(ids, mask_BS=torch.tensor([[first, 1], [1, 1]]), max_new_tokens=2)


@pytest.mark.parametrize("top_k", [2.5, float("inf"), True])
def test_a_number_of_likeliest_tokens_that_is_not_whole(top_k):
    with pytest.raises(ConfigError, match="whole number"):
        Sampling(do_sample=True, top_k=top_k)
