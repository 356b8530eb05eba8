"""The end of a run: summary.json, the report, CSV twins, and a table for the terminal.

Summaries and reports belong to `thermoe.analysis`, a sibling that this package must not depend on:
what they share is the run folder. They are looked up by name when a run has ended, and a run
without them is still a complete run folder.
"""

import json
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from thermoe.errors import ThermoeError
from thermoe.experiments.store import CONFIG_FILE, ENV_FILE, TABLES, RunStore

_ANALYSIS = "thermoe.analysis"


def conclude(store: RunStore, *, csv: bool, report: bool, console: Console) -> None:
    """Compute summary.json from the joined tables, write the report and print both."""
    path = store.path
    tables = {name: pq.read_table(path / f"{name}.parquet").to_pandas() for name in TABLES}
    env = json.loads((path / ENV_FILE).read_text())
    config = tomllib.loads((path / CONFIG_FILE).read_text())
    summary = import_module(f"{_ANALYSIS}.summary").summarise(tables, config, env)
    store.write_text("summary.json", json.dumps(summary, indent=2))
    if csv:
        for name, table in tables.items():
            store.write_text(f"{name}.csv", table.drop(columns="arm_state", errors="ignore").to_csv(index=False))
    for table in summary_tables(summary):
        console.print(table)
    console.print(f"figures of kind {summary['telemetry']}, priced as {summary['priced_as']}", highlight=False)
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
        )
    return table


def _shown(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, form)


def _write_report(path: Path, console: Console) -> None:
    try:
        report = import_module(f"{_ANALYSIS}.report").write_report([path], path / "report.html")
    except ThermoeError as err:
        console.print(f"no report: {err}", highlight=False, markup=False, soft_wrap=True)
        return
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
