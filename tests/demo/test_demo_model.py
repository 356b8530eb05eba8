"""The shipped model: small, as good as its training report says, and sensitive to routing."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from thermoe.demo import demo_model_path, demo_text_paths
from thermoe.workloads import TextBlocks


@pytest.fixture(scope="module")
def report():
    return json.loads((demo_model_path() / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(
        demo_model_path(), dtype=torch.float32, experts_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def shakespeare():
    """(37, 512) inputs and targets: the whole held-out part, which is short enough to be shipped uncut."""
    (path,) = [p for p in demo_text_paths() if "shakespeare" in p.name]
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    blocks = TextBlocks([path], tokenizer, batch_size=1, block_size=512, max_tokens=37 * 512 + 1)
    batches = [blocks.batch(i) for i in range(len(blocks))]
    return torch.cat([b.input_ids for b in batches]), torch.cat([b.target_ids for b in batches])


@torch.no_grad()
def perplexity(model, inputs, targets) -> float:
    total = 0.0
    for x, y in zip(inputs.split(4), targets.split(4), strict=True):
        log_probs = model(input_ids=x, use_cache=False).logits.double().log_softmax(-1)
        total -= log_probs.gather(-1, y.unsqueeze(-1)).sum().item()
    return math.exp(total / targets.numel())


def test_folder_holds_at_most_8_megabytes(report):
    files = list(demo_model_path().iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= {f.name for f in files}
    num_bytes = sum(f.stat().st_size for f in files)
    assert 4_000_000 < num_bytes <= 8_000_000
    assert sum(f.stat().st_size for f in files if f.name != "training.json") == report["bytes_without_this_file"]


def test_perplexity_is_what_the_training_report_says(model, shakespeare, report):
    # The report's own figure comes from a GPU and from other code that cuts the text into blocks.
    said = report["perplexity_bf16_weights"]["shakespeare_eight_plays"]
    assert perplexity(model, *shakespeare) == pytest.approx(said, rel=1e-3)


def test_fewer_experts_per_token_cost_visible_perplexity(model, shakespeare, report):
    inputs, targets = (part[:6] for part in shakespeare)
    full = perplexity(model, inputs, targets)
    routers = [layer.mlp.gate for layer in model.model.layers]
    try:
        for router in routers:
            router.top_k = 4
        half = perplexity(model, inputs, targets)
    finally:
        for router in routers:
            router.top_k = 8
    assert half > 1.05 * full
    said = report["perplexity_by_top_k"]
    assert said["8"] < said["6"] < said["4"] < said["2"]


def test_every_expert_is_used(report):
    assert len(report["expert_usage"]) == 5
    for layer in report["expert_usage"]:
        assert layer["effective_experts"] > 40
        assert layer["least_share"] > 0
