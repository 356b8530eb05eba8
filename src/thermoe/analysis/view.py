"""One run as the report shows it: its tables with the figures computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import pandas as pd

from thermoe.analysis.comparison import Comparison, compare_with_baseline
from thermoe.analysis.load import RunFolder
from thermoe.analysis.schema import KEY, in_order
from thermoe.analysis.summary import summarise
from thermoe.types import Kind

HARDWARE = "power, time and energy"


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A loaded run with its summary.

    Attributes:
        run: The folder's content.
        summary: As in summary.json, over the batches that all strategies of a workload share: those of
            an unfinished run could not be compared otherwise.
        is_even: Whether that is all of the run's batches.
        comparisons: Every strategy against baseline.
        workloads: In order of appearance.
        strategies: In order of appearance, baseline first.
    """

    run: RunFolder
    summary: Mapping[str, Any]
    is_even: bool
    comparisons: Sequence[Comparison]
    workloads: Sequence[str]
    strategies: Sequence[str]
    _split: dict[str, dict[tuple[str, str], pd.DataFrame]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, run: RunFolder) -> "RunView":
        """Compute everything that figures and tables share."""
        batches = run.tables["batches"]
        shared = shared_batches(batches)
        is_even = len(shared) == len(batches)
        tables = run.tables if is_even else {name: _only(table, shared) for name, table in run.tables.items()}
        return cls(
            run=run,
            summary=summarise(tables, run.config, run.env),
            is_even=is_even,
            comparisons=compare_with_baseline(run.tables, run.config),
            workloads=[str(name) for name in batches["workload"].unique()],
            strategies=in_order(batches["strategy"]),
        )

    @property
    def label(self) -> str:
        """What the report calls this run."""
        return self.run.label

    @property
    def kind(self) -> str:
        """Where this run's power, time and energy come from."""
        return str(self.summary["telemetry"] or "of unknown kind")

    @property
    def model_name(self) -> str:
        """Last part of the model's name or folder."""
        return PurePath(self.summary["model"] or "unknown model").name

    @property
    def basis(self) -> str:
        """`basis_of` the run's own kind."""
        return self.basis_of(self.kind)

    def basis_of(self, kind: str) -> str:
        """Kind, hardware or pricing, and model in one line: what must agree for figures to be compared."""
        priced_as = self.summary["priced_as"]
        if kind == Kind.MEASURED:
            where = f" on {self.gpu_name}"
        elif priced_as == "model":
            where = ", priced as the model's own layers"
        else:
            where = f", priced as {priced_as or 'unknown'}"
        return f"{kind}{where}; model {self.model_name}"

    @property
    def gpu_name(self) -> str:
        """The GPU as env.json names it."""
        gpu = self.run.env.get("gpu") or self.run.env.get("gpu_name")
        name = gpu.get("name") if isinstance(gpu, Mapping) else gpu
        return str(name) if name else "an unnamed GPU"

    def figures_of(self, workload: str, strategy: str) -> Mapping[str, Any] | None:
        """One strategy's entry of the summary, or None where it did not run."""
        entry = self.summary["workloads"].get(workload, {}).get("strategies", {}).get(strategy)
        return entry if isinstance(entry, Mapping) else None

    def comparison(self, workload: str, strategy: str) -> Comparison | None:
        """One strategy against baseline, or None where there is nothing to compare."""
        return next((c for c in self.comparisons if (c.workload, c.strategy) == (workload, strategy)), None)

    def arm(self, table: str, workload: str, strategy: str) -> pd.DataFrame:
        """Rows of one strategy on one workload, all seeds."""
        if table not in self._split:
            groups = self.run.tables[table].groupby(["workload", "strategy"], sort=False)
            self._split[table] = {(str(w), str(s)): rows for (w, s), rows in groups}
        return self._split[table].get((workload, strategy), self.run.tables[table].iloc[:0])


def shared_batches(batches: pd.DataFrame) -> pd.DataFrame:
    """The batches that every strategy of their workload has; all of a workload's where they share none."""
    num_strategies = batches.groupby("workload")["strategy"].transform("nunique")
    holders = batches.groupby(["workload", "seed", "batch_index"])["strategy"].transform("nunique")
    is_shared = holders == num_strategies
    some = is_shared.groupby(batches["workload"]).transform("any")
    return batches[is_shared | ~some]


def _only(table: pd.DataFrame, batches: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that belong to the given batches."""
    keys = list(KEY)
    return table.merge(batches[keys], on=keys) if len(table) else table
