"""The C library's streams: scheduling on a pretended model, and the same frames as Python's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import wave
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import capi
import numpy as np
import pytest
import torch
from streams import BLANK, FPS, RATE, TIMES, moving, voice, warble

from dithead.bench.clibrary import compare
from dithead.options import Options
from dithead.runtime.backends.onnxruntime import OnnxGraphs
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.session import Session
from dithead.runtime.stream import Stream

pytestmark = pytest.mark.skipif(
    not (capi.BUILD / "tests" / "capi_streams").exists(),
    reason=f"{capi.BUILD} lacks the test programs: make capi CAPI_OPTIONS=-DDITHEAD_TESTS=ON",
)

LIFETIMES = capi.BUILD / "tests" / "capi_lifetimes"
FRAME_US = 1_000_000 // FPS


@pytest.mark.parametrize("program", ["capi_streams", "capi_header_c", "capi_header_cpp"])
def test_programs(program: str) -> None:
    ran = subprocess.run(
        [capi.BUILD / "tests" / program], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def library() -> capi.Library:
    return capi.Library(capi.BUILD / "libdithead.so")


@pytest.fixture(scope="module")
def c_session(library: capi.Library, shipped_bundle: Path) -> Iterator[capi.CSession]:
    with capi.CSession(library, shipped_bundle, threads=1) as session:
        yield session


@pytest.fixture(scope="module")
def python_session(shipped_bundle: Path) -> Iterator[Session]:
    """With all graphs in ONNX Runtime, as in C; on a CPU, Session.open runs some in PyTorch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Session(OnnxGraphs(shipped_bundle, torch.device("cpu"), threads=1))
    torch.set_num_threads(before)


def show(stream: capi.CStream | Stream, pictures: Sequence[np.ndarray]) -> threading.Thread:
    """Push pictures from another thread."""

    def work() -> None:
        for number, image in enumerate(pictures):
            if isinstance(stream, Stream):
                stream.push_frame(image, Fraction(number, FPS))
            else:
                stream.push_frame(image, number * FRAME_US)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def finish(stream: capi.CStream | Stream) -> None:
    if isinstance(stream, Stream):
        stream.finish()
    else:
        stream.call("finish")


def flush(stream: capi.CStream | Stream) -> None:
    if isinstance(stream, Stream):
        stream.flush_audio()
    else:
        stream.call("flush_audio")


def collect(
    stream: capi.CStream | Stream, pictures: Sequence[np.ndarray], sound: np.ndarray
) -> list[Any]:
    stream.push_audio(sound)
    thread = show(stream, pictures)
    thread.join()
    finish(stream)
    return list(stream.frames())


def assert_same(found: Sequence[capi.Pulled], wanted: Sequence[OutputFrame | None]) -> None:
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted, strict=True):
        assert other is not None and other.samples is not None
        assert (mine.index, mine.left_alone) == (other.index, other.left_alone)
        assert np.array_equal(mine.image, other.image), mine.index
        assert np.array_equal(mine.samples, other.samples), mine.index


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"seed": 3}, Options(seed=3)),
        ({"seed": 3, "overlap": 0}, Options(seed=3)),
        ({"steps": 1, "in_flight": 2}, Options(steps=1)),
        ({"reference": 1, "steps": 2}, Options(reference="previous", steps=2)),
        ({"detail": 0, "steps": 1}, Options(detail=False, steps=1)),
    ],
)
def test_frames_equal_pythons(
    c_session: capi.CSession,
    python_session: Session,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    fields: dict[str, int],
    options: Options,
) -> None:
    with c_session.open_stream(**fields) as stream:
        found = collect(stream, pictures, sound)
        told = stream.statistics()
    with python_session.open_stream(options) as other:
        assert_same(found, collect(other, pictures, sound))
    assert [frame.left_alone for frame in found].count(None) == len(TIMES) - 1
    assert found[BLANK].left_alone is not None
    assert told.frames_out == len(TIMES) and told.left_alone[0] == len(TIMES) - 1


