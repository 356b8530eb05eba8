"""From files of profilers to one table of kernels with their energy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from thermoe.errors import ConfigError, DataError
from thermoe.profiling.parsing.join import join_power
from thermoe.profiling.parsing.power_series import PowerSeries, read_power_series
from thermoe.profiling.parsing.reading import read_trace
from thermoe.profiling.parsing.table import NothingToParseError, finish

PathLike = str | Path


def parse_profiler_output(
    paths: PathLike | Sequence[PathLike],
    telemetry: PathLike | Sequence[PathLike] | None = None,
    *,
    telemetry_offset_s: float = 0.0,
) -> pd.DataFrame:
    """Kernels of nsys, ncu and torch.profiler files, one row each, in the columns of `table.COLUMNS`.

    Args:
        paths: nsys `.sqlite`, ncu `.csv`, torch.profiler `.json[.gz]`; told apart by content.
        telemetry: Logs of power with wall-clock time; the energy of each kernel comes from there.
        telemetry_offset_s: Added to the logs' stamps [s]; minus the offset from UTC where they are local time.

    Returns:
        The table. Its `attrs` hold `windows` (what each device's energy went to: kernels, idle, hidden, lost; they
        add up to window_j) and `notes` (a line for everything that was left out).

    Raises:
        NothingToParseError: If no file holds a kernel.
        DataError: If a file is missing or damaged, or the logs cover none of the kernels.
    """
    files = _as_paths(paths)
    if not files:
        raise ConfigError("no file to parse: name at least one output of nsys, ncu or torch.profiler")
    logs = [one for log in _as_paths(telemetry) for one in read_power_series(log, telemetry_offset_s)]
    frames: list[pd.DataFrame] = []
    windows: list[dict[str, Any]] = []
    notes: list[str] = []
    empty: list[str] = []
    for file in files:
        try:
            kind, trace = read_trace(file)
        except NothingToParseError as nothing:
            empty.append(str(nothing))
            continue
        notes += trace.notes
        windows += [{"file": file.name} | window for window in join_power(trace, logs, notes)]
        frames.append(finish(trace.kernels.assign(source_format=kind, source_file=file.name)))
    if not frames:
        raise NothingToParseError("; ".join(empty))
    table = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    _refuse_useless_logs(table, logs, notes)
    table.attrs = {"windows": windows, "notes": [*notes, *empty]}
    return table


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write the table as Parquet, or as CSV if the name ends so; `attrs` travel in the Parquet file."""
    if out.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"--out {out}: needs a name that ends in .parquet or .csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        table.to_csv(out, index=False)
    else:
        table.to_parquet(out, index=False)


def _as_paths(paths: PathLike | Sequence[PathLike] | None) -> list[Path]:
    if paths is None:
        return []
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def _refuse_useless_logs(table: pd.DataFrame, logs: Sequence[PowerSeries], notes: Sequence[str]) -> None:
    """Whoever names a log wants energies: none at all is an error, not a table of nulls."""
    timed = table["start_ns"].notna().any()
    if logs and timed and not table["energy_j"].notna().any():
        reasons = "; ".join(notes) or "no kernel has a place in wall-clock time"
        raise DataError(
            f"the telemetry covers none of the kernels ({reasons}): name the log of the same run; "
            "for stamps in local time give --telemetry-offset-s"
        )
