"""Messages about frames that were passed through as they are."""

from __future__ import annotations

from collections.abc import Mapping

from dithead.errors import MediaError
from dithead.generator import LeftAlone
from dithead.options import Options
from dithead.runtime.media.inputs import Input

REASONS: Mapping[LeftAlone, tuple[str, str | None]] = {
    "no face": ("no face was seen", None),
    "away": ("the face that is followed was not visible", None),
    "nobody": ("nobody was to speak", None),
    "too faint": ("too little of the face was visible", "brighten or sharpen the video"),
    "covered": ("something was in front of the mouth", None),
    "too large": (
        "the face was too large for the bundle",
        "export with a larger --largest-rectangle",
    ),
}
"""Each reason in words, and a remedy."""


def left_alone_notes(left_alone: Mapping[LeftAlone, int]) -> list[str]:
    """For each reason, a sentence with the number of frames."""
    notes = []
    for reason, count in left_alone.items():
        words, remedy = REASONS[reason]
        frames = "1 frame was" if count == 1 else f"{count} frames were"
        notes.append(f"{frames} left alone: {words}" + (f" ({remedy})" if remedy else ""))
    return notes


def nobody_spoke(video: Input, options: Options, left_alone: Mapping[LeftAlone, int]) -> MediaError:
    """The error for a video in which no frame was re-voiced."""
    frames = sum(left_alone.values())
    if set(left_alone) == {"no face"}:
        if options.face == "largest":
            return MediaError(
                f"no face in any of the {frames} frames of {video}",
                hint="faces are found from 48 pixels on in a frame 1920 wide: enlarge or cut out "
                "the part that shows the face",
            )
        which = f"number {options.face}" if isinstance(options.face, int) else f"at {options.face}"
        return MediaError(
            f"no face {which} in any of the {frames} frames of {video}",
            hint="faces are counted from the left, from 0; places are pixels of the upright frame",
        )
    why = "; ".join(f"{REASONS[reason][0]} ({count})" for reason, count in left_alone.items())
    remedies = (REASONS[reason][1] for reason in left_alone)
    return MediaError(
        f"no face was re-voiced in any of the {frames} frames of {video}: {why}",
        hint=next((remedy for remedy in remedies if remedy), None),
    )
