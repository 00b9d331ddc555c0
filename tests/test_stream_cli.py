"""``dithead-stream`` as a user meets it: exit codes, one clear line, nothing left behind."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dithead.command import run_command
from dithead.runtime.cli import main
from dithead.runtime.progress import Progress

TIMES = [Fraction(i, 25) for i in range(10)]


@pytest.fixture
def command(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    checkpoint_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., list[str]]:
    """Makes the arguments that re-voice in.mp4 (ten frames) with audio.wav (one second) into
    out.mp4, in the folder where the test runs, by the small random model: (further ones) -> all.
    """
    monkeypatch.chdir(tmp_path)
    portrait_clip("in.mp4", TIMES)
    tone_file(1.0)

    def make(*more: str, video: str = "in.mp4", audio: str = "audio.wav") -> list[str]:
        return [video, audio, "-o", "out.mp4", "--checkpoint", str(checkpoint_file), *more]

    return make


def test_json_summary(
    command: Callable[..., list[str]],
    portrait_clip: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    portrait_clip("ein Gesicht ü.mp4", TIMES, blank={3})
    code = main(command("--json", "-o", "aus ü.mp4", video="ein Gesicht ü.mp4"))
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (tmp_path / "aus ü.mp4").is_file()
    assert (summary["frames"], summary["faces"], summary["frames_written"]) == (10, 9, 10)
    assert summary["left_alone"] == {"no face": 1}
    assert "1 frame was left alone: no face was seen" in summary["notes"]
    assert {"track", "denoise", "decode face", "encode video"} <= summary["stage_fps"].keys()


@pytest.mark.parametrize("place", ["--face=128,110", "--face=0,0,256,256", "--faces"])
def test_a_place_says_who_speaks(
    place: str,
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "turns.txt").write_text("0.12 0.28 0 0 256 256\n")
    turns = ["turns.txt"] if place == "--faces" else []
    assert main(command("--json", place, *turns)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["left_alone"] == ({"nobody": 6} if place == "--faces" else {})
    assert summary["faces"] == (4 if place == "--faces" else 10)


def test_a_place_without_a_face_is_an_error(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("--face", "2,2")) == 1
    assert "no face at (2.0, 2.0) in any of the 10 frames" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_raw_sound(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "speech.pcm").write_bytes(bytes(2 * 2 * 24000 * 3 // 10))  # 0.3 s of stereo
    raw = ["--audio-format", "s16le", "--audio-option", "rate=24000"]
    assert main(command("--json", *raw, "--audio-option", "channels=2", audio="speech.pcm")) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 8


def test_text_summary_and_quiet(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("--quiet")) == 0
    assert capsys.readouterr() == ("", "")
    assert main(command()) == 0
    printed = capsys.readouterr()
    assert "10 frames" in printed.out
    assert "--extend" in printed.out  # the longer audio was cut, said aloud
    assert printed.err == ""


LONG = "x" * 300
BAD: dict[str, tuple[str, int, str]] = {
    "missing video": ("no.mp4 audio.wav", 1, "no.mp4"),
    "missing audio": ("in.mp4 no.wav", 1, "no.wav"),
    "text as video": ("text.mp4 audio.wav", 1, "text.mp4"),
    "empty video": ("empty.mp4 audio.wav", 1, "empty.mp4"),
    "audio as video": ("audio.wav audio.wav", 1, "audio.wav"),
    "video without audio": ("in.mp4 in.mp4", 1, "audio"),
    "unknown checkpoint": ("in.mp4 audio.wav --checkpoint huge", 1, "huge"),
    "missing folder": ("in.mp4 audio.wav -o no/out.mp4", 1, "no"),
    "unknown extension": ("in.mp4 audio.wav -o out.xyz", 1, "xyz"),
    "unknown device": ("in.mp4 audio.wav --device npu", 2, "npu"),
    "absent device": ("in.mp4 audio.wav --device cuda:77", 1, "cuda:77"),
    "no steps": ("in.mp4 audio.wav --steps 0", 2, "steps"),
    "too many steps": ("in.mp4 audio.wav --steps 5000", 2, "steps"),
    "negative seed": ("in.mp4 audio.wav --seed -1", 2, "seed"),
    "unknown format": ("in.mp4 audio.wav --input-format mpg9", 2, "mpg9"),
    "rate of a file": ("in.mp4 audio.wav --fps 10", 1, "rate of its own"),
    "absent track": ("in.mp4 audio.wav --audio-track 1", 1, "no audio track 1"),
    "unknown container": ("in.mp4 audio.wav --format avi", 2, "avi"),
    "unknown encoder": ("in.mp4 audio.wav --video-codec h266", 2, "h266"),
    "two qualities": ("in.mp4 audio.wav --crf 9 --bitrate 4M", 2, "crf"),
    "no such quality": ("in.mp4 audio.wav --crf 99", 2, "from 0 to 51"),
    "long output": (f"in.mp4 audio.wav -o {LONG}.mp4", 1, "too long"),
    "long input": (f"{LONG} audio.wav", 1, "too long"),
    "raw sound": ("in.mp4 text.pcm", 2, "--audio-option rate="),
    "raw format": ("in.mp4 audio.wav --audio-format s16le", 2, "rate and channels"),
    "repeated pipe": ("- audio.wav --extend loop", 2, "read only once"),
    "unknown scheme": ("in.mp4 audio.wav -o ftp://host/out.mp4", 1, "ftp"),
}


@pytest.fixture
def bad_command(
    command: Callable[..., list[str]], tmp_path: Path
) -> Callable[[str], tuple[list[str], int, str]]:
    """What is wrong by its name: the arguments, the exit code, what the message must name."""
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.pcm").write_bytes(bytes(8000))

    def make(case: str) -> tuple[list[str], int, str]:
        arguments, code, named = BAD[case]
        video, audio, *more = arguments.split()
        return command(*more, video=video, audio=audio), code, named

    return make


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_no_file(
    case: str,
    bad_command: Callable[[str], tuple[list[str], int, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, code, named = bad_command(case)
    before = sorted(tmp_path.iterdir())
    assert main(command) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("dithead-stream: ")
    assert printed.err.count("\n") == 1
    assert named in printed.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("case", ["missing video", "unknown checkpoint", "two qualities"])
def test_a_failure_is_one_line_of_json(
    case: str,
    bad_command: Callable[[str], tuple[list[str], int, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, code, named = bad_command(case)
    assert main([*command, "--json"]) == code
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    failure = json.loads(printed.out)
    assert failure.keys() == {"error", "stage", "frame", "hint"}
    assert named in failure["error"]
    assert printed.err == f"dithead-stream: {failure['error']}\n"
    assert failure["stage"] is failure["frame"] is None
    hint = {"unknown checkpoint": "give the path of a .safetensors file instead"}
    assert failure["hint"] == (hint | {"two qualities": "give one"}).get(case)
    # Where the video would go to stdout, the failure goes to stderr.
    assert main([*command, "-o", "-", "--format", "mp4", "--json"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err)["error"] == failure["error"]


def test_a_failure_names_stage_and_frame(
    command: Callable[..., list[str]],
    portrait_clip: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    portrait_clip("in.mp4", TIMES, blank={3})
    assert main(command("--json", "--on-no-face", "error")) == 1
    failure = json.loads(capsys.readouterr().out)
    assert (failure["stage"], failure["frame"]) == ("track", 3)
    assert failure["error"].startswith("stage 'track' failed at frame 3: no face in frame 3")


def test_whatever_ends_a_command_is_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    def end_by(error: BaseException) -> Callable[[], None]:
        def action() -> None:
            raise error

        return action

    assert run_command("dithead", end_by(KeyboardInterrupt()), "all is well", sys.stdout) == 130
    assert json.loads(capsys.readouterr().out)["error"] == "interrupted; all is well"
    with pytest.raises(ZeroDivisionError):
        run_command("dithead", end_by(ZeroDivisionError("by 0")), "", sys.stdout)
    assert json.loads(capsys.readouterr().out)["error"] == "ZeroDivisionError: by 0"
    with pytest.raises(SystemExit):
        main(["in.mp4", "--json"])
    printed = capsys.readouterr()
    failure = json.loads(printed.out)
    assert failure["error"].startswith("the following arguments are required: AUDIO")
    assert failure["hint"] == "dithead-stream --help lists what it takes"
    assert "usage:" in printed.err
    with pytest.raises(SystemExit):
        main(["in.mp4", "--json", "-o", "-"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert '{"error": "the following' in printed.err


def test_progress_as_json(
    command: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dithead.runtime.progress._EVERY_S", 0.0)
    assert main(command("--quiet", "--steps", "1", "--progress", "json")) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    shown = [json.loads(line) for line in printed.err.splitlines()]
    assert [line["frames"] for line in shown] == list(range(1, 11))
    assert {line["total"] for line in shown} == {10}
    assert shown[-1]["time_s"] == 0.4
    assert shown[-1]["eta_s"] == 0
    assert all(line["fps"] > 0 and line["eta_s"] >= 0 for line in shown)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(command("--quiet", "--steps", "1", "--progress", "none")) == 0
    assert capsys.readouterr() == ("", "")
    assert main(command("--steps", "1")) == 0
    assert "\r10 of 10 frames, " in capsys.readouterr().err


def test_progress_comes_twice_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shown = io.StringIO()
    progress = Progress(shown, as_json=True)
    for frames in range(1, 12):
        now[0] += 0.125
        progress.show(frames, None, frames / 25)
    progress.end()
    lines = [json.loads(line) for line in shown.getvalue().splitlines()]
    assert [line["frames"] for line in lines] == [4, 8, 11]
    assert all(line["fps"] == 8 for line in lines)
    assert all(line["total"] is line["eta_s"] is None for line in lines)
    shown.close()  # nobody reads any more
    progress.show(12, None, 0.5)
    progress.end()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a"],
        ["a", "b", "--face", "left"],
        ["a", "b", "--face", "1,2,3"],
        ["a", "b", "--bitrate", "fast"],
        ["a", "b", "--fps", "x"],
    ],
)
def test_misuse_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err


# Memory of the process's own: pages of libraries and weights that are mapped from files come and go
# with the machine's page cache.
PEAK_MEMORY = """
import re, threading, time
peak = 0
def watch():
    global peak
    while True:
        status = open("/proc/self/status").read()
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]))
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_length(
    command: Callable[..., list[str]],
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
) -> None:
    portrait_clip("in.mp4", [Fraction(i, 25) for i in range(50)])
    code = PEAK_MEMORY + (
        "import sys; from dithead.runtime.cli import main; code = main();"
        "print(peak); sys.exit(code)"
    )
    arguments = command("--extend", "loop", "--quiet", "--steps", "1")
    peaks = []
    for seconds in (30.0, 180.0):
        tone_file(seconds)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert np.isclose(peaks[1], peaks[0], rtol=0.05), peaks
