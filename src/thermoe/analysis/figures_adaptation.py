"""Figures of adaptation: every term of the loss, the price and the target over time."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from thermoe.analysis.figures_time import Series, bin_means, lines
from thermoe.analysis.schema import LOSS_COLUMNS
from thermoe.analysis.style import label_outer, look_of, panels, shared_legend, stamp, workload_look
from thermoe.analysis.view import HARDWARE, RunView


def adaptation_losses(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """One panel per term of the loss that was logged, one line per adapting strategy and workload."""
    view = views[0]
    found: dict[str, dict[tuple[str, str], Series]] = {}
    for term in LOSS_COLUMNS:
        for workload in view.workloads:
            for strategy in view.strategies:
                values = by_step(view, workload, strategy, term)
                if values is not None:
                    found.setdefault(term, {})[strategy, workload] = values
    if not found:
        return None
    several = len({strategy for arms in found.values() for strategy, _ in arms}) > 1
    figure, axes = panels(len(found), height_in=1.5, columns=3)
    for ax, (term, arms) in zip(axes, found.items(), strict=True):
        for (strategy, workload), (x, y) in arms.items():
            color = workload_look(view.workloads.index(workload)).color
            line = look_of(strategy, view.strategies).line if several else "-"
            ax.plot(x, y, color=color, linestyle=line, label=f"{strategy} on {workload}")
        ax.set_title(term, loc="left")
    label_outer(axes, "step", columns=3)
    stamp(figure, f"losses as logged by the control plane; {HARDWARE}: {view.basis}")
    shared_legend(figure, axes, columns=2)
    return figure, (
        f"The {len(found)} logged terms of the adaptation loss (as the adapter logs them) over the steps of "
        f"the arm, first seed, means over bins{_fall(found)}."
    )


def _fall(found: dict[str, dict[tuple[str, str], Series]]) -> str:
    """What became of the total, where it was logged."""
    totals = found.get("loss_total")
    if not totals:
        return ""
    (strategy, workload), (_, y) = next(iter(totals.items()))
    tenth = max(len(y) // 10, 1)
    return (
        f": with {strategy} on {workload} the total goes from {y[:tenth].mean():.3g} in the first tenth "
        f"to {y[-tenth:].mean():.3g} in the last"
    )


def price_over_time(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """The price of loading an expert, for the strategies that set one."""
    view = views[0]

    def series(workload: str, strategy: str) -> Series | None:
        values = by_step(view, workload, strategy, "price")
        return values if values is not None and np.any(values[1]) else None

    drawn = lines(
        view, series, "step", "price [value per unit of cost]", what="price set by the control plane; hardware"
    )
    if drawn is None:
        return None
    figure, (highest, workload, strategy) = drawn
    return figure, (
        "Price of loading one unit of expert cost, in units of routing value, over the steps of the arm (first seed, "
        f"means over bins): the highest is {highest:.3g}, of {strategy} on {workload}."
    )


def by_step(view: RunView, workload: str, strategy: str, column: str) -> Series | None:
    """Step number and bin means of a column of `steps`, for the arm's first seed."""
    rows = view.arm("steps", workload, strategy)
    rows = rows[rows[column].notna() & rows["step"].notna()]
    if rows.empty:
        return None
    rows = rows[rows["seed"] == rows["seed"].min()].sort_values("step", kind="stable")
    return bin_means(rows["step"].to_numpy(np.float64), rows[column].to_numpy(np.float64))
