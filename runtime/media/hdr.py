"""An HDR video's data about the display it was made on, for the encoders that accept it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from struct import unpack

from av.sidedata.sidedata import Type

# Data that changes with the frames, or that no encoder accepts.
_OTHERS = {
    Type.DYNAMIC_HDR_PLUS: "HDR10+",
    Type.DYNAMIC_HDR_VIVID: "HDR Vivid",
    Type.DOVI_RPU_BUFFER: "Dolby Vision",
    Type.DOVI_METADATA: "Dolby Vision",
    Type.AMBIENT_VIEWING_ENVIRONMENT: "ambient viewing environment",
}
# Encoders whose options take settings by name, and the names of our settings.
_PARAMETERS = {
    "libx264": ("x264-params", "mastering-display", "cll"),
    "libx265": ("x265-params", "master-display", "max-cll"),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light"),
}


@dataclass(frozen=True, slots=True)
class Hdr:
    """HDR data of a video.

    Attributes:
        mastering: x and y of red, green, blue and white (CIE 1931), then the lowest and highest
            luminance in cd/m2 of the display that it was graded on; None if not stated.
        light_level: the brightest pixel's and the brightest frame's mean luminance, in cd/m2
            (MaxCLL and MaxFALL); None if not stated.
        others: names of data that cannot be kept.
    """

    mastering: tuple[Fraction, ...] | None = None
    light_level: tuple[int, int] | None = None
    others: tuple[str, ...] = ()

    def options(self, codec: str, options: Mapping[str, str]) -> dict[str, str]:
        """An encoder's options, with the part of this data that it accepts."""
        if codec not in _PARAMETERS:
            return dict(options)
        key, mastering, light_level = _PARAMETERS[codec]
        settings = [options[key]] if key in options else []
        if self.mastering is not None:
            settings.append(f"{mastering}={self._display(whole=codec != 'libsvtav1')}")
        if self.light_level is not None:
            settings.append(f"{light_level}={self.light_level[0]},{self.light_level[1]}")
        return {**options, key: ":".join(settings)} if settings else dict(options)

    def note(self, codec: str) -> str | None:
        """A note on what an encoder does not accept; None if it accepts everything."""
        names = list(self.others)
        if codec not in _PARAMETERS:
            names += ["mastering display"] if self.mastering is not None else []
            names += ["content light level"] if self.light_level is not None else []
        if not names:
            return None
        others = "" if codec in _PARAMETERS else f"; {', '.join(_PARAMETERS)} take more"
        return f"HDR data were left out, which {codec} is not given: {', '.join(names)}{others}"

    def _display(self, whole: bool) -> str:
        """The mastering display as encoders write it, in whole steps or in plain numbers."""
        assert self.mastering is not None
        values = [
            value * step if whole else value
            for value, step in zip(self.mastering, [50_000] * 8 + [10_000] * 2, strict=True)
        ]
        text = [str(round(value)) if whole else f"{float(value):.5f}" for value in values]
        pairs = [",".join(text[at : at + 2]) for at in range(0, 8, 2)]
        red, green, blue, white = pairs
        return f"G({green})B({blue})R({red})WP({white})L({text[9]},{text[8]})"


def hdr_of(found: Mapping[Type, bytes]) -> Hdr | None:
    """Read a frame's side data; None if there is no HDR data."""
    mastering = light_level = None
    others = list(dict.fromkeys(name for kind, name in _OTHERS.items() if kind in found))
    if Type.MASTERING_DISPLAY_METADATA in found:
        # AVMasteringDisplayMetadata: ten fractions, then whether colours and luminance are known.
        values = unpack("=22i", found[Type.MASTERING_DISPLAY_METADATA][:88])
        if values[20] and values[21] and all(values[1:20:2]):
            mastering = tuple(Fraction(*values[at : at + 2]) for at in range(0, 20, 2))
        else:
            others.append("a mastering display of which half is not said")
    if Type.CONTENT_LIGHT_LEVEL in found:
        light_level = unpack("=2I", found[Type.CONTENT_LIGHT_LEVEL][:8])
    if mastering is None and light_level is None and not others:
        return None
    return Hdr(mastering, light_level, tuple(others))
