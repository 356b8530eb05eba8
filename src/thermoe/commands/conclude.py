"""The end of a run: summary.json, CSV twins, a table for the terminal, the report.

This is where the two sides meet that know each other by the run folder only: `experiments` wrote
it, `analysis` reads it.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thermoe.adaptation.limits import told
from thermoe.analysis.load import RunFolder
from thermoe.analysis.report import write_report
from thermoe.analysis.summary import summarise
from thermoe.errors import ThermoeError
from thermoe.experiments.store import RunStore


def conclude(path: Path, console: Console, *, report: bool = True) -> None:
    """Sum up a complete run folder: write summary.json, CSV twins where its configuration asks for them, the report.

    Raises:
        DataError: The folder cannot be read.
        ThermoeError: No space is left.
    """
    folder, store = RunFolder(path), RunStore(path)
    summary = summarise(folder.tables, folder.config, folder.env)
    store.write_text("summary.json", json.dumps(summary, indent=2))
    if folder.config.get("csv"):
        for name, rows in folder.tables.items():
            store.write_text(f"{name}.csv", rows.to_csv(index=False))
    for table in summary_tables(summary):
        console.print(table)
    held_as = folder.env.get("experts")
    experts = "" if held_as in (None, "simple") else f", experts {held_as}"
    console.print(f"figures of kind {summary['telemetry']}, priced as {summary['priced_as']}{experts}", highlight=False)
    if report:
        _write_report(path, console)


def summary_tables(summary: dict[str, Any]) -> list[Table]:
    """One table per workload."""
    return [_table(name, content["strategies"], summary) for name, content in summary["workloads"].items()]


def _table(workload: str, strategies: dict[str, Any], summary: dict[str, Any]) -> Table:
    kinds = {s["energy_j_per_token"]["kind"] for s in strategies.values()} - {None}
    kind = ", ".join(sorted(kinds)) or "no energy"
    table = Table(title=f"{workload} ({kind})", title_justify="left")
    table.add_column("strategy", no_wrap=True)
    for heading in ("perplexity", "change %", "experts", "mJ/token", "90 % interval", "power W", "ms/step", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    said = {name: told(s["limits"]) for name, s in strategies.items()}
    if any(said.values()):
        table.add_column("limits")
    for name, s in strategies.items():
        energy = s["energy_j_per_token"]
        table.add_row(
            name,
            _shown(s["perplexity"], ".3f"),
            _shown(s["perplexity_change_pct"], "+.2f"),
            _shown(s["distinct_experts_mean"], ".2f"),
            _shown(energy["value"], ".2f", 1e3),
            f"{_shown(energy['low'], '.2f', 1e3)} – {_shown(energy['high'], '.2f', 1e3)}",
            _shown(s["power_w_mean"], ".0f"),
            _shown(s["latency_ms"]["mean"], ".2f"),
            _shown(s["tokens_per_s"], ".0f"),
            *([said[name] or "-"] if any(said.values()) else []),
        )
    return table


def _shown(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, form)


def _write_report(path: Path, console: Console) -> None:
    try:
        page = write_report([path], path / "report.html")
    except ThermoeError as err:
        if isinstance(err.__cause__, OSError):
            raise
        # Without the extra `report` a run is as good as with it; the page can be made later.
        console.print(f"no report: {err}", highlight=False, markup=False, soft_wrap=True)
        return
    console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
