"""Plots of a measurement, drawn by matplotlib, as SVG for a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dithead.errors import BackendUnavailable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "#1c2230": "--ink",
    "#5b6577": "--soft",
    "#d9dee7": "--line",
    "#3566c9": "--bar",
    "#16294f": "--tick",
    "#c2410c": "--mark",
}
"""Colours of the plots, and the page's names for them, which have other values in dark mode."""
_INK, _SOFT, _LINE, _BAR, _TICK, _MARK = COLOURS

_ROW_IN = 0.27  # inches
_WIDTH_IN = 9.6
_MARGIN_IN = 0.6  # above and below the rows
_FRAME_COLOURS = 10  # in a timeline


@dataclass(frozen=True, slots=True)
class Bar:
    """A row: its name, the length of its bar, and marks beside it."""

    name: str
    value: float
    ticks: tuple[float, ...] = ()
    note: str = ""


def bars(rows: Sequence[Bar], *, unit: str, mark: tuple[float, str] | None = None) -> Figure:
    """Horizontal bars from zero, with an axis, and a dashed line at a reference value."""
    figure, axes = _rows([row.name for row in rows], unit)
    axes.barh(range(len(rows)), [row.value for row in rows], height=0.6, color=_BAR)
    for place, row in enumerate(rows):
        axes.vlines(row.ticks, place - 0.38, place + 0.38, color=_TICK, linewidth=1.6)
        furthest = max(row.value, *row.ticks, 0.0)
        axes.annotate(
            f"{_shown(row.value)}{row.note}",
            (furthest, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
        )
    if mark is not None:
        axes.axvline(mark[0], color=_MARK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_title(mark[1], color=_MARK, fontsize=9, loc="right")
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    return figure


def timeline(spans: Sequence[dict[str, Any]]) -> Figure:
    """A row for each stage; a block for each frame that it worked on, in the frame's colour."""
    names = list(dict.fromkeys(s["stage"] for s in sorted(spans, key=lambda s: s["start"])))
    figure, axes = _rows(names, "ms")
    reach = max(span["end"] for span in spans)
    for span in spans:
        row, length = names.index(span["stage"]), span["end"] - span["start"]
        colour = f"C{span['frame'] % _FRAME_COLOURS}"
        axes.barh(row, length, left=span["start"], height=0.7, color=colour)
        if length > reach / 25:  # there is room for its number
            middle = span["start"] + length / 2
            axes.text(middle, row, str(span["frame"]), ha="center", va="center", color="white")
    axes.set_xlim(0, reach)
    return figure


def as_svg(figure: Figure) -> str:
    """A figure as an element of an HTML page, in the page's colours."""
    matplotlib = _matplotlib()
    buffer = io.StringIO()
    absent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dithead"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=absent)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    # HTML knows the namespaces; ids of groups would appear once for each plot of a page.
    drawing = re.sub(r' (?:xmlns(?::xlink)?="[^"]*"|id="[A-Za-z.]+_\d+")', "", drawing)
    for colour, name in COLOURS.items():
        drawing = drawing.replace(colour, f"var({name})")
    return drawing


def _rows(names: Sequence[str], unit: str) -> tuple[Figure, Any]:
    """A figure with a row for each name, the first on top, and an axis below."""
    _matplotlib()
    from matplotlib.figure import Figure

    height = _ROW_IN * len(names) + _MARGIN_IN
    figure = Figure(figsize=(_WIDTH_IN, height), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names, color=_INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(unit, color=_SOFT, loc="right")
    axes.tick_params(axis="x", colors=_SOFT, length=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_LINE)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure, axes


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise BackendUnavailable(
            "a page of benchmarks needs the package matplotlib",
            hint="pip install 'dithead[bench]'",
        ) from error
    return matplotlib


def _shown(value: float) -> str:
    """Three digits, never with an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
