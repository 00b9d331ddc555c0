"""The paper's Table 1 (arXiv 2312.06400) beside figures of ours."""

from __future__ import annotations

from typing import Any

from dithead.errors import MediaError
from dithead.train.evaluation.inception import FEATURES
from dithead.train.evaluation.table import Table

PAPER = {"PSNR": 28.37, "SSIM": 0.872, "LPIPS": 0.0856, "FID": 10.31, "LSE-C": 3.60, "LSE-D": 10.49}
"""Of HDTF, 11 people that the model had not seen."""
OURS = {
    "PSNR": "psnr_db",
    "SSIM": "ssim",
    "ST-LPIPS": "st_lpips",
    "FID": "fid",
    "LSE-C": "lse_c",
    "LSE-D": "lse_d",
}
"""What :data:`FACE` holds for each column that is measured here."""
FACE = "face"
"""Group of an evaluation's figures: the measures in the box round the face."""
SYNC = "sync model of ours"
"""Group of an evaluation's figures: :class:`dithead.train.sync.score.SyncScore` of the generated
and of the true video. Not SyncNet's."""
_SCOPE = """\
The rows are of different footage: they can be compared only if yours is HDTF's.
PSNR, SSIM and ST-LPIPS are means over frames, in the box round the true face's mesh and a tenth of
it on each side (where the paper measured is assumed)."""
_PERCEPTUAL = "ST-LPIPS (arXiv 2207.13686) is another measure than LPIPS."
_NO_PERCEPTUAL = """\
ST-LPIPS is not measured: its network comes with the extra 'train', which is not installed, or
--no-perceptual was given."""
_NO_FID = """\
FID is not measured: its network comes with the extra 'fid', which is not installed, or --no-fid
was given."""
_FEW = f"""\
That is too few: up to {FEATURES} frames, the covariances of {FEATURES} features are singular and
FID is biased. Compare it only with one of as many frames."""
_LSE = """\
LSE-C and LSE-D are means over clips, then people, at 25 frames a second, of faces cut by the mesh's
box in the place of S3FD's."""
_NO_LSE = """\
LSE-C and LSE-D are not measured: give SyncNet's weights with --syncnet (docs/evaluation.md)."""
_SYNC = """\
Sync-C and Sync-D are confidence and distance of a sync model of ours, defined as LSE-C and LSE-D
are: only those of the two videos, the generated and the true one, can be compared."""
_NO_SYNC = "No clip is long enough for Sync-C and Sync-D, or has enough speech."


def paper_table(report: dict[str, Any]) -> Table:
    """One row of the paper, one of a report that was made with ``--paper-table``.

    Raises:
        MediaError: the report holds no such figures.
    """
    name, kind = _own(report)
    measured = {column: kind[FACE].get(measure) for column, measure in OURS.items()}
    measured |= _sync(kind, "generated")
    columns = ["PSNR", "SSIM", "LPIPS", "ST-LPIPS", "FID", "LSE-C", "LSE-D", "Sync-C", "Sync-D"]
    who = f"{report['settings']['checkpoint']}, {kind['clips']} clips, {len(kind['people'])} people"
    rows = [("the paper: HDTF, 11 people", PAPER), (who, measured)]
    rows.append(("the true video of these clips", _sync(kind, "true")))
    return Table(
        f"The paper's Table 1, and {name}",
        columns,
        [(row, [_cell(values.get(column)) for column in columns]) for row, values in rows],
    )


def notes(report: dict[str, Any]) -> str:
    """What the figures of such a report are of, and why a column is empty."""
    kind = _own(report)[1]
    face = kind[FACE]
    perceptual = _PERCEPTUAL if "st_lpips" in face else _NO_PERCEPTUAL
    sync = _SYNC if _sync(kind, "true")["Sync-D"] is not None else _NO_SYNC
    return "\n".join([_SCOPE, perceptual, _about_fid(face), _about_lse(face), sync])


def _about_fid(face: dict[str, Any]) -> str:
    if "fid" not in face:
        return _NO_FID
    frames = face["fid_frames"]
    about = (
        f"FID is of {frames} true and {frames} generated frames, all clips together, in that box."
    )
    return about if frames > FEATURES else f"{about}\n{_FEW}"


def _about_lse(face: dict[str, Any]) -> str:
    if "lse_d" not in face:
        return _NO_LSE
    return _LSE if face["lse_d"] is not None else "No clip is long enough for LSE-C and LSE-D."


def _own(report: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The first run of the kind ``own``, by name."""
    for name, kind in report.items():
        if name.startswith("own") and FACE in kind:
            return name, kind
    raise MediaError("no figures for the paper's table: run the kind 'own' with --paper-table")


def _sync(kind: dict[str, Any], of: str) -> dict[str, float | None]:
    found = (kind.get(SYNC) or {}).get(of) or {}
    return {"Sync-C": found.get("confidence"), "Sync-D": found.get("distance")}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
