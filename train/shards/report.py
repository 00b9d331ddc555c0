"""What was kept of each part, and what was left out and why: as JSON, and as a table to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dithead.train.shards.store import whole_file, write_whole_json

REPORT, TABLE = "report.json", "report.txt"


def report_row(
    part: str,
    person: str,
    split: str,
    *,
    samples: int = 0,
    cuts: int = 0,
    kept_s: float = 0.0,
    left_out_s: Mapping[str, float] | None = None,
    unjudged_s: float = 0.0,
    sound: Sequence[Mapping[str, Any]] = (),
    error: str | None = None,
) -> dict[str, Any]:
    """What the report says of a part.

    Args:
        cuts: how many scene cuts there were. left_out_s: seconds by reason.
        unjudged_s: those of the kept ones that were too short for the sound to be compared.
        sound: for each stretch whose sound was compared, what was found
            (``dithead.train.shards.sync.Match``).
        error: why it could not be read to its end, or at all; the seconds of the rest are not
            known.
    """
    left = {reason: round(s, 3) for reason, s in sorted((left_out_s or {}).items())}
    return {
        "part": part,
        "person": person,
        "split": split,
        "samples": samples,
        "cuts": cuts,
        "kept_s": round(kept_s, 3),
        "unjudged_s": round(unjudged_s, 3),
        "left_out_s": left,
        "sound": [dict(row) for row in sound],
        "error": error,
    }


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over all parts."""
    left: Counter[str] = Counter()
    for row in rows:
        left.update(row["left_out_s"])
    return {
        "parts": len(rows),
        "samples": sum(row["samples"] for row in rows),
        "cuts": sum(row["cuts"] for row in rows),
        "people": len({row["person"] for row in rows if row["samples"]}),
        "kept_s": round(sum(row["kept_s"] for row in rows), 3),
        "unjudged_s": round(sum(row["unjudged_s"] for row in rows), 3),
        "left_out_s": {reason: round(s, 3) for reason, s in sorted(left.items())},
        "with_errors": sum(row["error"] is not None for row in rows),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The report to read: a line for each part, and the sums."""
    lines = [("part", "person", "samples", "cuts", "kept s", "left out s", "why")]
    for row in rows:
        lines.append((row["part"], row["person"], *_figures(row), _why(row)))
    sums = totals(rows)
    lines.append((f"all {sums['parts']}", f"{sums['people']} people", *_figures(sums), _why(sums)))
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "".join(
        "  ".join(
            [
                *(text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)),
                *(text.rjust(width) for text, width in zip(line[2:6], widths[2:], strict=True)),
                line[6],
            ]
        ).rstrip()
        + "\n"
        for line in lines
    )


def _figures(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    left = sum(row["left_out_s"].values())
    return str(row["samples"]), str(row["cuts"]), f"{row['kept_s']:.1f}", f"{left:.1f}"


def _why(row: Mapping[str, Any]) -> str:
    reasons = sorted(row["left_out_s"].items(), key=lambda pair: (-pair[1], pair[0]))
    texts = [f"{reason} {seconds:.1f}" for reason, seconds in reasons]
    return ", ".join([*texts, *filter(None, [row.get("error")])])


def write_report(out: Path, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    """Write both forms into a folder, with notes on what is in no part."""
    write_whole_json(
        out / REPORT, {"totals": totals(rows), "notes": list(notes), "parts": list(rows)}
    )
    with whole_file(out / TABLE) as file:
        file.write("".join([table(rows), *(f"{note}\n" for note in notes)]).encode())
