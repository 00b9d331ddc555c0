"""Make the face in a video speak an audio track, from Python.

From file to file::

    import dithead

    summary = dithead.revoice("in.mp4", "audio.wav", "out.mp4")
    print(summary.faces, "of", summary.frames, "frames were re-voiced")

In a call or an avatar, with sound and pictures as they come::

    session = dithead.Session.open(device="cpu")
    with session.open_stream(dithead.Options(steps=2)) as stream:
        stream.push_audio(samples)         # float32, mono, 16 kHz
        stream.push_frame(image, time_s)   # (H, W, 3) uint8 RGB, seconds
        stream.finish()
        for frame in stream.frames():
            show(frame.image, frame.time_s)

Importing this package is cheap: torch is loaded when one of these names is first used, and the
errors need nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from dithead.errors import (
    BackendUnavailable,
    CheckpointError,
    ConfigError,
    DitheadError,
    ExportError,
    MediaError,
    StreamError,
)

if TYPE_CHECKING:  # for editors and type checkers; a test compares it with the table below
    from dithead.export.cached import cached_bundle
    from dithead.face.speakers import Speakers
    from dithead.options import Options
    from dithead.runtime.asyncstream import AsyncStream
    from dithead.runtime.media.inputs import Input
    from dithead.runtime.media.outputs import Encoding
    from dithead.runtime.outputframe import OutputFrame
    from dithead.runtime.pipeline import Summary
    from dithead.runtime.revoice import revoice
    from dithead.runtime.session import Session
    from dithead.runtime.speech import SpeechEvent
    from dithead.runtime.stream import Stream
else:

    def __getattr__(name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module 'dithead' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_WHERE[name]), name)
        return value


try:
    __version__ = version("dithead")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0.0.0+uninstalled"

_WHERE = {  # the module of each name that is loaded when it is first used
    "AsyncStream": "dithead.runtime.asyncstream",
    "Encoding": "dithead.runtime.media.outputs",
    "Input": "dithead.runtime.media.inputs",
    "Options": "dithead.options",
    "OutputFrame": "dithead.runtime.outputframe",
    "Session": "dithead.runtime.session",
    "Speakers": "dithead.face.speakers",
    "SpeechEvent": "dithead.runtime.speech",
    "Stream": "dithead.runtime.stream",
    "Summary": "dithead.runtime.pipeline",
    "cached_bundle": "dithead.export.cached",
    "revoice": "dithead.runtime.revoice",
}

__all__ = [
    "AsyncStream",
    "BackendUnavailable",
    "CheckpointError",
    "ConfigError",
    "DitheadError",
    "Encoding",
    "ExportError",
    "Input",
    "MediaError",
    "Options",
    "OutputFrame",
    "Session",
    "Speakers",
    "SpeechEvent",
    "Stream",
    "StreamError",
    "Summary",
    "__version__",
    "cached_bundle",
    "revoice",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
