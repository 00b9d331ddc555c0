"""The pages: complete, of one front door, and their examples run."""

from __future__ import annotations

import ast
import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from streams import TIMES

import dithead
from dithead.runtime.session import Session

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples(page: Path) -> list[str]:
    """A page's blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    named = re.findall(r"^\.\. auto\w+:: dithead\.(\w+)", page, flags=re.M)
    assert sorted([*named, "__version__"]) == sorted(dithead.__all__)
    assert "`dithead.__version__`" in page


def test_every_page_is_reached_from_the_first() -> None:
    trees = re.findall(
        r"^```\{toctree\}\n(.*?)^```$",
        PAGES[0].parent.joinpath("docs/index.md").read_text(),
        flags=re.M | re.S,
    )
    listed = {line for tree in trees for line in tree.split("\n") if line and line[0] != ":"}
    assert listed | {"index"} == {page.stem for page in PAGES[1:]}


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for name in re.findall(r"`(docs/[\w./-]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_examples_use_nothing_but_the_front_door() -> None:
    found = [(page.name, text) for page in PAGES for text in examples(page)]
    assert len(found) >= 6
    for name, text in found:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "dithead", name
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("dithead.") for alias in node.names), name
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "dithead":
                assert node.attr in dithead.__all__, f"{name}: dithead.{node.attr}"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/first-run.md"])
def test_examples_of_files_run(
    page: str,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    portrait_clip("in.mp4", [Fraction(i, 25) for i in range(4)])
    tone_file(0.2)
    monkeypatch.chdir(tmp_path)
    for text in examples(ROOT / page):
        exec(text, {"__name__": "example"})
        assert (tmp_path / "out.mp4").is_file()
        (tmp_path / "out.mp4").unlink()
    shown = capsys.readouterr().out
    assert "4" in shown
    assert ("5 of" in shown) == (page == "docs/first-run.md")  # looped, and told as it went


def test_the_example_of_a_stream_runs(pictures: list[np.ndarray], sound: np.ndarray) -> None:
    shown: list[np.ndarray] = []
    (text,) = examples(ROOT / "docs" / "streaming.md")
    given = {"samples": sound, "image": pictures[0], "time_s": 0.0}
    exec(text, given | {"show": lambda image, time_s: shown.append(image)})
    assert [image.shape for image in shown] == [pictures[0].shape]


def ended_first(things: Iterable[T], ended: threading.Event) -> Iterator[T]:
    """Things at once, and then word that they have ended."""
    yield from things
    ended.set()


def waiting(things: Iterable[T], ended: threading.Event) -> Iterator[T]:
    """Things of which the last comes after another's end."""
    *early, last = things
    yield from early
    assert ended.wait(60)
    yield last


@pytest.fixture
def calls(session: Session, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page of calls defines; sessions open with the small random model."""
    monkeypatch.setattr(Session, "open", lambda: session)
    defined: dict[str, Any] = {}
    for text in examples(ROOT / "docs" / "calls.md"):
        exec(text, defined)
    return defined


def test_the_avatar_speaks(
    calls: dict[str, Any], pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    made = calls["speak"](pictures[0], sound)
    assert len(made) == 10  # 0.4 s at 25 a second
    assert not np.array_equal(made[0], pictures[0])


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("first", ["camera", "microphone"])
def test_a_call_ends_with_its_camera(
    calls: dict[str, Any],
    session: Session,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    first: str,
) -> None:
    shown: list[float] = []
    ended = threading.Event()  # whoever is first
    frames = list(zip(pictures, map(float, TIMES), strict=True))
    pieces = np.array_split(sound, 5)
    camera = ended_first(frames, ended) if first == "camera" else waiting(frames, ended)
    microphone = waiting(pieces, ended) if first == "camera" else ended_first(pieces, ended)
    left_out = calls["call"](
        session, camera, microphone, lambda image, time_s: shown.append(time_s), 16_000
    )
    assert left_out == 0
    assert shown == pytest.approx([float(time_s) for time_s in TIMES])


def test_the_avatar_speaks_in_asyncio(
    calls: dict[str, Any], session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    async def pieces() -> AsyncIterator[np.ndarray]:
        for piece in np.array_split(sound, 5):
            yield piece

    async def run() -> list[dithead.OutputFrame]:
        return [frame async for frame in calls["avatar"](session, pictures[0], pieces())]

    frames = asyncio.run(run())
    assert [frame.face for frame in frames] == [True] * 10
