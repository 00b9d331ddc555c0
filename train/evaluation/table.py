"""An evaluation's figures as a table: measures as rows, the mean and each person as columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dithead.errors import MediaError
from dithead.jsontext import parse_json

MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of run."""

    title: str
    columns: list[str]
    """``mean`` and the people, by name."""
    rows: list[tuple[str, list[str]]]
    """A measure and its cells; with two reports a cell holds both values."""


def read_report(path: Path) -> dict[str, Any]:
    """A report that ``dithead-eval`` wrote.

    Raises:
        MediaError: it is not a report.
    """
    try:
        report = parse_json(path.read_text())
    except (OSError, ValueError) as error:
        raise MediaError(f"{path} is not what dithead-eval --json wrote: {error}") from error
    if not isinstance(report, dict) or not all(isinstance(v, dict) for v in report.values()):
        raise MediaError(f"{path} is not what dithead-eval --json wrote: no figures by kind")
    return report


def tables(reports: Sequence[dict[str, Any]]) -> list[Table]:
    """A table for each kind of run in one report, or in several side by side.

    Kinds are matched by name, whatever number of steps and reference they were run with.
    """
    by_kind = [dict(_kinds(report)) for report in reports]
    kinds = list(dict.fromkeys(kind for given in by_kind for kind in given))
    made = []
    for kind in kinds:
        names = [given[kind][0] if kind in given else "not run" for given in by_kind]
        figures = [_figures(given[kind][1]) if kind in given else {} for given in by_kind]
        columns = list(dict.fromkeys(column for given in figures for column in given))
        measures = list(
            dict.fromkeys(name for given in figures for column in given.values() for name in column)
        )
        rows = [
            (name, [_cell([g.get(column, {}).get(name) for g in figures]) for column in columns])
            for name in measures
        ]
        made.append(Table(" -> ".join(dict.fromkeys(names)), columns, rows))
    return made


def side_by_side(
    title: str, reports: Mapping[str, dict[str, Any]], measures: Sequence[str]
) -> Table:
    """One table of several reports: a row for each, by its name, and a column for each measure, the
    mean over people.

    Args:
        measures: such as ``crossed fine_with_audio``: the kind of run, and the measure's dotted
            name. What a report does not have is a dash.
    """
    rows = []
    for name, report in reports.items():
        known = {
            f"{kind} {measure}": value
            for kind, (_, figures) in _kinds(report)
            for measure, value in _figures(figures)[MEAN].items()
        }
        rows.append((name, [_cell([known.get(measure)]) for measure in measures]))
    return Table(title, list(measures), rows)


def as_markdown(table: Table) -> str:
    """A table for a page."""
    lines = [["", *table.columns], ["---"] * (1 + len(table.columns))]
    lines += [[name, *cells] for name, cells in table.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_text(made: Sequence[Table]) -> str:
    """Tables for a terminal."""
    blocks = []
    for table in made:
        lines = [["", *table.columns], *([name, *cells] for name, cells in table.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [
            "  ".join(
                [line[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in lines
        ]
        blocks.append("\n".join([table.title, *text]))
    return "\n\n".join(blocks)


def _kinds(report: dict[str, Any]) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    for name, figures in report.items():
        if "clips" in figures:
            yield name.partition(",")[0], (name, figures)


def _figures(kind: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Columns of a kind: the mean's and each person's figures by dotted name."""
    columns = {MEAN: kind, **kind.get("people", {})}
    return {column: dict(_flat(figures)) for column, figures in columns.items()}


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in figures.items():
        if key == "people":
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _cell(values: Sequence[Any]) -> str:
    return " -> ".join("-" if value is None else f"{value:.4g}" for value in values)
