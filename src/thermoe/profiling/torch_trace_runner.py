"""Runs a script under torch.profiler with a log of power beside, and gives the table of its kernels with energy."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from thermoe.errors import DataError
from thermoe.profiling.external import ProfilerError, run_program
from thermoe.profiling.power_recorder import PowerRecorder, open_all_gpus
from thermoe.telemetry.source import TelemetrySource

if TYPE_CHECKING:
    import pandas as pd

TRACE_NAME, LOG_NAME = "trace.json.gz", "power.csv"


def run_torch_profiler(
    script: Path,
    arguments: Sequence[str] = (),
    *,
    python: str = sys.executable,
    timeout_s: float = 600.0,
    open_sources: Callable[[], Sequence[TelemetrySource]] = open_all_gpus,
) -> "pd.DataFrame":
    """Profile one run of a Python script.

    Args:
        script, arguments: What to run; its operations are the ranges of `torch.profiler.record_function`.
        python: Interpreter that runs it; thermoe must be installed there.
        timeout_s: Limit for the run [s].
        open_sources: GPUs whose power is logged beside.

    Raises:
        ProfilerError: If the script failed; the message holds the last words of stderr.
        DataError: If the trace holds no kernel or cannot be read.
    """
    from thermoe.profiling.parsing import parse_profiler_output

    with tempfile.TemporaryDirectory() as name:
        trace, log = record(script, arguments, Path(name), python, timeout_s, open_sources)
        return parse_profiler_output(trace, log)


def record(
    script: Path,
    arguments: Sequence[str],
    folder: Path,
    python: str = sys.executable,
    timeout_s: float = 600.0,
    open_sources: Callable[[], Sequence[TelemetrySource]] = open_all_gpus,
) -> tuple[Path, Path | None]:
    """Write the trace and, where a GPU has sensors, the log of power into a folder; to be parsed anywhere."""
    trace = folder / TRACE_NAME
    command: list[str | Path] = [python, "-m", "thermoe.profiling.torch_trace_child", trace, script, *arguments]
    with PowerRecorder(folder / LOG_NAME, open_sources) as recorder:
        run_program(command, timeout_s)
    if not trace.is_file():
        raise ProfilerError(f"torch.profiler wrote no trace of {script}: run the script by itself to see why")
    if trace.stat().st_size == 0:
        raise DataError(f"torch.profiler wrote an empty trace of {script}: is the disk full?")
    return trace, recorder.path
