"""libdithead through ctypes, as the tests use it. The classes mirror dithead.h; the library
compares their sizes in every call."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BUILD = Path(
    os.environ.get("DITHEAD_CAPI", Path(__file__).resolve().parents[1] / "build" / "capi")
).resolve()
"""Where the library was built, with its test programs."""
OK, WOULD_BLOCK, END_OF_STREAM = 0, 1, 2
INVALID_ARGUMENT, BUNDLE, PROVIDER, STATE, STAGE, STOPPED = -1, -4, -5, -6, -9, -10
NEXT_SAMPLE = WAIT_FOREVER = -1
LEFT_ALONE = (*(None, "no face", "away", "nobody", "too faint", "covered", "too large", "idle"),)
"""By number, as Python's streams name them."""
EVENT_KINDS = ("began", "ended", "interrupted")


class SessionOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("bundle_path", c_char_p),
        ("provider", c_char_p),
        ("device", c_int32),
        ("threads", c_int32),
        ("provider_library", c_char_p),
        ("log", c_void_p),
        ("log_user_data", c_void_p),
        ("log_level", c_int32),
        ("reserved", c_int32),
    ]


class StreamOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("seed", c_uint32),
        ("steps", c_int32),
        ("detail", c_int32),
        ("reference", c_int32),
        ("face", c_int32),
        ("face_index", c_int32),
        ("face_place", c_float * 4),
        ("pixel_format", c_int32),
        ("overlap", c_int32),
        ("in_flight", c_int32),
        ("waiting", c_int32),
        ("idle", c_int32),
        ("patience_us", c_int64),
        ("realtime", c_int32),
        ("rate_numerator", c_int32),
        ("rate_denominator", c_int32),
        ("portrait_width", c_int32),
        ("portrait_height", c_int32),
        ("reserved", c_int32),
        ("portrait", c_void_p),
        ("portrait_stride", c_size_t),
    ]


class Frame(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("pixels", c_void_p),
        ("stride", c_size_t),
        ("width", c_int32),
        ("height", c_int32),
        ("pts_us", c_int64),
        ("has_face_box", c_int32),
        ("face_box", c_float * 4),
        ("reserved", c_int32),
    ]


class Event(ctypes.Structure):
    _fields_ = [
        ("piece", c_uint64),
        ("sample", c_int64),
        ("kind", c_int32),
        ("reserved", c_int32),
    ]


class Output(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("pixels", c_void_p),
        ("pixels_capacity", c_size_t),
        ("stride", c_size_t),
        ("samples", c_void_p),
        ("samples_capacity", c_size_t),
        ("events", POINTER(Event)),
        ("events_capacity", c_size_t),
        ("index", c_int64),
        ("pts_us", c_int64),
        ("width", c_int32),
        ("height", c_int32),
        ("left_alone", c_int32),
        ("reserved", c_int32),
        ("pixels_size", c_size_t),
        ("first_sample", c_int64),
        ("sample_count", c_size_t),
        ("event_count", c_size_t),
    ]


class Statistics(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("frames_in", c_uint64),
        ("frames_out", c_uint64),
        ("left_alone", c_uint64 * 16),
        ("first_frame_us", c_int64),
        ("latency_p50_us", c_int64),
        ("latency_p95_us", c_int64),
        ("latency_p99_us", c_int64),
    ]


class StageStatistics(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("name", ctypes.c_char * 32),
        ("frames", c_uint64),
        ("busy_us", c_int64),
        ("work_p50_us", c_int64),
        ("work_p95_us", c_int64),
        ("work_p99_us", c_int64),
    ]


_CALLS: dict[str, list[Any]] = {
    "session_options_init": [POINTER(SessionOptions), c_size_t],
    "session_create": [POINTER(SessionOptions), POINTER(c_void_p)],
    "stream_options_init": [POINTER(StreamOptions), c_size_t],
    "stream_create": [c_void_p, POINTER(StreamOptions), POINTER(c_void_p)],
    "stream_reset": [c_void_p],
    "stream_stop": [c_void_p],
    "push_audio": [c_void_p, c_void_p, c_size_t, c_int64],
    "finish_audio": [c_void_p],
    "flush_audio": [c_void_p],
    "mark": [c_void_p, c_uint64],
    "mark_end": [c_void_p],
    "get_audio_position": [c_void_p, POINTER(c_int64), POINTER(c_int64)],
    "frame_init": [POINTER(Frame), c_size_t],
    "push_frame": [c_void_p, POINTER(Frame), c_int64],
    "set_portrait": [c_void_p, c_void_p, c_int32, c_int32, c_size_t],
    "finish": [c_void_p],
    "output_init": [POINTER(Output), c_size_t],
    "pull_frame": [c_void_p, POINTER(Output), c_int64],
    "get_statistics": [c_void_p, POINTER(Statistics)],
    "get_stage_statistics": [c_void_p, c_size_t, POINTER(StageStatistics)],
}


