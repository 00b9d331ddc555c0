"""The main job, from files, pipes or live sources to a file, a pipe or a server: runs the stages of
:mod:`dithead.runtime.schedule.stages` between a decoder and an encoder, in bounded memory."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dithead.errors import ConfigError, MediaError
from dithead.generator import FrameGenerator, LeftAlone
from dithead.options import Options
from dithead.runtime.backends import RuntimeGraphs
from dithead.runtime.defaults import IN_FLIGHT
from dithead.runtime.leftalone import left_alone_notes, nobody_spoke
from dithead.runtime.media.extend import ExtendMode, extend_frames
from dithead.runtime.media.inputs import Demuxer, Input, Kind, as_input
from dithead.runtime.media.otherstreams import OtherTracks, other_streams
from dithead.runtime.media.outputs import Encoding, Output, as_output
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.runtime.media.videoframe import VideoFrame
from dithead.runtime.run import Run
from dithead.runtime.schedule.frame import Frame, Picture
from dithead.runtime.schedule.lanes import Lanes
from dithead.runtime.schedule.trace import Trace

_BEHIND_S = 1.0  # sound reaches up to 0.74 s ahead of its frame


@dataclass(slots=True)
class Summary:
    """What a run did."""

    output: Output
    frames: int = 0
    """Frames taken from the input."""
    faces: int = 0
    """Frames in which a face was found and re-voiced."""
    left_alone: Counter[LeftAlone] = field(default_factory=Counter)
    """The other frames, which passed through untouched: the number for each reason, see
    :data:`dithead.generator.LeftAlone`."""
    frames_written: int = 0
    dropped: int = 0
    """Frames of a live source that came too fast to be processed."""
    seconds: float = 0.0
    """Wall time, without loading the models."""
    video_s: float = 0.0
    """Length of the output."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each stage."""
    notes: list[str] = field(default_factory=list)
    """What the user should know, such as that the longer track was cut."""
    backend: str = "torch"
    device: str = "cpu"
    steps: int = 0

    @property
    def fps(self) -> float:
        """Input frames per second of wall time."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def stage_fps(self) -> dict[str, float]:
        """Input frames per second spent in a stage."""
        return {name: self.frames / s for name, s in self.stage_s.items() if s > 0}


def stream_file(
    video: str | os.PathLike[str] | Input,
    audio: str | os.PathLike[str] | Input,
    output: str | os.PathLike[str] | Output,
    graphs: RuntimeGraphs,
    options: Options,
    *,
    backend: str = "torch",
    interpolate: int = 1,
    extend: ExtendMode | None = None,
    encoding: Encoding | None = None,
    keep_tracks: bool = True,
    in_flight: int = IN_FLIGHT,
    batch: int = 1,
    overlap: bool = True,
    progress: Callable[[int, float], None] | None = None,
    trace: Trace | None = None,
    lanes: Lanes | None = None,
) -> Summary:
    """Re-voice a video and write the result.

    A live source never has to wait: of the frames that come too fast to be processed, the oldest
    are dropped and counted in the summary; all of its sound is kept. Output from files to a server
    is sent at playback speed.

    Args:
        video: anything PyAV opens, a still picture included; see :class:`Input`.
        audio: anything with an audio track; may be the video itself, even if it can be read only
            once.
        output: a file (.mp4, .m4v, .mov, .mkv, .webm, .ts, .flv), "-" for standard output, or a
            URL; see :class:`Output`.
        graphs: the model, run by a back end. backend: that back end's name, for the summary.
        interpolate: 1 keeps the frame rate; 2 puts a frame between every two (N frames become 2N -
            1).
        extend: what to do when the audio is longer than the video; see :func:`extend_frames`. None
            holds a still picture, and otherwise cuts the audio.
        encoding: the container and the encoder.
        keep_tracks: whether the video's other audio tracks, subtitles, attachments, cover, chapters
            and tags are copied to the output, as far as its container has room for them.
        in_flight: maximum number of frames in progress.
        batch: number of frames denoised together, with a fixed reference.
        overlap: whether stages run in parallel; otherwise one after the other, in one thread.
        progress: called after each input frame with its number and its time in seconds, from
            another thread.
        trace: where every stage's work is recorded. lanes: what orders the stages' work; None takes
            the device's own.

    Raises:
        MediaError, ConfigError, StreamError: no file is left under the output's name.
    """
    video, audio, output = as_input(video), as_input(audio), as_output(output)
    _check(video, audio, output, interpolate, extend)
    summary = Summary(output, backend=backend, device=str(graphs.device))
    random_weights = getattr(graphs, "random_weights", False)
    if random_weights:
        summary.notes.append(
            f"random weights in the shapes of {graphs.config.preset}, never trained: what was "
            "generated is noise; take the speed and the memory, not the picture"
        )
    start = time.perf_counter()
    opened: Demuxer | None = None
    one_pass = video.once and audio.text == video.text
    if video.once:
        kinds: list[Kind] = ["video", "audio"] if one_pass else ["video"]
        opened = Demuxer(replace(video, audio_track=audio.audio_track), kinds)
        if keep_tracks:
            opened.read_also([stream for _, stream in _others(opened, audio)])
    # With live sound, a frame may have to wait for its own.
    behind_s = _BEHIND_S if audio.live else 0.0
    with VideoSource(opened or video, behind_s) as source:
        sound = AudioSource(opened if opened is not None and one_pass else audio)
        extend = extend or ("freeze" if source.info.still else "trim")
        tracks = _beside(source, audio) if keep_tracks else None
        with (
            tracks or nullcontext(),
            VideoSink(
                output,
                source.info,
                audio=sound,
                encoding=encoding,
                interpolate=interpolate,
                tags=source.tags if keep_tracks else None,
                tracks=tracks,
                random_weights=random_weights,
            ) as sink,
        ):
            generator = FrameGenerator(graphs, options)
            summary.steps = generator.steps
            paced = output.live and not (video.live or audio.live)
            writer = _Writer(
                sink, sound, summary, interpolate, progress, _Pace() if paced else None
            )
            run = Run(
                generator,
                extend_frames(source, extend),
                _FileSound(sound),
                writer.take,
                source_name="decode video",
                take_name="encode video",
                trim=True,
                interpolate=interpolate,
                in_flight=in_flight,
                batch=batch,
                overlap=overlap,
                waits=[source, writer],
                lanes=lanes,
                trace=trace,
            )
            try:
                run.start()
                run.wait()
                writer.done = True
            finally:
                run.stop()
            summary.stage_s = run.busy_s
            if writer.last is None:
                raise MediaError(f"{video} has no frame before the end of {audio}")
            if summary.faces == 0:
                raise nobody_spoke(video, options, summary.left_alone)
            summary.dropped = source.dropped
            summary.notes += left_alone_notes(summary.left_alone)
            summary.notes += _notes(source, sound, writer.last, extend) + sink.notes
            sink.close()
            if sink.left_out:
                summary.notes.append(f"left out of {output}: {', '.join(sink.left_out)}")
    summary.seconds = time.perf_counter() - start
    summary.frames_written = sink.frames_written
    return summary


def _others(demuxer: Demuxer, audio: Input) -> list[tuple[str, Any]]:
    spoken = audio.audio_track if audio.text == demuxer.given.text else None
    return other_streams(demuxer.container, demuxer.stream("video"), spoken)


def _beside(source: VideoSource, audio: Input) -> OtherTracks | None:
    """Everything in a video besides its picture and first sound; None for nothing."""
    given, demuxer = source.given, source.demuxer
    if not _others(demuxer, audio):
        return None
    spoken = audio.audio_track if audio.text == given.text else None
    picture = demuxer.stream("video").index
    return OtherTracks(demuxer if given.once else given, picture, spoken)


def _check(
    video: Input, audio: Input, output: Output, interpolate: int, extend: ExtendMode | None
) -> None:
    """Reject what cannot be done, before anything is opened."""
    if interpolate not in (1, 2):
        raise ConfigError(f"interpolate must be 1 or 2, not {interpolate}")
    if extend in ("loop", "pingpong") and video.once:
        raise ConfigError(
            f"{video} can be read only once, so it cannot be played again",
            hint="extend it by freeze, or write it to a file first",
        )
    if not output.streamed and any(given.same_file(Path(output.text)) for given in (video, audio)):
        raise MediaError(
            f"{output} is one of the inputs",
            hint="choose another name for the output",
        )


class _FileSound:
    """The sound of a file; see :class:`dithead.runtime.schedule.stages.Sound`."""

    def __init__(self, source: AudioSource) -> None:
        self._source = source
        self._blocks: Iterator[np.ndarray] = source.blocks()

    def read(self, picture: Picture) -> Tensor | None:
        block = next(self._blocks, None)
        return None if block is None else torch.from_numpy(block)

    @property
    def length_s(self) -> Fraction:
        return self._source.duration_s


class _Pace:
    """Waits until it is a frame's turn to be shown."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._stopped = threading.Event()

    def wait(self, time_s: float) -> None:
        """Wait for a time on the clock that starts with the first call."""
        now = time.monotonic()
        if self._start is None:
            self._start = now - time_s
        self._stopped.wait(max(0.0, self._start + time_s - now))

    def stop(self) -> None:
        """End the waiting."""
        self._stopped.set()


