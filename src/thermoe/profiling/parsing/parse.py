"""From files of profilers to one table of kernels with their energy."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from thermoe.cost.safe_file import replacing
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
    named = _as_paths(paths)
    if not named:
        raise ConfigError("no file to parse: name at least one output of nsys, ncu or torch.profiler")
    logs = [one for log in _as_paths(telemetry) for one in read_power_series(log, telemetry_offset_s)]
    frames: list[pd.DataFrame] = []
    windows: list[dict[str, Any]] = []
    notes: list[str] = []
    empty: list[str] = []
    spans: list[_Span] = []
    for file, label in _labelled(named, notes):
        try:
            kind, trace = read_trace(file)
        except NothingToParseError as nothing:
            empty.append(str(nothing))
            continue
        notes += trace.notes
        joined = join_power(trace, logs, notes)
        spans += [_Span(label, window, trace.wall_offset_ns or 0) for window in joined if logs]
        windows += [{"file": label} | window for window in joined]
        frames.append(finish(trace.kernels.assign(source_format=kind, source_file=label)))
    if not frames:
        raise NothingToParseError("; ".join(empty))
    table = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    _refuse_useless_logs(table, logs, notes)
    notes += _shared_energy(spans)
    table.attrs = {"windows": windows, "notes": [*notes, *empty]}
    return table


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write the table whole or not at all, as Parquet or, if the name ends so, as CSV; Parquet keeps `attrs`."""
    if out.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"--out {out}: needs a name that ends in .parquet or .csv")
    with replacing(out) as scratch:
        if out.suffix == ".csv":
            table.to_csv(scratch, index=False)
        else:
            table.to_parquet(scratch, index=False)


def _as_paths(paths: PathLike | Sequence[PathLike] | None) -> list[Path]:
    if paths is None:
        return []
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


@dataclass(frozen=True, slots=True)
class _Span:
    """A device's window in one file, and what brings its clock to that of the logs [ns]."""

    file: str
    window: dict[str, Any]
    wall_offset_ns: int

    def overlaps(self, other: "_Span") -> bool:
        """Whether both took the energy of one log at the same time."""
        ours, theirs = self.window, other.window
        same = ours["power_source"] == theirs["power_source"] and ours["device"] == theirs["device"]
        first_ns, last_ns = (self.wall_offset_ns + ours[end] for end in ("start_ns", "end_ns"))
        start_ns, end_ns = (other.wall_offset_ns + theirs[end] for end in ("start_ns", "end_ns"))
        return bool(same and first_ns < end_ns and start_ns < last_ns)


def _shared_energy(spans: Sequence[_Span]) -> list[str]:
    return [
        f"{one.file} and {other.file}: ran on device {one.window['device']} at the same time, and each got all of its "
        "energy: do not add them up"
        for one, other in combinations(spans, 2)
        if one.file != other.file and one.overlaps(other)
    ]


def _labelled(paths: Sequence[Path], notes: list[str]) -> list[tuple[Path, str]]:
    """Each file once, with its name, or its path where several share a name."""
    real = [os.path.realpath(path) for path in paths]
    once = [path for i, path in enumerate(paths) if real[i] not in real[:i]]
    notes += [f"{path}: named twice, read once" for i, path in enumerate(paths) if real[i] in real[:i]]
    names = Counter(path.name for path in once)
    return [(path, path.name if names[path.name] == 1 else str(path)) for path in once]


def _refuse_useless_logs(table: pd.DataFrame, logs: Sequence[PowerSeries], notes: Sequence[str]) -> None:
    """Whoever names a log wants energies: none at all is an error, not a table of nulls."""
    timed = table["start_ns"].notna().any()
    if logs and timed and not table["energy_j"].notna().any():
        reasons = "; ".join(notes) or "no kernel has a place in wall-clock time"
        raise DataError(
            f"the telemetry covers none of the kernels ({reasons}): name the log of the same run; "
            "for stamps in local time give --telemetry-offset-s"
        )
