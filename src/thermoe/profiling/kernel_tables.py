"""Cases run as scripts under nsys, ncu or torch.profiler: one table with a row for each kernel that they launched."""

import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thermoe.cost.safe_file import replacing, write_atomically
from thermoe.errors import ConfigError, ThermoeError
from thermoe.profiling.case import Case
from thermoe.profiling.external import REMEDIES, ProfilerUnusableError, find_program
from thermoe.profiling.isolated import write_script

if TYPE_CHECKING:
    import pandas as pd

REPEATS = 20
KERNEL_RUNNERS = ("nsys", "ncu", "torch")
_PACKAGES = ("pandas", "pyarrow")

RunScript = Callable[[Path, Sequence[str], str], "pd.DataFrame"]


@dataclass(frozen=True, slots=True)
class TableResult:
    """How it ended: cases in the table, failed, and left for want of time."""

    measured: int
    failed: int
    left: int


def profile_kernels(
    cases: Sequence[Case],
    runner: str,
    out: Path,
    *,
    minutes: float | None,
    device: str,
    report: Callable[[int, str], None],
) -> TableResult:
    """Run each case under a profiler; the kernels of all cases, with the case in columns of its own, go to `out`.

    A case that fails is written, with what the profiler or the script said, to `OUT.failures.json`. Both files are
    written at the end, however it comes. A profiler that turns out to be of no use here ends the run.

    Args:
        cases: What to run, in order.
        runner: One of `KERNEL_RUNNERS`.
        out: Parquet file.
        minutes: Start no further case after this; None for no limit [min].
        device: Where the scripts run.
        report: Told the cases dealt with so far and a line about the last one.

    Raises:
        ProfilerUnusableError: The profiler can profile nothing here, and no case has shown otherwise.
    """
    run, start_s = find_runner(runner), time.monotonic()
    tables: list[pd.DataFrame] = []
    failures: list[dict[str, str]] = []
    try:
        for index, case in enumerate(cases):
            if minutes is not None and time.monotonic() - start_s > minutes * 60.0:
                break
            try:
                table = _run_case(case, run, device)
            except ThermoeError as err:
                if isinstance(err, ProfilerUnusableError) and not tables:
                    raise
                failures.append({"case": str(case), "message": str(err)})
                report(index + 1, f"{case}: failed, {err}")
                continue
            tables.append(table)
            report(index + 1, f"{case}: {len(table)} kernels")
    finally:  # minutes of work, also when interrupted
        _write(out, tables, failures)
    return TableResult(len(tables), len(failures), len(cases) - len(tables) - len(failures))


def refuse_useless_runner(runner: str, out: Path, device_type: str) -> None:
    """What would fail for every case, said before the first.

    Raises:
        ConfigError: A file of another kind, a missing package, or a device that launches no kernels.
        ProfilerUnusableError: The profiler is not installed.
    """
    if out.suffix != ".parquet":
        raise ConfigError(f"{out}: runner {runner} gives a table of kernels, name a .parquet file for it")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"runner {runner} writes its table with {', '.join(missing)}: install what is missing")
    if runner in REMEDIES:
        find_program(runner, REMEDIES[runner])
    if device_type != "cuda":
        raise ConfigError(
            f"runner {runner} gives the kernels of a GPU, and this is a {device_type}: use the runner in_process there"
        )


def find_runner(name: str) -> RunScript:
    """The function that runs a script with arguments under a profiler, by an interpreter."""
    if name == "nsys":
        from thermoe.profiling.nsys_runner import run_nsys

        return lambda script, arguments, python: run_nsys(script, arguments, python=python)
    if name == "ncu":
        from thermoe.profiling.ncu_runner import run_ncu

        return lambda script, arguments, python: run_ncu(script, arguments, python=python)
    if name == "torch":
        from thermoe.profiling.torch_trace_runner import run_torch_profiler

        return lambda script, arguments, python: run_torch_profiler(script, arguments, python=python)
    raise ConfigError(f"runner {name}: choose from {', '.join(KERNEL_RUNNERS)}")


def _run_case(case: Case, run: RunScript, device: str) -> "pd.DataFrame":
    with tempfile.TemporaryDirectory() as folder:
        script = write_script(case, Path(folder, "case.py"))
        table = run(script, ["--repeats", str(REPEATS), "--device", device], sys.executable)
    fields = {f"case_{name}": value for name, value in case.as_dict().items() if name != "energy"}
    return table.assign(**fields, case_tokens=case.tokens, case_repeats=REPEATS)


def _write(out: Path, tables: Sequence["pd.DataFrame"], failures: Sequence[dict[str, str]]) -> None:
    import pandas as pd

    if tables:
        filled = [table.dropna(axis=1, how="all") for table in tables]
        columns = list(dict.fromkeys(name for table in tables for name in table.columns))
        joined = pd.concat(filled, ignore_index=True).reindex(columns=columns)
        with replacing(out) as scratch:
            joined.to_parquet(scratch, index=False)
    said = out.with_suffix(".failures.json")
    if failures:
        write_atomically(said, json.dumps(failures, indent=1) + "\n")
    else:
        said.unlink(missing_ok=True)  # of an earlier run
