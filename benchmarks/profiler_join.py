"""Profilers on a real GPU: a torch.profiler trace joined with a log of power, and nsys and ncu where installed.

python -m benchmarks.profiler_join --out FILE                  # under a minute; all that follows, in one
python -m benchmarks.profiler_join --record DIR                # on the GPU: needs torch and nvidia-ml-py only
python -m benchmarks.profiler_join --recorded DIR --out FILE   # anywhere: needs pandas
"""

import argparse
import csv
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.card import describe, find_device, open_sensors
from benchmarks.kernels.results import git_revision
from thermoe.errors import DataError, ThermoeError
from thermoe.profiling.torch_trace_runner import LOG_NAME, TRACE_NAME, record

WORK = Path(__file__).with_name("profiler_join_work.py")
OPERATIONS = ("linear_fc1", "activation", "linear_fc2")
MOST_COUNTER_PCT = 5.0
_ENVIRONMENT = "env.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Record, parse, check; 1 if a check failed, 2 if nothing could be recorded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiler_join", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the work under torch.profiler")
    parser.add_argument("--record", type=Path, help="only record, into this folder")
    parser.add_argument("--recorded", type=Path, help="parse what lies in this folder")
    parser.add_argument("--revision", help="git revision to write down where there is no checkout")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args(argv)
    if options.out is None and options.record is None:
        parser.error("needs --out FILE, or --record DIR")
    try:
        return _run(options)
    except ThermoeError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = options.recorded or options.record or Path(name)
        if options.recorded is None:
            folder.mkdir(parents=True, exist_ok=True)
            record(WORK, [str(options.seconds)], folder)
            (folder / _ENVIRONMENT).write_text(json.dumps(environment(options)), encoding="utf-8")
        if options.out is None:
            return 0
        result = {
            "schema": 1,
            "kind": "measured",
            "env": _recorded_environment(folder),
            "torch_profiler": examine(folder),
        }
        if options.recorded is None:
            result |= {"nsys": _try(_nsys), "ncu": _try(_ncu)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, default=float) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1, default=float))
    return 0 if all(result["torch_profiler"]["checks"].values()) else 1


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """The machine that the work ran on."""
    device = find_device("auto")
    sensors = open_sensors(device)
    env = describe(device, sensors.read if sensors else None, {"seconds": options.seconds})
    if sensors:
        sensors.close()
    return env | {"date": datetime.now(UTC).date().isoformat(), "git_revision": options.revision or git_revision()}


def _recorded_environment(folder: Path) -> Any:
    try:
        return json.loads((folder / _ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no recording ({error}): make one with --record {folder}") from None


def examine(folder: Path) -> dict[str, Any]:
    """Join trace and log of a folder, and check the sums against an integral taken apart from the parser."""
    from thermoe.profiling.parsing import parse_profiler_output, sum_by_operation

    started_s = time.monotonic()
    log = folder / LOG_NAME
    table = parse_profiler_output(folder / TRACE_NAME, log if log.is_file() else None)
    parse_s = time.monotonic() - started_s
    calls = sum_by_operation(table)
    by_operation = {}
    for name, group in table.groupby("op_type"):
        means = {
            "kernels": len(group),
            "busy_s": group["duration_ns"].sum() * 1e-9,
            "energy_j": group["energy_j"].sum(),
        }
        by_operation[str(name)] = means | {"power_w_mean": group["power_w_mean"].mean()}
    (window,) = table.attrs["windows"] or ({},)
    result = {
        "kernels": len(table),
        "calls_of_operations": len(calls),
        "parse_s": round(parse_s, 3),
        "window": window,
        "notes": table.attrs["notes"],
        "operations": by_operation,
    }
    return result | _checks(table, window, log)


def _checks(table: Any, window: dict[str, Any], log: Path) -> dict[str, Any]:
    if not window:
        return {"checks": {"joined": False}}
    parts_j = table["energy_j"].sum() + window["idle_j"] + window["hidden_j"] + window["lost_j"]
    offset_ns = int((table["start_wall_ns"] - table["start_ns"]).iloc[0])
    integral_j = integrate(log, window["start_ns"] + offset_ns, window["end_ns"] + offset_ns)
    counter_pct = None if window["counter_j"] is None else 100 * (window["window_j"] / window["counter_j"] - 1)
    in_operation = table["op_type"].isin(OPERATIONS)
    return {
        "integral_apart_j": integral_j,
        "sum_error": abs(parts_j / window["window_j"] - 1),
        "integral_error": abs(window["window_j"] / integral_j - 1),
        "counter_disagreement_pct": counter_pct,
        "kernels_with_energy_pct": 100 * table["energy_j"].notna().mean(),
        "kernels_in_operations_pct": 100 * in_operation.mean(),
        "overlapping_ns": int(table["duration_ns"].sum()) - window["busy_ns"],
        "checks": {
            "joined": bool(table["energy_j"].notna().all()),
            "energies_and_idle_add_up": bool(abs(parts_j / window["window_j"] - 1) < 1e-9),
            "window_is_the_integral": bool(abs(window["window_j"] / integral_j - 1) < 1e-6),
            "counter_agrees": counter_pct is None or abs(counter_pct) < MOST_COUNTER_PCT,
            "operations_found": set(OPERATIONS) <= set(table["op_type"]),
            "matched_by_uuid_or_bus": bool(table["device_uuid"].notna().all() or table["device_bus"].notna().all()),
            "pauses_are_idle": window["idle_j"] > 0,
        },
    }


def integrate(log: Path, start_ns: int, end_ns: int) -> float:
    """Integral of the log's instant power by the trapezoid rule, apart from the parser [J]."""
    with log.open(encoding="utf-8", newline="") as file:
        rows = [
            (float(row["wall_time_s"]) * 1e9, float(row["power_w"])) for row in csv.DictReader(file) if row["power_w"]
        ]
    rows.sort()
    total_j = 0.0
    for (from_ns, from_w), (to_ns, to_w) in itertools.pairwise(rows):
        low, high = max(from_ns, start_ns), min(to_ns, end_ns)
        if high > low:
            rise = (to_w - from_w) / (to_ns - from_ns)
            total_j += (from_w + rise * (0.5 * (low + high) - from_ns)) * (high - low) * 1e-9
    return total_j


def _try(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a profiler gave, or its words where it is not installed or refused."""
    try:
        return run()
    except ThermoeError as error:
        return {"error": str(error)}


def _nsys() -> dict[str, Any]:
    from thermoe.profiling.nsys_runner import run_nsys

    table = run_nsys(WORK, ["1"], timeout_s=60)
    return {"kernels": len(table), "windows": table.attrs["windows"], "notes": table.attrs["notes"]}


def _ncu() -> dict[str, Any]:
    from thermoe.profiling.ncu_runner import run_ncu

    table = run_ncu(WORK, ["0"], most_kernels=20, timeout_s=60)
    columns = ["kernel_name", "duration_ns", "dram_read_bytes", "l2_hit_rate_pct", "registers_per_thread"]
    return {"kernels": json.loads(table[columns].to_json(orient="records"))}


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
