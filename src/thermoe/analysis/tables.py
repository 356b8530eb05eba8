"""The tables of the report, as cells for the page, as CSV with full precision and as LaTeX."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from thermoe.adaptation.limits import told
from thermoe.analysis.comparison import Comparison, Paired
from thermoe.analysis.statistics import Interval, reduction
from thermoe.analysis.view import RunView

Row = dict[str, Any]
_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: the key of its value, what stands over it, how a value is written.

    With `ends`, the keys `<key>_low` and `<key>_high` hold a 90 % interval that is written behind the value.
    """

    key: str
    heading: str
    form: str = "{}"
    ends: bool = False

    def cell(self, row: Row) -> str:
        """The value as text; a dash where there is none."""
        value = row[self.key]
        if value is None:
            return _ABSENT
        low, high = (row[f"{self.key}_low"], row[f"{self.key}_high"]) if self.ends else (None, None)
        text = self._text(value)
        return text if low is None or high is None else f"{text} [{self._text(low)}, {self._text(high)}]"

    def _text(self, value: object) -> str:
        text = self.form.format(value)
        return text.rstrip(".") if self.form != "{}" else text


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report; `rows` hold full precision, `columns` say what is shown and how."""

    name: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    @property
    def cells(self) -> list[list[str]]:
        """All rows as text."""
        return [[column.cell(row) for column in self.columns] for row in self.rows]

    def csv(self) -> str:
        """Comma-separated values with full precision; empty where there is no value."""
        return pd.DataFrame(list(self.rows)).to_csv(index=False)

    def latex(self) -> str:
        """A `tabular` for the booktabs package."""
        layout = "".join("r" if column.form != "{}" else "l" for column in self.columns)
        lines = [
            "% " + " ".join(self.note.split()),
            f"\\begin{{tabular}}{{{layout}}}",
            "\\toprule",
            " & ".join(escape_latex(column.heading) for column in self.columns) + " \\\\",
            "\\midrule",
            *(" & ".join(escape_latex(cell) for cell in cells) + " \\\\" for cells in self.cells),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        return "\n".join(lines) + "\n"


_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "<": "\\textless{}",
        ">": "\\textgreater{}",
        "°": "\\textdegree{}",
        "–": "--",
        "\n": " ",
        "[": "{[}",  # a bracket after a line's end would be read as its argument
        "]": "{]}",
    }
)


def escape_latex(text: str) -> str:
    """The text with every character that LaTeX gives a meaning made literal."""
    return text.translate(_LATEX)


def headline(views: Sequence[RunView]) -> Table:
    """What each strategy saves and what it costs in quality."""
    columns = [
        *_names(views),
        Column("energy_j_per_token", "energy [J/token]", "{:#.4g}", ends=True),
        Column("energy_saved_pct", "energy saved [%]", "{:.2f}", ends=True),
        Column("perplexity", "perplexity", "{:#.4g}"),
        Column("perplexity_change_pct", "perplexity change [%]", "{:+.2f}", ends=True),
        Column("kind", "kind"),
        *([Column("limits", "limits")] if _has_limits(views) else []),
    ]
    note = (
        "Kind is that of the energy. Changes are against baseline, paired by batch; "
        "brackets hold 90 % bootstrap intervals. "
    )
    return Table("strategies", "Strategies", note + bases(views), columns, _rows(views, _headline_row))


def details(views: Sequence[RunView]) -> Table:
    """Everything else that summary.json holds."""
    columns = [
        *_names(views),
        Column("distinct_experts_mean", "distinct experts", "{:.2f}"),
        Column("gate_mass_mean", "gate mass kept", "{:.3f}"),
        Column("bits_mean", "bits", "{:.1f}"),
        Column("power_w_mean", "mean power [W]", "{:.0f}"),
        Column("temp_c_peak", "peak [°C]", "{:.1f}"),
        Column("latency_ms_mean", "step mean [ms]", "{:#.3g}"),
        Column("latency_ms_p90", "p90 [ms]", "{:#.3g}"),
        Column("latency_ms_p99", "p99 [ms]", "{:#.3g}"),
        Column("tokens_per_s", "tokens/s", "{:.0f}"),
        Column("routing_overhead_pct", "routing overhead [%]", "{:.2f}"),
        Column("kind", "kind"),
    ]
    note = "Kind says where power, temperature, latency and throughput come from. "
    return Table("details", "Routing and hardware", note + bases(views), columns, _rows(views, _detail_row))


def tests(views: Sequence[RunView]) -> Table:
    """Significance and effect size of the changes against baseline."""
    columns = [
        *_names(views),
        Column("quantity", "quantity"),
        Column("change_pct", "change [%]", "{:+.2f}", ends=True),
        Column("num_units", "batches", "{:d}"),
        Column("p_value", "p", "{:.2g}"),
        Column("p_holm", "p (Holm)", "{:.2g}"),
        Column("cliffs_delta", "Cliff's delta", "{:+.2f}"),
        Column("cohens_dz", "Cohen's d (paired)", "{:+.3g}"),
        Column("kind", "kind"),
    ]
    note = (
        "Two-sided sign-flip permutation test on differences per batch (seeds pooled), Holm-adjusted over the "
        "strategies of a workload; with n batches no p-value can fall under 2 to the power of 1 - n. "
    )
    rows = [row for view in views for c in view.comparisons for row in _test_rows(view, c)]
    return Table("tests", "Significance and effect size", note + bases(views), columns, rows)


def energy_estimates(views: Sequence[RunView]) -> Table:
    """Both recorded energies, how far they disagree, the highest batch, and how far the prediction was off."""
    columns = [
        *_names(views),
        Column("counter_j_per_token", "counter [J/token]", "{:#.4g}"),
        Column("integrated_j_per_token", "integrated power [J/token]", "{:#.4g}"),
        Column("disagreement_pct", "integrated - counter [%]", "{:+.2f}"),
        Column("peak_j_per_token", "highest batch [J/token]", "{:#.4g}"),
        Column("kind", "kind"),
        Column("predicted_j_per_token", "predicted [J/token]", "{:#.4g}"),
        Column("prediction_error_pct", "predicted - counter [%]", "{:+.2f}"),
    ]
    note = "The column predicted comes from the cost model that the router uses, not from a sensor or the twin. "
    return Table("energy_estimates", "Energy estimates", note + bases(views), columns, _rows(views, _estimate_row))


ALL: tuple[Callable[[Sequence[RunView]], Table], ...] = (headline, details, tests, energy_estimates)


def _names(views: Sequence[RunView]) -> list[Column]:
    names = [Column("workload", "workload"), Column("strategy", "strategy")]
    return [Column("run", "run"), *names] if len(views) > 1 else names


def bases(views: Sequence[RunView]) -> str:
    """Kind and pricing of every run, in words."""
    if len(views) == 1:
        return f"Hardware figures: {views[0].basis}."
    return "Hardware figures: " + "; ".join(f"{view.label}: {view.basis}" for view in views) + "."


def _rows(views: Sequence[RunView], fill: Callable[[RunView, str, str, Row], Row]) -> list[Row]:
    return [
        {"run": view.label, "workload": workload, "strategy": strategy} | fill(view, workload, strategy, dict(figures))
        for view in views
        for workload in view.workloads
        for strategy in view.strategies
        if (figures := view.figures_of(workload, strategy)) is not None
    ]


def _headline_row(view: RunView, workload: str, strategy: str, figures: Row) -> Row:
    found = view.comparison(workload, strategy)
    energy = figures["energy_j_per_token"]
    saved = reduction(found.energy.change_pct) if found and found.energy else None
    change = found.perplexity.change_pct if found and found.perplexity else None
    if change is None and figures["perplexity_change_pct"] is not None:
        change = Interval(figures["perplexity_change_pct"], None, None)
    return {
        **_spread("energy_j_per_token", Interval(energy["value"], energy["low"], energy["high"])),
        **_spread("energy_saved_pct", saved),
        "perplexity": figures["perplexity"],
        **_spread("perplexity_change_pct", change),
        "kind": energy["kind"],
        "limits": told(figures["limits"]),
    }


def _has_limits(views: Sequence[RunView]) -> bool:
    """Whether any strategy of any run was asked to hold something."""
    entries = (view.figures_of(w, s) for view in views for w in view.workloads for s in view.strategies)
    return any(entry["limits"] for entry in entries if entry is not None)


def _detail_row(view: RunView, workload: str, strategy: str, figures: Row) -> Row:
    same = ("distinct_experts_mean", "gate_mass_mean", "bits_mean", "power_w_mean", "temp_c_peak", "tokens_per_s")
    latency = {f"latency_ms_{name}": value for name, value in figures["latency_ms"].items()}
    overhead = {"routing_overhead_pct": figures["routing_overhead_pct"]}
    return {name: figures[name] for name in same} | latency | overhead | {"kind": view.kind}


def _test_rows(view: RunView, found: Comparison) -> list[Row]:
    def row(quantity: str, kind: str | None, paired: Paired) -> Row:
        names = {"run": view.label, "workload": found.workload, "strategy": found.strategy, "quantity": quantity}
        numbers = {k: getattr(paired, k) for k in ("num_units", "p_value", "p_holm", "cliffs_delta", "cohens_dz")}
        return names | _spread("change_pct", paired.change_pct) | numbers | {"kind": kind}

    rows = []
    if found.energy:
        rows.append(row("energy per token", found.energy_kind, found.energy))
    if found.perplexity:
        rows.append(row("perplexity", "computed", found.perplexity))
    return rows


def _estimate_row(view: RunView, workload: str, strategy: str, figures: Row) -> Row:
    arm = view.arm("batches", workload, strategy)
    arm = arm[arm["num_tokens"] > 0]
    per_token = {
        "counter_j_per_token": _per_token(arm, "energy_j"),
        "integrated_j_per_token": _per_token(arm, "energy_j_integrated"),
        "predicted_j_per_token": _per_token(arm, "predicted_energy_j"),
    }
    highest = (arm["energy_j"] / arm["num_tokens"]).max() if len(arm) else None
    return per_token | {
        "disagreement_pct": _off_pct(arm, "energy_j_integrated"),
        "prediction_error_pct": _off_pct(arm, "predicted_energy_j"),
        "peak_j_per_token": None if pd.isna(highest) else float(highest),
        "kind": next(iter(arm["energy_kind"].dropna()), None),
    }


def _per_token(arm: pd.DataFrame, column: str) -> float | None:
    known = arm[arm[column].notna()]
    return float(known[column].sum() / known["num_tokens"].sum()) if len(known) else None


def _off_pct(arm: pd.DataFrame, column: str) -> float | None:
    """How far a column lies over the counter, over the batches that have both [%]."""
    known = arm[arm[column].notna() & (arm["energy_j"] > 0)]
    return 100.0 * float(known[column].sum() / known["energy_j"].sum() - 1.0) if len(known) else None


def _spread(key: str, interval: Interval | None) -> Row:
    value, low, high = interval if interval is not None else (None, None, None)
    return {key: value, f"{key}_low": low, f"{key}_high": high}
