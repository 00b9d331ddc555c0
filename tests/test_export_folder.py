"""The folder of a bundle: one export at a time, whoever comes when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dithead.errors import ExportError
from dithead.export.folder import claimed

fcntl = pytest.importorskip("fcntl", reason="exports are told apart by flock")


@contextmanager
def just_before_the_lock(action: Callable[[], object]) -> Iterator[None]:
    """Something happens between an export's opening of the lock and its taking it."""
    flock = fcntl.flock

    def late(*arguments: int) -> None:
        fcntl.flock = flock
        action()
        flock(*arguments)

    fcntl.flock = late
    try:
        yield
    finally:
        fcntl.flock = flock


def test_a_lock_that_its_holder_has_removed_is_not_held(tmp_path: Path) -> None:
    first, third = ExitStack(), ExitStack()
    first.enter_context(claimed(tmp_path / "bundle"))

    def change_hands() -> None:
        first.close()
        third.enter_context(claimed(tmp_path / "bundle"))

    with (
        just_before_the_lock(change_hands),
        third,
        pytest.raises(ExportError, match="another export is at work"),
        claimed(tmp_path / "bundle"),
    ):
        pass
    first.enter_context(claimed(tmp_path / "bundle"))
    with (
        just_before_the_lock(first.close),  # and nobody comes after it
        claimed(tmp_path / "bundle"),
        pytest.raises(ExportError, match="another export is at work"),
    ):
        third.enter_context(claimed(tmp_path / "bundle"))
    assert list((tmp_path / "bundle").iterdir()) == []


def test_an_export_that_fails_leaves_what_another_made(tmp_path: Path) -> None:
    def made_by_another() -> None:
        with claimed(tmp_path / "bundle"):
            (tmp_path / "bundle" / "manifest.json").write_text("{}")

    with (
        just_before_the_lock(made_by_another),
        pytest.raises(OSError, match="disk"),
        claimed(tmp_path / "bundle"),
    ):
        raise OSError("disk")
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["manifest.json"]
    with pytest.raises(OSError, match="disk"), claimed(tmp_path / "other"):
        (tmp_path / "other" / "noise.onnx").write_text("half")
        (tmp_path / "other" / "parts").mkdir()
        raise OSError("disk")
    assert not (tmp_path / "other").exists()
