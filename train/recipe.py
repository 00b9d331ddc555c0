"""Recipes: the settings of all stages of a training, in one JSON file, each with where it is
from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dithead.config import preset
from dithead.errors import ConfigError
from dithead.jsontext import parse_json
from dithead.train.settings import DiTTraining, Execution, VQGANTraining

FOLDER = Path(__file__).parent / "recipes"
SOURCES = ("stated", "assumed", "chosen")
"""``stated`` in the paper; ``assumed``, where it says nothing; ``chosen`` by this project."""
SECTIONS: dict[str, type] = {
    "vqgan": VQGANTraining,
    "decoder": VQGANTraining,
    "dit": DiTTraining,
    "execution": Execution,
}
"""``vqgan`` is stage 1, ``decoder`` the same with ``--decoder-only``, ``dit`` stage 2;
``execution`` is how stage 2 runs."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One recipe, checked."""

    name: str
    preset: str
    sections: Mapping[str, Mapping[str, Any]]
    """Settings by section, see :data:`SECTIONS`."""
    sources: Mapping[str, str]
    """``section.setting`` -> one of :data:`SOURCES`."""


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_recipe(source: str) -> Recipe:
    """Read a recipe.

    Args:
        source: the name of a packaged one, or the path of a .json file.

    Raises:
        ConfigError: there is none, or it holds what is no setting.
    """
    path = Path(source) if source.endswith(".json") else FOLDER / f"{source}.json"
    if not path.is_file():
        raise ConfigError(
            f"no recipe {source!r} (packaged: {', '.join(names())})",
            hint="give one of these names, or the path of a .json file",
        )
    try:
        values = parse_json(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    known = ("about", "preset", "footage", *SECTIONS)
    _known(values, known, str(path))
    preset(values.get("preset", ""))  # raises if there is no such preset
    sections, sources = {}, {}
    for section, cls in SECTIONS.items():
        entries = values.get(section, {})
        hints = get_type_hints(cls)
        _known(entries, [field.name for field in fields(cls)], f"{path}: {section}")
        for name, entry in entries.items():
            where = f"{path}: {section}.{name}"
            _known(entry, ("value", "source", "why"), where)
            if entry.get("source") not in SOURCES or not entry.get("why"):
                raise ConfigError(f"{where} needs a source, one of {', '.join(SOURCES)}, and a why")
            if not _fits(entry.get("value"), hints[name]):
                raise ConfigError(f"{where}: {entry.get('value')!r} is no {hints[name]}")
            sources[f"{section}.{name}"] = entry["source"]
        sections[section] = {name: entry["value"] for name, entry in entries.items()}
        cls(**sections[section])  # raises if a value is out of range
    return Recipe(path.stem, values["preset"], sections, sources)


def _known(values: object, valid: Any, where: str) -> None:
    """Raise ConfigError unless these are settings by name, and all of them valid ones."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected settings by name, found {type(values).__name__}")
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise ConfigError(f"unknown key {unknown} in {where}; valid keys: {', '.join(valid)}")


def _fits(value: object, hint: Any) -> bool:
    """Whether a JSON value is of a setting's type."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
