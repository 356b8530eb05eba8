"""How well the cost model predicts this project's own measurements on shapes it has not seen.

    python -m benchmarks.cost_heldout COSTS.json... --out FILE [--folds 5]

All rows of one shape (D, I, E, k) are left out together: each shape in turn, or in folds of shapes. Everything is
fitted on the rest with one call; a calibrated roofline and mean power, fitted to the same rows, stand beside it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost_samples import figures
from thermoe.cost.database import CostDatabase
from thermoe.cost.held_out import Predictions, held_out
from thermoe.types import FloatArray, Kind

LONG_S = 1e-4
# Operations that are judged together, each with the bounds on latency and energy that it should meet [%].
CLASSES = {
    "experts_and_products": (("expert_mlp", "linear_fc1", "linear_fc2", "gemm"), 4.0, 8.0),
    "memory_bound": (
        ("copy", "elementwise", "norm", "activation", "dispatch", "combine", "dispatch_combine"),
        5.0,
        6.0,
    ),
}


def report(by_op: dict[str, Predictions]) -> dict[str, Any]:
    """Figures by operation and by class of operations, all rows and long ones."""
    parts = {op: [columns] for op, columns in by_op.items()}
    for name, (ops, _, _) in CLASSES.items():
        parts[name] = [by_op[op] for op in ops if op in by_op]
    result = {}
    for name, found in parts.items():
        if not found:
            continue
        joined = Predictions.joined(found)
        long = joined.measured_s > LONG_S
        result[name] = {"all": _figures(joined)}
        if long.any():
            result[name]["over_0.1_ms"] = _figures(joined.take(long))
    return result


def _figures(rows: Predictions) -> dict[str, Any]:
    has_energy = np.isfinite(rows.measured_j)
    joules = rows.take(has_energy)
    found: dict[str, Any] = {
        "rows": len(rows),
        "energy_rows": len(joules),
        "latency": figures(rows.latency_s, rows.measured_s, rows.latency_half),
        "roofline_latency_mape_pct": _mape(rows.roofline_s, rows.measured_s),
    }
    if len(joules):
        found["energy"] = figures(joules.energy_j, joules.measured_j, joules.energy_half)
        found["roofline_energy_mape_pct"] = _mape(joules.roofline_j, joules.measured_j)
        found["mean_power_energy_mape_pct"] = _mape(joules.mean_power_j, joules.measured_j)
    return found


def _mape(said: FloatArray, truth: FloatArray) -> float | None:
    errors = np.abs(said / truth - 1.0)
    return float(100.0 * errors[np.isfinite(errors)].mean()) if np.isfinite(errors).any() else None


def main(argv: Sequence[str] | None = None) -> int:
    """Read, leave out, write, and print one line for each operation."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost_heldout", description=__doc__.splitlines()[0])
    parser.add_argument("costs", type=Path, nargs="+", help=".costs.json files of one GPU")
    parser.add_argument("--folds", type=int, default=0, help="folds of shapes; 0 leaves out each shape in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    costs = CostDatabase.merged(CostDatabase.load(path) for path in options.costs)
    costs = CostDatabase([r for r in costs.rows if r.kind is Kind.MEASURED])
    found = report(held_out(costs, options.folds, options.seed))
    content = {"schema": 1, "seed": options.seed, "folds": options.folds, "kind": "predicted", "operations": found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, part in found.items():
        line = part["all"]
        energy = "" if "energy" not in line else f", energy {line['energy']['mape_pct']:.1f} % of {line['energy_rows']}"
        print(f"{name}: {line['rows']} rows, latency {line['latency']['mape_pct']:.1f} %{energy}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
