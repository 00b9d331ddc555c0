"""From the rows of single clips to figures for each person, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dithead.train.evaluation.motion import RATE_HZ
from dithead.train.metrics import best_lag, fine_correlation, lagged

Row = dict[str, Any]


def mean_of(rows: Sequence[Row]) -> Row:
    """The mean of the rows' figures, group by group; rows without a figure do not count, and it is
    None if no row has one."""
    mean: Row = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        if not values:
            mean[key] = None
        elif isinstance(values[0], dict):
            mean[key] = mean_of(values)
        else:
            mean[key] = float(np.mean(values))
    return mean


def sum_up(kind: str, rows: dict[str, list[Row]]) -> Row:
    """Everybody's figures of one kind: the mean over people, and each person's own.

    Args:
        rows: results of the jobs of a kind, by person.
    """
    if kind == "crossed":
        lags = voice_lags([row for given in rows.values() for row in given])
        rows = {
            person: [{**row, "lags": lags, "person": person} for row in given]
            for person, given in rows.items()
        }
    people = {person: _SUMMARIES[kind](given) for person, given in rows.items()}
    clips = {person: {"clips": len(given), **people[person]} for person, given in rows.items()}
    count = sum(len(given) for given in rows.values())
    return {"clips": count, **mean_of(list(people.values())), "people": clips}


def voice_lags(rows: list[Row]) -> dict[str, int]:
    """By how many frames at 25 a second each person's recorded lips are later than those generated
    from their sound, on any face: how far sound and picture of their recording are out of step with
    the training data."""
    voices: dict[str, list[Row]] = {}
    for row in rows:
        voices.setdefault(row["voice"], []).append(row)
    return {
        voice: best_lag([(row["series"]["made"], row["series"]["other"]) for row in given])[0]
        for voice, given in voices.items()
    }


def _plain(rows: list[Row]) -> Row:
    aside = ("series", "voice", "lags", "person")
    return mean_of([{key: row[key] for key in row if key not in aside} for row in rows])


def _fine(rows: list[Row], a: str, b: str) -> float | None:
    """Fine correlation of two series over all rows together; None if one of them does not move."""
    return _fine_of([(row["series"][a], row["series"][b]) for row in rows])


def _fine_of(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float | None:
    with np.errstate(invalid="ignore"):
        fine = fine_correlation(pairs)
    return fine if np.isfinite(fine) else None


def _own(rows: list[Row]) -> Row:
    out = _plain(rows)
    out["gain_db"] = out["generated"]["psnr_db"] - out["frozen"]["psnr_db"]
    out["fine"] = _fine(rows, "made", "own")
    lag, fine = best_lag([(row["series"]["made"], row["series"]["own"]) for row in rows])
    out |= {"fine_in_step": fine, "lag_ms": 1000 * lag / RATE_HZ}
    return out


def _crossed(rows: list[Row]) -> Row:
    lags = rows[0]["lags"]
    in_step = [
        lagged(row["series"]["made"], row["series"]["other"], lags[row["voice"]]) for row in rows
    ]
    chance = best_lag([(row["series"]["own"], row["series"]["other"]) for row in rows])
    own_lag = lags.get(rows[0]["person"])
    return {
        "fine_with_audio": _fine(rows, "made", "other"),
        "fine_in_step": _fine_of(in_step),
        "fine_in_step_by_chance": chance[1],
        "voice_lag_ms": None if own_lag is None else 1000 * own_lag / RATE_HZ,
        "fine_with_video": _fine(rows, "made", "own"),
        "fine_between_true": _fine(rows, "own", "other"),
        "fine_ceiling": _fine(rows, "again", "other"),
        **_plain(rows),
    }


def _silent(rows: list[Row]) -> Row:
    joined = {
        name: np.concatenate([row["series"][name] for row in rows])
        for name in ("made", "own", "made_moving", "own_moving", "silent")
    }
    silent, speaking = joined["silent"], ~joined["silent"]
    out: Row = {
        "fine_with_video": _fine(rows, "made", "own"),
        "mean_opening": float(joined["made"].mean()),
        "lip_leak": _share(joined["made_moving"][speaking]),
        "true_silence_moving": _share(joined["own_moving"][silent]),
        "true_speech_moving": _share(joined["own_moving"][speaking]),
        "true_silence_frames": int(silent.sum()),
        **_plain(rows),
    }
    known = [row["series"] for row in rows if row["series"]["spoken"] is not None]
    if known:
        own = np.concatenate([series["own"] for series in known])
        spoken = np.concatenate([series["spoken"] for series in known])
        rest, speech = float(own[~spoken].mean()), float(own[spoken].mean())
        out |= {"true_silent_opening": rest, "true_speech_opening": speech}
        out["limit"] = rest + 0.1 * speech
    return out


def _share(which: np.ndarray) -> float | None:
    return float(which.mean()) if len(which) else None


def _precision(rows: list[Row]) -> Row:
    worst = ("worst_frame_mean_levels", "largest_levels", "largest_loss_db")
    out = mean_of(rows)
    return out | {name: max(row[name] for row in rows) for name in worst}


def _stills(rows: list[Row]) -> Row:
    psnr = [row["lower_face_db"] for row in rows]
    return {"lower_face_db": float(np.mean(psnr)), "least_db": float(min(psnr))}


_SUMMARIES: dict[str, Callable[[list[Row]], Row]] = {
    "own": _own,
    "crossed": _crossed,
    "silent": _silent,
    "reconstruction": mean_of,
    "feedback": mean_of,
    "precision": _precision,
    "stills": _stills,
}
KINDS = tuple(kind for kind in _SUMMARIES if kind != "stills")
