"""Does adaptation hold its targets on the digital twin, and what does it cost in perplexity?

    python -m benchmarks.adaptation --model DIR --text FILE --calibration CALIBRATION.json --out RESULT.json

For one text, 16 sequences in step, in float32: closed loop with a target 15 % under baseline's J/token, then
tokens arriving at 80 % of what baseline can serve with a target 8 % under baseline's watts. Each with the
adapter learning and with it frozen (controller alone), beside opportunistic activation at several k0.
All hardware figures are simulated; perplexities are measured. Intervals: paired bootstrap over blocks of 64 steps.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from thermoe.experiments.config import RunConfig
from thermoe.experiments.run import run_experiment

ENERGY_CUT, POWER_CUT, ARRIVAL_SHARE = 0.15, 0.08, 0.8
OPPORTUNISTIC_K0 = (7, 6, 5)
WINDOW, SETTLING = 200, 500
BLOCK_STEPS, RESAMPLES, SEED = 64, 10_000, 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run both experiments on one text and write one JSON file."""
    options = _options(argv)
    with tempfile.TemporaryDirectory() as folder:
        lab = _Lab(options, Path(folder))
        closed = lab.experiment(arrival_rate=0.0)
        rate = ARRIVAL_SHARE * closed["baseline"]["tokens_per_s"]
        result = {
            "schema": 1,
            "env": lab.env,
            "text": options.text.name,
            "kind": {"hardware": "simulated", "perplexity": "measured"},
            "energy_target": closed,
            "power_target": lab.experiment(arrival_rate=rate) | {"arrival_rate_tokens_per_s": rate},
        }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("energy_target", "power_target"):
        _print(options.text.name, name, result[name])
    return 0


