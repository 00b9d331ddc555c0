"""``import dithead``: what a newcomer meets first."""

from __future__ import annotations

import ast
import pydoc
import subprocess
import sys
import typing
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import raw_times

import dithead

TIMES = [Fraction(i, 25) for i in range(6)]
LAZY = sorted(set(dithead.__all__) - {"__version__"} - {e for e in dir(dithead.errors)})


def isolated(code: str, folder: Path) -> None:
    """Run Python with neither the working directory nor PYTHONPATH on its path."""
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_is_cheap_until_a_name_is_used(tmp_path: Path) -> None:
    code = "import dithead, sys; dir(dithead); dithead.MediaError; dithead.__version__\n"
    code += "heavy = {'torch', 'numpy', 'av', 'dithead.generator'} & sys.modules.keys()\n"
    code += "assert not heavy, heavy\n"
    code += "assert dithead.Session.open and 'torch' in sys.modules\n"
    isolated(code, tmp_path)


def test_every_public_name_is_there_and_listed() -> None:
    assert sorted(dithead._WHERE) == LAZY
    for name in dithead.__all__:
        assert getattr(dithead, name) is not None
    assert set(dithead.__all__) <= set(dir(dithead))
    assert dithead.Session is dithead.Session
    assert not hasattr(dithead, "revoke")
    with pytest.raises(AttributeError, match="module 'dithead' has no attribute 'revoke'"):
        dithead.revoke  # noqa: B018
    namespace: dict[str, object] = {}
    exec("from dithead import *", namespace)
    assert set(dithead.__all__) <= namespace.keys()


def test_type_checkers_see_what_is_loaded_later() -> None:
    tree = ast.parse(Path(dithead.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    shown = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert shown == dithead._WHERE


def test_help_shows_ten_lines_that_work() -> None:
    shown = pydoc.plain(pydoc.render_doc(dithead))
    assert 'dithead.revoice("in.mp4", "audio.wav", "out.mp4")' in shown
    assert "session.open_stream(" in shown
    examples = [part.partition("\n\n\n")[0] for part in (dithead.__doc__ or "").split("::\n")[1:]]
    lines = [line for part in examples for line in part.split("\n") if line.startswith("    ")]
    assert 9 <= len(lines) <= 11
    compile("\n".join(line[4:] for line in lines), "help", "exec")


def test_revoice_is_typed_and_each_of_its_arguments_explained() -> None:
    hints = typing.get_type_hints(dithead.revoice)
    assert hints["return"] is dithead.Summary
    for name in hints.keys() - {"return"}:
        assert f"        {name}: " in (dithead.revoice.__doc__ or ""), name


def test_revoice_from_file_to_file(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    checkpoint_file: Path,
    tmp_path: Path,
) -> None:
    told: list[tuple[int, int | None, float]] = []
    torch.set_num_threads(2)
    summary = dithead.revoice(
        portrait_clip("in.mp4", TIMES),
        tone_file(0.48),
        tmp_path / "out.mp4",
        checkpoint=checkpoint_file,
        steps=1,
        attention="math",
        face=(80.0, 70.0),
        extend="freeze",
        encoding=dithead.Encoding(crf=30),
        threads=1,
        progress=lambda *now: told.append(now),
    )
    assert isinstance(summary, dithead.Summary)
    assert (summary.frames, summary.faces, summary.steps) == (12, 12, 1)
    assert len(raw_times(tmp_path / "out.mp4")) == 12
    assert [frames for frames, _, _ in told] == list(range(13))
    assert told[0][2] == 0
    assert told[-1][2] == pytest.approx(0.48)
    assert torch.get_num_threads() == 2, "a library leaves a program's settings alone"


def test_a_stream_through_the_front_door(
    checkpoint_file: Path, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    session = dithead.Session.open(checkpoint=str(checkpoint_file), device="cpu")
    with session.open_stream(dithead.Options(steps=1)) as stream:
        stream.push_audio(sound)
        stream.push_frame(pictures[0], 0.0)
        stream.finish()
        frames = list(stream.frames())
    assert [(type(frame), frame.face) for frame in frames] == [(dithead.OutputFrame, True)]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"threads": 0}, dithead.ConfigError, "threads must be at least 1"),
        ({"device": "npu"}, dithead.ConfigError, "unknown device 'npu'"),
        ({"device": "cuda:77"}, dithead.BackendUnavailable, "choose the device cpu"),
        ({"steps": 0}, dithead.ConfigError, "steps must be at least 1"),
        ({"faces": "no.txt"}, dithead.ConfigError, "no.txt"),
        ({"backend": "tpu"}, dithead.ConfigError, "choose one of torch"),
        ({"backend": "onnxruntime"}, dithead.ConfigError, "reads a bundle"),
        ({"bundle": "b", "checkpoint": "tiny"}, dithead.ConfigError, "its own weights"),
        ({"bundle": "b", "attention": "math"}, dithead.ConfigError, "takes its attention from"),
        ({"checkpoint": "huge"}, dithead.CheckpointError, "huge"),
        ({"attention": "fast"}, dithead.ConfigError, "choose one of auto, sdpa"),
        ({"attention": "flash"}, dithead.BackendUnavailable, r"dithead\[flash\]"),
        ({"encoding": dithead.Encoding(crf=99)}, dithead.ConfigError, "from 0 to 51"),
    ],
)
def test_bad_options_say_what_to_do(
    options: dict[str, object],
    error: type[Exception],
    told: str,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    video, audio, out = portrait_clip("in.mp4", TIMES), tone_file(0.3), tmp_path / "out.mp4"
    with pytest.raises(error, match=told):
        dithead.revoice(video, audio, out, **options)  # type: ignore[arg-type]
    assert not out.exists()
    with pytest.raises(dithead.MediaError, match=r"none\.mp4"):
        dithead.revoice(tmp_path / "none.mp4", audio, out)


def test_a_session_refuses_a_device_that_is_not_there() -> None:
    with pytest.raises(dithead.BackendUnavailable, match="sees 0 CUDA devices"):
        dithead.Session.open(device="cuda:77")
    with pytest.raises(dithead.ConfigError, match="expected cpu, cuda or cuda:N"):
        dithead.Session.open(device="npu")
