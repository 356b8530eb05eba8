"""Writing a figure as SVG and PDF, and making its SVG part of a page: theme colours, ids of its own."""

import io
import re

from matplotlib import rc_context
from matplotlib.figure import Figure

from thermoe.analysis.style import GRID, INK, PAPER, RC

_THEME = {INK: "currentColor", GRID: "var(--grid)", PAPER: "none"}


def as_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG document; `name` makes its ids the same in every run."""
    vector = io.BytesIO()
    with rc_context(RC | {"svg.hashsalt": name}):
        figure.savefig(vector, format="svg", metadata={"Date": None})
    return vector.getvalue().decode("utf-8")


def svg_and_pdf(figure: Figure, name: str) -> tuple[str, bytes]:
    """Both vector forms of a figure; see `as_svg`."""
    svg, pdf = as_svg(figure, name), io.BytesIO()
    with rc_context(RC | {"svg.hashsalt": name}):
        # The layout is found; finding it again for the second form would only take time.
        figure.set_layout_engine(None)
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return svg, pdf.getvalue()


def inline(svg: str, name: str, label: str) -> str:
    """The SVG as an element of a page: no prologue, fluid width, colours of the page, unique ids.

    Args:
        svg: A whole SVG document as matplotlib writes it.
        name: Prefix of all ids; letters, digits, `-` and `_` only.
        label: What a screen reader says, already escaped for an attribute.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"<!--.*?-->\s*", "", element, flags=re.DOTALL)
    head, rest = element.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    element = f'{head} role="img" aria-label="{label}">{rest}'
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = element.replace('xlink:href="#', f'xlink:href="#{name}-').replace("url(#", f"url(#{name}-")
    for color, themed in _THEME.items():
        element = element.replace(color, themed)
    return element
