"""The page of costs: one HTML file that loads nothing, figures as SVG and tables as CSV inside it."""

import base64
import html
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thermoe.analysis.costs import tables
from thermoe.analysis.costs.answer import answers, device_lines
from thermoe.analysis.costs.names import tokens_name
from thermoe.analysis.costs.view import CostView, Source
from thermoe.analysis.tables import Table
from thermoe.cost.database import write_atomically
from thermoe.errors import ThermoeError

if TYPE_CHECKING:
    from thermoe.analysis.costs.figures_axes import Drawn

_MOST_FAILURES = 20


@dataclass(frozen=True, slots=True)
class Panel:
    """A drawn figure; `name` is unique on the page."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Part:
    """Figures under a heading, and a line for each that has no data."""

    title: str
    name: str
    panels: Sequence[Panel]
    tables: Sequence[Table]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Section:
    """All parts of one source."""

    title: str
    parts: Sequence[Part]


def write_page(view: CostView, out: Path, report: Callable[[str], None] | None = None) -> Path:
    """Write the page.

    Args:
        view: What it shows.
        out: The file; `.html`.
        report: Told a line for each section.

    Raises:
        ThermoeError: The extra `report` is not installed.
        DataError: The file cannot be written.
    """
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise ThermoeError(f"a page needs {' and '.join(missing)}: install them with pip install 'thermoe[report]'")
    sections = []
    for number, source in enumerate(view.sources, 1):
        sections.append(_section(source, f"s{number}"))
        if report is not None:
            report(f"{source.label}: {sum(len(p.panels) for p in sections[-1].parts)} figures")
    write_atomically(out, _render(view, [*sections, _whole(view)]))
    return out


def _section(source: Source, prefix: str) -> Section:
    from thermoe.analysis.costs import figures_accuracy as accuracy
    from thermoe.analysis.costs import figures_heat as heat

    every = [_operation(source, op, f"{prefix}-{number}") for number, op in enumerate(source.ops, 1)]
    parts, bare = [p for p in every if p.panels], [p.title for p in every if not p.panels]
    single = [f"Without a figure, because no two rows differ in one size alone: {', '.join(bare)}."] if bare else []
    judged, of_what = source.judged
    both = [("unseen", source.unseen, of_what)] if source.unseen else []
    if source.seen:
        both.append(("seen", source.seen, "the given model, which may have been fitted to these rows"))
    plots = (
        ("Predicted against measured", "predicted", accuracy.predicted_against_measured),
        ("Residuals", "residuals", accuracy.residuals),
        ("Residuals by operation", "by-operation", accuracy.residuals_by_operation),
        ("Coverage of the intervals", "coverage", accuracy.coverage),
        ("Cost against temperature", "temperature", heat.against_temperature),
    )
    panels = [_panel(f"{prefix}-{name}", title, draw, source) for title, name, draw in plots]
    whole = Part(
        title="Predictions and temperature" if judged else "Temperature",
        name=f"{prefix}-whole",
        panels=[p for p in panels if p is not None],
        tables=[tables.errors(predictions, what, f"{prefix}-errors-{name}") for name, predictions, what in both],
        notes=source.notes,
    )
    head = Part(title="Rows", name=f"{prefix}-rows", panels=(), tables=[tables.contents(source)], notes=single)
    return Section(title=source.label, parts=[head, whole, *parts])


def _operation(source: Source, op: str, prefix: str) -> Part:
    from thermoe.analysis.costs import figures_axes as axes

    plots: tuple[tuple[str, Callable[[Source, str], Drawn]], ...] = (
        ("shape", axes.against_shape),
        (tokens_name(op), axes.against_tokens),
        ("touched experts", axes.against_experts),
        ("bits", axes.against_bits),
    )
    panels, absent = [], []
    for axis, draw in plots:
        panel = _panel(f"{prefix}-{draw.__name__}", f"{op} against {axis}", lambda s, d=draw: d(s, op), source)
        if panel is None:
            absent.append(axis)
        else:
            panels.append(panel)
    notes = [f"No two rows differ in {' or '.join(absent)} alone: not drawn."] if absent else []
    return Part(title=op, name=prefix, panels=panels, tables=(), notes=notes)


def _whole(view: CostView) -> Section:
    """What is not of one source: calls beside their parts, and kernels."""
    from thermoe.analysis.costs import figures_parts as figures

    calls = sorted(view.calls, key=lambda one: (one.energy is None, one.call.row.impl != "thermoe"))
    drawn = _panel("calls", "Expert MLP calls beside their parts", lambda _: figures.calls_beside_parts(calls), None)
    parts = [
        Part(
            title="Expert MLP calls from their parts",
            name="calls-part",
            panels=[drawn] if drawn is not None else [],
            tables=tables.calls(calls),
            notes=[f"{view.calls_note}."] if view.calls_note else [],
        )
    ]
    panels, shown = [], []
    for number, one in enumerate(view.kernels, 1):
        panel = _panel(f"kernels-{number}", f"Power {one.kind}", lambda _, k=one: figures.types_and_power(k), None)
        panels += [panel] if panel is not None else []
        shown.append(tables.kernel_types(one))
    notes = [view.kernels_note] if view.kernels_note else []
    parts.append(Part(title="Kernel types and power", name="kernels-part", panels=panels, tables=shown, notes=notes))
    return Section(title="Parts of a call, and kernels", parts=parts)


def _panel(name: str, title: str, draw: "Callable[..., Drawn]", source: Source | None) -> Panel | None:
    from matplotlib import rc_context

    from thermoe.analysis.style import RC
    from thermoe.analysis.svg import as_svg, inline

    with rc_context(RC):
        drawn = draw(source)
    if drawn is None:
        return None
    figure, caption = drawn
    return Panel(name, title, caption, inline(as_svg(figure, name), name, html.escape(caption)))


def _render(view: CostView, sections: Sequence[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("thermoe.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_link"] = _as_link
    page = environment.get_template("costs.html.j2").render(
        title=", ".join(dict.fromkeys(source.gpu for source in view.sources)),
        devices=device_lines(view),
        answers=answers(view),
        sections=sections,
        failures=view.failures[:_MOST_FAILURES],
        more_failures=len(view.failures) - _MOST_FAILURES,
        command=view.command,
    )
    return re.sub(r"\n\s*\n+", "\n", page)


def _as_link(table: Table) -> str:
    """The table as CSV in a link that holds it."""
    return "data:text/csv;base64," + base64.b64encode(table.csv().encode("utf-8")).decode("ascii")
