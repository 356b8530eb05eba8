"""Quality against bits on real text: what each quantiser and the nested bank lose, in one run.

    python -m benchmarks.bits --model DIR --text FILE... --calibration-text FILE... --out RESULT.json

Protocol: the first tokens of each text as 16 rows, blocks of 512 positions with fresh context, teacher-forced in
float32 with TF32 off. The weights of all experts are replaced by what the format stands for; attention, router, norms
and embeddings stay. Calibration sees only the calibration texts and text sampled from the model itself. Intervals are
90 %, from a bootstrap over blocks that resamples every variant alike.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.bits_weights import (
    BATCH,
    BLOCK,
    OWN_LENGTH,
    SEED,
    TRUNCATED,
    calibration_batches,
    copies_of,
    moments_of,
    quantisers_of,
    set_weights,
    text_blocks,
    tuned_bank,
    variants_of,
)
from benchmarks.quality import environment
from thermoe.experts import Moments
from thermoe.experts.tuning import RATE
from thermoe.workloads import TextBlocks

TOKENS, RESAMPLES = 57_344, 2_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and write one JSON file."""
    options = _options(argv)
    torch.manual_seed(SEED)
    torch.backends.cuda.matmul.allow_tf32 = False
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, experts_implementation=options.experts
    )
    model = model.to(options.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    # One token more than positions, so that the last position of a row has a target.
    texts = {p.stem: text_blocks([p], tokenizer, options.tokens + BATCH) for p in options.text}
    started_s = time.perf_counter()
    batches = calibration_batches(model, tokenizer, options)
    moments = moments_of(model, batches)
    print(f"calibration {time.perf_counter() - started_s:.1f} s", flush=True)
    judged = {"own": judge(model, texts)}
    original = copies_of(model)
    quantisers = quantisers_of(options.group)
    if options.tuning_steps:
        quantisers["bank tuned"] = tuned_bank(model, original, moments, batches, options)
    for name, quantiser in quantisers.items():
        began_s = time.perf_counter()
        variants = variants_of(original, quantiser, moments)
        made_s = time.perf_counter() - began_s
        for variant, weights in variants.items():
            set_weights(model, weights)
            judged[f"{name} {variant}"] = judge(model, texts)
        print(
            f"{name}: quantised in {made_s:.1f} s, judged in {time.perf_counter() - began_s - made_s:.1f} s", flush=True
        )
    set_weights(model, original)
    result = {
        "schema": 1,
        "env": environment(options) | {"seed": SEED},
        "protocol": {"batch": BATCH, "block": BLOCK, "tokens_per_text": options.tokens, "kind": "measured"},
        "group_size": options.group,
        "calibration": _described(options, moments),
        "texts": {text: _text_rows(text, judged) for text in texts},
        "mean_of_texts": _mean_rows(judged),
        "nested_bank": _criteria(judged),
        "seconds": time.perf_counter() - started_s,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    return 0


@torch.no_grad()
def judge(model: Any, texts: dict[str, TextBlocks]) -> dict[str, np.ndarray]:
    """Text -> mean negative log-likelihood of each row of each block [nat]; the texts go through together."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in texts}
    for index in range(max(len(blocks) for blocks in texts.values())):
        batches = {name: blocks.batch(index) for name, blocks in texts.items() if index < len(blocks)}
        for length in {batch.input_ids.shape[1] for batch in batches.values()}:
            same = {name: batch for name, batch in batches.items() if batch.input_ids.shape[1] == length}
            ids = torch.cat([batch.input_ids for batch in same.values()]).to(model.device)
            targets = torch.cat([batch.target_ids for batch in same.values()]).to(model.device)
            for place, nll in enumerate(_nll(model, ids, targets).split(BATCH)):
                found[list(same)[place]].append(nll.double().cpu().numpy())
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _nll(model: Any, ids: Tensor, targets: Tensor) -> Tensor:
    rows = 64 if ids.is_cuda else BATCH
    parts = []
    for some, wanted in zip(ids.split(rows), targets.split(rows), strict=True):
        logits = model(some, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        parts.append(loss.view(wanted.shape).mean(dim=1))
    return torch.cat(parts)


class Resampled:
    """Bootstrap means of the change against the model's own weights: the same blocks for every variant."""

    def __init__(self, judged: dict[str, dict[str, np.ndarray]]) -> None:
        own = judged["own"]
        rng = np.random.default_rng(SEED)
        self.chosen = {text: rng.integers(0, nll.size, (RESAMPLES, nll.size)) for text, nll in own.items()}
        self.change = {name: {text: nll[text] - own[text] for text in own} for name, nll in judged.items()}

    def percent(self, variant: str, text: str) -> tuple[float, np.ndarray]:
        """Perplexity change [%], and its resamples."""
        change = self.change[variant][text]
        return 100.0 * float(np.expm1(change.mean())), 100.0 * np.expm1(change[self.chosen[text]].mean(axis=1))

    def mean_percent(self, variant: str) -> tuple[float, np.ndarray]:
        """The mean over the texts."""
        found = [self.percent(variant, text) for text in self.chosen]
        return float(np.mean([f[0] for f in found])), np.mean([f[1] for f in found], axis=0)


def interval(values: np.ndarray) -> list[float]:
    """The 90 % interval of resamples."""
    return [float(v) for v in np.quantile(values, (0.05, 0.95))]


def _text_rows(text: str, judged: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    resampled = Resampled(judged)
    rows = {}
    for variant, nll in judged.items():
        change, values = resampled.percent(variant, text)
        rows[variant] = {
            "perplexity": float(np.exp(nll[text].mean())),
            "perplexity_change_pct": change,
            "perplexity_change_pct_90": interval(values),
        }
    return {"variants": rows, "blocks": int(judged["own"][text].size)}


def _mean_rows(judged: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    resampled = Resampled(judged)
    found = {variant: resampled.mean_percent(variant) for variant in judged if variant != "own"}
    return {v: {"perplexity_change_pct": c, "perplexity_change_pct_90": interval(s)} for v, (c, s) in found.items()}


def _criteria(judged: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Int2 of the bank against truncated int4 as a ratio; int4 of the bank minus plain int4 in points."""
    resampled = Resampled(judged)
    result: dict[str, Any] = {}
    for bank in ("bank", "bank tuned"):
        if f"{bank} int2" not in judged:
            continue
        mine, mine_values = resampled.mean_percent(f"{bank} int2")
        for rival in ("least error", "nearest 4", "compensated 4"):
            loss, values = resampled.mean_percent(f"{rival} {TRUNCATED}")
            ratio = {"ratio": mine / loss, "ratio_90": interval(mine_values / values)}
            result[f"{bank} int2 over truncated ({rival})"] = ratio
    mine, mine_values = resampled.mean_percent("bank int4")
    for rival in ("least error", "nearest 4", "compensated 4"):
        loss, values = resampled.mean_percent(f"{rival} int4")
        result[f"int4 minus plain ({rival})"] = {
            "points": mine - loss,
            "points_90": interval(mine_values - values),
        }
    return result


def _described(options: argparse.Namespace, moments: dict[str, Moments]) -> dict[str, Any]:
    rows_E = torch.stack([m.rows_E for m in moments.values()])
    return {
        "texts": [p.name for p in options.calibration_text],
        "tokens_per_text": options.calibration_tokens,
        "tokens_sampled_from_the_model": options.own_tokens // OWN_LENGTH * OWN_LENGTH,
        "tuning_steps": options.tuning_steps,
        "rows_of_a_batch": options.calibration_rows,
        "tuning_rate": options.tuning_rate,
        "rows_per_expert": {
            "least": float(rows_E.min()),
            "median": float(rows_E.median()),
            "most": float(rows_E.max()),
        },
    }


def _print(result: dict[str, Any]) -> None:
    texts = result["texts"]
    print(f"{'':38s}" + "".join(f"{text:>14s}" for text in texts) + f"{'mean':>10s}  90 %")
    for variant, mean in result["mean_of_texts"].items():
        changes = "".join(f"{texts[t]['variants'][variant]['perplexity_change_pct']:+14.3f}" for t in texts)
        low, high = mean["perplexity_change_pct_90"]
        print(f"{variant:38s}{changes}{mean['perplexity_change_pct']:+10.3f}  [{low:+.3f}, {high:+.3f}]")
    for what, found in result["nested_bank"].items():
        value, (low, high) = found.values()
        print(f"{what:44s} {value:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(f"{result['seconds']:.0f} s")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--calibration-text", type=Path, nargs="*", default=[])
    parser.add_argument("--calibration-tokens", type=int, default=24_576, help="of each calibration text")
    parser.add_argument("--own-tokens", type=int, default=32_768, help="to sample from the model for calibration")
    parser.add_argument("--calibration-rows", type=int, default=BATCH, help="of a batch of it; a GPU has room for more")
    parser.add_argument("--tuning-steps", type=int, default=100, help="of the scales of the bank's int2; 0 for none")
    parser.add_argument("--tuning-rate", type=float, default=RATE, help="of change of the logarithm of a scale")
    parser.add_argument("--group", type=int, default=128, help="columns that share a scale")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each text")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--experts", default="eager", help="experts implementation of Transformers; grouped_mm is faster"
    )
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
