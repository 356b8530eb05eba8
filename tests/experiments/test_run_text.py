"""Figures of a text run against a plain forward pass of the same model."""

import math

import numpy as np
import pytest
import torch
from tiny_moe import NUM_EXPERTS, NUM_LAYERS, TOP_K

from thermoe.analysis.load import RunFolder
from thermoe.experiments.config import RunConfig
from thermoe.experiments.run import run_experiment

ROWS, BLOCK = 3, 7
THRIFTY = {"opportunistic": {"k0": 2.0}}


@pytest.fixture(scope="module")
def blocks(tiny_model, tiny_text):
    """Inputs and targets of every block, by hand: rows are contiguous thirds of the bytes."""
    ids = np.frombuffer(tiny_text.read_bytes(), dtype=np.uint8)[:100]
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tiny_model).encode(bytes(ids).decode(), add_special_tokens=False)
    rows = torch.tensor(tokens[:99]).view(ROWS, 33)
    starts = range(0, 32, BLOCK)
    return [(rows[:, a : min(a + BLOCK, 32)], rows[:, a + 1 : min(a + BLOCK, 32) + 1]) for a in starts]


@pytest.fixture(scope="module")
def model(tiny_model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def run(tmp_path, tiny_model, tiny_text, console, **changes):
    values = {"strategies": ("baseline",), "max_tokens": 100, "batch_size": ROWS, "block_size": BLOCK}
    config = RunConfig(model=str(tiny_model), text=(str(tiny_text),), **(values | changes))
    return RunFolder(run_experiment(config, tmp_path / "run", console))


def bare_nll(model, inputs, targets):
    with torch.no_grad():
        logits = model(inputs).logits.double()
    return -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def bare_distinct(model, inputs):
    """(L, C) distinct experts of each column, straight from the router logits."""
    with torch.no_grad():
        logits = model(inputs, output_router_logits=True).router_logits
    picks = [layer.topk(TOP_K, dim=-1).indices.view(*inputs.shape, TOP_K) for layer in logits]
    return [[len(set(layer[:, c].flatten().tolist())) for c in range(inputs.shape[1])] for layer in picks]


def test_baseline_scores_and_counts_what_the_bare_model_does(tmp_path, tiny_model, tiny_text, quiet, model, blocks):
    tables = run(tmp_path, tiny_model, tiny_text, quiet).tables
    expected = torch.cat([bare_nll(model, *block).sum(0) for block in blocks]).numpy()
    np.testing.assert_allclose(tables["steps"]["nll_sum"], expected, rtol=1e-5)
    assert tables["batches"]["num_predictions"].tolist() == [ROWS * x.shape[1] for x, _ in blocks]
    distinct = np.concatenate([np.mean(bare_distinct(model, x), axis=0) for x, _ in blocks])
    np.testing.assert_allclose(tables["steps"]["distinct_experts_mean"], distinct, rtol=1e-12)
    assert tables["steps"]["step"].tolist() == list(range(32))
    assert set(tables["batches"]["gate_mass_mean"]) == {1.0}
    assert set(tables["batches"]["changed_slots_mean"]) == {0.0}
    tokens = np.stack(tables["experts"]["tokens_per_expert"])
    assert tokens.shape == (NUM_LAYERS * len(blocks), NUM_EXPERTS)
    assert tokens.sum() == NUM_LAYERS * ROWS * 32 * TOP_K


@pytest.mark.parametrize("control_steps", [1, 4, 8])
def test_step_by_step_with_a_cache_gives_the_figures_of_one_forward(
    tmp_path, tiny_model, tiny_text, quiet, model, blocks, control_steps, monkeypatch
):
    monkeypatch.setattr("thermoe.experiments.arms.FIXED_STRATEGIES", frozenset())  # baseline in pieces
    tables = run(tmp_path, tiny_model, tiny_text, quiet, control_steps=control_steps).tables
    expected = torch.cat([bare_nll(model, *block).sum(0) for block in blocks]).numpy()
    np.testing.assert_allclose(tables["steps"]["nll_sum"], expected, rtol=1e-4)


def test_energy_and_time_of_a_batch_are_the_sums_of_its_steps(tmp_path, tiny_model, tiny_text, quiet):
    tables = run(
        tmp_path, tiny_model, tiny_text, quiet, strategies=("baseline", "opportunistic"), settings=THRIFTY
    ).tables
    by_batch = tables["steps"].groupby(["strategy", "batch_index"])
    batches = tables["batches"].set_index(["strategy", "batch_index"]).sort_index()
    for column in ("energy_j", "latency_s", "nll_sum", "num_tokens"):
        np.testing.assert_allclose(by_batch[column].sum().sort_index(), batches[column], rtol=1e-9)
    assert set(tables["batches"]["energy_kind"]) == {"simulated"}
    assert set(tables["telemetry"]["kind"]) == {"simulated"}
    fewer = batches["distinct_experts_mean"]["opportunistic"].mean()
    assert fewer < batches["distinct_experts_mean"]["baseline"].mean()


def test_open_loop_steps_wait_for_their_tokens_and_energy_counts_the_waiting(tmp_path, tiny_model, tiny_text, quiet):
    rate = 20.0
    tables = run(tmp_path, tiny_model, tiny_text, quiet, arrival_rate=rate).tables
    steps = tables["steps"]
    arrived_s = (np.arange(len(steps)) + 1) * ROWS / rate
    np.testing.assert_allclose(steps["time_s"], arrived_s + steps["latency_s"], rtol=1e-9)
    idle_share = 1.0 - steps["latency_s"].sum() / steps["time_s"].iloc[-1]
    assert idle_share > 0.8
    assert 117 < tables["batches"]["power_w_mean"].mean() < 250
    np.testing.assert_allclose(tables["batches"]["energy_j"].sum(), steps["energy_j"].sum(), rtol=1e-9)


def test_prefill_is_one_step_that_touches_the_union_of_all_positions(
    tmp_path, tiny_model, tiny_text, quiet, model, blocks
):
    tables = run(
        tmp_path,
        tiny_model,
        tiny_text,
        quiet,
        workloads=("prefill",),
        strategies=("baseline", "opportunistic"),
        settings=THRIFTY,
    ).tables
    assert set(tables["batches"]["num_steps"]) == {1}
    expected = [bare_nll(model, *block).sum().item() for block in blocks]
    with torch.no_grad():
        logits = model(blocks[0][0], output_router_logits=True).router_logits
    union = np.mean([len(set(layer.topk(TOP_K, dim=-1).indices.flatten().tolist())) for layer in logits])
    for strategy in ("baseline", "opportunistic"):  # union policies leave prefill alone
        arm = tables["batches"][tables["batches"]["strategy"] == strategy]
        np.testing.assert_allclose(arm["nll_sum"], expected, rtol=1e-5)
        assert arm["distinct_experts_mean"].iloc[0] == union


def test_generation_counts_new_tokens_and_has_no_perplexity(tmp_path, tiny_model, tiny_text, quiet):
    folder = run(tmp_path, tiny_model, tiny_text, quiet, workloads=("generation",), new_tokens=5)
    batches = folder.tables["batches"]
    assert set(batches["num_tokens"]) == {ROWS * 5}
    assert set(batches["num_steps"]) == {5}
    assert batches["nll_sum"].isna().all()


def test_the_model_is_left_as_it_was_found(tiny_model, tiny_text, tmp_path, quiet, monkeypatch):
    from thermoe.experiments import tasks

    loaded = []
    real = tasks.load_model

    def remember(*arguments):
        loaded.append(real(*arguments))
        return loaded[-1]

    monkeypatch.setattr(tasks, "load_model", remember)
    run(tmp_path, tiny_model, tiny_text, quiet, strategies=("baseline", "opportunistic"))
    modules = list(loaded[0][0].modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_several_texts_are_workloads_of_their_own(tmp_path, tiny_model, tiny_text, quiet):
    from tiny_moe import write_text

    other = write_text(tmp_path / "other.txt", 300, seed=1)
    config = RunConfig(
        model=str(tiny_model), text=(str(tiny_text), str(other)), strategies=("baseline",), max_tokens=60, batch_size=2
    )
    batches = RunFolder(run_experiment(config, tmp_path / "run", quiet)).tables["batches"]
    sums = batches.groupby("workload", sort=False)["nll_sum"].sum()
    assert list(sums.index) == ["teacher_forced:words", "teacher_forced:other"]
    assert all(math.isfinite(v) for v in sums)
    assert sums.iloc[0] != sums.iloc[1]
