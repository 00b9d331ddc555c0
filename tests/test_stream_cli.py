"""``dithead-stream`` as a user meets it: exit codes, one clear line, nothing left behind."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import heed_interrupts

from dithead import checkpoint
from dithead.command import run_command
from dithead.runtime.cli import main
from dithead.runtime.progress import Progress
from dithead.torchgraphs import TorchGraphs

TIMES = [Fraction(i, 25) for i in range(10)]


@pytest.fixture
def weights(random_models: TorchGraphs, tmp_path: Path) -> Path:
    """The random model as a checkpoint file, in a folder of its own."""
    folder = tmp_path / "weights"
    folder.mkdir()
    path = folder / "random.safetensors"
    model = random_models.dithead
    checkpoint.save(path, model.state_dict(), model.config.to_dict())
    return path


def test_json_summary(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video, out = portrait_clip("ein Gesicht ü.mp4", TIMES, blank={3}), tmp_path / "aus ü.mp4"
    code = main(
        [str(video), str(tone_file(1.0)), "-o", str(out), "--checkpoint", str(weights), "--json"]
    )
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    assert out.is_file()
    assert (summary["frames"], summary["faces"], summary["frames_written"]) == (10, 9, 10)
    assert summary["left_alone"] == {"no face": 1}
    assert "1 frame was left alone: no face was seen" in summary["notes"]
    assert {"track", "denoise", "decode face", "encode video"} <= summary["stage_fps"].keys()


@pytest.mark.parametrize("place", ["--face=128,110", "--face=0,0,256,256", "--faces"])
def test_a_place_says_who_speaks(
    place: str,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "turns.txt").write_text("0.12 0.28 0 0 256 256\n")
    command = [str(portrait_clip("in.mp4", TIMES)), str(tone_file(1.0)), "--json"]
    command += ["-o", str(tmp_path / "out.mp4"), "--checkpoint", str(weights)]
    command += [place, str(tmp_path / "turns.txt")] if place == "--faces" else [place]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["left_alone"] == ({"nobody": 6} if place == "--faces" else {})
    assert summary["faces"] == (4 if place == "--faces" else 10)


def test_a_place_without_a_face_is_an_error(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(portrait_clip("in.mp4", TIMES)), str(tone_file(1.0)), "--face", "2,2"]
    command += ["-o", str(tmp_path / "out.mp4"), "--checkpoint", str(weights)]
    assert main(command) == 1
    assert "no face at (2.0, 2.0) in any of the 10 frames" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_raw_sound(
    portrait_clip: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "speech.pcm").write_bytes(bytes(2 * 2 * 24000 * 3 // 10))  # 0.3 s of stereo
    command = [str(portrait_clip("in.mp4", TIMES)), str(tmp_path / "speech.pcm"), "--json"]
    command += ["-o", str(tmp_path / "out.mp4"), "--checkpoint", str(weights)]
    command += ["--audio-format", "s16le", "--audio-option", "rate=24000"]
    assert main([*command, "--audio-option", "channels=2"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 8


def test_text_summary_and_quiet(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = portrait_clip("in.mp4", TIMES)
    command = [str(video), str(tone_file(1.0)), "-o", str(tmp_path / "o.mp4")]
    command += ["--checkpoint", str(weights)]
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "10 frames" in printed.out
    assert "--extend" in printed.out  # the longer audio was cut, said aloud
    assert printed.err == ""


def _bad_commands(folder: Path) -> dict[str, tuple[list[str], int, str]]:
    video, audio, out = str(folder / "in.mp4"), str(folder / "audio.wav"), str(folder / "out.mp4")
    (folder / "text.mp4").write_text("this is no video")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.pcm").write_bytes(bytes(8000))
    return {
        "missing video": ([str(folder / "no.mp4"), audio, "-o", out], 1, "no.mp4"),
        "missing audio": ([video, str(folder / "no.wav"), "-o", out], 1, "no.wav"),
        "text as video": ([str(folder / "text.mp4"), audio, "-o", out], 1, "text.mp4"),
        "empty video": ([str(folder / "empty.mp4"), audio, "-o", out], 1, "empty.mp4"),
        "audio as video": ([audio, audio, "-o", out], 1, "audio.wav"),
        "video without audio": ([video, video, "-o", out], 1, "audio"),
        "unknown checkpoint": ([video, audio, "-o", out, "--checkpoint", "huge"], 1, "huge"),
        "missing folder": ([video, audio, "-o", str(folder / "no/out.mp4")], 1, "no"),
        "unknown extension": ([video, audio, "-o", str(folder / "out.xyz")], 1, "xyz"),
        "unknown device": ([video, audio, "-o", out, "--device", "npu"], 2, "npu"),
        "absent device": ([video, audio, "-o", out, "--device", "cuda:77"], 1, "cuda:77"),
        "no steps": ([video, audio, "-o", out, "--steps", "0"], 2, "steps"),
        "too many steps": ([video, audio, "-o", out, "--steps", "5000"], 2, "steps"),
        "negative seed": ([video, audio, "-o", out, "--seed", "-1"], 2, "seed"),
        "unknown format": ([video, audio, "-o", out, "--input-format", "mpg9"], 2, "mpg9"),
        "rate of a file": ([video, audio, "-o", out, "--fps", "10"], 1, "rate of its own"),
        "absent track": ([video, audio, "-o", out, "--audio-track", "1"], 1, "no audio track 1"),
        "unknown container": ([video, audio, "-o", out, "--format", "avi"], 2, "avi"),
        "unknown encoder": ([video, audio, "-o", out, "--video-codec", "h266"], 2, "h266"),
        "two qualities": ([video, audio, "-o", out, "--crf", "9", "--bitrate", "4M"], 2, "crf"),
        "no such quality": ([video, audio, "-o", out, "--crf", "99"], 2, "from 0 to 51"),
        "long output": ([video, audio, "-o", str(folder / f"{'x' * 300}.mp4")], 1, "too long"),
        "long input": ([str(folder / ("x" * 300)), audio, "-o", out], 1, "too long"),
        "raw sound": ([video, str(folder / "text.pcm"), "-o", out], 2, "--audio-option rate="),
        "raw format": (
            [video, audio, "-o", out, "--audio-format", "s16le"],
            2,
            "rate and channels",
        ),
        "repeated pipe": (["-", audio, "-o", out, "--extend", "loop"], 2, "read only once"),
        "unknown scheme": ([video, audio, "-o", "ftp://host/out.mp4"], 1, "ftp"),
    }


BAD = (
    "missing video",
    "missing audio",
    "text as video",
    "empty video",
    "audio as video",
    "video without audio",
    "unknown checkpoint",
    "missing folder",
    "unknown extension",
    "unknown device",
    "absent device",
    "no steps",
    "too many steps",
    "negative seed",
    "unknown format",
    "rate of a file",
    "absent track",
    "unknown container",
    "unknown encoder",
    "two qualities",
    "no such quality",
    "long output",
    "long input",
    "raw sound",
    "raw format",
    "repeated pipe",
    "unknown scheme",
)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_no_file(
    case: str,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    portrait_clip("in.mp4", TIMES)
    tone_file(1.0)
    command, code, named = _bad_commands(tmp_path)[case]
    if "--checkpoint" not in command:
        command += ["--checkpoint", str(weights)]
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
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    portrait_clip("in.mp4", TIMES)
    tone_file(1.0)
    command, code, named = _bad_commands(tmp_path)[case]
    if "--checkpoint" not in command:
        command += ["--checkpoint", str(weights)]
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
    command[command.index("-o") + 1] = "-"  # there the video would go to stdout
    assert main([*command, "--format", "mp4", "--json"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err)["error"] == failure["error"]


def test_a_failure_names_stage_and_frame(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(portrait_clip("in.mp4", TIMES, blank={3})), str(tone_file(1.0)), "--json"]
    command += ["-o", str(tmp_path / "o.mp4"), "--checkpoint", str(weights)]
    assert main([*command, "--on-no-face", "error"]) == 1
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


class Deaf:
    """Is interrupted where Python cannot raise anything."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


