"""How far the power labels of a table differ between rows that ask nearly the same: a floor under any model's error.

    python -m benchmarks.cost_labels MOE.parquet --out FILE

Pairs of rows of one layer, format and number of tokens under two distributions of loads, whose latencies agree
within 2 %; and pairs of rows of different layers that put as many experts of the same width on a GPU, under the
same distribution.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thermoe.cost.database import write_atomically
from thermoe.errors import DataError, ThermoeError

LATENCY_AGREES = 0.02
FEW_TOKENS = 64
LAYER = ["hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"]
CASE = ["kernel_source", "moe_dtype", "num_tokens"]


def same_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows of one case under two distributions, with latencies that agree."""
    pairs = _pairs(table, [*LAYER, *CASE], "distribution")
    return pairs[(pairs["latency_ms_x"] / pairs["latency_ms_y"] - 1.0).abs() < LATENCY_AGREES]


def same_on_gpu(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows of two layers that look the same to one GPU."""
    table = table.assign(
        experts=table["num_experts"] / table["moe_ep_size"],
        width=table["inter_size"] / table["moe_tp_size"],
        layer=table.groupby(LAYER).ngroup(),
    )
    return _pairs(table, ["experts", "width", "distribution", *CASE], "layer")


def _pairs(table: pd.DataFrame, alike: list[str], apart: str) -> pd.DataFrame:
    columns = [*alike, apart, "latency_ms", "power_w"]
    pairs = table[columns].merge(table[columns], on=alike)
    return pairs[pairs[f"{apart}_x"] < pairs[f"{apart}_y"]]


def differences(pairs: pd.DataFrame) -> dict[str, Any]:
    """How far power differs within pairs, in per cent of their mean."""
    x, y = pairs["power_w_x"].to_numpy(), pairs["power_w_y"].to_numpy()
    apart = 200.0 * np.abs(x - y) / (x + y)
    few = pairs["num_tokens"].to_numpy() <= FEW_TOKENS
    return {
        "pairs": len(pairs),
        "power_differs_mean_pct": float(apart.mean()) if len(apart) else None,
        "power_differs_p90_pct": float(np.percentile(apart, 90)) if len(apart) else None,
        f"power_differs_mean_pct_up_to_{FEW_TOKENS}_tokens": float(apart[few].mean()) if few.any() else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the labels of a table; 2 where it cannot be read."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost_labels", description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="table of fused MoE layers")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        content = {"schema": 1, "kind": "measured", **_compared(options.table)}
        write_atomically(options.out, json.dumps(content, indent=1) + "\n")
    except ThermoeError as err:
        print(f"benchmarks.cost_labels: error: {err}", file=sys.stderr)
        return 2
    return 0


def _compared(path: Path) -> dict[str, Any]:
    needed = [*LAYER, *CASE, "distribution", "latency_ms", "power_w"]
    try:
        table = pd.read_parquet(path, columns=needed)
    except (OSError, ValueError) as err:
        raise DataError(
            f"{path}: is no parquet table with {', '.join(needed)} ({' '.join(str(err).split())[:80]})"
        ) from err
    return {"same_layer": differences(same_layer(table)), "same_on_gpu": differences(same_on_gpu(table))}


if __name__ == "__main__":
    raise SystemExit(main())
