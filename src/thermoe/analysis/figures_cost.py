"""Figures of what strategies cost and save: energy per token, Pareto fronts, overhead."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thermoe.analysis.statistics import Interval, pareto_front, reduction
from thermoe.analysis.style import INK, label_outer, look_of, panels, shared_legend, shorten, significant, stamp
from thermoe.analysis.summary import REFERENCE
from thermoe.analysis.view import HARDWARE, RunView

_RUN_MARKERS = "os^Dv<>P"


class Arm(NamedTuple):
    """One strategy on one workload of one run, with the panel it is drawn in."""

    panel: tuple[str, str]
    view: RunView
    run_index: int
    workload: str
    strategy: str
    figures: dict[str, Any]

    @property
    def energy(self) -> Interval | None:
        """Energy per token [J]."""
        e = self.figures["energy_j_per_token"]
        return None if e["value"] is None else Interval(e["value"], e["low"], e["high"])


def arms(views: Sequence[RunView]) -> Iterator[Arm]:
    """All arms of all runs; those of one workload, model, kind and pricing share a panel."""
    for index, view in enumerate(views):
        for workload in view.workloads:
            for strategy in view.strategies:
                figures = view.figures_of(workload, strategy)
                if figures is not None:
                    kind = figures["energy_j_per_token"]["kind"] or view.kind
                    yield Arm((workload, view.basis_of(kind)), view, index, workload, strategy, dict(figures))


def energy_per_token(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Bars of energy per token with their intervals."""
    rows = [(arm, energy) for arm in arms(views) if (energy := arm.energy) is not None]
    drawn = _bars(rows, views, "energy per token [J]", significant)
    if drawn is None:
        return None
    least, energy = min(rows, key=lambda row: row[1].value)
    return drawn, (
        f"Energy per token in joules, whiskers are 90 % bootstrap intervals over batches: the least is "
        f"{significant(energy.value)} J with {least.strategy} on {least.workload}."
    )


