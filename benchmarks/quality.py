"""Quality against distinct experts on real text: opportunistic activation and the priced union, in one run.

    python -m benchmarks.quality --model DIR --text FILE... --calibration-text FILE... --out RESULT.json

Protocol: the first 57,360 tokens of each text as 16 rows, blocks of 512 positions with fresh context,
teacher-forced in float32; a batch is the 16 rows at one position. The price and the sensitivities of
the priced union come from the calibration texts alone. With --calibration FILE an earlier calibration is used.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import thermoe
from thermoe.experiments.environment import driver_and_limit
from thermoe.integrations.batch_context import UnionScope
from thermoe.integrations.calibrate import calibrate
from thermoe.integrations.hooks import RouterHooks
from thermoe.routing.calibration import Calibration
from thermoe.types import RoutingKnobs
from thermoe.workloads import TextBatch, TextBlocks

OPPORTUNISTIC_K0 = (6, 5, 4, 3, 2)
PRICED_NEAR_K0 = (4, 3)
PRICE_FACTORS = (0.92, 1.02)
BATCH, BLOCK, TOKENS = 16, 512, 57_360
RESAMPLES, SEED = 10_000, 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and write one JSON file."""
    options = _options(argv)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, experts_implementation="eager").to(
        options.device
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = {p.stem: _blocks([p], tokenizer, options.tokens) for p in options.text}
    calibration = _calibration(options, model.eval(), tokenizer)
    if options.keep_calibration and calibration is not None:
        options.keep_calibration.write_text(json.dumps(calibration.to_dict()))
    judged = _judge_all(model, texts, _policies(calibration, RouterKnobs(model)))
    result = {
        "schema": 1,
        "env": environment(options),
        "protocol": {"batch": BATCH, "block": BLOCK, "tokens_per_text": options.tokens, "kind": "measured"},
        "calibration": _described(calibration, options),
        "texts": {name: _text_result(name, judged) for name in texts},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    return 0


class RouterKnobs:
    """Makes knobs for a model's own sizes."""

    def __init__(self, model: Any) -> None:
        hooks = RouterHooks(model)
        self.shape = hooks.shape
        hooks.remove()
        self.neutral = RoutingKnobs.neutral(self.shape.num_layers, self.shape.num_experts, self.shape.top_k)

    def opportunistic(self, k0: int) -> RoutingKnobs:
        """Load every token's first k0."""
        layers = np.ones(self.shape.num_layers)
        return replace(self.neutral, union=True, price=np.inf * layers, protected_k0=(k0 * layers).astype(np.int64))

    def priced(self, calibration: Calibration, price: float) -> RoutingKnobs:
        """The priced union at one price."""
        layers = np.ones(self.shape.num_layers)
        return replace(
            self.neutral,
            union=True,
            price=price * layers,
            cost=1.0 / calibration.sensitivity,
            value_power=calibration.value_power,
            protected_k0=(calibration.protected_k0 * layers).astype(np.int64),
        )


def _policies(calibration: Calibration | None, make: RouterKnobs) -> dict[str, RoutingKnobs | None]:
    """Every policy by name; prices lie around that at which calibration touched as many experts as k0 does."""
    policies: dict[str, RoutingKnobs | None] = {"own": None}
    policies |= {f"opportunistic k0={k0}": make.opportunistic(k0) for k0 in OPPORTUNISTIC_K0}
    if calibration is None:
        return policies
    calibrated = {int(p.value): p.mean_distinct for p in calibration.frontier if p.policy == "opportunistic"}
    for k0 in PRICED_NEAR_K0:
        price = calibration.price_for_distinct(calibrated[k0])
        for factor in PRICE_FACTORS:
            policies[f"kernel_aware as k0={k0} price x {factor}"] = make.priced(calibration, factor * price)
    return policies


@torch.no_grad()
def _judge_all(
    model: Any, texts: dict[str, TextBlocks], policies: dict[str, RoutingKnobs | None]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Text -> policy -> negative log-likelihood per 512-position block of one row, distinct experts, gate mass."""
    hooks = RouterHooks(model, scope=UnionScope.POSITIONS)
    judged: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in texts}
    for name, blocks in texts.items():
        for policy, knobs in policies.items():
            hooks.set_knobs(knobs)
            hooks.counters.drain()
            nll = [_nll_by_row(model, blocks.batch(i)) for i in range(len(blocks))]
            statistics = hooks.counters.drain()
            judged[name][policy] = {
                "nll": np.concatenate(nll),
                "distinct": float(statistics.distinct_experts.mean()),
                "distinct_by_layer": statistics.distinct_experts.tolist(),
                "gate_mass": float(statistics.gate_mass_kept.mean()),
            }
            print(f"{name}: {policy}: {judged[name][policy]['distinct']:.2f} experts", flush=True)
    hooks.remove()
    return judged


def _nll_by_row(model: Any, batch: TextBatch) -> np.ndarray:
    """(B,) mean negative log-likelihood of each row of a block [nats]."""
    device = next(model.parameters()).device
    logits = model(batch.input_ids.to(device), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.target_ids.to(device).flatten(), reduction="none"
    )
    return loss.view(batch.target_ids.shape).double().mean(dim=1).cpu().numpy()


def _text_result(name: str, judged: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Figures of one text, with paired comparisons at equal experts."""
    policies = judged[name]
    own = policies["own"]["nll"]
    rows: dict[str, Any] = {}
    for policy, found in policies.items():
        change = found["nll"] - own
        low, high = _interval(change)
        rows[policy] = {
            "perplexity": float(np.exp(found["nll"].mean())),
            "perplexity_change_pct": 100.0 * float(np.expm1(change.mean())),
            "perplexity_change_pct_90": [100.0 * float(np.expm1(low)), 100.0 * float(np.expm1(high))],
            "distinct_experts_mean": found["distinct"],
            "distinct_by_layer": found["distinct_by_layer"],
            "gate_mass_mean": found["gate_mass"],
        }
    compared = {f"k0={k0}": _against_opportunistic(k0, policies) for k0 in PRICED_NEAR_K0} if _priced(policies) else {}
    return {"policies": rows, "kernel_aware_minus_opportunistic_at_equal_experts": compared, "blocks": int(own.size)}


def _priced(policies: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found = [result for policy, result in policies.items() if policy.startswith("kernel_aware")]
    return sorted(found, key=lambda p: p["distinct"])


def _against_opportunistic(k0: int, policies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Paired difference of perplexity at exactly the distinct experts of opportunistic activation with k0.

    The priced union is interpolated between its two nearest prices. Its loss is convex in the number
    of experts, so the chord lies above it: the interpolation does not flatter.
    """
    rival, points = policies[f"opportunistic k0={k0}"], _priced(policies)
    counts = [p["distinct"] for p in points]
    upper = int(np.clip(np.searchsorted(counts, rival["distinct"]), 1, len(points) - 1))
    weight = (rival["distinct"] - counts[upper - 1]) / (counts[upper] - counts[upper - 1])
    mine = (1.0 - weight) * points[upper - 1]["nll"] + weight * points[upper]["nll"]
    own = policies["own"]["nll"]
    low, high = _interval(mine - rival["nll"])
    return {
        "distinct_experts": rival["distinct"],
        "extrapolated": not 0.0 <= weight <= 1.0,
        "kernel_aware_change_pct": 100.0 * float(np.expm1((mine - own).mean())),
        "opportunistic_change_pct": 100.0 * float(np.expm1((rival["nll"] - own).mean())),
        "difference_points": 100.0 * float((mine - rival["nll"]).mean()),
        "difference_points_90": [100.0 * low, 100.0 * high],
    }


def _interval(values: np.ndarray) -> tuple[float, float]:
    """90 % interval of the mean by bootstrap over blocks, paired since differences are resampled."""
    rng = np.random.default_rng(SEED)
    means = rng.choice(values, size=(RESAMPLES, values.size)).mean(axis=1)
    low, high = np.quantile(means, (0.05, 0.95))
    return float(low), float(high)


def _calibration(options: argparse.Namespace, model: Any, tokenizer: Any) -> Calibration | None:
    if options.calibration:
        return Calibration.from_dict(json.loads(options.calibration.read_text()))
    if not options.calibration_text:
        return None
    batches: list[TextBatch] = []
    sizes = options.calibration_tokens * (len(options.calibration_text) if len(options.calibration_tokens) == 1 else 1)
    for path, tokens in zip(options.calibration_text, sizes, strict=True):
        blocks = _blocks([path], tokenizer, tokens)
        batches += [blocks.batch(i) for i in range(len(blocks))]
    return calibrate(
        model, batches, protected=options.protected_k0, progress=lambda said: print(f"calibration: {said}", flush=True)
    )


def _blocks(paths: list[Path], tokenizer: Any, tokens: int) -> TextBlocks:
    return TextBlocks(paths, tokenizer, batch_size=BATCH, block_size=BLOCK, max_tokens=tokens)


def _described(calibration: Calibration | None, options: argparse.Namespace) -> dict[str, Any] | None:
    if calibration is None:
        return None
    values = calibration.to_dict()
    del values["sensitivity"]
    return values | {"texts": [p.name for p in options.calibration_text], "tokens_per_text": options.calibration_tokens}


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """What a result depends on beside the code: device, model and experts of the options, and versions."""
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    return {
        "device": gpu or platform.machine(),
        "driver": driver_and_limit()["driver"] if gpu else None,
        "dtype": "float32",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "thermoe": thermoe.__version__,
        "model": Path(options.model).name,
        "experts_implementation": options.experts,
    }


def _print(result: dict[str, Any]) -> None:
    for name, text in result["texts"].items():
        print(name)
        for policy, row in text["policies"].items():
            low, high = row["perplexity_change_pct_90"]
            change = row["perplexity_change_pct"]
            print(
                f"  {policy:38s} {row['distinct_experts_mean']:6.2f} experts  mass {row['gate_mass_mean']:.3f}  "
                f"{change:+.3f} % [{low:+.3f}, {high:+.3f}]"
            )
        for policy, row in text["kernel_aware_minus_opportunistic_at_equal_experts"].items():
            low, high = row["difference_points_90"]
            print(
                f"  {policy:38s} against opportunistic {row['difference_points']:+.3f} [{low:+.3f}, {high:+.3f}] points"
            )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--calibration-text", type=Path, nargs="*", default=[])
    parser.add_argument("--calibration", type=Path, default=None)
    parser.add_argument("--keep-calibration", type=Path, default=None)
    parser.add_argument("--calibration-tokens", type=int, nargs="+", default=[24_592])
    parser.add_argument(
        "--protected-k0", type=int, nargs="+", default=[2], help="numbers of protected choices to judge"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--experts", default="grouped_mm", help="experts implementation of Transformers; on a GPU: eager"
    )
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
