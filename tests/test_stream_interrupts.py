"""``dithead-stream`` that is interrupted: whenever it comes, nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import pytest
from clips import heed_interrupts
from streams import true_within

from dithead.command import run_command


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


@pytest.fixture
def started(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    checkpoint_file: Path,
    tmp_path: Path,
) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts ``dithead-stream`` on a clip of two seconds, or on standard input, with one step and
    so much sound; into the folder "out". Gives the process once it has begun to write.
    """
    video, folder = portrait_clip("in.mp4", [Fraction(i, 25) for i in range(50)]), tmp_path / "out"
    folder.mkdir()
    code = "import sys; from dithead.runtime.cli import main; sys.exit(main())"

    def start(*more: str, seconds: float, piped: bytes = b"") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, "-" if piped else str(video)]
        command += [str(tone_file(seconds)), "-o", str(folder / "out.mp4"), "--steps", "1"]
        process = subprocess.Popen(
            [*command, "--checkpoint", str(checkpoint_file), *more],
            preexec_fn=heed_interrupts,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(piped)
        process.stdin.flush()
        # The temporary file shows that it has begun.
        assert true_within(120, lambda: any(folder.iterdir()) or process.poll() is not None)
        assert process.poll() is None
        return process

    return start


def end_by(process: subprocess.Popen[bytes], number: signal.Signals, tmp_path: Path) -> None:
    """The process ends by that signal, says so in one line, and leaves nothing."""
    process.send_signal(number)
    out, printed = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, b"")
    assert printed == b"dithead-stream: interrupted; nothing was written\n"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(
    number: signal.Signals, started: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = started("--extend", "loop", "--threads", "1", seconds=60.0)
    time.sleep(0.3)
    end_by(process, number, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_pipe_stalls_leaves_nothing(
    number: signal.Signals,
    started: Callable[..., subprocess.Popen[bytes]],
    portrait_clip: Callable[..., Path],
    tmp_path: Path,
) -> None:
    content = portrait_clip("piped.ts", [Fraction(i, 25) for i in range(40)]).read_bytes()
    process = started("--no-overlap", seconds=2.0, piped=content[: len(content) * 3 // 4])
    time.sleep(2)  # all that came is worked on
    end_by(process, number, tmp_path)
