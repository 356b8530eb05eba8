"""How well the cost model predicts this project's own measurements on shapes it has not seen.

    python -m benchmarks.cost_heldout COSTS.json... --out FILE [--folds 5]

All rows of one shape (D, I, E, k) are left out together, in folds of shapes or each shape in turn (`--folds 0`, which
takes some ten times as long). Everything is fitted on the rest with one call; a calibrated roofline and mean power,
fitted to the same rows, stand beside it. Classes of operations stand beside what they should reach.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost_samples import figures
from thermoe.cost.database import CostDatabase
from thermoe.cost.held_out import Predictions, held_out
from thermoe.cost.safe_file import refuse_to_overwrite, write_atomically
from thermoe.errors import ConfigError, ThermoeError
from thermoe.types import FloatArray, Kind

LONG_S = 1e-4
LONG, ALL = "over_0.1_ms", "all"
# Operations that are judged together, and by length of the rows the bounds on latency and energy to meet [%].
CLASSES: dict[str, tuple[tuple[str, ...], dict[str, tuple[float, float]]]] = {
    "experts_and_products": (
        ("expert_mlp", "linear_fc1", "linear_fc2", "gemm"),
        {LONG: (4.0, 8.0), ALL: (8.0, 12.0)},
    ),
    "memory_bound": (
        ("copy", "elementwise", "norm", "activation", "dispatch", "combine", "dispatch_combine"),
        {ALL: (5.0, 6.0)},
    ),
}
COVERAGE_PCT = (85.0, 95.0)


def report(by_op: dict[str, Predictions]) -> dict[str, Any]:
    """Figures by class, by operation, and by implementation, format and kernel; of all rows and of long ones."""
    parts = {name: [by_op[op] for op in ops if op in by_op] for name, (ops, _) in CLASSES.items()}
    for op, columns in by_op.items():
        names = np.unique(columns.name)
        parts[op] = [columns]
        parts |= {f"{op} {name}": [columns.take(columns.name == name)] for name in names if len(names) > 1}
    result = {}
    for name, found in parts.items():
        if not found:
            continue
        joined = Predictions.joined(found)
        long = joined.measured_s > LONG_S
        result[name] = {ALL: _figures(joined)} | ({LONG: _figures(joined.take(long))} if long.any() else {})
        for length, bounds in CLASSES.get(name, ((), {}))[1].items():
            if length in result[name]:
                result[name][length]["goals"] = _goals(result[name][length], bounds)
    return result


def _goals(found: dict[str, Any], bounds: tuple[float, float]) -> dict[str, Any]:
    """What was to be reached, and whether it was; None where there is nothing to judge."""
    goals: dict[str, Any] = {}
    for target, bound in zip(("latency", "energy"), bounds, strict=True):
        part = found.get(target)
        rivals = [found.get(f"{rival}_{target}_mape_pct") for rival in ("roofline", "mean_power")]
        reached = None if part is None else part["mape_pct"]
        coverage = None if part is None else part["coverage_pct"]
        goals[target] = {
            "mape_pct_at_most": bound,
            "reached": None if reached is None else reached <= bound,
            "better_than_rivals": None if reached is None else all(r is None or reached < r for r in rivals),
            "intervals_hold": None if coverage is None else COVERAGE_PCT[0] <= coverage <= COVERAGE_PCT[1],
        }
    return goals


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


def _line(name: str, found: dict[str, Any]) -> str:
    """Mean errors, the rivals' in brackets, and what the intervals hold and their mean half width."""
    words = f"{name}: {found['rows']} rows, latency {_target(found, 'latency', ('roofline',))}"
    if "energy" in found:
        words += f"; {found['energy_rows']} rows, energy {_target(found, 'energy', ('roofline', 'mean_power'))}"
    missed = [target for target, goal in found.get("goals", {}).items() if goal["reached"] is False]
    return words + (f" - MISSED: {', '.join(missed)}" if missed else "")


def _target(found: dict[str, Any], target: str, rivals: tuple[str, ...]) -> str:
    part = found[target]
    others = [found.get(f"{rival}_{target}_mape_pct") for rival in rivals]
    beside = ", ".join("-" if other is None else f"{other:.1f}" for other in others)
    words = f"{part['mape_pct']:.1f} % ({beside})"
    if part["coverage_pct"] is not None:
        words += f", intervals of {part['width_pct']:.0f} % hold {part['coverage_pct']:.0f} %"
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Read, leave out, write, and print one line for each operation; 2 where the input is wrong."""
    try:
        return _run(argv)
    except ThermoeError as err:
        print(f"benchmarks.cost_heldout: error: {err}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.cost_heldout", description=__doc__.splitlines()[0])
    parser.add_argument("costs", type=Path, nargs="+", help=".costs.json files of one GPU")
    parser.add_argument("--folds", type=int, default=5, help="folds of shapes; 0 leaves out each shape in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    refuse_to_overwrite(options.out, options.costs)
    if options.folds < 0:
        raise ConfigError(f"folds = {options.folds}: needs 0 or more")
    costs = CostDatabase.merged(CostDatabase.load(path) for path in options.costs)
    costs = CostDatabase([r for r in costs.rows if r.kind is Kind.MEASURED and not r.is_smoke])
    found = report(held_out(costs, options.folds, options.seed, lambda line: print(line, file=sys.stderr, flush=True)))
    content = {"schema": 1, "seed": options.seed, "folds": options.folds, "kind": "predicted", "operations": found}
    write_atomically(options.out, json.dumps(content, indent=1) + "\n")
    for name, part in found.items():
        for length, figures_of in part.items():
            print(_line(f"{name}, {length.replace('_', ' ')}", figures_of))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
