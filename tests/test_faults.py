"""Whatever fails, whenever: one error that names stage and frame, no thread and no file left, and
the model can be used again."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from streams import threads_of_streams

from dithead.errors import DitheadError, MediaError, StreamError
from dithead.options import Options
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.pipeline import stream_file
from dithead.runtime.schedule import stages
from dithead.torchgraphs import TorchGraphs

FRAMES = 12
STAGES: dict[str, tuple[Any, str]] = {
    "decode video": (stages.PictureLoader, "__call__"),
    "track": (stages.TrackFace, "run"),
    "encode face": (stages.EncodeFace, "run"),
    "audio": (stages.AlignAudio, "run"),
    "denoise": (stages.Denoise, "run"),
    "decode face": (stages.DecodeFace, "run"),
    "blend": (stages.Blend, "run"),
    "detail": (stages.Detail, "run"),
    "composite": (stages.Composite, "run"),
    "interpolate": (stages.Interpolate, "run"),
    "encode video": (stages.Deliver, "run"),
}


@pytest.fixture
def job(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
) -> Callable[..., Any]:
    """Runs the main job on a short clip; nothing is left in its folder but what it wrote."""
    torch.set_num_threads(1)
    video, audio = portrait_clip("in.mp4", [Fraction(i, 25) for i in range(FRAMES)]), tone_file(1.0)
    (tmp_path / "out").mkdir()

    def run(**arguments: Any) -> Any:
        output = tmp_path / "out" / "out.mp4"
        return stream_file(
            video, audio, output, random_models, Options(steps=1), interpolate=2, **arguments
        )

    return run


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """No thread of a stream outlives it."""
    yield
    assert threads_of_streams() == []


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("frame", [0, FRAMES // 2, FRAMES - 1])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_fails(
    job: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    frame: int,
    overlap: bool,
) -> None:
    owner, name = STAGES[stage]
    original, failed = getattr(owner, name), []

    def fail(*arguments: Any) -> Any:
        given = next(a for a in arguments if hasattr(a, "index"))
        if failed or given.index == frame:
            failed.append(given.index)
            raise RuntimeError("out of memory")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        message = f"^stage '{stage}' failed at frame {frame}: out of memory$"
        with pytest.raises(StreamError, match=message):
            job(overlap=overlap)
        assert failed == [frame]  # nothing more was asked of it
    assert left(tmp_path) == []
    if frame == 0 and overlap:  # the same models go on
        assert job().frames_written == 2 * FRAMES - 1


@pytest.mark.parametrize("overlap", [True, False])
def test_a_stage_that_fails_at_the_end(
    job: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(stages.Denoise, "finish", fail)
    with pytest.raises(StreamError, match=r"^stage 'denoise' failed at the end: out of memory$"):
        job(overlap=overlap)
    assert left(tmp_path) == []


def test_a_full_disk(
    job: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = VideoSink.write

    def full(self: VideoSink, frame: Any) -> None:
        if self.frames_written == 5:
            raise MediaError(f"{self.to}: cannot write frame 2: No space left on device")
        write(self, frame)

    monkeypatch.setattr(VideoSink, "write", full)
    with pytest.raises(MediaError, match=r"'encode video' failed at frame 3: .*No space left"):
        job()
    assert left(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files the Linux way")
def test_a_file_that_may_not_grow(
    carphone_clip: Path, tone_file: Callable[..., Path], checkpoint_file: Path, tmp_path: Path
) -> None:
    audio, folder = tone_file(4.0), tmp_path / "out"
    folder.mkdir()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    code = "import sys; from dithead.runtime.cli import main; sys.exit(main())"
    command = [sys.executable, "-B", "-c", code, str(carphone_clip), str(audio)]
    command += ["-o", str(folder / "out.mp4"), "--checkpoint", str(checkpoint_file), "--steps", "1"]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert list(folder.iterdir()) == []


def test_interrupted_fifty_times(job: Callable[..., Any], tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    whole = time.monotonic()
    job()
    whole = time.monotonic() - whole
    output, outcomes = tmp_path / "out" / "out.mp4", []
    for _ in range(50):
        output.unlink(missing_ok=True)
        after_s = random.uniform(0.02 * whole, whole)
        timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            job()
            outcomes.append("done")
            timer.join()
            time.sleep(0.05)
        except KeyboardInterrupt:
            assert threads_of_streams() == []
            outcomes.append("interrupted")
            if left(tmp_path):  # the signal came after the file had its name
                assert left(tmp_path) == ["out.mp4"]
                with av.open(str(output)) as container:
                    assert sum(1 for _ in container.decode(video=0)) == 2 * FRAMES - 1
        timer.join()
    assert outcomes.count("interrupted") > 10
    assert job().frames_written == 2 * FRAMES - 1


def test_a_source_cut_off_in_a_packet(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
) -> None:
    whole = portrait_clip("whole.mkv", [Fraction(i, 25) for i in range(30)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: round(0.6 * whole.stat().st_size)])
    with av.open(str(cut)) as container:
        readable = 0
        try:
            for _ in container.decode(video=0):
                readable += 1
        except av.FFmpegError:
            pass
    summary = stream_file(
        cut, tone_file(2.0), tmp_path / "out.mp4", random_models, Options(steps=1)
    )
    assert 5 < readable < 30
    assert summary.frames >= readable


def test_all_errors_are_ours(job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError("odd"), MemoryError("none left"), KeyError("name")):

        def fail(*_: Any, error: Exception = error) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(stages.TrackFace, "run", fail)
            with pytest.raises(DitheadError, match="stage 'track' failed at frame 0"):
                job()
