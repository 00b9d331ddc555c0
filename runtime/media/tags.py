"""A file's texts: title and other tags, languages, chapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.container import InputContainer, OutputContainer

#: What every file says about itself; Matroska turns the names to upper case.
DISCLOSURE = {
    "comment": "AI-generated: mouth region synthesised by DiT-Head",
    "synthetic_media": "yes",
}
#: What is added to the comment if the model was never trained.
OF_RANDOM_WEIGHTS = "; random weights, never trained: it shows a speed, not a face"

# What a container says about its own making, or what the output replaces.
_NOT_KEPT = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration"}
_NOT_KEPT |= {"synthetic_media", "service_name", "service_provider", "variant_bitrate"}
_COMMENT = "source_comment"  # because the comment says that the video is generated
# Muxers with room for them.
_TAGS = {"mp4", "mov", "matroska", "webm", "flv"}
_CHAPTERS = {"mp4", "mov", "matroska", "webm"}
# MOV has its own numbers for languages, for which FFmpeg has these names.
_MOV_LANGUAGES = {"deu": "ger", "fre": "fra", "nld": "dut", "swe": "sve", "ell": "gre"}
_MOV_LANGUAGES |= {"isl": "ice", "zho": "chi", "ron": "rum", "ces": "cze", "slk": "slo"}

Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class Chapter:
    """A part of a video: its start and end in seconds, and its tags."""

    start_s: Fraction
    end_s: Fraction
    tags: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tags:
    """A file's tags and chapters.

    Attributes:
        container: its tags by name, without those that its muxer made.
        picture: language and title of its picture.
        chapters: in order, on the clip's timeline.
    """

    container: tuple[tuple[str, str], ...] = ()
    picture: tuple[tuple[str, str], ...] = ()
    chapters: tuple[Chapter, ...] = ()

    def left_out(self, muxer: str) -> list[str]:
        """What a muxer has no room for."""
        names = []
        if self.container and muxer not in _TAGS:
            names.append("title and tags")
        if self.chapters and muxer not in _CHAPTERS:
            names.append("chapters")
        return names

    def write(self, container: OutputContainer, picture: Any, muxer: str) -> None:
        """Write tags to a container and to its picture's stream, before its header."""
        if muxer in _TAGS:
            container.metadata.update(dict(self.container))
        picture.metadata.update(labels_for(muxer, dict(self.picture)))

    def write_chapters(
        self, container: OutputContainer, muxer: str, end_s: Fraction | None
    ) -> None:
        """Write chapters: those before the output's end, in seconds, if it is known."""
        if muxer not in _CHAPTERS:
            return
        millisecond = Fraction(1, 1000)
        kept = [c for c in self.chapters if end_s is None or c.start_s < end_s]
        container.set_chapters(
            [
                {
                    "id": number,
                    "start": round(chapter.start_s / millisecond),
                    "end": round(min(chapter.end_s, end_s or chapter.end_s) / millisecond),
                    "time_base": millisecond,
                    "metadata": dict(chapter.tags),
                }
                for number, chapter in enumerate(kept, 1)
            ]
        )


def read_tags(container: InputContainer, picture: Any, start_s: Fraction) -> Tags:
    """Read them from an input whose time zero is at a time in seconds."""
    found = {}
    for name, value in container.metadata.items():
        low = name.lower()
        ours = value == DISCLOSURE.get(low)  # from a video that was generated before
        if low not in _NOT_KEPT and not name.startswith("_") and not ours:
            name = low if name.isupper() else name  # Matroska writes every name like this
            found[_COMMENT if low == "comment" else name] = value
    chapters = []
    for chapter in container.chapters():
        base = chapter["time_base"] or Fraction(1, 1_000_000)
        start, end = (max(Fraction(0), chapter[at] * base - start_s) for at in ("start", "end"))
        if start < end:
            chapters.append(Chapter(start, end, tuple(chapter["metadata"].items())))
    return Tags(tuple(found.items()), tuple(labels(picture.metadata).items()), tuple(chapters))


def labels(metadata: Mapping[str, str]) -> Labels:
    """Language and title of a track, if it has them."""
    found = {name.lower(): value for name, value in metadata.items()}
    title = found.get("title") or found.get("name")  # MP4's name for it
    language = found.get("language")
    known = {} if language in (None, "", "und") else {"language": str(language)}
    return {**known, "title": title} if title else known


def labels_for(muxer: str, given: Labels) -> Labels:
    """The same in a muxer's terms."""
    if muxer == "mov" and "language" in given:
        return {**given, "language": _MOV_LANGUAGES.get(given["language"], given["language"])}
    return given
