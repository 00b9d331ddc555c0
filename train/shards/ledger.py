"""What has been done: a folder that a killed run leaves so that the next one goes on with it.

The folder ``work`` holds, for each finished part, its samples (``NAME.samples``, a piece of a tar
file) until they are packed, and a page of the ledger (``NAME.json``). The page is written last, so
a part that has one is finished; one that has none is done again, with the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dithead.errors import ConfigError, MediaError
from dithead.train.shards.lists import Part
from dithead.train.shards.store import PARTIAL, Entry, whole_file, write_whole_json

Row = dict[str, Any]
"""What the report says of a part."""
Add = Callable[[Entry, bytes], None]
"""Takes a finished sample."""
Work = Callable[[Part, Add], Row]
"""Makes the samples of a part, the same ones whenever and wherever it is called."""


@dataclass(frozen=True, slots=True)
class Page:
    """A finished part."""

    part: str
    entries: tuple[Entry, ...]
    row: Row


def fragment_path(out: Path, part: str) -> Path:
    """Where a part's samples wait to be packed."""
    return out / "work" / f"{part}.samples"


def page_path(out: Path, part: str) -> Path:
    """Where a part's page is."""
    return out / "work" / f"{part}.json"


def do_part(part: Part, out: Path, work: Work) -> None:
    """Make a part's samples and its page, unless the page is there."""
    if page_path(out, part.name).is_file():
        return
    entries: list[Entry] = []
    with whole_file(fragment_path(out, part.name)) as file:

        def add(entry: Entry, content: bytes) -> None:
            file.write(content)
            entries.append(entry)

        row = work(part, add)
    page = {"part": part.name, "entries": [asdict(entry) for entry in entries], "row": row}
    write_whole_json(page_path(out, part.name), page)


def read_page(out: Path, part: str) -> Page | None:
    """A part's page, or None if it is not finished. Raises MediaError: it is damaged."""
    path = page_path(out, part)
    try:
        page = json.loads(path.read_bytes())
        return Page(page["part"], tuple(_entry(row) for row in page["entries"]), page["row"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise MediaError(f"{path} is damaged ({error}): delete it to do that part again") from error


def _entry(row: dict[str, Any]) -> Entry:
    members = {kind: (at, size) for kind, (at, size) in row.pop("members").items()}
    return Entry(**row, members=members)


@contextmanager
def claimed(out: Path, parts: Sequence[Part], settings: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder for one run, and remove what a killed one has left half-written.

    Raises:
        ConfigError: the folder was begun with other parts or settings, or holds other things.
        MediaError: another run is at work in it.
    """
    plan = {"parts": len(parts), "key": plan_key(parts, settings), "settings": dict(settings)}
    (out / "work").mkdir(parents=True, exist_ok=True)
    with (out / "work" / ".lock").open("w") as lock:
        _take(lock.fileno(), out)
        path = out / "work" / "plan"
        if path.is_file():
            _check_plan(out, json.loads(path.read_bytes()), plan)
        elif any(entry.name != "work" for entry in out.iterdir()):
            raise ConfigError(f"{out} is not empty and no folder of shards: choose another")
        else:
            write_whole_json(path, plan)
        for folder in (out, out / "work"):
            for partial in folder.glob(f"*{PARTIAL}"):
                with suppress(FileNotFoundError):  # a worker of the killed run, on its way out
                    partial.unlink()
        yield


def _check_plan(out: Path, held: dict[str, Any], plan: dict[str, Any]) -> None:
    if held["key"] == plan["key"]:
        return
    old, new = held["settings"], plan["settings"]
    what = [name for name in {**old, **new} if old.get(name) != json.loads(_text(new.get(name)))]
    raise ConfigError(
        f"{out} was begun with {'other ' + ', '.join(sorted(what)) if what else 'other videos'}: "
        "give the same again to go on, or another folder"
    )


def plan_key(parts: Sequence[Part], settings: Mapping[str, Any]) -> str:
    """A hash of all that decides what the shards hold, other than the videos' pixels."""
    return hashlib.sha256(_text([[asdict(p) for p in parts], dict(settings)]).encode()).hexdigest()


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _take(descriptor: int, out: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are not noticed there
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise MediaError(
            f"another run is at work in {out}: wait for it, or choose another folder"
        ) from error
