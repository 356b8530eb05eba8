"""The report: one page that reads without a network, its figures as PDF and SVG, its tables as CSV and LaTeX."""

import html
import importlib.util
import json
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from thermoe.analysis import tables
from thermoe.analysis.answer import answers, limits
from thermoe.analysis.load import load_runs
from thermoe.analysis.view import RunView
from thermoe.errors import ThermoeError

if TYPE_CHECKING:
    from thermoe.analysis.figures import Plot


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure as the page needs it; without data `svg` is empty and `caption` says what is needed."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Section:
    """The figures, settings and environment of one run."""

    view: RunView
    panels: Sequence[Panel]
    config: str
    env: str
    command: str


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one or several runs.

    Args:
        run_dirs: Run folders.
        out: The page, or a folder for `report.html`; by default in the run folder, or for several runs in
            `comparison/` beside the first. `figures/` and `tables/` are written beside the page.

    Returns:
        The page's path.

    Raises:
        DataError: A run folder cannot be read.
        ThermoeError: The extra `report` is not installed, or the report cannot be written.
    """
    views = [RunView.of(run) for run in load_runs(run_dirs)]
    return write_views(views, page_path([view.run.path for view in views], out))


def page_path(run_dirs: Sequence[Path], out: Path | None) -> Path:
    """Where the page goes."""
    if out is None:
        first = run_dirs[0]
        return (first if len(run_dirs) == 1 else first.resolve().parent / "comparison") / "report.html"
    return out / "report.html" if out.is_dir() or not out.suffix else out


def write_views(views: Sequence[RunView], page: Path) -> Path:
    """Write the report of runs that are already loaded; see `write_report`."""
    _need_extra()
    from thermoe.analysis.figures import PLOTS

    try:
        for name in ("figures", "tables"):
            (page.parent / name).mkdir(parents=True, exist_ok=True)
        compared = [_panel(plot, views, page.parent / "figures", "") for plot in PLOTS if plot.compares_runs]
        sections = [_section(view, views, page.parent / "figures") for view in views]
        all_tables = [make(views) for make in tables.ALL]
        for table in all_tables:
            _write(page.parent / "tables" / f"{table.name}.csv", table.csv())
            _write(page.parent / "tables" / f"{table.name}.tex", table.latex())
        _write(page, _render(views, compared, sections, all_tables))
    except OSError as err:
        raise ThermoeError(
            f"the report cannot be written to {page}: {err.strerror or err}; choose another --out"
        ) from err
    return page


def _need_extra() -> None:
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise ThermoeError(f"a report needs {' and '.join(missing)}: install them with pip install 'thermoe[report]'")


def _section(view: RunView, views: Sequence[RunView], folder: Path) -> Section:
    from thermoe.analysis.figures import PLOTS

    prefix = f"run{views.index(view) + 1}-" if len(views) > 1 else ""
    return Section(
        view=view,
        panels=[_panel(plot, [view], folder, prefix) for plot in PLOTS if not plot.compares_runs],
        config=tomli_w.dumps(view.run.config),
        env=json.dumps(view.run.env, indent=2, ensure_ascii=False),
        command=f"thermoe run {shlex.quote(f'{view.label}/config.toml')}",
    )


def _panel(plot: "Plot", views: Sequence[RunView], folder: Path, prefix: str) -> Panel:
    from thermoe.analysis.figures import draw
    from thermoe.analysis.svg import inline, svg_and_pdf

    drawing = draw(plot, views)
    if drawing.figure is None:
        return Panel(plot.name, plot.title, drawing.caption, "")
    name = f"{prefix}{plot.name}"
    svg, pdf = svg_and_pdf(drawing.figure, name)
    _write(folder / f"{name}.svg", svg)
    _write(folder / f"{name}.pdf", pdf)
    return Panel(name, plot.title, drawing.caption, inline(svg, name, html.escape(drawing.caption)))


def _render(
    views: Sequence[RunView], compared: Sequence[Panel], sections: Sequence[Section], all_tables: Sequence[tables.Table]
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("thermoe.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=", ".join(view.label for view in views),
        views=views,
        answers=[sentence for view in views for sentence in answers(view, named=len(views) > 1)],
        headline=all_tables[0],
        other_tables=all_tables[1:],
        compared=compared,
        sections=sections,
        limits=limits(views),
        command="thermoe report " + " ".join(shlex.quote(view.label) for view in views),
    )
    return re.sub(r"\n\s*\n+", "\n", page)


def _write(path: Path, content: str | bytes) -> None:
    """Write whole or not at all, so that a reader never meets half a page."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.close()
            temporary.chmod(0o644)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
