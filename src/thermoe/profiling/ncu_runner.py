"""Runs a script under ncu and gives the counters of its kernels.

Clocks and caches are left as they are (`--clock-control none --cache-control none`), so that counts are those of
the run; each kernel is replayed for every group of metrics, so that times are not. ncu has no power.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from thermoe.profiling.external import REMEDIES, ProfilerError, ProfilerUnusableError, find_program, run_program
from thermoe.profiling.parsing import parse_profiler_output

_FORBIDDEN = "ERR_NVGPUCTRPERM"
METRICS = (
    *("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"),
    *("lts__t_sector_hit_rate.pct", "lts__t_bytes.sum"),
    *("sm__throughput.avg.pct_of_peak_sustained_elapsed", "dram__throughput.avg.pct_of_peak_sustained_elapsed"),
    *("sm__warps_active.avg.pct_of_peak_sustained_active", "smsp__inst_executed.sum", "sm__cycles_active.avg"),
    *(f"sm__sass_thread_inst_executed_op_{op}_pred_on.sum" for op in ("fadd", "fmul", "ffma")),
    *("gpc__cycles_elapsed.avg.per_second", "launch__registers_per_thread", "launch__waves_per_multiprocessor"),
)
OPTIONS = (
    *("--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--cache-control", "none"),
    *("--target-processes", "all", "--metrics", ",".join(METRICS)),
)


def run_ncu(
    script: Path,
    arguments: Sequence[str] = (),
    *,
    python: str = sys.executable,
    executable: str = "ncu",
    most_kernels: int = 200,
    timeout_s: float = 600.0,
) -> pd.DataFrame:
    """Profile one run of a Python script.

    Args:
        script, arguments: What to run.
        python: Interpreter that runs it.
        executable: ncu, by name or path.
        most_kernels: Launches that are profiled; the others run at full speed.
        timeout_s: Limit for the run [s].

    Raises:
        ProfilerError: If ncu is not there, has no permission to read counters, or it or the script failed.
        DataError: If no kernel was profiled.
    """
    program = find_program(executable, REMEDIES["ncu"])
    with tempfile.TemporaryDirectory() as name:
        table = Path(name, "ncu.csv")
        limits = ["--launch-count", str(most_kernels), "--log-file", str(table)]
        try:
            run_program([program, *OPTIONS, *limits, python, script, *arguments], timeout_s, log=table)
        except ProfilerError:
            if _FORBIDDEN not in _text(table):
                raise
        said = _text(table)
        if _FORBIDDEN in said:
            raise ProfilerUnusableError(
                f"ncu may not read the counters ({_FORBIDDEN}): ask the administrator to allow it"
            )
        if not said.strip() or "No kernels were profiled" in said:
            raise ProfilerError("ncu profiled no kernel: the script launched none, or ncu does not know this GPU")
        return parse_profiler_output(table)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
