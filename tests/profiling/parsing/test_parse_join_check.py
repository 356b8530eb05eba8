"""The check that runs on a GPU, here on a trace and a log made by hand (synthetic)."""

import csv
import gzip
import json

import numpy as np
import pytest
from benchmarks.profiler_join import examine, integrate, main

from thermoe.profiling.power_recorder import COLUMNS

BASE_NS = 1_790_857_026_000_000_000
UUID = "da169147-ab12-6528-f15a-7efd8bb7efbe"


def record(folder, operations=("linear_fc1", "activation", "linear_fc2"), counter_scale=1.0):
    events = []
    for i in range(300):
        at_us = 10_000.0 * i
        place = {"ph": "X", "pid": 5, "tid": 5}
        events.append(
            place | {"cat": "user_annotation", "name": f"op:{operations[i % len(operations)]}", "ts": at_us, "dur": 50}
        )
        events.append(
            place | {"cat": "cuda_runtime", "name": "l", "ts": at_us + 9, "dur": 1, "args": {"correlation": i}}
        )
        for stream in (7, 9):
            kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": stream, "ts": at_us + 100 * stream}
            events.append(kernel | {"dur": 4000.5, "args": {"device": 0, "stream": stream, "correlation": i}})
    members = {"baseTimeNanoseconds": BASE_NS, "thermoe_devices": [{"id": 0, "uuid": UUID, "bus": None}]}
    (folder / "trace.json.gz").write_bytes(gzip.compress(json.dumps(members | {"traceEvents": events}).encode()))
    at_s = np.arange(-1.0, 5.0, 0.05)
    power_w = 400 + 90 * np.sin(7 * at_s)
    energy_j = counter_scale * np.concatenate([[0.0], np.cumsum(0.025 * (power_w[1:] + power_w[:-1]))])
    with (folder / "power.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for t, p, e in zip(at_s, power_w, energy_j, strict=True):
            table.writerow([f"{BASE_NS / 1e9 + t:.6f}", 0, f"GPU-{UUID}", None, "measured", p, None, e, None, None])
    (folder / "env.json").write_text("{}")
    return folder


def test_sums_integral_and_counter_are_checked_apart_from_the_parser(tmp_path):
    found = examine(record(tmp_path))
    assert found["checks"] == dict.fromkeys(found["checks"], True)
    assert found["sum_error"] < 1e-12
    assert found["overlapping_ns"] == pytest.approx(300 * 3_800_500)
    assert found["calls_of_operations"] == 300
    assert found["operations"]["activation"]["kernels"] == 200


@pytest.mark.parametrize(
    ("made", "check"),
    [({"counter_scale": 1.2}, "counter_agrees"), ({"operations": ("linear_fc1",)}, "operations_found")],
)
def test_each_check_can_fail(tmp_path, made, check):
    folder, out = record(tmp_path, **made), tmp_path / "out.json"
    assert main(["--recorded", str(folder), "--out", str(out)]) == 1
    checks = json.loads(out.read_text())["torch_profiler"]["checks"]
    assert [name for name, passed in checks.items() if not passed] == [check]


def test_the_integral_is_that_of_straight_lines(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("wall_time_s,power_w\n0,100\n2,300\n1,200\n3,\n")
    assert integrate(path, 500_000_000, 10**10) == pytest.approx(0.5 * (150 + 300) * 1.5)
