"""Plots as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_WIDTH = 960
_LABELS = 420  # pixels for the names of rows
_ROW = 26
_HUES = 12  # colours of frames in a timeline


@dataclass(frozen=True, slots=True)
class Bar:
    """A row: its name, the length of its bar, and strokes beside it."""

    name: str
    value: float
    ticks: tuple[float, ...] = ()
    note: str = ""


def bars(rows: Sequence[Bar], *, unit: str, mark: tuple[float, str] | None = None) -> str:
    """Horizontal bars from zero, with an axis, and a dashed line at a value of interest."""
    reach = max([*(max(row.value, *row.ticks, 0.0) for row in rows), mark[0] if mark else 0.0])
    step = _round_step(reach)
    reach = step * math.ceil(1.001 * reach / step)
    height = _ROW * len(rows) + 44
    parts = [_axis(reach, step, unit, height)]
    for number, row in enumerate(rows):
        top = 22 + _ROW * number
        end = _at(row.value, reach)
        name = escape(row.name)
        parts.append(
            f'<text x="{_LABELS - 10}" y="{top + 16}" text-anchor="end">{name}</text>'
            f'<rect class="bar" x="{_LABELS}" y="{top + 4}" width="{max(1.0, end - _LABELS):.1f}" '
            f'height="{_ROW - 10}" rx="2"><title>{name}: {row.value:.2f} {unit}</title></rect>'
        )
        for tick in row.ticks:
            x = _at(tick, reach)
            parts.append(
                f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 2}" '
                f'y2="{top + _ROW - 4}"><title>{tick:.2f} {unit}</title></line>'
            )
        furthest = max([end, *(_at(tick, reach) for tick in row.ticks)])
        shown = f"{_shown(row.value)}{escape(row.note)}"
        parts.append(f'<text x="{furthest + 8:.1f}" y="{top + 16}">{shown}</text>')
    if mark is not None:
        x = _at(mark[0], reach)
        side = 'text-anchor="end" ' if x > _WIDTH - 200 else ""
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{height - 20}"/>'
            f'<text class="soft" {side}x="{x:.1f}" y="12">{escape(mark[1])}</text>'
        )
    return _svg(height, parts)


def timeline(spans: Sequence[dict[str, Any]]) -> str:
    """A row for each stage; a block for each frame that it worked on, in the frame's colour."""
    names = list(dict.fromkeys(s["stage"] for s in sorted(spans, key=lambda s: s["start"])))
    reach = max(span["end"] for span in spans)
    step = _round_step(reach)
    height = _ROW * len(names) + 44
    parts = [_axis(reach, step, "ms", height)]
    for number, name in enumerate(names):
        top = 22 + _ROW * number
        parts.append(
            f'<text x="{_LABELS - 10}" y="{top + 16}" text-anchor="end">{escape(name)}</text>'
        )
    for span in spans:
        top = 22 + _ROW * names.index(span["stage"])
        left, right = _at(span["start"], reach), _at(span["end"], reach)
        hue = 360 * (span["frame"] % _HUES) // _HUES
        parts.append(
            f'<rect x="{left:.1f}" y="{top + 4}" width="{max(0.8, right - left):.1f}" '
            f'height="{_ROW - 8}" fill="hsl({hue} 60% 52%)"><title>{escape(span["stage"])}, frame '
            f"{span['frame']}: {span['end'] - span['start']:.2f} ms</title></rect>"
        )
        if right - left > 22:
            parts.append(
                f'<text x="{(left + right) / 2:.1f}" y="{top + 17}" text-anchor="middle" '
                f'style="fill:#fff">{span["frame"]}</text>'
            )
    return _svg(height, parts)


def _shown(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _svg(height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">\n{body}\n</svg>'


def _at(value: float, reach: float) -> float:
    """Where a value lies, with room on the right for what is written beside it."""
    return _LABELS + (_WIDTH - _LABELS - 70) * value / reach


def _axis(reach: float, step: float, unit: str, height: int) -> str:
    parts = []
    for number in range(round(reach / step) + 1):
        x, value = _at(number * step, reach), number * step
        if value > 1.0001 * reach:
            break
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{height - 20}"/>'
            f'<text class="soft" x="{x:.1f}" y="{height - 4}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(
        f'<text class="soft" x="{_WIDTH - 4}" y="{height - 4}" text-anchor="end">{unit}</text>'
    )
    return "".join(parts)


def _round_step(reach: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides a range into about six."""
    rough = max(reach, 1e-9) / 6
    power = 10 ** math.floor(math.log10(rough))
    return float(next(f * power for f in (1, 2, 5, 10) if f * power >= rough))
