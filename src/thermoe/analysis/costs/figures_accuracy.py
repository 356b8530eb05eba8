"""Figures of predictions against measurements: both, what lies between them, and how often intervals hold."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thermoe.analysis.costs.accuracy import covered, wilson
from thermoe.analysis.costs.figures_axes import Drawn
from thermoe.analysis.costs.scales import log_scale, percent_scale
from thermoe.analysis.costs.series import LOOKS
from thermoe.analysis.costs.view import Source
from thermoe.analysis.style import INK, panels, shared_legend, stamp
from thermoe.cost.held_out import Predictions
from thermoe.types import FloatArray

_MOST_WHISKERS = 150
_GREY = "#8a8d91"
_BAND_PCT = (85.0, 95.0)


def predicted_against_measured(source: Source) -> Drawn:
    """Both axes logarithmic, with the line on which they agree."""
    judged, of_what = source.judged
    if not judged:
        return None
    figure, axes, pairs = _panels(judged, height_in=3.1)
    for ax, (unit, measured, predicted, half) in zip(axes, pairs, strict=True):
        total = sum(int(np.isfinite(getattr(p, measured)).sum()) for p in judged.values())
        for name, look_number, parts in _series(judged):
            truth, said, wide = (np.concatenate([getattr(p, f) for p in parts]) for f in (measured, predicted, half))
            known = np.isfinite(truth) & np.isfinite(said)
            scale, look = (1e6 if unit == "µs" else 1e3), LOOKS[look_number]
            x, y, wide = truth[known] * scale, said[known] * scale, wide[known]
            ax.plot(x, y, look.marker, color=look.color, markersize=3, alpha=0.75, markeredgewidth=0, label=name)
            if total <= _MOST_WHISKERS and np.isfinite(wide).any():
                wide = np.where(np.isfinite(wide), wide, 0.0)
                reach = [y - y * np.exp(-wide), y * np.exp(wide) - y]
                ax.errorbar(x, y, reach, fmt="none", ecolor=look.color, elinewidth=0.7, alpha=0.5)
        ax.axline((1.0, 1.0), slope=1.0, color=INK, linewidth=0.8)
        ax.set_xlabel(f"measured {'latency' if unit == 'µs' else 'energy'} [{unit}]")
        ax.set_ylabel(f"predicted [{unit}]")
        _square(ax)
        log_scale(ax, x=True, y=True)
    shared_legend(figure, axes)
    _stamp(figure, source, judged)
    return figure, (
        f"Predicted against measured, {of_what}; on the line they agree. Whiskers are 90 % intervals of the "
        f"predictions, drawn where there are {_MOST_WHISKERS} rows at most."
    )


def residuals(source: Source) -> Drawn:
    """What lies between measurement and prediction, over the latency."""
    judged, of_what = source.judged
    if not judged:
        return None
    figure, axes, pairs = _panels(judged, height_in=2.7)
    rows = Predictions.joined(list(judged.values()))
    for ax, (unit, measured, predicted, half) in zip(axes, pairs, strict=True):
        truth, said, wide = (getattr(rows, f) for f in (measured, predicted, half))
        known = np.isfinite(truth) & np.isfinite(said)
        miss, inside = 100.0 * (truth / said - 1.0), covered(truth, said, wide)
        x = rows.measured_s * 1e6
        for mask, number, label in (
            (known & (inside == 1.0), 0, "inside its 90 % interval"),
            (known & (inside == 0.0), 1, "outside"),
            (known & np.isnan(inside), 5, "without an interval"),
        ):
            look = LOOKS[number]
            if mask.any():
                dots = (x[mask], miss[mask], look.marker)
                ax.plot(*dots, color=look.color, markersize=3, alpha=0.75, markeredgewidth=0, label=label)
        ax.axhline(0.0, color=INK, linewidth=0.8)
        percent_scale(ax, miss[known])
        ax.set_xlabel("measured latency [µs]")
        ax.set_ylabel(f"residual of {'latency' if unit == 'µs' else 'energy'} [%]")
        log_scale(ax, x=True)
    shared_legend(figure, axes)
    _stamp(figure, source, judged)
    return figure, (
        f"Residuals (measured over predicted − 1) against latency, {of_what}: above the line more was measured than "
        "predicted. Where they are large, the axis is linear within 10 % and logarithmic beyond."
    )


def residuals_by_operation(source: Source) -> Drawn:
    """Median, quartiles and the middle nine tenths of the residuals of each operation."""
    judged, of_what = source.judged
    if not judged:
        return None
    figure, axes, pairs = _panels(judged, height_in=0.7 + 0.2 * len(judged), sharey=True)
    names = list(judged)
    for ax, (unit, measured, predicted, _) in zip(axes, pairs, strict=True):
        everything: list[FloatArray] = []
        for place, name in enumerate(names):
            miss = 100.0 * (getattr(judged[name], measured) / getattr(judged[name], predicted) - 1.0)
            miss = miss[np.isfinite(miss)]
            if not len(miss):
                continue
            everything.append(miss)
            low, first, middle, third, high = np.percentile(miss, [5, 25, 50, 75, 95])
            ax.plot([low, high], [place, place], color=LOOKS[0].color, linewidth=0.9)
            ax.plot([first, third], [place, place], color=LOOKS[0].color, linewidth=4.0, alpha=0.6)
            ax.plot(middle, place, "o", color=INK, markersize=3)
        ax.axvline(0.0, color=INK, linewidth=0.8)
        percent_scale(ax, np.concatenate(everything), on_x=True)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel(f"residual of {'latency' if unit == 'µs' else 'energy'} [%]")
    _stamp(figure, source, judged)
    return figure, (
        f"Residuals of each operation, {of_what}: the dot is the median, the bar holds half of the rows, the line nine "
        "tenths."
    )


def coverage(source: Source) -> Drawn:
    """Share of rows inside their interval by operation, with an interval of its own."""
    judged, of_what = source.judged
    known = {op: p for op, p in judged.items() if np.isfinite(p.latency_half).any() or np.isfinite(p.energy_half).any()}
    if not known:
        return None
    figure, axes, pairs = _panels(known, height_in=0.7 + 0.2 * len(known), sharey=True)
    for ax, (unit, measured, predicted, half) in zip(axes, pairs, strict=True):
        for place, rows in enumerate(known.values()):
            inside = covered(*(getattr(rows, f) for f in (measured, predicted, half)))
            inside = inside[np.isfinite(inside)]
            if not len(inside):
                continue
            low, high = wilson(float(inside.mean()), len(inside))
            ax.plot([100 * low, 100 * high], [place, place], color=LOOKS[0].color, linewidth=1.2)
            ax.plot(100.0 * inside.mean(), place, "o", color=INK, markersize=3.5)
            ax.annotate(
                f"n {len(inside)}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=6.5
            )
        ax.axvspan(*_BAND_PCT, color=LOOKS[2].color, alpha=0.15, linewidth=0)
        ax.axvline(90.0, color=INK, linewidth=0.8)
        ax.set_xlim(0.0, 103.0)
        ax.set_yticks(range(len(known)), list(known))
        ax.set_ylim(len(known) - 0.5, -0.5)
        ax.set_xlabel(f"{'latencies' if unit == 'µs' else 'energies'} inside their 90 % interval [%]")
    _stamp(figure, source, known)
    return figure, (
        f"How often the 90 % intervals hold, {of_what}: lines are 90 % intervals of that share (Wilson), the band is "
        "85 to 95 %. Their mean half width is in the table of errors."
    )


_Pair = tuple[str, str, str, str]
_PAIRS: tuple[_Pair, _Pair] = (
    ("µs", "measured_s", "latency_s", "latency_half"),
    ("mJ", "measured_j", "energy_j", "energy_half"),
)


def _panels(
    judged: Mapping[str, Predictions], *, height_in: float, sharey: bool = False
) -> tuple[Figure, list[Axes], Sequence[_Pair]]:
    pairs = _PAIRS if any(np.isfinite(p.measured_j).any() for p in judged.values()) else _PAIRS[:1]
    figure, axes = panels(len(pairs), height_in=height_in, sharey=sharey)
    return figure, axes, pairs


def _series(judged: Mapping[str, Predictions]) -> list[tuple[str, int, list[Predictions]]]:
    """Operations with most rows first; the others are one series."""
    names = sorted(judged, key=lambda op: -len(judged[op]))
    most = len(LOOKS) if len(names) <= len(LOOKS) else len(LOOKS) - 1
    found = [(name, number, [judged[name]]) for number, name in enumerate(names[:most])]
    if names[most:]:
        found.append((f"{len(names) - most} others", most, [judged[name] for name in names[most:]]))
    return found


def _square(ax: Axes) -> None:
    """The same range on both axes."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = (f(a, b) for f, a, b in zip((min, max), ax.get_xlim(), ax.get_ylim(), strict=True))
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)


def _stamp(figure: Figure, source: Source, judged: Mapping[str, Predictions]) -> None:
    rows = sum(map(len, judged.values()))
    joules = sum(int(np.isfinite(p.measured_j).sum()) for p in judged.values())
    stamp(figure, f"measured and predicted on {source.gpu}; n = {rows} rows, {joules} with energy")