class _Lab:
    """Runs arms and reads their steps back."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.console = Console(quiet=True)
        self.env: dict[str, Any] = {}
        self._runs = 0

    def experiment(self, arrival_rate: float) -> dict[str, Any]:
        """Baseline, opportunistic activation, and adaptation with a live and a frozen adapter."""
        rivals: dict[int, pd.DataFrame] = {}
        for k0 in OPPORTUNISTIC_K0:
            steps = self._run("opportunistic", {"k0": float(k0)}, arrival_rate)
            rivals[k0], own = steps["opportunistic"], steps["baseline"]
        baseline = _figures(own)
        if arrival_rate:
            target = {"target_power_w": (1.0 - POWER_CUT) * baseline["power_w"]}
        else:
            target = {"target_energy_j_per_token": (1.0 - ENERGY_CUT) * baseline["energy_j_per_token"]}
        extra = dict(pair.split("=") for pair in self.options.set)
        settings = target | {key: float(value) for key, value in extra.items()}
        adapted = {
            name: self._adapted(settings | {"adapter": weight}, arrival_rate, own, list(rivals.values()))
            for name, weight in (("adapter", 1.0), ("adapter_frozen", 0.0))
        }
        return {
            "baseline": baseline,
            "target": target,
            "opportunistic": {k0: _figures(steps) | _change(steps, own) for k0, steps in rivals.items()},
            "kernel_aware_ttha": adapted,
        }

    def _adapted(
        self, settings: Mapping[str, float], arrival_rate: float, own: pd.DataFrame, rivals: list[pd.DataFrame]
    ) -> dict[str, Any]:
        steps = self._run("kernel_aware_ttha", settings, arrival_rate)["kernel_aware_ttha"]
        key = "power_w" if arrival_rate else "energy_j_per_token"
        goal = settings.get("target_power_w") or settings["target_energy_j_per_token"]
        errors = [value / goal - 1.0 for value in _windows(steps, key)]
        log_price = np.log(steps["price"].to_numpy()[SETTLING:])
        return (
            _figures(steps)
            | _change(steps, own)
            | _against(steps, own, rivals)
            | {
                "window_errors_pct": [100.0 * e for e in errors],
                "worst_window_error_pct": 100.0 * max(abs(e) for e in errors),
                "loss_terms_logged": sorted(c for c in steps.columns if c.startswith("loss_")),
                "last_price": float(steps["price"].iloc[-1]),
                "log_price_std": float(log_price.std()),
            }
        )

    def _run(self, strategy: str, settings: Mapping[str, float], arrival_rate: float) -> dict[str, pd.DataFrame]:
        self._runs += 1
        out = self.folder / f"{self._runs:02d}-{strategy}"
        config = RunConfig(
            model=self.options.model,
            text=(str(self.options.text),),
            strategies=(strategy,),
            max_tokens=self.options.tokens,
            device=self.options.device,
            dtype="float32",
            telemetry="simulated",
            arrival_rate=arrival_rate,
            calibration=str(self.options.calibration),
            settings={strategy: dict(settings)} if settings else {},
        )
        run_experiment(config, out, self.console)
        self.env = json.loads((out / "env.json").read_text()) | {"model": Path(self.options.model).name}
        steps = pd.read_parquet(out / "steps.parquet").sort_values("step")
        print(f"{self.options.text.name}: run {self._runs}: {strategy} {dict(settings)}", flush=True)
        return {str(name): group for name, group in steps.groupby("strategy")}


def _figures(steps: pd.DataFrame) -> dict[str, float]:
    """Means over an arm; power over all its time, waiting included."""
    span_s = float(steps["time_s"].iloc[-1] - steps["time_s"].iloc[0]) + float(steps["latency_s"].iloc[0])
    energy_j, tokens = float(steps["energy_j"].sum()), float(steps["num_tokens"].sum())
    return {
        "energy_j_per_token": energy_j / tokens,
        "power_w": energy_j / span_s,
        "tokens_per_s": tokens / span_s,
        "distinct_experts_mean": float(steps["distinct_experts_mean"].mean()),
        "perplexity": float(np.exp(steps["nll_sum"].sum() / tokens)),
        "steps": float(len(steps)),
    }


def _change(steps: pd.DataFrame, own: pd.DataFrame) -> dict[str, float]:
    tokens = float(own["num_tokens"].sum())
    return {"perplexity_change_pct": 100.0 * float(np.expm1((steps["nll_sum"].sum() - own["nll_sum"].sum()) / tokens))}


def _against(steps: pd.DataFrame, own: pd.DataFrame, rivals: list[pd.DataFrame]) -> dict[str, Any]:
    """Perplexity against opportunistic activation at exactly the same J/token.

    The rival is a parabola through its three points nearest in energy, the model's own routing being one of them
    (k0 = 8). Loss is convex in energy, and a chord would make the rival look worse than it is.
    """
    energy = _figures(steps)["energy_j_per_token"]
    points = sorted((_figures(arm)["energy_j_per_token"], i) for i, arm in enumerate([own, *rivals]))
    nearest = sorted(points, key=lambda point: abs(point[0] - energy))[:3]
    rival = np.zeros(len(_block_nll(own)))
    for x, i in nearest:
        weight = np.prod([(energy - other) / (x - other) for other, _ in nearest if other != x])
        rival += weight * _block_nll([own, *rivals][i])
    mine, base = _block_nll(steps), _block_nll(own)
    low, high = _interval(mine - rival)
    return {
        "opportunistic_change_pct_at_equal_energy": 100.0 * float(np.expm1((rival - base).mean())),
        "difference_points": 100.0 * float((mine - rival).mean()),
        "difference_points_90": [100.0 * low, 100.0 * high],
        "extrapolated": not points[0][0] <= energy <= points[-1][0],
    }


def _block_nll(steps: pd.DataFrame) -> NDArray[np.float64]:
    """Mean negative log-likelihood per token of each block of 64 steps [nat]."""
    blocks = np.arange(len(steps)) // BLOCK_STEPS
    sums = steps[["nll_sum", "num_tokens"]].reset_index(drop=True).groupby(blocks).sum()
    return (sums["nll_sum"] / sums["num_tokens"]).to_numpy(dtype=np.float64)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """90 % interval of the mean by bootstrap over blocks."""
    means = np.random.default_rng(SEED).choice(values, size=(RESAMPLES, values.size)).mean(axis=1)
    low, high = np.quantile(means, (0.05, 0.95))
    return float(low), float(high)


def _windows(steps: pd.DataFrame, key: str) -> list[float]:
    """The quantity over every 200-step window after the first 500 steps."""
    starts = range(SETTLING, len(steps) - WINDOW + 1, WINDOW)
    return [_figures(steps.iloc[start : start + WINDOW])[key] for start in starts]


def _print(text: str, name: str, found: dict[str, Any]) -> None:
    print(f"{text} {name}: target {found['target']}")
    for k0, point in found["opportunistic"].items():
        print(
            f"  opportunistic k0={k0}: {point['energy_j_per_token']:.4f} J/token, {point['power_w']:.1f} W, "
            f"{point['perplexity_change_pct']:+.3f} %"
        )
    for label, arm in found["kernel_aware_ttha"].items():
        print(
            f"  {label}: {arm['energy_j_per_token']:.4f} J/token, {arm['power_w']:.1f} W, worst window "
            f"{arm['worst_window_error_pct']:.2f} %, perplexity {arm['perplexity_change_pct']:+.3f} % against "
            f"{arm['opportunistic_change_pct_at_equal_energy']:+.3f} % of opportunistic activation at equal energy "
            f"({arm['difference_points']:+.3f} {arm['difference_points_90']}), log price std {arm['log_price_std']:.3f}"
        )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=57_344)
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings of kernel_aware_ttha beside the target: KEY=VALUE"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
