"""The page of an evaluation: its table, sheets and clips, in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from dithead.train.evaluation.runs import Job
from dithead.train.evaluation.sheets import file_name, still_name
from dithead.train.evaluation.table import Table, tables

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; max-width: 110rem; }
table { border-collapse: collapse; margin-bottom: 2rem; }
th, td { border-bottom: 1px solid #ccc; padding: .15rem .7rem; text-align: right; }
th:first-child { text-align: left; font-weight: normal; }
figure { margin: 0 0 1.5rem; }
img, video { max-width: 100%; }
.stills img { width: 8rem; }
"""


def write_page(report: dict[str, Any], jobs: Sequence[Job], folder: Path) -> Path:
    """Write ``index.html`` and ``figures.json`` beside the sheets and clips of the jobs.

    Returns:
        Path of the page.
    """
    (folder / "figures.json").write_text(json.dumps(report, indent=2))
    title = f"dithead-eval: {report['settings']['checkpoint']}"
    parts = [f"<h1>{escape(title)}</h1>", f"<pre>{escape(json.dumps(report['settings']))}</pre>"]
    parts += [_table(table) for table in tables([report])]
    for person in dict.fromkeys(job.person for job in jobs if job.kind != "stills"):
        parts.append(f"<h2>{escape(person)}</h2>")
        parts += [_figure(job, folder) for job in jobs if job.person == person]
    stills = [still_name(job.video) for job in jobs if job.kind == "stills"]
    shown = [f'<img src="{name}" alt="{name}">' for name in stills if (folder / name).is_file()]
    if shown:
        parts.append(
            f'<h2>Stills: true above decoded</h2><div class="stills">{"".join(shown)}</div>'
        )
    page = folder / "index.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>" + "\n".join(parts) + "</html>\n"
    )
    return page


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in table.rows
    )
    return f"<h2>{escape(table.title)}</h2><table><tr><th></th>{head}</tr>{rows}</table>"


def _figure(job: Job, folder: Path) -> str:
    """The sheet and the clip of a job, if it has any."""
    name = file_name(job.name)
    if not (folder / f"{name}.png").is_file():
        return ""
    return (
        f"<figure><figcaption>{escape(job.name)}: true above generated; true on the left"
        f'</figcaption><img src="{name}.png" alt=""><br>'
        f'<video src="{name}.mp4" controls preload="none"></video></figure>'
    )
