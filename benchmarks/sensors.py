"""What watching a GPU costs: time of each NVML call, and the monitor's share of one core at 10 Hz."""

import argparse
import json
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from thermoe.errors import TelemetryError
from thermoe.telemetry.monitor import GpuSystemMonitor
from thermoe.telemetry.nvml import NvmlSource
from thermoe.telemetry.opening import COUNTER_EVERY_S

INTERVAL_S = 0.1
CALL_REPEATS = 50
#: Fields that a read asks for: memory temperature, energy, average and instant power.
FIELDS = (82, 83, 185, 186)


class TimedNvml:
    """The NVML library with a stopwatch around every question to a device.

    Attributes:
        took_s: wall and CPU time of each call by name [s]; of clocks and fields also by what was asked.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self.took_s: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._nvml, name)
        return partial(self._run, name, found) if name.startswith("nvmlDeviceGet") else found

    def _run(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        label = f"{name}({args[1]})" if len(args) > 1 else name
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            return call(*args)
        finally:  # a refusal takes its time too
            self.took_s[label].append((time.perf_counter() - wall_s, time.thread_time() - cpu_s))


def call_times(index: int) -> dict[str, dict[str, float]]:
    """Mean time of every call that a first read makes, and of each field asked for alone [us]."""
    import pynvml

    timed = TimedNvml(pynvml)
    with patch.dict(sys.modules, {"pynvml": timed}):
        for _ in range(CALL_REPEATS):
            source = NvmlSource(index)  # a fresh one holds nothing back
            source.read()
            for field in FIELDS:
                timed.nvmlDeviceGetFieldValues(pynvml.nvmlDeviceGetHandleByIndex(index), [field])
            source.close()
    means = {
        name: [1e6 * statistics.fmean(column) for column in zip(*took, strict=True)]
        for name, took in timed.took_s.items()
    }
    return {name: {"mean_us": round(wall, 2), "mean_cpu_us": round(cpu, 2)} for name, (wall, cpu) in means.items()}


def monitor_cost(source: NvmlSource, seconds: float) -> dict[str, float]:
    """CPU time of the monitor's thread over `seconds` at 10 Hz, as a share of one core."""
    with GpuSystemMonitor(source, INTERVAL_S) as monitor:
        (thread,) = (t for t in threading.enumerate() if t.name.startswith("thermoe-monitor"))
        clock = time.pthread_getcpuclockid(thread.ident or 0)
        cpu_s, wall_s, reads = time.clock_gettime(clock), time.monotonic(), len(monitor.history)
        time.sleep(seconds)
        cpu_s, wall_s = time.clock_gettime(clock) - cpu_s, time.monotonic() - wall_s
        reads = len(monitor.history) - reads
    return {
        "seconds": round(wall_s, 3),
        "reads": reads,
        "cpu_ms_per_read": round(1e3 * cpu_s / max(reads, 1), 4),
        "share_of_one_core_pct": round(100.0 * cpu_s / wall_s, 4),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and write; 2 if there is no GPU to ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the monitor runs")
    parser.add_argument("--index", type=int, default=0, help="NVML index of the GPU")
    parser.add_argument("--out", type=Path, required=True, help="file for the results")
    options = parser.parse_args(argv)
    try:
        source = NvmlSource(options.index, counter_every_s=COUNTER_EVERY_S)
    except TelemetryError as error:
        print(f"no sensors to time: {error}", file=sys.stderr)
        return 2
    monitor = monitor_cost(source, options.seconds)
    source.close()
    results = {"schema": 1, "kind": "measured", "monitor": monitor, "calls": call_times(options.index)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
