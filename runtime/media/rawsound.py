"""Sound without a header: its rate and channels must be given, as nothing can detect them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dithead.errors import ConfigError

# FFmpeg's formats that contain only samples; it assumes 44.1 kHz and one channel for all of them.
_FORMAT = re.compile(r"[su]8|[su](16|24|32)[bl]e|f(32|64)[bl]e|alaw|mulaw|vidc")
# File names of such formats. Their contents may look like anything else by chance.
_SUFFIXES = {".pcm", ".raw", ".sw", ".sb", ".uw", ".ub", ".al", ".ul", ".alaw", ".mulaw", ".ulaw"}
_SAMPLES = re.compile(r"\.([suf])(8|16|24|32|64)([bl]e)?")

#: What to say of it, by the options of ``dithead-stream``.
HOW = (
    "for raw sound say its format, rate and channels, such as --audio-format s16le --audio-option "
    "rate=24000 --audio-option channels=1"
)


def is_raw(format_name: str | None) -> bool:
    """Whether FFmpeg's format contains only samples."""
    return format_name is not None and _FORMAT.fullmatch(format_name) is not None


def named_raw(path: str) -> bool:
    """Whether a file's name says that it contains only samples."""
    suffix = Path(path).suffix.lower()
    return suffix in _SUFFIXES or _SAMPLES.fullmatch(suffix) is not None


def raw_options(given: str, options: Mapping[str, str]) -> dict[str, str]:
    """FFmpeg's options for raw sound, from the user's.

    Args:
        given: the input, for messages.
        options: ``rate`` or ``sample_rate`` in Hz, and ``channels`` (a number) or ``ch_layout``
            (FFmpeg's name, such as stereo); others are passed on.

    Raises:
        ConfigError: rate or channels are missing, or are not numbers above 0.
    """
    found = dict(options)
    if "rate" in found:
        found["sample_rate"] = found.pop("rate")
    if "channels" in found:
        found["ch_layout"] = f"{_count(given, 'channels', found.pop('channels'))}c"
    missing = [
        name
        for name, key in (("rate", "sample_rate"), ("channels", "ch_layout"))
        if key not in found
    ]
    if missing:
        raise ConfigError(f"{given}: raw sound without its {' and '.join(missing)}: {HOW}")
    _count(given, "rate", found["sample_rate"])
    return found


def _count(given: str, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{given}: the {name} must be a whole number above 0, not {text!r}")
    return int(text)
