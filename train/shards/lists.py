"""Which parts of which videos to prepare: of a folder, of a list, or of HDTF's own lists."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dithead.errors import ConfigError, MediaError

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m4v", ".ts")
"""Files in a folder with such names are videos."""
_HASHES = 10_000
_NAME_BYTES = 160
_SPAN = re.compile(r"([\d:.]+)-([\d:.]+)")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a video, the unit of work."""

    name: str
    """Of its samples, without a dot, at which WebDataset would cut it."""
    video: str
    """The file's path, which may not exist."""
    person: str
    start_s: float = 0.0
    end_s: float | None = None
    """None for the video's end."""
    window: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of where the face is; None for the largest face anywhere."""
    window_height: int = 0
    """The frame height to which the window's pixels belong."""

    def __post_init__(self) -> None:
        if not self.name or re.search(r"[./\\\s]", self.name):
            raise ConfigError(f"a part's name has no dot, slash or space: {self.name!r} has")
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise ConfigError(
                f"{self.name}: a part ends after it starts, not at {self.end_s} s if it starts at "
                f"{self.start_s} s"
            )
        if self.window is not None and self.window_height <= 0:
            raise ConfigError(f"{self.name}: a window needs the height of the frame it is for")


def is_held_out(person: str, share: float) -> bool:
    """Whether a person belongs to the held-out share of all people: a matter of the name alone, so
    that nobody changes sides when videos are added."""
    return zlib.crc32(person.encode()) % _HASHES < share * _HASHES


def read_folder(folder: Path, person: str | None = None) -> list[Part]:
    """Every video in a folder and its subfolders, whole, sorted by path.

    Args:
        person: who is in all of them. If None, a video's person is the subfolder it is in, or for
            one directly in the folder its own name.

    Raises:
        MediaError: it is not a folder, or has no videos.
    """
    if not folder.is_dir():
        raise MediaError(f"{folder} is not a folder: expected one with videos")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEOS and p.is_file())
    if not paths:
        raise MediaError(f"no videos in {folder}: expected files like *{', *'.join(VIDEOS)}")
    return unique(_of_folder(folder, path, person) for path in paths)


def _of_folder(folder: Path, path: Path, person: str | None) -> Part:
    inside = path.relative_to(folder).with_suffix("")
    own = inside.parts[0] if len(inside.parts) > 1 else inside.name
    return Part(named("-".join(inside.parts)), str(path), person or own)


def read_list(file: Path, person: str | None = None) -> list[Part]:
    """The videos of a list: one path a line, or a table of tab-separated columns ``file`` and, in
    any order, ``person``, ``start_s``, ``end_s``. Paths are relative to the list.

    Args:
        person: who is in all of them, where the table does not say. If None, each video is of
            another person, named like it.

    Raises:
        MediaError: the list does not exist, is empty, or a row is wrong.
    """
    lines = [line for line in _lines(file) if not line.startswith("#")]
    if lines and "\t" not in lines[0] and lines[0] != "file":
        rows: list[dict[str, str]] = [{"file": line} for line in lines]
    else:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    if not rows or not rows[0].get("file"):
        raise MediaError(f"{file} lists no videos: expected a path a line, or a column file")
    return unique(_of_row(file, row, person) for row in rows)


def _of_row(file: Path, row: dict[str, str], person: str | None) -> Part:
    path = file.parent / row["file"]
    name = named("-".join(Path(row["file"]).with_suffix("").parts[-2:]))
    start, end = row.get("start_s") or "0", row.get("end_s") or None
    try:
        span = float(start), None if end is None else float(end)
        if end is not None or span[0] > 0:
            name += f"-{round(span[0] * 1000)}"
        return Part(name, str(path), row.get("person") or person or path.stem, *span)
    except (ValueError, ConfigError) as error:
        raise MediaError(f"{file}: the row of {row['file']} is wrong ({error})") from error


def read_hdtf(lists: Path, videos: Path) -> tuple[list[Part], list[str]]:
    """The clips of HDTF (Zhang et al., "Flow-guided One-shot Talking Face Generation with a
    High-resolution Audio-visual Dataset", CVPR 2021) by the lists of its repository.

    A list's rows are separated by spaces. ``RD_annotion_time.txt`` (so spelt; likewise ``WDA`` and
    ``WRA``) has a video's name, then ``minutes:seconds-minutes:seconds`` for each clip;
    ``RD_crop_wh.txt`` a clip's name, then left edge, width, top edge and height of the face's
    window; ``RD_resolution.txt`` a video's name, then the height of the frames meant.
    ``RD_video_url.txt`` has addresses, which are not needed: nothing is downloaded.

    Assumed: a video of ``RD`` is called ``Radio11`` or ``RD_Radio11``, one that was already cut
    ``Radio11_0``, ``RD_Radio11_0`` or ``RD_Radio11_000``, with any ending of a video; such a clip
    is whole and cropped. A person of ``WDA`` and ``WRA`` is the name without the number at its end.
    ``RD`` does not name people, so each video counts as another person.

    Args:
        lists: folder of these lists. videos: folder of the videos.

    Returns:
        The clips, with the path of a video that is not there, too; and what is wrong in the lists.

    Raises:
        MediaError: there are no such lists.
    """
    files = sorted(lists.glob("*_annotion_time.txt"))
    if not files:
        raise MediaError(f"no *_annotion_time.txt in {lists}: expected the lists of HDTF")
    found = {p.stem: p for p in sorted(videos.rglob("*")) if p.suffix.lower() in VIDEOS}
    parts: list[Part] = []
    wrong: list[str] = []
    for file in files:
        subset = file.name.removesuffix("_annotion_time.txt")
        windows = _rows(lists / f"{subset}_crop_wh.txt")
        heights = _rows(lists / f"{subset}_resolution.txt")
        for video, spans in _rows(file).items():
            for index, span in enumerate(spans):
                times = _span(span)
                if times is None:
                    wrong.append(f"{file.name}: {video} has {span!r}, which is no start-end")
                    continue
                clip = f"{video}_{index}"
                cut = [clip, f"{subset}_{clip}", f"{subset}_{video}_{index:03}"]
                whole = next((found[n] for n in (video, f"{subset}_{video}") if n in found), None)
                ready = next((found[n] for n in cut if n in found), None)
                name, person = named(f"{subset}_{clip}"), _person(subset, video)
                if whole is None and ready is not None:
                    parts.append(Part(name, str(ready), person))
                    continue
                path = whole or videos / f"{video}.mp4"
                window, height = _window(windows.get(clip), heights.get(video))
                parts.append(Part(name, str(path), person, *times, window, height))
    return unique(parts), wrong


def unique(parts: Iterable[Part]) -> list[Part]:
    """The parts as a list. Raises MediaError: two have the same name, which is their samples'."""
    names: dict[str, Part] = {}
    for part in parts:
        other = names.setdefault(part.name, part)
        if other is not part:
            raise MediaError(
                f"{other.video} and {part.video} both give samples called {part.name}: rename one"
            )
    return list(names.values())


def named(text: str) -> str:
    """A text as a sample's name, which is a file's name, too."""
    name = re.sub(r"[^\w+=-]+", "_", text)
    if len(name.encode()) > _NAME_BYTES:
        name = f"{name[: _NAME_BYTES // 4]}-{zlib.crc32(name.encode()):08x}"
    return name


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise MediaError(f"{file} does not exist: expected a list of videos")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediaError(f"{file} is not text: expected a list of videos") from error
    return [line.strip("\r\n ") for line in text.splitlines() if line.strip()]


def _rows(file: Path) -> dict[str, list[str]]:
    """A list of HDTF, by its first column without the ending; nothing if there is no such file."""
    if not file.is_file():
        return {}
    rows: Iterator[list[str]] = (line.split() for line in _lines(file))
    return {first.removesuffix(".mp4"): rest for first, *rest in rows}


def _span(text: str) -> tuple[float, float] | None:
    """``00:30-01:00`` in seconds."""
    match = _SPAN.fullmatch(text)
    if match is None:
        return None
    try:
        start, end = (_seconds(side) for side in match.groups())
    except ValueError:
        return None
    return (start, end) if start < end else None


def _seconds(text: str) -> float:
    value = 0.0
    for piece in text.split(":"):
        value = value * 60 + float(piece)
    return value


def _window(
    row: list[str] | None, height: list[str] | None
) -> tuple[tuple[int, int, int, int] | None, int]:
    try:
        left, wide, top, high = (int(value) for value in row or ())
        frame = int((height or [""])[0])
    except ValueError:
        return None, 0
    return (left, top, left + wide, top + high), frame


def _person(subset: str, video: str) -> str:
    return f"{subset}_{video}" if subset == "RD" else f"{subset}_{video.rstrip('0123456789')}"
