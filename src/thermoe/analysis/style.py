"""How every figure looks: fonts, one colour and marker per strategy, the stamp that says the kind.

Ink, grid and paper are colours of their own so that the page can replace them by its theme's.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID, PAPER = "#1c1d1f", "#d5d6d8", "#fefefe"
WIDTH_IN = 7.2

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "text.parse_math": False,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "image.cmap": "cividis",
}


class Look(NamedTuple):
    """Colour, marker and line of one series."""

    color: str
    marker: str
    line: str


# Okabe and Ito's colours, readable with any colour vision, on white and on dark alike; grey for the reference.
_LOOKS = {
    "baseline": Look("#8a8d91", "s", "-"),
    "static_optimal": Look("#cc79a7", "^", "--"),
    "kernel_aware": Look("#2a86c8", "o", "-"),
    "kernel_aware_ttha": Look("#d55e00", "D", "-"),
    "opportunistic": Look("#009e73", "v", "-"),
    "gate_mass": Look("#e69f00", "P", "--"),
    "expert_skipping": Look("#56b4e9", "X", "-."),
    "top_p": Look("#a39322", "<", ":"),
}
_OTHERS = [Look(c, m, s) for c, m, s in zip(["#aa4499", "#44aa99", "#999933", "#882255"], "hp>d", "-:-:", strict=True)]


def look_of(name: str, names: Sequence[str]) -> Look:
    """The look of a strategy; names the program does not know take spare ones in their order."""
    if name in _LOOKS:
        return _LOOKS[name]
    others = [n for n in names if n not in _LOOKS]
    return _OTHERS[others.index(name) % len(_OTHERS)] if name in others else _OTHERS[0]


def workload_look(index: int) -> Look:
    """The look of the index-th workload, where lines are workloads."""
    return list(_LOOKS.values())[1:][index % (len(_LOOKS) - 1)]


def panels(num_panels: int, *, height_in: float, columns: int = 2, **subplots: Any) -> tuple[Figure, list[Axes]]:
    """A figure of panels in reading order, as wide as a page; panels that are not needed are removed."""
    columns = min(columns, num_panels)
    rows = math.ceil(num_panels / columns)
    figure = Figure(figsize=(WIDTH_IN, height_in * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **subplots)
    axes: list[Axes] = list(grid.flat)
    for spare in axes[num_panels:]:
        spare.remove()
    return figure, axes[:num_panels]


def label_outer(axes: Sequence[Axes], xlabel: str, ylabel: str = "", columns: int = 2) -> None:
    """Label the x axis of panels with none below them and the y axis of those in the first column."""
    for index, ax in enumerate(axes):
        if index + columns >= len(axes):
            ax.set_xlabel(xlabel)
        if index % columns == 0:
            ax.set_ylabel(ylabel)


def stamp(figure: Figure, text: str) -> None:
    """Write at the top what kind the figure's numbers are."""
    figure.suptitle(shorten(text, 130), x=0.008, ha="left", fontsize=7.5)


def shared_legend(figure: Figure, axes: Sequence[Axes], columns: int = 4) -> None:
    """One legend under all panels, each series once."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(columns, len(entries)))


def significant(value: float, digits: int = 3) -> str:
    """The value with that many significant digits, trailing zeros kept."""
    return f"{value:#.{digits}g}".rstrip(".")


def shorten(text: str, length: int = 28) -> str:
    """The text in one line, cut in the middle where it is too long for its place."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
