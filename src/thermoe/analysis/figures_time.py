"""Figures over time and the distribution of step latencies; long series are thinned to bin means."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from thermoe.analysis.style import label_outer, look_of, panels, shared_legend, shorten, stamp
from thermoe.analysis.view import HARDWARE, RunView
from thermoe.types import FloatArray

_MAX_POINTS = 160
Series = tuple[FloatArray, FloatArray]


def power_over_time(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Board power of each arm."""
    return _over_time(views[0], "power_w", "power [W]", "Board power in watts")


def temperature_over_time(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Core temperature of each arm."""
    return _over_time(views[0], "temp_c", "core temperature [°C]", "Core temperature in degrees Celsius")


def _over_time(view: RunView, column: str, label: str, words: str) -> tuple[Figure, str] | None:
    def series(workload: str, strategy: str) -> Series | None:
        for table in ("telemetry", "steps"):
            found = time_series(view.arm(table, workload, strategy), column)
            if found is not None:
                return found
        return None

    drawn = lines(view, series, "time in the arm [s]", label)
    if drawn is None:
        return None
    figure, highest = drawn
    return figure, (
        f"{words} over the time of each arm in seconds (its batches joined, one seed, means over bins): "
        f"the highest value drawn is {highest[0]:.4g}, of {highest[2]} on {highest[1]}."
    )


def latency_distribution(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Empirical distribution of step latencies."""
    view = views[0]

    def series(workload: str, strategy: str) -> Series | None:
        latency_ms = 1e3 * view.arm("steps", workload, strategy)["latency_s"].dropna().to_numpy(np.float64)
        if not len(latency_ms):
            return None
        share = np.linspace(0.0, 1.0, min(_MAX_POINTS, len(latency_ms) + 1))
        return np.quantile(latency_ms, share), 100.0 * share

    drawn = lines(view, series, "latency of a step [ms]", "share of steps [%]")
    if drawn is None:
        return None
    steps = view.run.tables["steps"]["latency_s"].dropna()
    return drawn[0], (
        f"Share of steps in per cent that took no longer than a latency in milliseconds: over all arms the median is "
        f"{1e3 * steps.median():.3g} ms and the longest step {1e3 * steps.max():.3g} ms."
    )


def lines(
    view: RunView, series: Callable[[str, str], Series | None], xlabel: str, ylabel: str, what: str = HARDWARE
) -> tuple[Figure, tuple[float, str, str]] | None:
    """One panel per workload, one line per strategy.

    Returns:
        The figure, and the highest value drawn with its workload and strategy; None without any series.
    """
    found = {
        (workload, strategy): values
        for workload in view.workloads
        for strategy in view.strategies
        if (values := series(workload, strategy)) is not None
    }
    if not found:
        return None
    workloads = list(dict.fromkeys(workload for workload, _ in found))
    figure, axes = panels(len(workloads), height_in=2.1)
    for ax, workload in zip(axes, workloads, strict=True):
        for (name, strategy), (x, y) in found.items():
            if name == workload:
                look = look_of(strategy, view.strategies)
                marker = look.marker if len(x) == 1 else None
                ax.plot(x, y, color=look.color, linestyle=look.line, marker=marker, label=strategy)
        ax.set_title(shorten(workload, 40), loc="left")
    label_outer(axes, xlabel, ylabel)
    stamp(figure, f"{what}: {view.basis}")
    shared_legend(figure, axes)
    return figure, max((float(y.max()), *arm) for arm, (_, y) in found.items())


def time_series(arm: pd.DataFrame, column: str) -> Series | None:
    """Time since the arm began [s] and bin means of a column, for the arm's first seed.

    Batches are joined end to end: between them other arms may have run, or the clock may have
    started anew after a resumed run.
    """
    known = arm[arm[column].notna() & arm["time_s"].notna()]
    if known.empty:
        return None
    known = known[known["seed"] == known["seed"].min()].sort_values(["batch_index", "time_s"], kind="stable")
    time_s, batch = known["time_s"].to_numpy(np.float64), known["batch_index"].to_numpy()
    elapsed = np.diff(time_s, prepend=time_s[0])
    first = np.diff(batch, prepend=batch[0]) != 0
    usual = float(np.median(elapsed[1:][~first[1:]])) if (~first[1:]).any() else 0.0
    elapsed[first] = usual
    return bin_means(elapsed.cumsum(), known[column].to_numpy(np.float64))


def bin_means(x: FloatArray, y: FloatArray, max_points: int = _MAX_POINTS) -> Series:
    """The series itself, or means over at most `max_points` runs of neighbours."""
    if len(x) <= max_points:
        return x, y
    edges = np.linspace(0, len(x), max_points + 1).astype(np.int64)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes
