"""What a video has beside its picture and first sound: carried over, or told of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from clips import all_samples, copy_through, lag_s, picture, raw_times, said, tone, write_wav

from dithead.runtime.media.extend import extend_frames
from dithead.runtime.media.inputs import Input
from dithead.runtime.media.otherstreams import OtherTracks, other_streams
from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sink import DISCLOSURE, VideoSink
from dithead.runtime.media.sources import AudioSource, VideoSource

WORDS = [(0, 400, "one"), (400, 1000, "two\nlines"), (1200, 1500, "three")]  # ms


def write_rich(
    path: Path,
    sounds: tuple[tuple[str, str], ...] = (("eng", "aac"), ("deu", "aac"), ("fra", "ac3")),
    subtitles: str | None = "srt",
    chapters: bool = True,
    cover: bool = True,
    offset_s: int = 0,
) -> Path:
    """A video of 1.6 s with several sounds (bursts, each louder than the one before), subtitles,
    chapters and tags, by PyAV alone."""
    offset = {"output_ts_offset": str(offset_s)} if offset_s else {}
    with av.open(str(path), "w", container_options=offset) as container:
        container.metadata.update(title="A title", artist="Somebody", comment="Said before")
        video: Any = container.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.metadata["language"] = "eng"
        tracks: list[Any] = []
        for language, codec in sounds:
            track: Any = container.add_stream(codec, rate=48000, layout="mono")
            track.metadata["language"], track.metadata["title"] = language, f"In {language}"
            tracks.append(track)
        words: Any = None if subtitles is None else container.add_stream(subtitles)
        if words is not None:
            words.time_base = words.codec_context.time_base = Fraction(1, 1000)
            words.metadata["language"] = "spa"
            words.disposition = Disposition.forced
            header = av.CodecContext.create("srt", "r")
            header.open(strict=False)
            words.codec_context.subtitle_header = header.subtitle_header
        if path.suffix == ".mkv":
            container.add_attachment("font.ttf", "application/x-truetype-font", b"a font")
            if cover:
                container.add_attachment("cover.png", "image/png", PNG)
        if chapters:
            container.set_chapters(
                [
                    chapter(1, 0, 800, "First"),
                    chapter(2, 800, 1600, "Second"),
                ]
            )
        container.start_encoding()
        for index in range(40):
            frame = picture(index, 64, 48, "yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for number, track in enumerate(tracks, 1):
            sound = av.AudioFrame.from_ndarray(
                0.2 * number * tone(48000, 1.6)[None], "fltp", "mono"
            )
            sound.sample_rate, sound.pts, sound.time_base = 48000, 0, Fraction(1, 48000)
            container.mux([*track.encode(sound), *track.encode(None)])
        for start, end, text in WORDS if words is not None else ():
            line = f"0,0,Default,,0,0,0,,{text}".replace("\n", "\\N").encode()
            packet = words.codec_context.encode_subtitle(
                av.subtitles.subtitle.SubtitleSet.create(line, 0, end - start, start)
            )
            packet.pts = packet.dts = start
            packet.duration, packet.time_base, packet.stream = end - start, Fraction(1, 1000), words
            container.mux(packet)
    return path


def chapter(number: int, start: int, end: int, title: str) -> Any:
    base = Fraction(1, 1000)
    tags = {"title": title}
    return {"id": number, "start": start, "end": end, "time_base": base, "metadata": tags}


# One grey pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c6368000000820081dd436af40000000049454e44ae426082"
)


@contextmanager
def opened(path: Path, spoken: int | None = None) -> Iterator[tuple[VideoSource, OtherTracks]]:
    with VideoSource(path) as source:
        index = source.demuxer.stream("video").index
        with OtherTracks(Input(path), index, spoken) as tracks:
            yield source, tracks


@pytest.fixture
def speech(tmp_path: Path) -> AudioSource:
    return AudioSource(write_wav(tmp_path / "speech.wav", tone(16000, 3.0)))


def copied(path: Path, out: Path, speech: AudioSource, spoken: int | None = None) -> list[str]:
    """Copies a video with all that goes with it; what is left out."""
    with opened(path, spoken) as (source, tracks):
        copy_through(source, out, audio=speech, tags=source.tags, tracks=tracks)
        return [*source.tags.left_out(OUT[out.suffix]), *tracks.left_out]


OUT = {
    ".mkv": "matroska", ".mp4": "mp4", ".mov": "mov", ".webm": "webm", ".ts": "mpegts",
    ".flv": "flv",
}  # fmt: skip


def packets(path: Path, kind: str, number: int) -> list[tuple[Fraction, bytes]]:
    """A track's packets and their times in seconds."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[number]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


