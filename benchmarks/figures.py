"""`python -m benchmarks.figures --out DIR`: the README's picture, from the committed results alone."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

RESULTS = Path(__file__).parent / "results"
QUALITY = RESULTS / "nvidia-h200-quality.json"
STACK = RESULTS / "nvidia-h200-moe-stack" / "results.json"
CHANGE = "perplexity_change_pct"
PRICED, RIVAL, GREY = "#0072b2", "#d55e00", "#8a8d91"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture as SVG and PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(argv).out
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    _quality(left, json.loads(QUALITY.read_text()))
    _energy(right, json.loads(STACK.read_text()))
    out.mkdir(parents=True, exist_ok=True)
    for ending in ("svg", "png"):
        figure.savefig(out / f"quality_and_energy.{ending}", dpi=150)
    return 0


def _quality(axes: Any, result: dict[str, Any]) -> None:
    """Perplexity lost against experts touched, means of the texts, a line per strategy."""
    texts = [text["policies"] for text in result["texts"].values()]
    for prefix, colour, label in (
        ("opportunistic", RIVAL, "opportunistic activation (k0 = 6 ... 3)"),
        ("kernel_aware", PRICED, "Thermoe kernel_aware (price)"),
    ):
        names = [name for name in texts[0] if name.startswith(prefix)]
        means = sorted(
            tuple(sum(text[name][key] for text in texts) / len(texts) for key in ("distinct_experts_mean", CHANGE))
            for name in names
        )
        shown = [point for point in means if point[1] < 3.0]
        axes.plot([p[0] for p in shown], [p[1] for p in shown], color=colour, marker="o", ms=4, lw=1.5, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("distinct experts of 64 that a batch of 16 touches")
    axes.set_ylabel("perplexity increase [%]")
    axes.set_title("measured: 62 M parameter Qwen3-MoE, mean of four texts, 229,376 tokens", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _energy(axes: Any, result: dict[str, Any]) -> None:
    """Energy per token of each arm on the stack of MoE layers."""
    rows = result["rows"]
    names = [row["arm"] for row in rows]
    values = [1e3 * row["j_per_token"]["median"] for row in rows]
    experts = [row["distinct_experts"]["median"] for row in rows]
    spans = [
        [1e3 * (row["j_per_token"]["median"] - row["j_per_token"]["low"]) for row in rows],
        [1e3 * (row["j_per_token"]["high"] - row["j_per_token"]["median"]) for row in rows],
    ]
    colours = [PRICED if n.startswith("kernel") else RIVAL if n.startswith("opport") else GREY for n in names]
    axes.barh(names[::-1], values[::-1], xerr=[s[::-1] for s in spans], color=colours[::-1])
    for place, (value, count) in enumerate(zip(values[::-1], experts[::-1], strict=True)):
        axes.text(value + 3, place, f"{value:.0f} mJ, {count:.0f} experts", va="center", fontsize=9)
    axes.set_xlim(0, 1.5 * max(values))
    axes.set_xlabel("energy per token [mJ], NVML counter, idle power included")
    axes.set_title(f"measured: {rows[0]['layers']} layers of Qwen3-30B-A3B shape, {result['env']['gpu']}", fontsize=9)


if __name__ == "__main__":
    raise SystemExit(main())
