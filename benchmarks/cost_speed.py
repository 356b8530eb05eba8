"""How long a fitted cost model takes to answer, alone and in batches.

    thermoe fit MOE.parquet --out MODEL && python -m benchmarks.cost_speed MODEL --out FILE

One layer, with intervals. Each figure is the best of many, as other work on the machine only ever adds to it; the
median stands beside.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from thermoe.cost.database import write_atomically
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.work import cases_of
from thermoe.errors import DataError, ThermoeError
from thermoe.types import NAMED_SHAPES

SHAPE = "qwen3-30b-a3b"
BATCH, SINGLES, BATCHES = 4096, 2000, 20


def timed_us(answer: Callable[[], Any], repeats: int, queries: int) -> dict[str, float]:
    """Best and median time of a query [us]."""
    answer()
    times_s = np.empty(repeats)
    for i in range(repeats):
        started = time.perf_counter()
        answer()
        times_s[i] = time.perf_counter() - started
    return {"best_us": float(times_s.min() / queries * 1e6), "median_us": float(np.median(times_s) / queries * 1e6)}


def main(argv: Sequence[str] | None = None) -> int:
    """Time a model's answers and write them; 2 where it cannot be read."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost_speed", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model written by thermoe fit")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        return _run(options.model, options.out)
    except ThermoeError as err:
        print(f"benchmarks.cost_speed: error: {err}", file=sys.stderr)
        return 2


def _run(path: Path, out: Path) -> int:
    model, shape = KernelCostModel.load(path), NAMED_SHAPES[SHAPE]
    if not any(op == "expert_mlp" for op, _, _ in model.operations_):
        raise DataError(f"{path}: was fitted to no expert layers")
    rows = np.linspace(1, 8192, BATCH)
    measured = {key: f.num_rows for key, f in model.operations_.items() if key[0] == "expert_mlp"}
    _, impl, dtype = max(measured, key=lambda key: measured[key])
    cases = cases_of("expert_mlp", shape, rows, np.minimum(rows, shape.num_experts), impl=impl, dtype=dtype)
    correction = model.corrections_.get("expert_mlp")
    content = {
        "schema": 1,
        "kind": "measured",
        "machine": platform.machine(),
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "networks": len(correction.networks) if correction else 0,
        "alone": timed_us(lambda: model.predict("expert_mlp", shape, 128, 82), SINGLES, 1),
        "in_batches": timed_us(lambda: model.predict_cases(cases), BATCHES, BATCH) | {"batch": BATCH},
    }
    write_atomically(out, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