class _Writer:
    """Writes and counts finished frames and those between them."""

    def __init__(
        self,
        sink: VideoSink,
        sound: AudioSource,
        summary: Summary,
        interpolate: int,
        progress: Callable[[int, float], None] | None,
        pace: _Pace | None,
    ) -> None:
        self.last: VideoFrame | None = None
        self.done = False
        """Whether all frames are written."""
        self._sink = sink
        self._sound = sound
        self._summary = summary
        self._interpolate = interpolate
        self._progress = progress
        self._pace = pace

    def stop(self) -> None:
        """End the wait for a frame's turn. Unless all frames are written, also end the waits for
        sound and for a reader that does not read: the sink still requests the last frame's
        sound."""
        if not self.done:
            self._sink.stop()
            self._sound.stop()
        if self._pace is not None:
            self._pace.stop()

    def take(self, f: Frame) -> None:
        """Write one frame."""
        made = f.result
        assert isinstance(made, VideoFrame)
        if self._pace is not None:
            self._pace.wait(float(made.time_s))
        if f.middle is not None and self.last is not None:
            self._sink.write(between(self.last, made, f.middle.numpy()))
        shown = made if self._interpolate == 1 else halved(made)
        self._sink.write(shown)
        self.last = made
        summary = self._summary
        summary.frames += 1
        why = f.left_alone
        summary.faces += why is None
        if why is not None:
            summary.left_alone[why] += 1
        summary.video_s = float(shown.end_s)
        if self._progress is not None:
            self._progress(summary.frames, float(made.end_s))


