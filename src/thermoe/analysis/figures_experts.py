"""Figures of which experts are used: distinct experts by layer, usage by layer and expert, its shift."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thermoe.analysis.figures_time import Series, lines
from thermoe.analysis.style import panels, shorten, stamp
from thermoe.analysis.summary import REFERENCE
from thermoe.analysis.view import RunView
from thermoe.types import FloatArray

_COUNTED = "routing: counted in the run"


def distinct_by_layer(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Mean number of distinct experts a batch touches in each layer."""
    view = views[0]

    def series(workload: str, strategy: str) -> Series | None:
        rows = view.arm("experts", workload, strategy)
        means = rows[rows["distinct_experts_mean"].notna()].groupby("layer")["distinct_experts_mean"].mean()
        return (means.index.to_numpy(np.float64), means.to_numpy(np.float64)) if len(means) else None

    drawn = lines(view, series, "MoE layer", "distinct experts", what=f"{_COUNTED}; hardware")
    if drawn is None:
        return None
    figure, (highest, workload, strategy) = drawn
    for ax in figure.axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, (
        "Mean number of distinct experts that a step touches in each MoE layer: the highest is "
        f"{highest:.1f}, of {strategy} on {workload}."
    )


def expert_usage(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Heat maps of routed tokens, layer by expert."""
    view = views[0]
    shares = usage_shares(view)
    if not shares:
        return None
    top = max(float(np.nanpercentile(share, 99.5)) for share in shares.values())
    figure = _heat_maps(view, shares, "share of tokens [%]", "cividis", (0.0, max(top, 1e-9)))
    num_experts = next(iter(shares.values())).shape[1]
    return figure, (
        "Share of each layer's routed tokens in per cent that each expert received, all workloads pooled; "
        f"equal use would be {100.0 / num_experts:.3g} % everywhere."
    )


def expert_usage_shift(views: Sequence[RunView]) -> tuple[Figure, str] | None:
    """Heat maps of usage less that of baseline."""
    view = views[0]
    shares = usage_shares(view)
    base = shares.get(REFERENCE)
    if base is None:
        return None
    shifts = {name: s - base for name, s in shares.items() if name != REFERENCE and s.shape == base.shape}
    if not shifts:
        return None
    top = max(float(np.nanpercentile(np.abs(shift), 99.5)) for shift in shifts.values())
    moved = {name: 0.5 * float(np.nansum(np.abs(s), axis=1).mean()) for name, s in shifts.items()}
    most = max(moved, key=lambda name: moved[name])
    figure = _heat_maps(view, shifts, "change [% points]", "PuOr_r", (-max(top, 1e-9), top))
    return figure, (
        "Change of each expert's share of its layer's tokens against baseline in percentage points, all workloads "
        f"pooled: {most} moves the most, {moved[most]:.1f} % of the tokens."
    )


def usage_shares(view: RunView) -> Mapping[str, FloatArray]:
    """Per strategy (L, E) share of each layer's routed tokens [%], all workloads and seeds pooled."""
    shares = {}
    for strategy in view.strategies:
        rows = pd.concat([view.arm("experts", workload, strategy) for workload in view.workloads])
        counts = _counts(rows[rows["tokens_per_expert"].notna() & rows["layer"].notna()])
        if counts is not None:
            totals = counts.sum(axis=1, keepdims=True)
            shares[strategy] = 100.0 * np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    return shares


def _counts(rows: pd.DataFrame) -> FloatArray | None:
    """(L, E) summed tokens; layers with another number of experts than the first are left out."""
    if rows.empty:
        return None
    lists = [np.asarray(values, dtype=np.float64) for values in rows["tokens_per_expert"]]
    layers, index = np.unique(rows["layer"].to_numpy(np.int64), return_inverse=True)
    counts = np.zeros((len(layers), len(lists[0])))
    for layer, values in zip(index, lists, strict=True):
        if len(values) == counts.shape[1]:
            counts[layer] += np.nan_to_num(values)
    return counts


def _heat_maps(
    view: RunView, maps: Mapping[str, FloatArray], label: str, colors: str, limits: tuple[float, float]
) -> Figure:
    figure, axes = panels(len(maps), height_in=1.5, columns=3, sharex=True, sharey=True)
    image = None
    for ax, (strategy, values) in zip(axes, maps.items(), strict=True):
        image = ax.imshow(values, aspect="auto", interpolation="nearest", cmap=colors, vmin=limits[0], vmax=limits[1])
        ax.set_title(shorten(strategy), loc="left")
        ax.grid(visible=False)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("expert", fontsize=8)
    figure.supylabel("MoE layer", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes, label=label, pad=0.02, aspect=30, extend="max" if limits[0] == 0 else "both")
    stamp(figure, f"{_COUNTED}; hardware: {view.basis}")
    return figure
