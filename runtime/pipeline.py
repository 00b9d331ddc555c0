"""The main job, from files to a file: frame by frame, in bounded memory.

One frame passes through all stages before the next is decoded. The stages are the methods of
:class:`dithead.pipeline.FrameGenerator`; only their schedule is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from dithead.audio import AudioFeatureStream
from dithead.errors import ConfigError, DitheadError, MediaError, StreamError
from dithead.graphs import Graphs
from dithead.pipeline import FrameGenerator, Options, Patch, SpeechGraph, cut_face, inside
from dithead.runtime.extend import ExtendMode, extend_frames
from dithead.runtime.frame import VideoFrame
from dithead.runtime.media import AudioSource, VideoSource
from dithead.runtime.mux import VideoSink


@dataclass(slots=True)
class Summary:
    """What a run did."""

    output: Path
    frames: int = 0
    """Frames taken from the input."""
    faces: int = 0
    """Frames in which a face was found and re-voiced; the others were handed through untouched."""
    frames_written: int = 0
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
        """Input frames for each second of wall time."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def stage_fps(self) -> dict[str, float]:
        """Input frames for each second spent in a stage."""
        return {name: self.frames / s for name, s in self.stage_s.items() if s > 0}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stage_s[stage] = self.stage_s.get(stage, 0.0) + time.perf_counter() - start


def stream_file(
    video: Path,
    audio: Path,
    output: Path,
    graphs: Graphs,
    options: Options,
    *,
    backend: str = "torch",
    interpolate: int = 1,
    extend: ExtendMode = "trim",
    progress: Callable[[int, float], None] | None = None,
) -> Summary:
    """Re-voice a video file and write the result.

    Args:
        video: anything PyAV opens. audio: any file with an audio track. output: .mp4, .m4v, .mov,
            .mkv or .webm.
        graphs: the model, as a back end runs it. backend: that back end's name, for the summary.
        interpolate: 1 keeps the frame rate; 2 puts a frame between every two (N frames become 2N -
            1).
        extend: what to do when the audio is longer than the video; see :func:`extend_frames`.
        progress: called after each input frame with its number and its time in seconds.

    Raises:
        MediaError, ConfigError, StreamError: nothing is left under the output's name.
    """
    if interpolate not in (1, 2):
        raise ConfigError(f"interpolate must be 1 or 2, not {interpolate}")
    if output.exists() and any(output.samefile(p) for p in (video, audio) if p.exists()):
        raise MediaError(f"{output} is one of the inputs: choose another name for the output")
    summary = Summary(output, backend=backend, device=str(graphs.device))
    start = time.perf_counter()
    with VideoSource(video) as source:
        sound = AudioSource(audio)
        doubler = Doubler(graphs) if interpolate == 2 else None
        with VideoSink(output, source.info, audio=sound, interpolate=interpolate) as sink:
            frames = extend_frames(source, extend, sound.duration_s)
            run = _Run(graphs, options, sound, summary)
            summary.steps = run.generate.steps
            last: VideoFrame | None = None
            for frame in summary_timed(frames, summary, "decode video"):
                made = run.frame(frame)
                summary.frames += 1
                if doubler is not None:
                    between = run.between(doubler, made)
                    if between is not None:
                        _write(sink, between, summary)
                shown = doubler.halved(made) if doubler else made
                _write(sink, shown, summary)
                last, summary.video_s = made, float(shown.end_s)
                if progress is not None:
                    progress(summary.frames, float(made.end_s))
            if last is None:
                raise MediaError(f"{video} has no frame before the end of {audio}")
            if summary.faces == 0:
                which = "" if options.face == "largest" else f" number {options.face}"
                raise MediaError(
                    f"no face{which} in any of the {summary.frames} frames of {video}"
                    + ("; faces are counted from the left, from 0" if which else "")
                )
            summary.notes += _length_notes(source, sound.duration_s, last, extend)
            with summary.timed("encode video"):
                sink.close()
    summary.seconds = time.perf_counter() - start
    summary.frames_written = sink.frames_written
    return summary


def summary_timed(
    frames: Iterator[VideoFrame], summary: Summary, stage: str
) -> Iterator[VideoFrame]:
    """Pass frames on, adding the time it takes to get each to a stage."""
    while True:
        with summary.timed(stage):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _write(sink: VideoSink, frame: VideoFrame, summary: Summary) -> None:
    with summary.timed("encode video"):
        sink.write(frame)


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
    if source.decode_errors:
        notes.append(f"{source.decode_errors} damaged pieces of the video were left out")
    return notes


