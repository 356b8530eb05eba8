"""Figures of cost against shape, tokens, touched experts and bits."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thermoe.analysis.costs.names import has_experts, shape_name, tokens_name
from thermoe.analysis.costs.scales import log_scale
from thermoe.analysis.costs.series import (
    LOOKS,
    RANDOM_WITHIN,
    Quantity,
    at_random,
    can_predict,
    grouped,
    quantities,
)
from thermoe.analysis.costs.view import Source
from thermoe.analysis.style import panels, shared_legend, shorten, stamp
from thermoe.cost.cases import DTYPE_BITS
from thermoe.cost.rows import CostRow

MOST_SHAPES = 24
_TOKEN_CLASSES = ((1, "1"), (16, "2 to 16"), (128, "17 to 128"), (1024, "129 to 1024"), (2**62, "over 1024"))

Drawn = tuple[Figure, str] | None


def against_shape(source: Source, op: str) -> Drawn:
    """Every row of each shape, colours by the number of tokens."""
    rows = source.of_op(op)
    by_shape: dict[str, list[CostRow]] = {}
    for row in rows:
        by_shape.setdefault(shape_name(row), []).append(row)
    if len(by_shape) < 2:
        return None
    names = sorted(by_shape, key=lambda n: -len(by_shape[n]))[:MOST_SHAPES]
    names.sort(key=lambda n: float(np.median([r.latency_us for r in by_shape[n]])))
    shown = quantities(rows)
    figure, axes = panels(len(shown), height_in=0.6 + 0.17 * len(names), sharey=True)
    for ax, quantity in zip(axes, shown, strict=True):
        for number, (most, label) in enumerate(_TOKEN_CLASSES):
            least = _TOKEN_CLASSES[number - 1][0] if number else 0
            look = LOOKS[number]
            points = [
                (value[0], place + 0.13 * (number - 2))
                for place, name in enumerate(names)
                for r in by_shape[name]
                if least < r.tokens <= most and (value := quantity.of(r)) is not None
            ]
            if points:
                x, y = zip(*points, strict=True)
                ax.plot(x, y, look.marker, color=look.color, markersize=4, alpha=0.75, markeredgewidth=0, label=label)
        ax.set_yticks(range(len(names)), [shorten(name, 30) for name in names])
        ax.set_ylim(-0.7, len(names) - 0.3)
        ax.set_xlabel(quantity.label)
        log_scale(ax, x=True)
    shared_legend(figure, axes, columns=5)
    stamp_rows(figure, source, rows)
    left = len(by_shape) - len(names)
    return figure, (
        f"Cost of {op} by shape, the cheapest below; colours and markers tell the number of {tokens_name(op)}. "
        f"Every point is a row{f'; {left} shapes with fewer rows are not shown' if left else ''}."
    )


def against_tokens(source: Source, op: str) -> Drawn:
    """Lines over the number of tokens, a shape, implementation and format each."""
    rows = at_random(source.of_op(op)) if has_experts(op) else source.of_op(op)
    name = tokens_name(op)
    drawn = _lines(source, rows, _full_name, lambda r: float(r.tokens), name)
    experts = (
        f", where batches touch the experts that random routing would, within {100 * RANDOM_WITHIN:.0f} %"
        if has_experts(op)
        else ""
    )
    return drawn and (drawn[0], f"Cost of {op} against {name}{experts}. {drawn[1]}")


def against_experts(source: Source, op: str) -> Drawn:
    """Lines over the number of distinct experts, everything else the same."""
    if not has_experts(op):
        return None

    def name(row: CostRow) -> str:
        load = "" if row.load == "random" else f" {row.load}"
        return f"{_full_name(row)}, {row.routed_rows} rows{load}"

    drawn = _lines(source, source.of_op(op), name, lambda r: float(r.active_experts), "distinct experts touched")
    return drawn and (drawn[0], f"Cost of {op} against the experts that a batch touches, rows the same. {drawn[1]}")


def against_bits(source: Source, op: str) -> Drawn:
    """Lines over the formats, everything else the same."""
    rows = source.of_op(op)
    formats = sorted({r.dtype for r in rows}, key=lambda d: (-DTYPE_BITS.get(d, 0.0), d.startswith("bank"), d))

    def name(row: CostRow) -> str:
        load = "" if row.load == "random" else f" {row.load}"
        places = f", {row.active_experts} experts" if has_experts(op) else ""
        return f"{shape_name(row)} {row.impl}, {row.routed_rows} rows{places}{load}"

    drawn = _lines(source, rows, name, lambda r: float(formats.index(r.dtype)), "format of the weights", formats)
    return drawn and (
        drawn[0],
        f"Cost of {op} against the format of the weights, the most bits on the left. {drawn[1]}",
    )


def _lines(
    source: Source,
    rows: Sequence[CostRow],
    name: Callable[[CostRow], str],
    x_of: Callable[[CostRow], float],
    xlabel: str,
    categories: Sequence[str] = (),
) -> Drawn:
    series, beyond = grouped(rows, name, x_of)
    if not series:
        return None
    drawn_rows = [r for mine in series.values() for r in mine]
    shown = quantities(drawn_rows)
    figure, axes = panels(len(shown), height_in=2.6)
    for ax, quantity in zip(axes, shown, strict=True):
        for look, (label, mine) in zip(LOOKS, series.items(), strict=False):
            _line(ax, quantity, mine, x_of, label, look.color, look.marker, ":" if categories else "-")
            if not categories:
                _predicted(ax, source, quantity, mine, x_of, look.color)
        ax.set_ylabel(quantity.label)
        ax.set_xlabel(xlabel)
        if categories:
            ax.set_xticks(range(len(categories)), list(categories), rotation=30 if len(categories) > 5 else 0)
            ax.set_xlim(-0.5, len(categories) - 0.5)
        log_scale(ax, x=not categories, y=True, counts=True)
    shared_legend(figure, axes, columns=2)
    stamp_rows(figure, source, rows)
    return figure, _line_caption(source, [] if categories else drawn_rows, beyond)


def _line(
    ax: Axes,
    quantity: Quantity,
    rows: Sequence[CostRow],
    x_of: Callable[[CostRow], float],
    label: str,
    color: str,
    marker: str,
    line: str,
) -> None:
    """Points with their spread, joined at the median of each place."""
    values = [(x_of(r), *v) for r in rows if (v := quantity.of(r)) is not None]
    if not values:
        return
    x = np.array([v[0] for v in values])
    y = np.array([v[1] for v in values])
    low, high = (np.array([v[i] if v[i] is not None else v[1] for v in values], dtype=float) for i in (2, 3))
    ax.errorbar(x, y, [y - low, high - y], fmt=marker, color=color, markersize=3.5, elinewidth=0.8, label=label)
    places = np.unique(x)
    ax.plot(places, [float(np.median(y[x == place])) for place in places], line, color=color, linewidth=0.8)


def _predicted(
    ax: Axes, source: Source, quantity: Quantity, rows: Sequence[CostRow], x_of: Callable[[CostRow], float], color: str
) -> None:
    """The model's prediction for the same rows, with its interval."""
    if source.model is None or not all(can_predict(source.model, r) for r in rows):
        return
    x = np.array([x_of(r) for r in rows])
    _, first = np.unique(x, return_index=True)
    kept = [rows[i] for i in first]
    if len(kept) < 2 or not any(quantity.of(r) is not None for r in rows):
        return
    value, half = (np.array(v) for v in quantity.predicted(source.model, kept))
    ax.plot(x[first], value, color=color, linewidth=1.0, linestyle=(0, (4, 2)))
    if np.isfinite(half).all():
        ax.fill_between(x[first], value * np.exp(-half), value * np.exp(half), color=color, alpha=0.12, linewidth=0)


def _line_caption(source: Source, rows: Sequence[CostRow], beyond: int) -> str:
    words = ["Whiskers span the 5th to 95th percentile of rounds, and of energy the span of its windows."]
    if any(can_predict(source.model, r) for r in rows):
        words.append("Dashed: predicted for the same rows, with 90 % intervals.")
    if beyond:
        words.append(f"{beyond} more series with fewer places are not shown.")
    return " ".join(words)


def _full_name(row: CostRow) -> str:
    context = f", context {row.context}" if row.context > 1 else ""
    return f"{shape_name(row)} {row.impl} {row.dtype}{context}"


def stamp_rows(figure: Figure, source: Source, rows: Sequence[CostRow]) -> None:
    """Say at the top of a figure what its rows are, and how many."""
    joules = sum(r.energy_mj is not None for r in rows)
    stamp(figure, f"{source.label}; n = {len(rows)} rows, {joules} with energy")