def energy_saved(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Bars of the paired reduction of energy per token against baseline."""
    rows: list[tuple[Arm, Interval]] = []
    for arm in arms(views):
        found = arm.view.comparison(arm.workload, arm.strategy)
        if found is not None and found.energy is not None:
            rows.append((arm, reduction(found.energy.change_pct)))
    drawn = _bars(rows, views, "energy per token saved [%]", "{:.1f}".format)
    if drawn is None:
        return None
    best, saved = max(rows, key=lambda row: row[1].value)
    return drawn, (
        f"Share of baseline's energy per token that each strategy saves in per cent, paired by batch, with 90 % "
        f"intervals: the most is {saved.value:.1f} % with {best.strategy} on {best.workload}."
    )


def perplexity_against_energy(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Perplexity over energy per token with the Pareto front."""
    drawn = _fronts(views, lambda arm: arm.figures["perplexity"], "perplexity")
    return drawn and (
        drawn[0],
        (
            "Perplexity (computed on the model itself) against energy per token in joules, lower left is better; "
            f"the line is the Pareto front, which holds {drawn[1]}."
        ),
    )


def latency_against_energy(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Mean step latency over energy per token with the Pareto front."""
    drawn = _fronts(views, _latency_of_same_kind, "mean step latency [ms]")
    return drawn and (
        drawn[0],
        (
            "Mean latency of a step in milliseconds against energy per token in joules, lower left is better; "
            f"the line is the Pareto front, which holds {drawn[1]}."
        ),
    )


def _latency_of_same_kind(arm: Arm) -> float | None:
    latency_ms: float | None = arm.figures["latency_ms"]["mean"]
    return latency_ms if arm.figures["energy_j_per_token"]["kind"] == arm.view.kind else None


def routing_overhead(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Bars of host time spent on routing and adapting."""
    rows: list[tuple[Arm, Interval]] = []
    for arm in arms(views):
        batches = arm.view.arm("batches", arm.workload, arm.strategy)
        spent = batches[["routing_overhead_s", "adaptation_overhead_s"]].sum(axis=1, min_count=1)
        known = spent.notna() & (batches["wall_s"] > 0)
        if known.any():
            share = 100.0 * float(spent[known].sum() / batches.loc[known, "wall_s"].sum())
            rows.append((arm, Interval(share, None, None)))
    drawn = _bars(
        rows, views, "routing and adapting, share of wall time [%]", "{:.2g}".format, kind="measured on the host; "
    )
    if drawn is None:
        return None
    most, highest = max(rows, key=lambda row: row[1].value)
    return drawn, (
        "Host time spent on routing and adapting in per cent of the wall time of the run: the most is "
        f"{highest.value:.2g} % with {most.strategy} on {most.workload}."
    )


def _bars(
    rows: Sequence[tuple[Arm, Interval]],
    views: Sequence[RunView],
    label: str,
    form: Callable[[float], str],
    kind: str = "",
) -> Figure | None:
    titles = list(dict.fromkeys(arm.panel for arm, _ in rows))
    if not titles:
        return None
    most = max(sum(arm.panel == title for arm, _ in rows) for title in titles)
    is_wide = len(views) > 1 or max(len(arm.strategy) for arm, _ in rows) > 22
    columns = 1 if is_wide else 2
    counts = [sum(arm.panel == title for arm, _ in rows) if is_wide else most for title in titles]
    heights = {"height_ratios": [1.5 + count for count in counts]} if is_wide else {}
    height_in = 0.55 + 0.19 * sum(counts) / len(counts)
    figure, axes = panels(len(titles), height_in=height_in, columns=columns, **heights)
    for ax, title, count in zip(axes, titles, counts, strict=True):
        inside = [(arm, value) for arm, value in rows if arm.panel == title]
        _bar_panel(ax, inside, views, form)
        ax.set_ylim(count - 0.4, -0.6)
        ax.set_title(_panel_title(title, titles, width=46 * (3 - columns)), loc="left")
    label_outer(axes, label, columns=columns)
    stamp(figure, f"{kind}{_stamp_text(titles)}")
    return figure


def _bar_panel(
    ax: Axes, rows: Sequence[tuple[Arm, Interval]], views: Sequence[RunView], form: Callable[[float], str]
) -> None:
    names = [f"{arm.strategy} · {shorten(arm.view.label, 18)}" if len(views) > 1 else arm.strategy for arm, _ in rows]
    for y, (arm, value) in enumerate(rows):
        ax.barh(y, value.value, height=0.68, color=look_of(arm.strategy, arm.view.strategies).color)
        tip = max(value.value, 0.0)
        if value.low is not None and value.high is not None:
            ax.plot([value.low, value.high], [y, y], color=INK, linewidth=1.0)
            ax.plot([value.low, value.high], [y, y], color=INK, linestyle="none", marker="|", markersize=4)
            tip = max(tip, value.high)
        ax.annotate(form(value.value), (tip, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set_yticks(range(len(names)), [shorten(name, 40) for name in names])
    ax.margins(x=0.16)
    ax.grid(visible=False, axis="y")
    ax.axvline(0.0, color=INK, linewidth=0.7)


def _fronts(views: Sequence[RunView], quantity: Callable[[Arm], float | None], label: str) -> tuple[Figure, str] | None:
    known = [(arm, e, y) for arm in arms(views) if (e := arm.energy) is not None and (y := quantity(arm)) is not None]
    titles = list(dict.fromkeys(arm.panel for arm, _, _ in known))
    if not titles:
        return None
    figure, axes = panels(len(titles), height_in=2.4)
    on_front: dict[str, None] = {}
    for ax, title in zip(axes, titles, strict=True):
        inside = [row for row in known if row[0].panel == title]
        for arm, energy, y in inside:
            _point(ax, arm, energy, y, len(views))
        points = np.array([(energy.value, y) for _, energy, y in inside])
        front = pareto_front(points)
        on_front |= dict.fromkeys(row[0].strategy for row, is_on in zip(inside, front, strict=True) if is_on)
        line = points[front][np.argsort(points[front][:, 0])]
        ax.step(line[:, 0], line[:, 1], where="post", color=INK, linewidth=0.8, zorder=1.5, label="Pareto front")
        ax.margins(0.12)
        ax.ticklabel_format(useOffset=False)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.set_title(_panel_title(title, titles), loc="left")
    label_outer(axes, "energy per token [J]", label)
    stamp(figure, _stamp_text(titles))
    shared_legend(figure, axes)
    return figure, ", ".join(on_front)


def _point(ax: Axes, arm: Arm, energy: Interval, y: float, num_runs: int) -> None:
    look = look_of(arm.strategy, arm.view.strategies)
    marker = look.marker if num_runs == 1 else _RUN_MARKERS[arm.run_index % len(_RUN_MARKERS)]
    name = arm.strategy if num_runs == 1 else f"{arm.strategy} · {shorten(arm.view.label, 18)}"
    if energy.low is not None and energy.high is not None:
        ax.plot([energy.low, energy.high], [y, y], color=look.color, linewidth=1.2, alpha=0.7)
    edge = INK if arm.strategy == REFERENCE else "none"
    ax.plot(
        energy.value, y, marker=marker, color=look.color, markersize=6, linestyle="none", label=name,
        markeredgecolor=edge, markeredgewidth=0.7,
    )  # fmt: skip


def _panel_title(panel: tuple[str, str], panels_: Sequence[tuple[str, str]], width: int = 46) -> str:
    """The workload; where panels differ in kind, pricing or model, that too."""
    several = len({basis for _, basis in panels_}) > 1
    workload = shorten(panel[0], 40)
    return "\n".join([workload, *textwrap.wrap(panel[1], width)]) if several else workload


def _stamp_text(titles: Sequence[tuple[str, str]]) -> str:
    bases = list(dict.fromkeys(basis for _, basis in titles))
    return f"{HARDWARE}: " + (bases[0] if len(bases) == 1 else "kind and pricing stand over each panel")