class _Run:
    """One stream: the generator's state and the audio features beside it."""

    def __init__(
        self, graphs: Graphs, options: Options, sound: AudioSource, summary: Summary
    ) -> None:
        self.generate = FrameGenerator(graphs, options)
        self.device = graphs.device
        self.features = AudioFeatureStream(SpeechGraph(graphs))
        self.blocks = sound.blocks()
        self.summary = summary

    def window(self, time_s: float) -> Tensor:
        """Audio window at a time, reading on in the audio as far as it takes."""
        while self.features.available_s < time_s:
            block = next(self.blocks, None)
            if block is None:
                self.features.finish()
            else:
                self.features.push(torch.from_numpy(block))
        return self.features.window(time_s).to(self.device)

    @torch.inference_mode()
    def frame(self, frame: VideoFrame) -> VideoFrame:
        """Re-voice one frame; without a face it comes back as it is."""
        stage = "track"
        try:
            with self.summary.timed("track"):
                picture = torch.from_numpy(frame.rgb()).to(self.device)
                found = self.generate.track(picture, float(frame.time_s))
            if found is None:
                self.generate.refuse_faceless(frame.index, float(frame.time_s))
                with self.summary.timed("audio"):
                    self.window(float(frame.time_s))  # keep up, or the sound would pile up
                return frame
            transform, polygon = found
            stage = "encode face"
            with self.summary.timed(stage):
                left, top, rectangle, local = cut_face(picture, transform)
                crop, masked = self.generate.encode(rectangle, local)
            stage = "audio"
            with self.summary.timed(stage):
                window = self.window(float(frame.time_s))
            stage = "denoise"
            with self.summary.timed(stage):
                latent = self.generate.denoise(crop, masked, window, frame.index)
            stage = "decode face"
            with self.summary.timed(stage):
                image, weight = self.generate.decode(latent, rectangle, crop, local, polygon)
                made = lay_on(frame, Patch(left, top, image, weight))
        except DitheadError:
            raise
        except RuntimeError as error:
            raise StreamError(f"stage '{stage}' failed at frame {frame.index}: {error}") from error
        self.summary.faces += 1
        return made

    def between(self, doubler: Doubler, frame: VideoFrame) -> VideoFrame | None:
        """The frame between the last one and this one."""
        try:
            with self.summary.timed("interpolate"):
                return doubler(frame)
        except RuntimeError as error:
            raise StreamError(
                f"stage 'interpolate' failed at frame {frame.index}: {error}"
            ) from error


def lay_on(frame: VideoFrame, patch: Patch) -> VideoFrame:
    """Put a patch into a frame's planes; every sample outside the mask stays as it is, bit for
    bit."""
    x, y, image, mask = inside(patch, frame.width, frame.height)
    if image.numel() == 0:
        return frame
    return frame.with_rectangle(x, y, image.cpu().numpy(), (mask > 0).cpu().numpy())


class Doubler:
    """Doubles the frame rate: gives the frame between the last one and the next (RIFE)."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self._last: VideoFrame | None = None
        self._last_picture: Tensor | None = None

    @staticmethod
    def halved(frame: VideoFrame) -> VideoFrame:
        """The same frame, shown for half as long, in ticks of half the length."""
        return replace(frame, pts=2 * frame.pts, time_base=frame.time_base / 2)

    @torch.inference_mode()
    def __call__(self, frame: VideoFrame) -> VideoFrame | None:
        """The frame in the middle of the last frame given and this one; None for the first."""
        device = self._graphs.device
        rgb = torch.from_numpy(frame.rgb()).to(device)
        picture = rgb.permute(2, 0, 1)[None].float() / 255.0
        last, last_picture = self._last, self._last_picture
        self._last, self._last_picture = frame, picture
        if last is None or last_picture is None:
            return None
        half = torch.tensor(0.5, device=device)
        (middle,) = self._graphs.run("interpolator", last_picture, picture, half)
        image = (middle[0].permute(1, 2, 0) * 255.0).round().byte().cpu()
        ticks = frame.pts - last.pts
        empty = replace(
            last, pts=2 * last.pts + ticks, time_base=last.time_base / 2, duration=ticks
        )
        return empty.with_rectangle(
            0, 0, image.numpy(), torch.ones(frame.height, frame.width, dtype=torch.bool).numpy()
        )
