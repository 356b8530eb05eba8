"""The pieces of the training script whose mistakes would not show in a loss curve."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in ("demo_corpus", "demo_evaluation", "train_demo_model"):
        sys.modules.pop(name, None)


def tiny_model() -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=31,
        hidden_size=12,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=3,
        norm_topk_prob=True,
        initializer_range=0.3,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    model.set_experts_implementation("eager")  # grouped_mm wants widths that are multiples of 16 bytes
    return model


@torch.no_grad()
def test_dense_experts_equal_the_models_own_loop():
    from train_demo_model import dense_experts

    experts = tiny_model().model.layers[0].mlp.experts
    x_TD = torch.randn(9, 12)
    ids_TK = torch.stack([torch.randperm(5)[:2] for _ in range(9)])
    gates_TK = torch.rand(9, 2)
    want = experts(x_TD, ids_TK, gates_TK)
    torch.testing.assert_close(dense_experts(experts, x_TD, ids_TK, gates_TK), want, atol=1e-5, rtol=1e-4)
    assert want.abs().mean() > 0.01


def test_perplexity_matches_one_position_at_a_time():
    from demo_evaluation import negative_log_likelihood

    model = tiny_model()
    ids = np.random.default_rng(0).integers(31, size=24)
    total, count = negative_log_likelihood(model, ids, block_size=7, rows=2)
    want = 0.0
    with torch.no_grad():
        for position in range(21):
            start = position - position % 7
            logits = model(torch.from_numpy(ids[start : position + 1])[None]).logits[0, -1].double()
            want -= logits.log_softmax(-1)[ids[position + 1]].item()
    assert count == 21
    assert total == pytest.approx(want, rel=1e-5)


def test_ablation_uses_fewer_experts_and_puts_them_back():
    from demo_evaluation import experts_per_token, perplexities

    model = tiny_model()
    texts = {"t": np.random.default_rng(1).integers(31, size=50)}
    full = perplexities(model, texts, 8)["all"]
    with experts_per_token(model, 1):
        assert perplexities(model, texts, 8)["all"] != full
    assert perplexities(model, texts, 8)["all"] == full


def test_balance_loss_is_one_when_even_and_the_number_of_experts_when_collapsed():
    from demo_evaluation import RouterLogits

    kept = RouterLogits(tiny_model())
    kept.by_layer = [torch.eye(5) * 40.0]
    assert kept.balance_loss(top_k=1).item() == pytest.approx(1.0)
    kept.by_layer = [torch.tensor([[40.0, 0, 0, 0, 0]]).expand(6, 5)]
    assert kept.balance_loss(top_k=1).item() == pytest.approx(5.0)


def test_each_epoch_covers_every_text_without_overlap():
    from demo_corpus import TrainingBlocks

    texts = [np.arange(100), np.arange(1000, 1047)]
    blocks = TrainingBlocks(texts, block_size=10, seed=3)
    drawn = blocks.draw(blocks.blocks_per_epoch)
    assert drawn.shape == (9 + 3, 11)
    assert (np.diff(drawn, axis=1) == 1).all()  # contiguous, and never across two texts
    inputs = drawn[:, :-1].ravel()
    assert len(set(inputs.tolist())) == len(inputs)


def test_held_out_part_is_the_end_and_broken_pairs_are_read_as_big5(tmp_path):
    from demo_corpus import read_texts, write_slices

    lines = [f"line {i} of the text".encode() for i in range(4000)]
    lines[7] = b"dash\xa1Xdash \xe2\x80\x94"
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    (text,) = read_texts(tmp_path)

    assert "dash\u2014dash \u2014" in text.training
    whole = text.training + text.heldout
    assert len(text.heldout) / len(whole) == pytest.approx(0.05, abs=0.001)
    assert text.training.endswith("\n")
    write_slices([text], tmp_path / "out")
    assert (tmp_path / "out" / "heldout_a.txt").read_text() == text.heldout
    calibration = (tmp_path / "out" / "calibration.txt").read_text()
    assert calibration in text.training
    assert 29_900 < len(calibration) <= 30_000
