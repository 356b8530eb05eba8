"""`python -m benchmarks.counters --out FILE`: hardware counters of the expert kernels, by ncu, clocks left as they are.

Says what bounds a kernel: the share of the memory's and the tensor cores' peak, how often a scheduler issues, and what
its warps wait for. ncu replays each launch for every group of counters, so times are longer than without it.
"""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.card import describe, find_device, open_sensors
from benchmarks.kernels.results import git_revision
from thermoe.errors import DataError, ThermoeError
from thermoe.profiling.external import find_program

CELLS = (
    *("int4:1", "int4:16", "int4:64", "int2:16", "bank4:64", "bf16:1", "bf16:16", "fp8:1"),
    *("int4:16:mixtral-8x7b", "bf16:4096", "int4:4096"),
)
STALLS = (
    *("barrier", "branch_resolving", "dispatch_stall", "lg_throttle", "long_scoreboard", "math_pipe_throttle"),
    *("membar", "mio_throttle", "no_instruction", "not_selected", "selected", "short_scoreboard", "sleeping", "wait"),
)
METRICS = {
    "time_ns": "gpu__time_duration.sum",
    "memory_read_bytes": "dram__bytes_read.sum",
    "memory_pct_of_peak": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_pct_of_peak": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "shared_memory_pct_of_peak": "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
    "tensor_pct_of_peak": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_elapsed",
    "integer_pct_of_peak": "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_elapsed",
    "issue_pct": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__inst_executed.sum",
    "cycles": "sm__cycles_elapsed.max",
    "registers_per_thread": "launch__registers_per_thread",
}
_SHOWN = ("time_ns", "memory_pct_of_peak", "tensor_pct_of_peak", "issue_pct")
_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
_MARK = "spin_kernel"  # of torch.cuda._sleep, with which the work begins each cell
_WORK = Path(__file__).with_name("counters_work.py")


def main(argv: Sequence[str] | None = None) -> int:
    """0 if written, 2 if nothing could be profiled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counters", description=__doc__)
    parser.add_argument("--cells", default=",".join(CELLS), help="comma list of FORMAT:TOKENS[:SHAPE]")
    parser.add_argument("--revision", help="git revision to write down where there is no checkout")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    options = parser.parse_args(argv)
    try:
        return _run(options)
    except ThermoeError as error:
        print(f"benchmarks.counters: error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    program = find_program("ncu", "install NVIDIA Nsight Compute and put it on PATH")
    device = find_device("cuda")
    names = [*METRICS.values(), *(_STALL.format(stall) for stall in STALLS)]
    command = [
        *(program, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"),
        *("--cache-control", "none", "--profile-from-start", "off", "--metrics", ",".join(names)),
        *(sys.executable, str(_WORK), *options.cells.split(",")),
    ]
    path = os.pathsep.join([str(_WORK.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    cells, kernels = read_output(done.stdout.splitlines())
    if done.returncode != 0 or not cells or not kernels:
        raise DataError(f"ncu ended with {done.returncode} and {len(kernels)} kernels: {done.stderr[-500:]}")
    sensors = open_sensors(device)
    env = describe(device, sensors.read if sensors else None, {"cells": options.cells})
    result = {
        "schema": 1,
        "kind": "measured",
        "env": env | {"git_revision": options.revision or git_revision()},
        "metrics": METRICS | {"stalls": _STALL.format("*") + ": warps that wait so, for each instruction issued"},
        "cells": cells,
        "kernels": kernels,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in kernels:
        figures = ", ".join(f"{name} {row[name]:.4g}" for name in _SHOWN if row[name] is not None)
        print(f"{cells[row['cell']]['format']} {cells[row['cell']]['tokens']} {row['kernel'][:40]}: {figures}")
    return 0


def read_output(lines: Iterable[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """From what ncu printed: the cells that the work told of, and a row for each kernel with its cell's number."""
    cells, table = [], []
    for line in lines:
        if line.startswith("{"):
            cells.append(json.loads(line))
        elif line.startswith('"'):
            table.append(line)
    if not table:
        return cells, []
    header, _units, *rows = csv.reader(io.StringIO("\n".join(table)))
    kernels, cell = [], -1
    for row in rows:
        said = dict(zip(header, row, strict=False))
        if _MARK in said.get("Kernel Name", ""):
            cell += 1
            continue
        kernel: dict[str, Any] = {"cell": cell, "kernel": said.get("Kernel Name", "")}
        kernel |= {name: _number(said.get(metric)) for name, metric in METRICS.items()}
        kernel["stalls"] = {stall: _number(said.get(_STALL.format(stall))) for stall in STALLS}
        kernels.append(kernel)
    return cells, kernels


def _number(text: str | None) -> float | None:
    try:
        return float(text.replace(",", "")) if text else None
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main())
