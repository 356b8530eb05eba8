"""How well the cost model predicts other people's kernels on shapes and models it has not seen.

    python -m benchmarks.cost_samples --gemm GEMM.parquet --moe MOE.parquet --out FILE

The tables are plain ones as `thermoe fit` takes them, of matrix products and of fused MoE layers. Groups of rows that
share their sizes are left out together, five folds of shapes or each model in turn; everything is fitted on the rest
with one call. Beside the model stand what it has to beat: boosted trees on the logarithm of the ratio to a
roofline, a roofline with fitted rates, each with trees or a constant for power, and the model's own physical law.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.cost_rivals import boosted, calibrated_roofline
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.tables import group_table
from thermoe.types import FloatArray, IntArray

GEMM_SHAPE = ["n", "k"]
MODEL = ["hidden_size", "inter_size", "topk", "num_experts"]
MOE_SHAPE = [*MODEL, "moe_tp_size", "moe_ep_size"]
NUM_FOLDS = 5
LONG_MS = 0.1

# Latency [s], energy [J], logarithmic half widths of their intervals (B, 2) or None.
Answer = tuple[FloatArray, FloatArray, FloatArray | None]
Method = Callable[[pd.DataFrame, pd.DataFrame, int], Answer]


def thermoe(seen: pd.DataFrame, unseen: pd.DataFrame, seed: int) -> Answer:
    """Fitted with one call."""
    model = KernelCostModel(seed=seed).fit(seen)
    (observed,) = group_table(unseen).values()
    priced = model.predict_cases(observed.cases)
    return priced.latency_s, priced.energy_j, priced.log_error


def law(seen: pd.DataFrame, unseen: pd.DataFrame, seed: int) -> Answer:
    """The physical law alone."""
    model = KernelCostModel(seed=seed).fit(seen.sample(min(len(seen), 2000), random_state=seed))
    model.corrections_.clear()
    (observed,) = group_table(unseen).values()
    priced = model.predict_cases(observed.cases)
    return priced.latency_s, priced.energy_j, None


METHODS: dict[str, Method] = {
    "thermoe": thermoe,
    "boosted": boosted,
    "calibrated_roofline": calibrated_roofline,
    "law": law,
}


def folds_of(table: pd.DataFrame, columns: list[str], num_folds: int | None, seed: int) -> IntArray:
    """Fold of each row (B,): groups that share the columns stay together; each its own fold for `num_folds` None."""
    _, group = np.unique(table[columns].to_numpy(), axis=0, return_inverse=True)
    group = group.ravel()
    if num_folds is None:
        return np.asarray(group, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(group.max() + 1)
    return np.asarray((order % num_folds)[group], dtype=np.int64)


def run_part(
    name: str, table: pd.DataFrame, folds: IntArray, seed: int, methods: Sequence[str]
) -> list[dict[str, Any]]:
    """One result a method, over all rows when their fold is left out."""
    measured_s = table["latency_ms"].to_numpy() * 1e-3
    measured_j = table["power_w"].to_numpy() * measured_s
    rows = []
    for method in methods:
        latency_s, energy_j = np.full(len(table), np.nan), np.full(len(table), np.nan)
        width = np.full((len(table), 2), np.nan)
        started = time.process_time()
        for fold in np.unique(folds):
            unseen = folds == fold
            latency_s[unseen], energy_j[unseen], log_error = METHODS[method](table[~unseen], table[unseen], seed)
            if log_error is not None:
                width[unseen] = log_error
            print(
                f"{name} {method} fold {fold}: {_line(latency_s, energy_j, measured_s, measured_j, unseen)}", flush=True
            )
        pairs = {"latency": (latency_s, measured_s, width[:, 0]), "energy": (energy_j, measured_j, width[:, 1])}
        row = {
            "part": name,
            "method": method,
            "folds": len(np.unique(folds)),
            "rows": len(table),
            "rows_over_0.1_ms": int((measured_s > LONG_MS * 1e-3).sum()),
            "cpu_s_per_fold": (time.process_time() - started) / len(np.unique(folds)),
            "kind": "predicted",
        }
        for target, (said, truth, half) in pairs.items():
            row[target] = figures(said, truth, half)
            long = measured_s > LONG_MS * 1e-3
            row[f"{target}_over_0.1_ms"] = figures(said[long], truth[long], half[long]) if long.any() else None
        rows.append(row)
    return rows


def figures(said: FloatArray, truth: FloatArray, half: FloatArray) -> dict[str, float | None]:
    """Errors in per cent, coverage and mean half width of the intervals."""
    errors = 100.0 * np.abs(said / truth - 1.0)
    known = np.isfinite(half)
    inside = np.abs(np.log(truth / said))[known] <= half[known]
    return {
        "mape_pct": float(errors.mean()),
        "median_pct": float(np.median(errors)),
        "p90_pct": float(np.percentile(errors, 90)),
        "coverage_pct": float(100.0 * inside.mean()) if known.any() else None,
        "width_pct": float(100.0 * np.sinh(half[known]).mean()) if known.any() else None,
    }


def _line(said_s: FloatArray, said_j: FloatArray, true_s: FloatArray, true_j: FloatArray, rows: FloatArray) -> str:
    errors = [100.0 * np.mean(np.abs(a[rows] / b[rows] - 1.0)) for a, b in ((said_s, true_s), (said_j, true_j))]
    return f"latency {errors[0]:.2f} %, energy {errors[1]:.2f} %"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts asked for and write one file."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost_samples", description=__doc__.splitlines()[0])
    parser.add_argument("--gemm", type=Path, help="table of matrix products")
    parser.add_argument("--moe", type=Path, help="table of fused MoE layers")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma list")
    parser.add_argument("--parts", default="gemm_shapes,moe_shapes,moe_models", help="comma list")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=0, help="only so many rows of each table; 0 for all")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    parts = {
        "gemm_shapes": (options.gemm, GEMM_SHAPE, NUM_FOLDS),
        "moe_shapes": (options.moe, MOE_SHAPE, NUM_FOLDS),
        "moe_models": (options.moe, MODEL, None),
    }
    rows: list[dict[str, Any]] = []
    for name in options.parts.split(","):
        path, columns, num_folds = parts[name]
        if path is None:
            continue
        table = pd.read_parquet(path)
        if options.sample:
            table = table.sample(min(options.sample, len(table)), random_state=options.seed)
        folds = folds_of(table, columns, num_folds, options.seed)
        rows += run_part(name, table, folds, options.seed, options.methods.split(","))
        content = {"schema": 1, "seed": options.seed, "kind": "predicted", "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