class CallError(Exception):
    """A call returned an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Library:
    """The shared library."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.raw = ctypes.CDLL(os.fspath(path))
        for name, arguments in _CALLS.items():
            call = getattr(self.raw, f"dithead_{name}")
            call.argtypes, call.restype = arguments, c_int32
        for name in ("session_destroy", "stream_destroy"):
            call = getattr(self.raw, f"dithead_{name}")
            call.argtypes, call.restype = [c_void_p], None
        for name in ("last_error", "version"):
            getattr(self.raw, f"dithead_{name}").restype = c_char_p

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function. Raises CallError: its status is an error."""
        status = int(getattr(self.raw, f"dithead_{name}")(*arguments))
        if status < 0:
            raise CallError(status, self.raw.dithead_last_error().decode())
        return status

    def filled(self, init: str, kind: Any, fields: dict[str, Any]) -> Any:
        """A struct with defaults, except for some fields."""
        struct = kind()
        self.call(init, byref(struct), ctypes.sizeof(struct))
        for name, value in fields.items():
            if name in ("face_place", "face_box"):
                value = (c_float * 4)(*value)
            setattr(struct, name, value)
        return struct


@dataclass(frozen=True)
class Pulled:
    """A pulled frame."""

    index: int
    pts_us: int
    image: np.ndarray
    left_alone: str | None
    first_sample: int
    samples: np.ndarray
    events: tuple[tuple[str, int, int], ...]
    """Kind, piece, sample."""


class CSession:
    """A session; see dithead.h for its options."""

    def __init__(self, library: Library, bundle: str | Path, **fields: Any) -> None:
        self.library = library
        self.handle = c_void_p()
        fields = {"bundle_path": os.fsencode(bundle), **fields}
        options = library.filled("session_options_init", SessionOptions, fields)
        library.call("session_create", byref(options), byref(self.handle))

    def open_stream(self, portrait: np.ndarray | None = None, **fields: Any) -> CStream:
        """Open a stream; fields are those of dithead_stream_options."""
        return CStream(self, portrait, fields)

    def close(self) -> None:
        """Destroy it."""
        self.library.raw.dithead_session_destroy(self.handle)
        self.handle = c_void_p()

    def __enter__(self) -> CSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CStream:
    """A stream. Pictures are (H, W, 3) uint8 RGB, sound is float32 at 16 kHz."""

    def __init__(
        self, session: CSession, portrait: np.ndarray | None, fields: dict[str, Any]
    ) -> None:
        self._library = session.library
        self.handle = c_void_p()
        if portrait is not None:
            fields = {
                "portrait": portrait.ctypes.data,
                "portrait_width": portrait.shape[1],
                "portrait_height": portrait.shape[0],
                "portrait_stride": portrait.strides[0],
                **fields,
            }
        options = self._library.filled("stream_options_init", StreamOptions, fields)
        self._library.call("stream_create", session.handle, byref(options), byref(self.handle))

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function on the stream. Raises CallError."""
        return self._library.call(name, self.handle, *arguments)

    def push_audio(self, samples: np.ndarray, first_sample: int = NEXT_SAMPLE) -> None:
        """Push sound."""
        assert samples.dtype == np.float32
        samples = np.ascontiguousarray(samples)
        self.call("push_audio", samples.ctypes.data, samples.size, first_sample)

    def push_frame(
        self,
        image: np.ndarray,
        pts_us: int,
        timeout_us: int = WAIT_FOREVER,
        face_box: tuple[float, float, float, float] | None = None,
    ) -> bool:
        """Push a frame; False: there was no room."""
        assert image.dtype == np.uint8 and image.strides[1:] == (3, 1)
        fields: dict[str, Any] = {
            "pixels": image.ctypes.data,
            "stride": image.strides[0],
            "width": image.shape[1],
            "height": image.shape[0],
            "pts_us": pts_us,
        }
        if face_box is not None:
            fields |= {"has_face_box": 1, "face_box": face_box}
        frame = self._library.filled("frame_init", Frame, fields)
        return self.call("push_frame", byref(frame), timeout_us) == OK

    def pull(self, timeout_us: int = WAIT_FOREVER) -> Pulled | None:
        """The next frame; None when all have come. Raises TimeoutError: not in time."""
        out = self._library.filled("output_init", Output, {})
        try:
            status = self.call("pull_frame", byref(out), timeout_us)
        except CallError:
            if not out.pixels_size:
                raise
            status = OK
        if status == WOULD_BLOCK:
            raise TimeoutError
        if status == END_OF_STREAM:
            return None
        image = np.empty((out.height, out.width, 3), np.uint8)
        samples = np.empty(out.sample_count + 16_000, np.float32)  # more may come meanwhile
        events = (Event * 64)()
        out.pixels, out.pixels_capacity = image.ctypes.data, image.nbytes
        out.samples, out.samples_capacity = samples.ctypes.data, samples.size
        out.events, out.events_capacity = events, len(events)
        if self.call("pull_frame", byref(out), timeout_us) != OK:
            return self.pull(timeout_us)  # speech was dropped meanwhile
        return Pulled(
            out.index,
            out.pts_us,
            image,
            LEFT_ALONE[out.left_alone],
            out.first_sample,
            samples[: out.sample_count].copy(),
            tuple((EVENT_KINDS[e.kind], e.piece, e.sample) for e in events[: out.event_count]),
        )

    def frames(self) -> Iterator[Pulled]:
        """The finished frames until all have come."""
        while (frame := self.pull()) is not None:
            yield frame

    def statistics(self) -> Statistics:
        """What the stream has done."""
        told = Statistics(struct_size=ctypes.sizeof(Statistics))
        self.call("get_statistics", byref(told))
        return told

    def stages(self) -> list[StageStatistics]:
        """What its stages have done."""
        found: list[StageStatistics] = []
        while True:
            told = StageStatistics(struct_size=ctypes.sizeof(StageStatistics))
            if self.call("get_stage_statistics", len(found), byref(told)) != OK:
                return found
            found.append(told)

    def close(self) -> None:
        """Destroy it."""
        self._library.raw.dithead_stream_destroy(self.handle)
        self.handle = c_void_p()

    def __enter__(self) -> CStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