def words_in(path: Path) -> list[tuple[float, float, str]]:
    """Subtitles: start and end in seconds, and text."""
    found = []
    with av.open(str(path)) as container:
        stream: Any = container.streams.subtitles[0]
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None:
                start, end = packet.pts, packet.pts + (packet.duration or 0)
                for rect in stream.codec_context.decode2(packet) or ():
                    text = rect.ass.decode().split(",", 8)[8].replace("\\N", "\n").strip()
                    found.append(
                        (float(start * packet.time_base), float(end * packet.time_base), text)
                    )
    return [line for line in found if line[2]]


def labels_in(path: Path, kind: str) -> list[tuple[str | None, str | None]]:
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        tags = [{k.lower(): v for k, v in stream.metadata.items()} for stream in streams]
        return [(tag.get("language"), tag.get("title") or tag.get("name")) for tag in tags]


def chapters_in(path: Path) -> list[tuple[float, float, str]]:
    with av.open(str(path)) as container:
        return [
            (
                float(c["start"] * c["time_base"]),
                float(c["end"] * c["time_base"]),
                c["metadata"]["title"],
            )
            for c in container.chapters()
        ]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_everything_is_carried_where_there_is_room(
    tmp_path: Path, speech: AudioSource, suffix: str
) -> None:
    source, out = write_rich(tmp_path / "in.mkv"), tmp_path / f"out{suffix}"
    left = copied(source, out, speech)
    no_room = ["the attachment font.ttf", "the cover picture"]
    assert left == ([] if suffix == ".mkv" else no_room)
    unset = "und" if suffix == ".mp4" else None
    german = "ger" if suffix == ".mov" else "deu"  # which is what MOV calls it
    assert labels_in(out, "audio") == [(unset, None), (german, "In deu"), ("fra", "In fra")]
    assert labels_in(out, "video")[0][0] == "eng"
    assert labels_in(out, "subtitle") == [("spa", None)]
    for number in (1, 2):
        wanted, found = packets(source, "audio", number), packets(out, "audio", number)
        wanted = [packet for packet in wanted if packet[0] >= 0]  # not the encoder's run-in
        assert [content for _, content in found] == [content for _, content in wanted]
        apart = [abs(a - b) for (a, _), (b, _) in zip(found, wanted, strict=True)]
        assert max(apart) <= Fraction(1, 1000)
    assert words_in(out) == [(start / 1000, end / 1000, text) for start, end, text in WORDS]
    assert chapters_in(out) == [(0, 0.8, "First"), (0.8, 1.6, "Second")]
    tags = said(out)
    assert tags["title"] == "A title"
    assert tags["artist"] == "Somebody"
    assert tags["source_comment"] == "Said before"
    assert DISCLOSURE.items() <= tags.items()
    assert raw_times(out) == [Fraction(i, 25) for i in range(40)]
    with av.open(str(out)) as result:
        if suffix == ".mkv":
            covers = [s for s in result.streams if s.disposition & Disposition.attached_pic]
            assert [bytes(next(result.demux(cover))) for cover in covers] == [PNG]
        defaults = [bool(s.disposition & Disposition.default) for s in result.streams.audio]
        assert defaults == [True, False, False]  # players choose the new speech
    heard = all_samples(AudioSource(out))[0]
    assert np.abs(heard).max() > 0.7  # the first sound is the new one; the others are 0.4 and 0.6


def test_what_was_generated_before_says_so_once(tmp_path: Path, speech: AudioSource) -> None:
    first, second = tmp_path / "first.mkv", tmp_path / "second.mp4"
    copied(write_rich(tmp_path / "in.mkv"), first, speech)
    copied(first, second, speech)
    for out in (first, second):
        tags = said(out)
        assert DISCLOSURE.items() <= tags.items()
        assert tags["source_comment"] == "Said before"


