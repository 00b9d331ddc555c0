"""Reading media: video frame by frame, audio block by block, on one timeline and in bounded memory.

FFmpeg decodes and resamples, through PyAV. Time zero is the start of the container, so a video
lines up with its own audio track and with any other audio file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from typing import cast

import av
import numpy as np
from av.format import Flags as FormatFlags

from dithead.errors import MediaError
from dithead.runtime.media.clock import FORWARD_S, Ahead, SampleClock, VideoClock
from dithead.runtime.media.decoder import MediaDecoder
from dithead.runtime.media.deinterlace import deinterlaced
from dithead.runtime.media.fanout import FanOut
from dithead.runtime.media.inputs import Demuxer, Input, as_input
from dithead.runtime.media.live import NewestFrames
from dithead.runtime.media.sidedata import Mirror
from dithead.runtime.media.tags import labels, read_tags
from dithead.runtime.media.videoframe import VideoFrame, convert_picture
from dithead.runtime.media.videoinfo import VideoInfo, video_info

SPEECH_RATE_HZ = 16_000


class VideoSource:
    """The frames of an input's first video stream, decoded one at a time, pixels untouched.

    Each iteration is a separate pass from the first frame; the first pass needs no seeking, and is
    the only one for a pipe or a live source. Interlaced frames are the exception to untouched
    pixels: they are deinterlaced (FFmpeg's bwdif), one frame for each. A live source is read
    whether or not its frames are taken: of those that wait, the oldest are dropped. Use it as a
    context manager, or call `close`.

    Args:
        given: a path or URL, an :class:`Input`, or a shared one that is already open.
        behind_s: how old a frame of a live source may become before it is dropped.

    Attributes:
        given: the input.
        info: the stream's properties.
        tags: the file's tags.
        demuxer: the demuxer, closed with the first pass.
        decode_errors: number of damaged packets and frames in the last full pass; what decodes is
            kept.
        seekable: whether its time stamps are reliable enough to start a pass in the middle.
        interlaced: whether there were interlaced frames in the last pass.
        restarts: how often the clock went back, or started anew, in the last pass.
        dropped: frames of a live source that were not taken in time.

    Raises:
        MediaError: the file is missing, is not media, has no video stream, or none of its frames
            can be decoded.
    """

    def __init__(
        self, given: str | os.PathLike[str] | Input | Demuxer, behind_s: float = 0.0
    ) -> None:
        self._open = given if isinstance(given, Demuxer) else as_input(given)
        self.given = given.given if isinstance(given, Demuxer) else as_input(given)
        self._behind_s = behind_s
        self.decode_errors = 0
        self.seekable = not self.given.once
        self.interlaced = False
        self.restarts = 0
        self.dropped = 0
        self._opened: _VideoPass | None = _VideoPass(self._open)
        self.info = self._opened.info
        self.demuxer = self._opened.demuxer
        self.tags = read_tags(
            self.demuxer.container, self.demuxer.stream("video"), self.demuxer.start_s
        )
        self._only = self._opened.demuxer if self.given.once else None
        self._newest: NewestFrames | None = None

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A pass in progress closes its own when it ends or is dropped."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def stop(self) -> None:
        """End the pass over a pipe or a live source early, from any thread."""
        if self._only is not None:
            self._only.stop()
        if self._newest is not None:
            self._newest.stop()

    def __iter__(self) -> Iterator[VideoFrame]:
        if self._opened is None and self.given.once:
            raise MediaError(f"{self.given} can be read once only, from front to back")
        frames, self._opened = self._opened or _VideoPass(self._open, self.info), None
        whole, newest = deinterlaced(frames), None
        if self.given.live:
            newest = self._newest = NewestFrames(whole, self._behind_s)
        try:
            for frame in whole if newest is None else newest:
                self.decode_errors = frames.errors
                yield frame
        finally:
            if newest is not None:
                newest.stop()
                self.dropped = newest.dropped
            self.decode_errors = frames.errors
            self.interlaced = frames.interlaced
            self.restarts = frames.clock.restarts
            self.seekable = self.seekable and not frames.clock.repaired
            frames.close()

    def frames_from(self, pts: int) -> Iterator[VideoFrame]:
        """Iterate over the frames at or after a presentation time, numbered from 0.

        Seeks to the key frame before it; if the file cannot do that, decodes from the start.
        """
        for margin_s in (0, 2, 10) if self.seekable else ():
            frames = _VideoPass(self._open, self.info)
            try:
                target = max(0, pts - round(margin_s / self.info.time_base))
                first = frames.seek(target)
                if first is not None and first.pts <= pts:
                    whole = deinterlaced(chain([first], frames))
                    later = (frame for frame in whole if frame.pts >= pts)
                    yield from (replace(frame, index=i) for i, frame in enumerate(later))
                    return
            finally:
                frames.close()
        frames = _VideoPass(self._open, self.info)
        try:
            later = (frame for frame in deinterlaced(frames) if frame.pts >= pts)
            yield from (replace(frame, index=i) for i, frame in enumerate(later))
        finally:
            frames.close()


class AudioSource:
    """An audio track of an input (a video's own included), as one run of samples from time zero.

    A track that starts late is preceded by silence, sound before time zero is cut, and gaps are
    filled, so sample n is always at n / rate seconds. Each iteration is a separate pass. For a pipe
    or a live source, `blocks` and `original` share the only pass, once each and from any thread,
    and what one of them has not taken yet waits.

    Args:
        given: a path or URL, an :class:`Input`, or a shared one that is already open.

    Attributes:
        given: the input.
        sample_rate_hz: the track's own rate.
        layout: FFmpeg's name of the channel layout ("mono", "stereo", "5.1").
        channels: number of channels.
        labels: its language and title, if it has them.
        decode_errors: number of damaged packets in the last pass.
        restarts: how often the clock went back, or started anew, in the last full pass.

    Raises:
        MediaError: the file is missing, is not media, has no audio track, or one without samples.
    """

    def __init__(self, given: str | os.PathLike[str] | Input | Demuxer) -> None:
        self._open = given if isinstance(given, Demuxer) else as_input(given)
        self.given = given.given if isinstance(given, Demuxer) else as_input(given)
        self.decode_errors = 0
        self.restarts = 0
        self._duration_s: Fraction | None = None
        track = MediaDecoder(self._open, "audio")
        try:
            decoded = iter(track)
            first = next((frame for frame in decoded if frame.samples), None)
            if first is None or not first.sample_rate:
                raise MediaError(
                    f"{self.given}: the audio track holds no samples{track.demuxer.cause}",
                    hint=track.demuxer.hint or "give a file with sound",
                )
        except BaseException:
            track.close()
            raise
        self._readers: FanOut[np.ndarray] | None = None
        self._only = track.demuxer if self.given.once else None
        if not self.given.once:
            track.close()
        self.sample_rate_hz: int = first.sample_rate
        self.channels: int = first.layout.nb_channels
        self.labels = labels(track.stream.metadata)
        # "3 channels" means that the file does not say which; "3c" is the usual layout of three.
        usual = first.layout.name.replace(" channels", "c")
        try:
            self.layout: str = av.AudioLayout(usual).name
        except ValueError as error:
            raise MediaError(
                f"{self.given}: {self.channels} audio channels in no usual layout; expected 1 to 8"
            ) from error
        if self.given.once:
            self._readers = FanOut(
                self._decoded(track, chain([first], decoded)), (0, 1), lambda _: (0, 1)
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.blocks()

    @property
    def duration_s(self) -> Fraction:
        """Time of the track's end in seconds, counted in samples; decodes it once if necessary.

        Raises:
            MediaError: it can be read only once and has not been read to its end.
        """
        if self._duration_s is None:
            if self.given.once:
                raise MediaError(f"{self.given}: its length is not known before its end")
            for _ in self._samples():
                pass
        assert self._duration_s is not None
        return self._duration_s

    @property
    def duration_known(self) -> bool:
        """Whether `duration_s` is known without reading more of a pipe."""
        return self._duration_s is not None or not self.given.once

    def stop(self) -> None:
        """End the pass over a pipe early, from any thread."""
        if self._only is not None:
            self._only.stop()

    def blocks(self, block_samples: int = SPEECH_RATE_HZ) -> Iterator[np.ndarray]:
        """Resample to 16 kHz mono and yield blocks: (block_samples,) float32, the last shorter.

        Channels are averaged; values are as in the file, normally in [-1, 1].
        """
        # Without a limit, a float downmix adds the channels and is up to 3 dB louder.
        averaged = {"rematrix_maxval": "1"}
        resampler = av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ, options=averaged)
        pending = np.zeros(0, np.float32)
        for frame in chain(self._frames(0), [None]):
            resampled = _joined(resampler.resample(frame), "mono")[0]
            pending = np.concatenate([pending, resampled])
            while len(pending) >= block_samples:
                yield pending[:block_samples]
                pending = pending[block_samples:]
        if len(pending):
            yield pending

    def original(self) -> Iterator[av.AudioFrame]:
        """The track at its own rate and channels, for the output: float planar, pts in samples."""
        return self._frames(1)

    def _frames(self, reader: int) -> Iterator[av.AudioFrame]:
        position = 0
        for samples in self._samples() if self._readers is None else self._readers.read(reader):
            yield audio_frame(samples, position, self.sample_rate_hz, self.layout)
            position += samples.shape[1]

    def _samples(self) -> Iterator[np.ndarray]:
        track = MediaDecoder(self._open, "audio")
        return self._decoded(track, track)

    def _decoded(
        self, track: MediaDecoder, frames: Iterable[av.AudioFrame]
    ) -> Iterator[np.ndarray]:
        """Yield (channels, S) float32 at the track's own rate, without gaps from time zero on."""
        rate, clock, coming = self.sample_rate_hz, SampleClock(self.sample_rate_hz), Ahead(frames)

        def start_of(frame: av.AudioFrame | None) -> int | None:
            if frame is None or frame.pts is None:
                return None
            time_base: Fraction = track.stream.time_base
            return round((frame.pts * time_base - track.start_s) * rate)

        try:
            for frame, samples in _uniform(coming, rate, self.layout):
                start = start_of(frame)
                if start is not None:
                    following = start_of(coming.peek()) if clock.goes_back(start) else None
                    late = clock.place(start, samples.shape[1], following)
                    samples = samples[:, max(0, -late) :]
                    for begin in range(0, late, rate):
                        silence = min(rate, late - begin)
                        yield np.zeros((self.channels, silence), np.float32)
                        clock.written += silence
                if samples.shape[1]:
                    yield samples
                    clock.written += samples.shape[1]
            self._duration_s = Fraction(clock.written, rate)
            self.restarts = clock.restarts
        finally:
            self.decode_errors = track.errors
            track.close()


def audio_frame(
    samples: np.ndarray, position: int, sample_rate_hz: int, layout: str
) -> av.AudioFrame:
    """Wrap (channels, S) float32 samples that start at a sample position of their track."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
    frame.sample_rate = sample_rate_hz
    frame.time_base = Fraction(1, sample_rate_hz)
    frame.pts = position
    return frame


def _uniform(
    decoded: Iterable[av.AudioFrame], sample_rate_hz: int, layout: str
) -> Iterator[tuple[av.AudioFrame | None, np.ndarray]]:
    """Yield decoded frames with their samples, (channels, S) float32 at one rate and layout.

    Rate and layout may change in the middle of a file; the samples that a resampler still holds
    then come without a frame.
    """
    resampler = av.AudioResampler("fltp", layout, sample_rate_hz)
    made_for: tuple[str, str, int] | None = None
    for frame in decoded:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != made_for:
            yield None, _joined(resampler.resample(None), layout)
            resampler, made_for = av.AudioResampler("fltp", layout, sample_rate_hz), kind
        yield frame, _joined(resampler.resample(frame), layout)
    yield None, _joined(resampler.resample(None), layout)


def _joined(frames: Sequence[av.AudioFrame | None], layout: str) -> np.ndarray:
    parts = [frame.to_ndarray() for frame in frames if frame is not None]
    if not parts:
        return np.zeros((av.AudioLayout(layout).nb_channels, 0), np.float32)
    # A float file may contain NaN or infinity, which encoders refuse.
    joined: np.ndarray = np.nan_to_num(np.hstack(parts), nan=0.0, posinf=1.0, neginf=-1.0)
    return joined


class _VideoPass:
    """One pass over the video stream of a file, frames in working format on the clip's timeline.

    Args:
        given: what to open.
        info: what an earlier pass found.
    """

    def __init__(self, given: Input | Demuxer, info: VideoInfo | None = None) -> None:
        self.interlaced = False
        self._track = MediaDecoder(given, "video")
        try:
            decoded = iter(self._track)
            first = next(decoded, None)
            if first is None:
                demuxer = self._track.demuxer
                raise MediaError(
                    f"{demuxer.given}: not one frame of the video could be decoded{demuxer.cause}",
                    hint=demuxer.hint,
                )
            if info is None:
                coming = decoded = Ahead(decoded)
                # A pipe or a live source is not read further before its frames are requested.
                alone = not self._track.demuxer.given.once and coming.peek() is None
                info = video_info(self._track, first, alone)
            self.info = info
            self._decoded = Ahead(chain([first], decoded))
            self._mirror = Mirror(self._working(first)) if self.info.mirrored else None
        except BaseException:
            self._track.close()
            raise
        self._index = 0
        self._start = round(self.info.start_s / self.info.time_base)
        self._period = 1 / (self.info.average_rate * self.info.time_base)
        self.clock = self._new_clock()

    def _new_clock(self) -> VideoClock:
        starts_anew = cast(int, FormatFlags.ts_discont.value)
        flags = self.demuxer.container.format.flags
        forward_s = FORWARD_S if flags & starts_anew else None
        return VideoClock(self._start, self._period, self.info.time_base, forward_s)

    @property
    def demuxer(self) -> Demuxer:
        """The demuxer."""
        return self._track.demuxer

    @property
    def errors(self) -> int:
        """Number of damaged packets and frames so far."""
        return self._track.errors

    def __iter__(self) -> _VideoPass:
        return self

    def __next__(self) -> VideoFrame:
        decoded = next(self._decoded)
        info, index = self.info, self._index
        self._index += 1
        pts, duration = (0, 1) if info.still else self._time(decoded)
        self.interlaced |= decoded.interlaced_frame
        picture = self._working(decoded)
        return VideoFrame(
            index=index,
            pts=pts,
            time_base=info.time_base,
            duration=duration,
            picture=picture if self._mirror is None else self._mirror(picture),
            turns=info.rotation_deg // 90 % 4,
        )

    def _time(self, decoded: av.VideoFrame) -> tuple[int, int]:
        """A frame's time and duration in ticks."""
        following = self._decoded.peek() if self.clock.goes_back(decoded.pts) else None
        pts = self.clock.stamp(
            decoded.pts, decoded.dts, None if following is None else following.pts
        )
        return pts, decoded.duration or max(1, round(self._period))

    def _working(self, decoded: av.VideoFrame) -> av.VideoFrame:
        return convert_picture(decoded, self.info.pix_fmt, self.info.width, self.info.height)

    def seek(self, pts: int) -> VideoFrame | None:
        """Go to the key frame before a presentation time and return it, or None if that fails."""
        try:
            self._track.seek(pts + self._start)
        except av.FFmpegError:
            return None
        self._decoded = Ahead(self._track)
        self.clock = self._new_clock()
        first = next(self, None)
        intact = first is not None and first.picture.key_frame and not first.picture.is_corrupt
        return first if intact and not self.clock.repaired else None

    def close(self) -> None:
        self._track.close()
