"""`thermoe parse`: files of profilers into one table."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from thermoe.cost.safe_file import refuse_to_overwrite
from thermoe.profiling.parsing.parse import parse_profiler_output, write_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class Parse:
    """Read kernels from profilers' files into one table, with energy where a power log is given.

    Attributes:
        files: nsys .sqlite, ncu .csv and torch.profiler .json[.gz] files.
        out: Table to write, .parquet or .csv.
        telemetry: Logs of power of the same run: a run folder, its telemetry.parquet, or a CSV or Parquet table.
        telemetry_offset_s: Added to the stamps of the logs [s]; nvidia-smi writes local time.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    telemetry: tuple[Path, ...] = ()
    telemetry_offset_s: float = 0.0

    def execute(self) -> int:
        """Parse, write, and say on stderr what was found and what was left out."""
        refuse_to_overwrite(self.out, [*self.files, *self.telemetry])
        table = parse_profiler_output(self.files, self.telemetry, telemetry_offset_s=self.telemetry_offset_s)
        write_table(table, self.out)
        for line in [*table.attrs["notes"], *map(_energy_line, table.attrs["windows"]), _summary(table, self.out)]:
            sys.stderr.write(f"{line}\n")
        return 0


def _summary(table: "pd.DataFrame", out: Path) -> str:
    names, devices = table["kernel_name"].nunique(), table["device_id"].nunique()
    return f"{out}: {len(table)} kernels of {names} names on {devices} device(s)"


def _energy_line(window: dict[str, Any]) -> str:
    seconds = (window["end_ns"] - window["start_ns"]) * 1e-9
    counter = "" if window["counter_j"] is None else f"; energy counter {window['counter_j']:.3f} J"
    return (
        f"{window['file']}, device {window['device']}: {window['window_j']:.3f} J in {seconds:.3f} s "
        f"({window['kind']}), kernels {window['kernels_j']:.3f}, idle {window['idle_j']:.3f}, "
        f"hidden {window['hidden_j']:.3f}, lost {window['lost_j']:.3f} J{counter}"
    )