class DeafFile:
    """Likewise, once."""

    interrupted = False

    def read(self, size: int) -> bytes:
        if not self.interrupted:
            self.interrupted = True
            signal.raise_signal(signal.SIGTERM)
        return b""


@pytest.mark.parametrize("deaf", [Deaf, lambda: av.open(DeafFile())])
def test_an_interrupt_that_python_drops_is_sent_again(
    deaf: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        with suppress(av.FFmpegError):
            deaf()
        end = time.monotonic() + 5
        while time.monotonic() < end:
            time.sleep(0.01)

    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    try:
        assert run_command("dithead", action, "all is well") == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.endswith("dithead: interrupted; all is well\n")
    assert sys.unraisablehook is hook


def test_progress_as_json(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dithead.runtime.progress._EVERY_S", 0.0)
    command = [str(portrait_clip("in.mp4", TIMES)), str(tone_file(1.0)), "--quiet"]
    command += ["-o", str(tmp_path / "o.mp4"), "--checkpoint", str(weights), "--steps", "1"]
    assert main([*command, "--progress", "json"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    shown = [json.loads(line) for line in printed.err.splitlines()]
    assert [line["frames"] for line in shown] == list(range(1, 11))
    assert {line["total"] for line in shown} == {10}
    assert shown[-1]["time_s"] == 0.4
    assert shown[-1]["eta_s"] == 0
    assert all(line["fps"] > 0 and line["eta_s"] >= 0 for line in shown)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main([*command, "--progress", "none"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(command[:2] + command[3:]) == 0
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(
    number: signal.Signals,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
) -> None:
    video = portrait_clip("in.mp4", [Fraction(i, 25) for i in range(50)])
    audio, folder = tone_file(60.0), tmp_path / "out"
    folder.mkdir()
    code = "import sys; from dithead.runtime.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, str(video), str(audio), "-o", str(folder / "out.mp4")]
    command += ["--checkpoint", str(weights), "--extend", "loop", "--threads", "1"]
    process = subprocess.Popen(
        command,
        preexec_fn=heed_interrupts,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 120
    while not any(folder.iterdir()):  # the temporary file shows that it has begun
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert printed.strip() == "dithead-stream: interrupted; nothing was written"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_pipe_stalls_leaves_nothing(
    number: signal.Signals,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
) -> None:
    clip = portrait_clip("in.ts", [Fraction(i, 25) for i in range(40)])
    content, folder = clip.read_bytes(), tmp_path / "out"
    folder.mkdir()
    code = "import sys; from dithead.runtime.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "-", str(tone_file(2.0)), "--no-overlap"]
    command += ["-o", str(folder / "out.mp4"), "--checkpoint", str(weights), "--steps", "1"]
    process = subprocess.Popen(
        command,
        preexec_fn=heed_interrupts,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(content[: len(content) * 3 // 4])
    process.stdin.flush()
    limit = time.monotonic() + 120
    while not any(folder.iterdir()):  # the temporary file shows that it has begun
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    time.sleep(2)  # all that came is worked on
    process.send_signal(number)
    out, printed = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, b"")
    assert printed == b"dithead-stream: interrupted; nothing was written\n"
    assert list(folder.iterdir()) == []


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
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    weights: Path,
    tmp_path: Path,
) -> None:
    video = portrait_clip("in.mp4", [Fraction(i, 25) for i in range(50)])
    code = PEAK_MEMORY + (
        "import sys; from dithead.runtime.cli import main; code = main();"
        "print(peak); sys.exit(code)"
    )
    peaks = []
    for seconds in (30.0, 180.0):
        audio = tone_file(seconds)
        command = [
            sys.executable,
            "-c",
            code,
            str(video),
            str(audio),
            "-o",
            str(tmp_path / "o.mp4"),
        ]
        command += ["--checkpoint", str(weights), "--extend", "loop", "--quiet", "--steps", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert np.isclose(peaks[1], peaks[0], rtol=0.05), peaks
