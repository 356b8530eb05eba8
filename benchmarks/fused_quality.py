"""What a model computes through the fused kernels, on real text: as by itself, and what formats and union cost.

    python -m benchmarks.fused_quality --model DIR --text FILE... --calibration-text FILE... --out RESULT.json

Protocol: as `benchmarks.bits`, with the model in bf16 on a GPU (float32 elsewhere, where the library's own operations
compute). First the kernels with neutral knobs: how far the logits are from those of the same weights in float32, beside
how far the library's own bf16 forward is, and which ids differ. Then perplexity with the experts held in each format,
with the model's own routing and with the union of every token's first choices over the 16 rows at a position.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import arms
from benchmarks.bits import TOKENS, Resampled, interval, judge
from benchmarks.bits_weights import BATCH, SEED, calibration_batches, moments_of, text_blocks
from benchmarks.quality import environment
from thermoe.experts import Moments
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.experts import register_experts
from thermoe.integrations.experts_quantised import quantise_experts
from thermoe.integrations.hooks import RouterHooks

FORMATS = ("int4", "int8", "bank4", "bank2", "fp8")
BOUND = 1.1
"""Of the kernels' distance from float32 over that of the library's own bf16 forward."""
EXACT = 1e-5
"""Distance that float32 itself has where both sides compute in it."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A format of the experts, None for their own, and the first choices of each token that a union loads."""

    held_as: str | None
    union_k0: float | None

    @property
    def name(self) -> str:
        """As it is called in the results."""
        union = "" if self.union_k0 is None else f", union of first {self.union_k0:g}"
        return f"{self.held_as or 'own weights'}{union}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and write one JSON file."""
    options = _options(argv)
    torch.manual_seed(SEED)
    torch.backends.cuda.matmul.allow_tf32 = False
    started_s = time.perf_counter()
    exact = _model(options, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = {p.stem: text_blocks([p], tokenizer, options.tokens + BATCH) for p in options.text}
    moments = moments_of(exact, calibration_batches(exact, tokenizer, options)) if options.calibration_text else {}
    model = _model(options, torch.bfloat16 if torch.device(options.device).type == "cuda" else torch.float32)
    first = {name: blocks.batch(0).input_ids for name, blocks in texts.items()}
    closeness = {name: _closeness(exact, model, ids.to(model.device)) for name, ids in first.items()}
    for name, found in closeness.items():
        print(name, found, flush=True)
    del exact
    judged = {"own": judge(model, texts)}
    distinct: dict[str, float] = {}
    result = {
        "schema": 1,
        "env": environment(options) | {"seed": SEED, "dtype": str(model.dtype)},
        "protocol": {
            "batch": BATCH,
            "tokens_per_text": options.tokens,
            "kind": "measured",
            "group_size": options.group,
        },
        "bound": f"fused_from_float32_rms at most {BOUND} times own_from_float32_rms",
        "closeness_with_neutral_knobs": closeness,
        "perplexity": {text: float(np.exp(nll.mean())) for text, nll in judged["own"].items()},
    }
    # Written after each arm: what was judged stays where a later arm fails.
    for arm in _arms(options.formats, options.k0):
        began_s = time.perf_counter()
        judged[arm.name], distinct[arm.name] = _judged(model, arm, texts, moments, options)
        print(f"{arm.name}: {distinct[arm.name]:.2f} experts, {time.perf_counter() - began_s:.1f} s", flush=True)
        result |= {
            "distinct_experts": distinct,
            "perplexity_change_pct": _changes(judged),
            "seconds": time.perf_counter() - started_s,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    too_far = [name for name, found in closeness.items() if not _is_within_bound(found)]
    if too_far:
        print(f"logits further from float32 than the bound ({result['bound']}): {', '.join(too_far)}")
    return 1 if too_far else 0


def _model(options: argparse.Namespace, dtype: torch.dtype) -> Any:
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, experts_implementation=options.experts)
    return model.to(options.device).eval()


def _arms(formats: Sequence[str], k0s: Sequence[float]) -> Iterator[Arm]:
    """The model's own weights and each format, with its own routing and, where that is asked for, with unions."""
    for held_as in (None, *formats):
        yield Arm(held_as, None)
        if held_as in (None, "int4", "bank4"):
            yield from (Arm(held_as, k0) for k0 in k0s)


@torch.no_grad()
def _judged(
    model: Any, arm: Arm, texts: dict[str, Any], moments: dict[str, Moments], options: argparse.Namespace
) -> tuple[dict[str, np.ndarray], float]:
    """Negative log-likelihoods of an arm, and the mean of the distinct experts of a batch and layer."""
    with _through_kernels(model, arm, moments, options.group) as hooks:
        hooks.counters.drain()
        # One text at a time: the rows that are judged together are the batch of a union.
        nll = {name: judge(model, {name: blocks})[name] for name, blocks in texts.items()}
        return nll, float(hooks.counters.drain().distinct_experts.mean())


@contextmanager
def _through_kernels(model: Any, arm: Arm, moments: dict[str, Moments], group: int) -> Iterator[RouterHooks]:
    """While it is open, a model computes by Thermoe's routing and experts."""
    own = model.config._experts_implementation
    with ExitStack() as undo:
        if arm.held_as is None:
            model.set_experts_implementation(register_experts())
            undo.callback(model.set_experts_implementation, own)
        else:
            undo.enter_context(quantise_experts(model, arm.held_as, group_size=group, moments=moments or None))
        hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
        undo.callback(hooks.remove)
        k0 = arm.union_k0
        hooks.set_knobs(arms.neutral(hooks.shape) if k0 is None else arms.union_of_first(hooks.shape, k0))
        yield hooks


@torch.no_grad()
def _closeness(exact: Any, model: Any, ids: Tensor) -> dict[str, float]:
    """Distances of logits, in units of the spread of the exact ones, and the shares of slots with another expert."""
    wanted, wanted_ids = _logits_and_ids(exact, ids)
    own, own_ids = _logits_and_ids(model, ids)
    with _through_kernels(model, Arm(None, None), {}, 0):
        fused, fused_ids = _logits_and_ids(model, ids)
    spread = wanted.std()
    return {
        "own_from_float32_rms": float((own - wanted).square().mean().sqrt() / spread),
        "fused_from_float32_rms": float((fused - wanted).square().mean().sqrt() / spread),
        "fused_from_own_rms": float((fused - own).square().mean().sqrt() / spread),
        "own_from_float32_largest": float((own - wanted).abs().max() / spread),
        "fused_from_float32_largest": float((fused - wanted).abs().max() / spread),
        "slots_with_another_expert_own": _other(own_ids, wanted_ids),
        "slots_with_another_expert_fused": _other(fused_ids, wanted_ids),
        "first_layer_other_than_own": _other(fused_ids[:1], own_ids[:1]),
    }


def _is_within_bound(found: dict[str, float]) -> bool:
    return found["fused_from_float32_rms"] <= BOUND * found["own_from_float32_rms"] + EXACT


def _logits_and_ids(model: Any, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    seen: list[Tensor] = []
    blocks = [m for m in model.modules() if hasattr(m, "gate_up_proj") and hasattr(m, "down_proj")]
    handles = [block.register_forward_pre_hook(lambda _, args: seen.append(args[1])) for block in blocks]
    logits = model(ids, use_cache=False).logits.float()
    for handle in handles:
        handle.remove()
    return logits, seen


def _other(some: list[Tensor], others: list[Tensor]) -> float:
    """Share of slots whose expert the other routing does not use for the token."""
    pairs = zip(some, others, strict=True)
    return float(np.mean([1.0 - float((a.unsqueeze(2) == b.unsqueeze(1)).any(2).double().mean()) for a, b in pairs]))


def _changes(judged: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """By arm: the change of perplexity by text, and of the mean of texts with its 90 % interval."""
    resampled = Resampled(judged)
    found: dict[str, dict[str, Any]] = {}
    for name in judged:
        if name == "own":
            continue
        mean, values = resampled.mean_percent(name)
        by_text = {text: resampled.percent(name, text)[0] for text in judged["own"]}
        found[name] = {"texts": by_text, "mean": mean, "mean_90": interval(values)}
    return found


def _print(result: dict[str, Any]) -> None:
    for name, found in result["perplexity_change_pct"].items():
        texts = "".join(f"{change:+9.3f}" for change in found["texts"].values())
        low, high = found["mean_90"]
        print(
            f"{name:34s}{result['distinct_experts'][name]:7.2f}{texts}{found['mean']:+9.3f} [{low:+.3f}, {high:+.3f}]"
        )
    print(f"{result['seconds']:.0f} s")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--calibration-text", type=Path, nargs="*", default=[], help="for the formats; none: nearest")
    parser.add_argument("--calibration-tokens", type=int, default=24_576, help="of each calibration text")
    parser.add_argument("--own-tokens", type=int, default=0, help="to sample from the model for calibration")
    parser.add_argument("--group", type=int, default=128, help="columns that share a scale")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="of the experts")
    parser.add_argument("--k0", type=float, nargs="+", default=[4.0, 5.0], help="first choices that the unions load")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each text")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(experts="grouped_mm")  # what the model is compared with
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
