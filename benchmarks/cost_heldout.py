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

from benchmarks.cost_rivals import bytes_and_flops, fit_rates, with_rates
from benchmarks.cost_samples import figures
from thermoe.cost.database import CostDatabase
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import Observations, group_database
from thermoe.types import BoolArray, FloatArray, Kind

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


def folds_of_shapes(costs: CostDatabase, num_folds: int, seed: int) -> list[set[tuple[int, int, int, int]]]:
    """Shapes of each fold; one shape each for 0 folds."""
    shapes = sorted({_shape(r) for r in costs.rows})
    count = len(shapes) if num_folds == 0 else min(num_folds, len(shapes))
    order = np.random.default_rng(seed).permutation(len(shapes))
    return [{shapes[i] for i in order[fold::count]} for fold in range(count)]


def held_out(costs: CostDatabase, num_folds: int, seed: int) -> dict[str, dict[str, FloatArray]]:
    """By operation: measured and predicted latency and energy, half widths and rivals of every row."""
    columns: dict[str, dict[str, list[FloatArray]]] = {}
    for unseen in folds_of_shapes(costs, num_folds, seed):
        seen = CostDatabase([r for r in costs.rows if _shape(r) not in unseen])
        left = group_database(CostDatabase([r for r in costs.rows if _shape(r) in unseen]))
        known = group_database(seen)
        model = KernelCostModel(seed=seed).fit(seen)
        for op, observed in left.items():
            found = columns.setdefault(op, {})
            for name, values in _compare(model, known.get(op), observed).items():
                found.setdefault(name, []).append(values)
    return {op: {name: np.concatenate(parts) for name, parts in found.items()} for op, found in columns.items()}


def _compare(model: KernelCostModel, known: Observations | None, observed: Observations) -> dict[str, FloatArray]:
    priced = model.predict_cases(observed.cases)
    roofline_s = _calibrated_roofline_s(known, observed)
    mean_w = float(np.nanmean(known.power_w)) if known is not None and np.isfinite(known.power_w).any() else np.nan
    return {
        "measured_s": observed.window_s,
        "measured_j": observed.energy_j,
        "latency_s": priced.latency_s,
        "energy_j": priced.energy_j,
        "latency_half": priced.log_error[:, 0],
        "energy_half": priced.log_error[:, 1],
        "roofline_s": roofline_s,
        "roofline_j": roofline_s * mean_w,
        "mean_power_j": priced.latency_s * mean_w,
    }


def _calibrated_roofline_s(known: Observations | None, observed: Observations) -> FloatArray:
    if known is None:
        return np.full(len(observed), np.nan)
    latency_s = np.empty(len(observed))
    theirs, ours = _names(known), _names(observed)
    for name in sorted(set(ours)):
        rows = _matching(theirs, name)
        asked = np.array([n == name for n in ours])
        rates = fit_rates(bytes_and_flops(known.take(rows)), known.window_s[rows])
        latency_s[asked] = with_rates(rates, bytes_and_flops(observed.take(asked)))
    return latency_s


def _names(observed: Observations) -> list[tuple[str, str]]:
    return list(zip(observed.cases.impl, observed.cases.dtype, strict=True))


def _matching(names: list[tuple[str, str]], name: tuple[str, str]) -> BoolArray:
    same = np.array([n == name for n in names])
    return same if same.any() else np.ones(len(names), dtype=np.bool_)


def report(by_op: dict[str, dict[str, FloatArray]]) -> dict[str, Any]:
    """Figures by operation and by class of operations, all rows and long ones."""
    parts = {op: [columns] for op, columns in by_op.items()}
    for name, (ops, _, _) in CLASSES.items():
        parts[name] = [by_op[op] for op in ops if op in by_op]
    result = {}
    for name, found in parts.items():
        if not found:
            continue
        joined = {key: np.concatenate([f[key] for f in found]) for key in found[0]}
        long = joined["measured_s"] > LONG_S
        result[name] = {"all": _figures(joined)}
        if long.any():
            result[name]["over_0.1_ms"] = _figures({key: values[long] for key, values in joined.items()})
    return result


def _figures(columns: dict[str, FloatArray]) -> dict[str, Any]:
    has_energy = np.isfinite(columns["measured_j"])
    joules = {key: values[has_energy] for key, values in columns.items()}
    found: dict[str, Any] = {
        "rows": len(has_energy),
        "energy_rows": int(has_energy.sum()),
        "latency": figures(columns["latency_s"], columns["measured_s"], columns["latency_half"]),
        "roofline_latency_mape_pct": _mape(columns["roofline_s"], columns["measured_s"]),
    }
    if has_energy.any():
        found["energy"] = figures(joules["energy_j"], joules["measured_j"], joules["energy_half"])
        found["roofline_energy_mape_pct"] = _mape(joules["roofline_j"], joules["measured_j"])
        found["mean_power_energy_mape_pct"] = _mape(joules["mean_power_j"], joules["measured_j"])
    return found


def _mape(said: FloatArray, truth: FloatArray) -> float | None:
    errors = np.abs(said / truth - 1.0)
    return float(100.0 * errors[np.isfinite(errors)].mean()) if np.isfinite(errors).any() else None


def _shape(row: Any) -> tuple[int, int, int, int]:
    return row.hidden_size, row.inter_size, row.num_experts, row.top_k


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