def test_dropped_speech_and_reset_equal_pythons(
    c_session: capi.CSession, python_session: Session, astronaut: np.ndarray
) -> None:
    drive, first, second = moving(astronaut, 12), warble(1.0), voice(1.0)

    def talk(stream: capi.CStream | Stream) -> list[Any]:
        stream.push_audio(first)
        pusher = show(stream, drive)
        frames: list[Any] = [stream.pull() for _ in range(5)]
        flush(stream)
        stream.push_audio(second)
        pusher.join()
        finish(stream)
        return frames + list(stream.frames())

    with python_session.open_stream(Options(steps=1)) as other:
        wanted = talk(other)
    for overlap in (0, 1):
        with c_session.open_stream(steps=1, overlap=overlap) as stream:
            assert_same(talk(stream), wanted)
            stream.call("stream_reset")
            assert_same(talk(stream), wanted)


def test_two_streams_on_two_threads(
    c_session: capi.CSession,
    python_session: Session,
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    found: dict[int, list[Any]] = {}

    def run(seed: int) -> None:
        with c_session.open_stream(seed=seed, steps=1) as stream:
            found[seed] = collect(stream, pictures, sound)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        with python_session.open_stream(Options(seed=seed, steps=1)) as other:
            assert_same(found[seed], collect(other, pictures, sound))


def test_an_idle_portrait_equals_pythons(
    c_session: capi.CSession, python_session: Session, astronaut: np.ndarray
) -> None:
    portrait, speech = moving(astronaut, 1)[0], voice(0.3)
    with c_session.open_stream(portrait=portrait, steps=1) as stream:
        stream.push_audio(speech)
        stream.call("finish")
        found = list(stream.frames())
    with python_session.open_stream(Options(steps=1), portrait=portrait) as other:
        other.push_audio(speech)
        other.finish()
        assert_same(found, list(other.frames()))
    assert len(found) == round(0.3 * FPS + 0.49)
    assert sum(frame.samples.size for frame in found) == len(found) * RATE // FPS


def test_the_example_revoices_raw_frames(
    c_session: capi.CSession,
    shipped_bundle: Path,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    tmp_path: Path,
) -> None:
    program = capi.BUILD / "examples" / "revoice"
    if not program.exists():
        pytest.skip(f"{program} was not built: make capi CAPI_OPTIONS=-DDITHEAD_EXAMPLES=ON")
    pcm = (sound * 32767).astype("<i2")
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm.tobytes())
    height, width = pictures[0].shape[:2]
    arguments = ["--size", f"{width}x{height}", "--threads", "1", "--sound", tmp_path / "out.wav"]
    ran = subprocess.run(
        [program, *arguments, shipped_bundle, tmp_path / "speech.wav"],
        input=b"".join(image.tobytes() for image in pictures),
        capture_output=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    found = np.frombuffer(ran.stdout, np.uint8).reshape(len(pictures), height, width, 3)
    with c_session.open_stream() as stream:
        wanted = collect(stream, pictures, pcm.astype(np.float32) / 32768)
    assert np.array_equal(found, [frame.image for frame in wanted])
    heard = np.frombuffer((tmp_path / "out.wav").read_bytes()[44:], "<f4")
    assert np.array_equal(heard, np.concatenate([frame.samples for frame in wanted]))


def test_a_session_checks_what_its_streams_will_open(
    library: capi.Library, shipped_bundle: Path, tmp_path: Path
) -> None:
    def changed(name: str, by: Callable[[dict[str, Any]], object]) -> Path:
        bundle = Path(shutil.copytree(shipped_bundle, tmp_path / name, copy_function=os.link))
        values = json.loads((bundle / "manifest.json").read_text())
        by(values)
        (bundle / "manifest.json").unlink()  # it is a link to the original
        (bundle / "manifest.json").write_text(json.dumps(values))
        return bundle

    def graph(values: dict[str, Any], name: str) -> dict[str, Any]:
        return next(graph for graph in values["graphs"] if graph["name"] == name)

    bundle = changed("gone", lambda values: values["graphs"].remove(graph(values, "face_crop.128")))
    with pytest.raises(capi.CallError, match=r"no graph 'face_crop.128'"):
        capi.CSession(library, bundle)
    missing: list[str] = []
    bundle = changed(
        "missing",
        lambda values: missing.append(graph(values, "frame_glance")["onnx"][0]["file"]["path"]),
    )
    (bundle / missing[0]).unlink()
    with pytest.raises(capi.CallError, match=f"{missing[0]} is missing"):
        capi.CSession(library, bundle)


def test_a_bundle_may_be_named_from_where_the_program_is(
    library: capi.Library,
    shipped_bundle: Path,
    astronaut: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shipped_bundle.parent)
    with capi.CSession(library, shipped_bundle.name, threads=1) as session:
        monkeypatch.chdir(tmp_path)
        with session.open_stream(portrait=moving(astronaut, 1)[0]) as stream:
            stream.push_audio(voice(0.1))
            stream.call("finish")
            assert len(list(stream.frames())) == 3


def test_what_is_destroyed_frees_its_memory(
    shipped_bundle: Path, astronaut: np.ndarray, tmp_path: Path
) -> None:
    portrait = moving(astronaut, 1)[0]
    (tmp_path / "portrait.rgb").write_bytes(portrait.tobytes())
    size = map(str, portrait.shape[1::-1])
    ran = subprocess.run(
        [LIFETIMES, shipped_bundle, tmp_path / "portrait.rgb", *size, "9"],
        # Otherwise glibc keeps what each of the threads has freed.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    resident_kib = [int(line) for line in ran.stdout.split()]
    assert len(resident_kib) == 9
    # Graphs and weights are 100 MiB; single sizes vary by a tenth.
    assert min(resident_kib[-3:]) < 1.05 * min(resident_kib[:3])


def test_the_demo_clip_equals_pythons(
    c_session: capi.CSession, python_session: Session, carphone_clip: Path
) -> None:
    """With frames that show nobody, frames in which nobody is to speak, and dropped speech."""
    speech = voice(2.0)
    with av.open(str(carphone_clip)) as container:
        decoded = islice(container.decode(video=0), 30)
        pictures = [frame.to_ndarray(format="rgb24") for frame in decoded]
    pictures[10:13] = [np.full_like(pictures[0], 90)] * 3
    nobody = (0.0, 0.0, 0.0, 0.0)
    boxes = [nobody if 16 <= number < 18 else None for number in range(len(pictures))]

    def talk(stream: capi.CStream | Stream) -> list[Any]:
        stream.push_audio(speech)
        shown = []
        for number, (image, box) in enumerate(zip(pictures, boxes, strict=True)):
            pts_us = round(number * 1_001_000_000 / 30_000)
            if isinstance(stream, Stream):
                stream.push_frame(image, Fraction(pts_us, 1_000_000), face_box=box)
            else:
                stream.push_frame(image, pts_us, face_box=box)
            if number == 20:
                shown = [stream.pull() for _ in range(6)]
                flush(stream)
                stream.push_audio(speech[8_000:])
        finish(stream)
        return shown + list(stream.frames())

    with c_session.open_stream(seed=11) as stream:
        found = talk(stream)
        stream.call("stream_reset")
        again = talk(stream)
    with python_session.open_stream(Options(seed=11)) as other:
        wanted = talk(other)
    for one in (found, again):
        assert_same(one, wanted)
    reasons = [frame.left_alone for frame in found]
    assert [n for n, reason in enumerate(reasons) if reason is not None] == [10, 11, 12, 16, 17]
    assert reasons[16] == "nobody"


def test_the_comparison_with_python_finds_the_same_frames(shipped_bundle: Path) -> None:
    program = capi.BUILD / "examples" / "revoice"
    if not program.exists():
        pytest.skip(f"{capi.BUILD} lacks the examples: make test-capi builds them")
    size = {"width": 176, "height": 144, "frames": 5, "rounds": 1}
    found = compare(program, shipped_bundle, **size)
    assert found["same_frames"]
    assert found["medians"]["c"]["peak_mib"] > 10
