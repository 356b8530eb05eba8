"""How well the cost model predicts other people's kernels on shapes and models it has not seen.

    python -m benchmarks.cost_samples --gemm GEMM.parquet --moe MOE.parquet --out FILE

The tables are plain ones as `thermoe fit` takes them, of matrix products and of fused MoE layers. Groups of rows that
share their sizes are left out together, five folds of shapes or each model in turn; everything is fitted on the rest
with one call. Beside the model stand what it has to beat: boosted trees on the logarithm of the ratio to a
roofline and of power, a roofline with fitted rates at the mean power, and the model's own physical law. Rows of other
parts and methods that `--out` holds already stay.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.cost_rivals import boosted, calibrated_roofline
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.safe_file import write_atomically
from thermoe.cost.tables import group_table
from thermoe.errors import ConfigError, DataError, ThermoeError
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
    """Run the parts asked for and write one file; 2 where the input is wrong."""
    try:
        return _run(argv)
    except ThermoeError as err:
        print(f"benchmarks.cost_samples: error: {err}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str] | None) -> int:
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
    asked, methods = options.parts.split(","), options.methods.split(",")
    unknown = [*(name for name in asked if name not in parts), *(name for name in methods if name not in METHODS)]
    if unknown or options.sample < 0:
        raise ConfigError(
            f"parts {options.parts}, methods {options.methods}, sample {options.sample}: choose from "
            f"{', '.join(parts)}; {', '.join(METHODS)}; 0 or more"
        )
    if all(parts[name][0] is None for name in asked):
        raise ConfigError(f"no table for {options.parts}: name it with --gemm or --moe")
    kept = _kept(options.out)
    rows: list[dict[str, Any]] = []
    for name in asked:
        path, columns, num_folds = parts[name]
        if path is None:
            continue
        table = _read(path, [*columns, "latency_ms", "power_w"])
        if options.sample:
            table = table.sample(min(options.sample, len(table)), random_state=options.seed)
        folds = folds_of(table, columns, num_folds, options.seed)
        rows += run_part(name, table, folds, options.seed, methods)
        made = {(row["part"], row["method"]) for row in rows}
        content = {
            "schema": 1,
            "seed": options.seed,
            "kind": "predicted",
            "versions": {package: version(package) for package in ("numpy", "scipy", "scikit-learn")},
            "rows": [*rows, *(row for row in kept if (row["part"], row["method"]) not in made)],
        }
        write_atomically(options.out, json.dumps(content, indent=1) + "\n")
    return 0


def _kept(out: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run."""
    if not out.is_file():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["rows"]
        if all((row["part"], row["method"]) for row in rows):
            return rows
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{out}: is no result of this benchmark; name another file, or take it away")


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be read as Parquet ({' '.join(str(err).split())[:200]})") from err
    missing = [name for name in columns if name not in table]
    if missing or not len(table):
        raise DataError(f"{path}: {len(table)} rows, without the columns {', '.join(missing) or 'none'}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