def halved(frame: VideoFrame) -> VideoFrame:
    """The same frame, shown for half as long, in ticks of half the length."""
    return replace(frame, pts=2 * frame.pts, time_base=frame.time_base / 2)


def between(last: VideoFrame, frame: VideoFrame, picture: np.ndarray) -> VideoFrame:
    """A frame midway between two, which shows a picture (H, W, 3) uint8."""
    ticks = frame.pts - last.pts
    empty = replace(last, pts=2 * last.pts + ticks, time_base=last.time_base / 2, duration=ticks)
    return empty.with_rectangle(0, 0, picture, np.ones(picture.shape[:2], bool))


def _notes(
    source: VideoSource, sound: AudioSource, last: VideoFrame, extend: ExtendMode
) -> list[str]:
    """What the user should know about the inputs."""
    notes = _length_notes(source, sound.duration_s, last, extend) if sound.duration_known else []
    if source.dropped:
        notes.append(f"{source.dropped} frames of the live source came too fast and were dropped")
    if source.interlaced:
        notes.append("the video is interlaced: its frames were deinterlaced")
    for given in {given.text: given for given in (source.given, sound.given)}.values():
        if (missing := given.damage) is not None:
            notes.append(f"{given}: the file {missing}")
    for track, name in ((source, "video"), (sound, "audio")):
        if track.restarts:
            times = "once" if track.restarts == 1 else f"{track.restarts} times"
            notes.append(
                f"the clock of the {name} goes back, or starts anew, {times}: "
                "the pieces follow each other"
            )
        if track.decode_errors:
            notes.append(f"{track.decode_errors} damaged pieces of the {name} were left out")
    return notes


def _length_notes(
    source: VideoSource, sound_s: Fraction, last: VideoFrame, extend: ExtendMode
) -> list[str]:
    notes = []
    difference = float(sound_s - last.end_s)
    one_frame = float(last.end_s - last.time_s)
    if extend == "trim" and difference > one_frame:
        notes.append(
            f"the audio is {difference:.2f} s longer than the video and was cut; "
            "--extend loop, pingpong or freeze keeps it"
        )
    claimed = source.info.duration_s
    audio_ended = difference <= one_frame
    if audio_ended and claimed is not None and float(claimed) - float(last.end_s) > one_frame:
        notes.append(
            f"the video is {float(claimed - last.end_s):.2f} s longer than the audio and was cut"
        )
    return notes
