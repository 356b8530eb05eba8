"""Runs a script under nsys and gives the table of its kernels, with energy where the GPU's power can be logged."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from thermoe.profiling.external import REMEDIES, ProfilerError, find_program, run_program
from thermoe.profiling.parsing import parse_profiler_output
from thermoe.profiling.power_recorder import PowerRecorder, open_all_gpus
from thermoe.telemetry.source import TelemetrySource

#: Node: kernels inside CUDA graphs each have a row; sampling of the CPU would only slow the script.
PROFILE_OPTIONS = (
    *("--trace=cuda,nvtx", "--cuda-graph-trace=node", "--sample=none", "--cpuctxsw=none", "--force-overwrite=true"),
)


def run_nsys(
    script: Path,
    arguments: Sequence[str] = (),
    *,
    python: str = sys.executable,
    executable: str = "nsys",
    timeout_s: float = 600.0,
    open_sources: Callable[[], Sequence[TelemetrySource]] = open_all_gpus,
) -> pd.DataFrame:
    """Profile one run of a Python script.

    Args:
        script, arguments: What to run.
        python: Interpreter that runs it.
        executable: nsys, by name or path.
        timeout_s: Limit for the run, and again for the export [s].
        open_sources: GPUs whose power is logged beside.

    Raises:
        ProfilerError: If nsys is not there, or it or the script failed; the message holds the last words of stderr.
        DataError: If the profile holds no kernel or cannot be read.
    """
    program = find_program(executable, REMEDIES["nsys"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report, export = folder / "run.nsys-rep", folder / "run.sqlite"
        target: list[str | Path] = [python, script, *arguments]
        with PowerRecorder(folder / "power.csv", open_sources) as recorder:
            run_program([program, "profile", *PROFILE_OPTIONS, f"--output={folder / 'run'}", *target], timeout_s)
        if not report.is_file():
            raise ProfilerError(
                f"nsys wrote no report {report.name}: run nsys status --environment to see what it lacks"
            )
        run_program(
            [program, "export", "--type=sqlite", "--force-overwrite=true", f"--output={export}", report], timeout_s
        )
        if not export.is_file():
            raise ProfilerError(f"nsys exported nothing from {report.name}: run nsys export by hand to see why")
        return parse_profiler_output(export, recorder.path)