@pytest.mark.parametrize(
    ("suffix", "left"),
    [
        (".webm", ["audio track 2 (aac, deu, In deu)", "audio track 3 (ac3, fra, In fra)",
                   "the attachment font.ttf", "the cover picture"]),
        (".ts", ["title and tags", "chapters", "subtitle track 1 (subrip, spa)",
                 "the attachment font.ttf", "the cover picture"]),
        (".flv", ["chapters", "audio track 2 (aac, deu, In deu)",
                  "audio track 3 (ac3, fra, In fra)", "subtitle track 1 (subrip, spa)",
                  "the attachment font.ttf", "the cover picture"]),
    ],
)  # fmt: skip
def test_what_finds_no_room_is_named(
    tmp_path: Path, speech: AudioSource, suffix: str, left: list[str]
) -> None:
    out = tmp_path / f"out{suffix}"
    assert copied(write_rich(tmp_path / "in.mkv"), out, speech) == left
    with av.open(str(out)) as result:
        kinds = [stream.type for stream in result.streams]
    assert kinds == {
        ".webm": ["video", "audio", "subtitle"], ".ts": ["video"] + 3 * ["audio"],
        ".flv": ["video", "audio"],
    }[suffix]  # fmt: skip


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_subtitles_come_back_from_mp4(tmp_path: Path, speech: AudioSource, suffix: str) -> None:
    source = write_rich(tmp_path / f"in{suffix}", (("eng", "aac"),), "mov_text")
    for out in (tmp_path / "out.mkv", tmp_path / "out.webm", tmp_path / "out.mp4"):
        assert copied(source, out, speech) == []
        assert words_in(out) == [(start / 1000, end / 1000, text) for start, end, text in WORDS]
        assert [name for *_, name in chapters_in(out)] == ["First", "Second"]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_further_sounds_keep_their_place(tmp_path: Path, speech: AudioSource, suffix: str) -> None:
    sounds = (("eng", "aac"), ("deu", "aac"))
    source = write_rich(tmp_path / "in.ts", sounds, None, chapters=False, offset_s=100)
    out = tmp_path / f"out{suffix}"
    copied(source, out, speech)
    before = all_samples(AudioSource(Input(source, audio_track=1)))[0]
    after = all_samples(AudioSource(Input(out, audio_track=1)))[0]
    # Time zero of a TS is the run-in of the speech's encoder.
    assert abs(lag_s(after, before, 48000)) < 0.002 + (0.032 if suffix == ".ts" else 0)
    assert np.abs(after).max() == pytest.approx(0.4 * 0.8, abs=0.05)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_they_end_with_the_output(tmp_path: Path, speech: AudioSource, suffix: str) -> None:
    source, out = write_rich(tmp_path / "in.mkv"), tmp_path / f"out{suffix}"
    with (
        opened(source) as (video, tracks),
        VideoSink(out, video.info, audio=speech, tags=video.tags, tracks=tracks) as sink,
    ):
        for frame in extend_frames(video, "trim", Fraction(6, 10)):
            sink.write(frame)
    for number in (1, 2):
        times = [time_s for time_s, _ in packets(out, "audio", number)]
        assert Fraction(1, 2) < times[-1] < Fraction(6, 10)
    assert words_in(out) == [(0, 0.4, "one"), (0.4, 0.6, "two\nlines")]
    assert chapters_in(out) == [(0, 0.6, "First")]


