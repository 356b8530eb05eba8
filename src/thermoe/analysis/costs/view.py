"""What a page of costs shows: rows by device and kind, what a model says of them, calls beside their parts, kernels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from thermoe.analysis.costs.kernel_power import KernelPower, kernel_power, read_kernels
from thermoe.cost.database import CostDatabase, Failure
from thermoe.cost.fusing import Explanation, explain_calls, why_none
from thermoe.cost.held_out import Predictions, held_out, predictions
from thermoe.cost.kernel_cost_model import KernelCostModel
from thermoe.cost.observations import group_database
from thermoe.cost.parts import find_calls
from thermoe.cost.rows import CostRow, without_smoke
from thermoe.errors import ConfigError, DataError
from thermoe.types import Kind


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows of one GPU and of one kind, which are never drawn together with others.

    Attributes:
        gpu, kind: What they are of.
        rows: All of them, in the order of the files.
        model: The given model, where it was fitted to this GPU.
        seen: What that model says of the measured rows, by operation; it may have been fitted to them.
        unseen: What models say that were fitted to other shapes, where that was asked for.
        notes: One line each about what cannot be said.
    """

    gpu: str
    kind: Kind
    rows: Sequence[CostRow]
    model: KernelCostModel | None = None
    seen: dict[str, Predictions] = field(default_factory=dict)
    unseen: dict[str, Predictions] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def label(self) -> str:
        """GPU and kind, as every figure says it."""
        return f"{self.kind} on {self.gpu}" if self.kind is Kind.MEASURED else f"{self.kind} for {self.gpu}"

    @property
    def ops(self) -> list[str]:
        """Operations, the expert MLP first, then those with most rows."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.op] = counts.get(row.op, 0) + 1
        return sorted(counts, key=lambda op: (op != "expert_mlp", -counts[op], op))

    def of_op(self, op: str) -> list[CostRow]:
        """Rows of one operation."""
        return [r for r in self.rows if r.op == op]

    @property
    def judged(self) -> tuple[dict[str, Predictions], str]:
        """Predictions that tell most about accuracy, and what they are of in words."""
        if self.unseen:
            return self.unseen, "shapes left out of the fit"
        return self.seen, "the given model, which may have been fitted to these rows"


@dataclass(frozen=True, kw_only=True)
class CostView:
    """Everything the page shows.

    Attributes:
        sources: Rows by GPU and kind.
        calls: Expert MLP calls beside their parts.
        calls_note: Why there is none; empty where there is one.
        kernels: Types of kernels and power, by kind of power.
        kernels_note: Why there is none.
        failures: What could not be measured.
        command: That makes the page again.
    """

    sources: Sequence[Source]
    calls: Sequence[Explanation]
    calls_note: str
    kernels: Sequence[KernelPower]
    kernels_note: str
    failures: Sequence[Failure]
    command: str


def make_view(
    databases: Sequence[Path],
    *,
    ops: Sequence[str] = (),
    model: Path | None = None,
    kernels: Sequence[Path] = (),
    folds: int = 0,
    window_s: float | None = None,
    command: str = "",
    report: Callable[[str], None] | None = None,
) -> CostView:
    """Read and compute everything.

    Args:
        databases: `.costs.json` files.
        ops: Only these operations; all if empty.
        model: Model of `thermoe fit`.
        kernels: Tables of `thermoe parse`.
        folds: Folds of shapes to leave out; 0 for none.
        window_s: Windows over the kernels [s].
        command: What made the page, in words.
        report: Told a line now and then.

    Raises:
        ConfigError: No database, or an operation that none holds.
        DataError: A file cannot be read, or they hold nothing.
    """
    if not databases:
        raise ConfigError("no database was named: give one or more .costs.json files")
    costs = CostDatabase.merged(CostDatabase.load(path) for path in databases)
    if not costs.rows:
        raise DataError(f"{', '.join(map(str, databases))}: no row, nothing to report; measure some: thermoe profile")
    rows = without_smoke(costs.rows)
    known = {row.op for row in rows}
    unknown = sorted(set(ops) - known)
    if unknown:
        raise ConfigError(f"no row of operation {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    fitted = None if model is None else KernelCostModel.load(model)
    calls = find_calls(rows)
    explained = explain_calls(calls, rows)
    found, kernels_note = _kernels(kernels, window_s)
    return CostView(
        sources=_sources([r for r in rows if not ops or r.op in ops], fitted, folds, report),
        calls=explained,
        calls_note="" if explained else why_none(calls),
        kernels=found,
        kernels_note=kernels_note,
        failures=costs.failures,
        command=command,
    )


def _sources(
    rows: Sequence[CostRow], model: KernelCostModel | None, folds: int, report: Callable[[str], None] | None
) -> list[Source]:
    groups: dict[tuple[str, Kind], list[CostRow]] = {}
    for row in rows:
        groups.setdefault((row.device.gpu, row.kind), []).append(row)
    return [_source(gpu, kind, mine, model, folds, report) for (gpu, kind), mine in groups.items()]


def _source(
    gpu: str,
    kind: Kind,
    rows: Sequence[CostRow],
    model: KernelCostModel | None,
    folds: int,
    report: Callable[[str], None] | None,
) -> Source:
    notes = _silent(rows)
    if kind is not Kind.MEASURED:
        notes.append("These rows are no measurements: no model is judged by them.")
        return Source(gpu=gpu, kind=kind, rows=rows, notes=notes)
    seen: dict[str, Predictions] = {}
    unseen: dict[str, Predictions] = {}
    if model is not None and model.fitted_on_ != gpu:
        notes.append(f"The model was fitted on {model.fitted_on_ or 'nothing'}: it says nothing about {gpu}.")
        model = None
    if model is not None:
        observed = group_database(CostDatabase(list(rows)))
        fitted = {op for op, _, _ in model.operations_}
        seen, left_aside = _with_intervals({op: predictions(model, o) for op, o in observed.items() if op in fitted})
        notes += [_ASIDE.format(left_aside, "the given model")] if left_aside else []
        left = sorted(set(observed) - fitted)
        notes += [f"The model was not fitted to {', '.join(left)}."] if left else []
    if folds:
        try:
            unseen, left_aside = _with_intervals(held_out(CostDatabase(list(rows)), folds, report=report))
            notes += [_ASIDE.format(left_aside, "a fit without their shape")] if left_aside else []
        except DataError as err:
            notes.append(f"No shapes were left out: {err}.")
    if not seen and not unseen:
        notes.append("No prediction stands beside these rows: give --model, or --held-out for shapes left out of fits.")
    return Source(gpu=gpu, kind=kind, rows=rows, model=model, seen=seen, unseen=unseen, notes=notes)


_ASIDE = "{} measured rows are left aside: of their operation, implementation and format {} holds too little."


def _with_intervals(found: dict[str, Predictions]) -> tuple[dict[str, Predictions], int]:
    """Rows that a fit says something about, and the number of the others.

    Those are priced as another implementation or by a bare roofline, which says nothing about the model.
    """
    kept = {op: p.take(p.is_fitted & np.isfinite(p.latency_half)) for op, p in found.items()}
    kept = {op: p for op, p in kept.items() if len(p)}
    return kept, sum(map(len, found.values())) - sum(map(len, kept.values()))


def _silent(rows: Sequence[CostRow]) -> list[str]:
    """A line for each quantity that no row has."""
    lines = []
    if all(r.energy_mj is None for r in rows):
        lines.append("No row has an energy: everything here is about time.")
    if all(r.temp_c is None for r in rows):
        lines.append("No row has a temperature: nothing can be said about cost against temperature.")
    if all(r.bytes_moved is None for r in rows):
        lines.append("No row counts its bytes: shares of the memory bandwidth are not known.")
    return lines


def _kernels(paths: Sequence[Path], window_s: float | None) -> tuple[list[KernelPower], str]:
    if not paths:
        return [], "No kernel table was given: --kernels takes what thermoe parse writes."
    found = kernel_power(read_kernels(paths), window_s)
    if found:
        return found, ""
    return [], "No kernel of the table has both power and a place in time: give thermoe parse a log with --telemetry."