def test_they_are_played_once_where_the_video_is_repeated(
    tmp_path: Path, speech: AudioSource
) -> None:
    source, out = write_rich(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    with (
        opened(source) as (video, tracks),
        VideoSink(out, video.info, audio=speech, tags=video.tags, tracks=tracks) as sink,
    ):
        for frame in extend_frames(video, "loop", 3):
            sink.write(frame)
    assert [text for *_, text in words_in(out)] == ["one", "two\nlines", "three"]
    assert [content for _, content in packets(out, "audio", 1)] == [
        content for time_s, content in packets(source, "audio", 1) if time_s >= 0
    ]
    assert len(raw_times(out)) == 75


def test_the_sound_that_is_the_speech_is_not_carried_again(
    tmp_path: Path, speech: AudioSource
) -> None:
    source, out = write_rich(tmp_path / "in.mkv"), tmp_path / "out.mkv"
    german = AudioSource(Input(source, audio_track=1))
    copied(source, out, german, spoken=1)
    assert labels_in(out, "audio") == [("deu", "In deu"), ("fra", "In fra")]


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_they_go_into_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speech: AudioSource, container: str
) -> None:
    source, out = write_rich(tmp_path / "in.mkv"), tmp_path / "out"
    with out.open("w") as file, opened(source) as (video, tracks):
        monkeypatch.setattr("sys.stdout", file)
        with VideoSink(
            "-",
            video.info,
            audio=speech,
            encoding=Encoding(container),
            tags=video.tags,
            tracks=tracks,
        ) as sink:
            for frame in video:
                sink.write(frame)
        monkeypatch.undo()
    assert len(labels_in(out, "audio")) == 3
    assert [text for *_, text in words_in(out)] == ["one", "two\nlines", "three"]
    assert [name for *_, name in chapters_in(out)] == ["First", "Second"]


def test_pieces_of_a_recording_follow_each_other(tmp_path: Path, speech: AudioSource) -> None:
    sounds = (("eng", "aac"), ("deu", "aac"))
    part = write_rich(tmp_path / "part.ts", sounds, None, chapters=False)
    joined, out = tmp_path / "joined.ts", tmp_path / "out.mkv"
    joined.write_bytes(2 * part.read_bytes())
    copied(joined, out, speech)
    times = [time_s for time_s, _ in packets(out, "audio", 1)]
    assert times == sorted(times)
    bursts = np.abs(all_samples(AudioSource(Input(out, audio_track=1)))[0])
    loud = bursts[: len(bursts) // 256 * 256].reshape(-1, 256).max(1) > 0.2
    assert np.diff(loud.astype(int)).clip(0).sum() == 6  # three in each part


def test_no_more_is_read_than_is_written(tmp_path: Path, speech: AudioSource) -> None:
    source = write_rich(tmp_path / "in.mkv", (("eng", "aac"), ("deu", "aac")), chapters=False)
    with opened(source) as (video, tracks):
        taken, muxed = [], []
        with VideoSink(tmp_path / "out.mkv", video.info, tracks=tracks) as sink:
            packets_of = tracks._packets
            tracks._packets = (taken.append(p.pts) or p for p in packets_of)  # type: ignore[func-returns-value]
            for frame in video:
                sink.write(frame)
                muxed.append(len(taken))
    # Two tracks in a file lie near each other; what is ahead of the picture waits there.
    assert muxed[0] <= 6
    assert muxed[len(muxed) // 2] < 0.7 * muxed[-1]


def test_a_piece_that_the_muxer_refuses_stops_nothing(
    tmp_path: Path, speech: AudioSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise av.error.InvalidDataError(1, "no words")

    monkeypatch.setattr("dithead.runtime.media.subtitles.Respelt.packet", refuse)
    left = copied(write_rich(tmp_path / "in.mkv", cover=False), tmp_path / "out.mp4", speech)
    assert left == ["the attachment font.ttf", "3 pieces of subtitle track 1 (subrip, spa)"]
    assert len(raw_times(tmp_path / "out.mp4")) == 40


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, speech: AudioSource) -> None:
    source = write_rich(tmp_path / "in.mkv")
    before = sorted(tmp_path.iterdir())
    with (
        pytest.raises(KeyboardInterrupt),
        opened(source) as (video, tracks),
        VideoSink(tmp_path / "out.mp4", video.info, audio=speech, tracks=tracks) as sink,
    ):
        for frame in video:
            sink.write(frame)
            if frame.index == 20:
                raise KeyboardInterrupt
    assert sorted(tmp_path.iterdir()) == before


def test_a_plain_video_has_nothing_beside(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        path = write_rich(tmp_path / f"in{suffix}", (("eng", "aac"),), None, cover=False)
        with VideoSource(path) as source:
            container, stream = source.demuxer.container, source.demuxer.stream("video")
            names = [name for name, _ in other_streams(container, stream, None)]
        assert names == ([] if suffix == ".mp4" else ["the attachment font.ttf"])
