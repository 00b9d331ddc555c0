"""Imports point one way: errors <- kernels <- core <- bundle <- export and runtime <- train and
bench."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from dithead.export.reuse import source_files

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("export", "runtime", "kernels", "train", "bench")
LAYERS = (
    ("dithead.errors", "dithead.usercache"),
    ("dithead.kernels",),
    ("dithead",),
    ("dithead.bundle",),
    ("dithead.export", "dithead.runtime"),
    ("dithead.train", "dithead.bench"),
)
"""Packages by layer. A package may import itself and the layers before its own."""
FRONT_DOOR = {"dithead", "dithead.__main__"}
"""What offers all layers under one name; it imports them when they are first asked for."""


def source_modules() -> dict[str, Path]:
    """Our modules and the files they are in."""
    found = {}
    for top in ("dithead", *FOLDERS):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "dithead" else ("dithead", *parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(source: str, modules: dict[str, Path]) -> set[str]:
    """Those of the modules that a source imports, in functions and for types, too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else str(node.module))
    return found & modules.keys()


MODULES = source_modules()
IMPORTS = {
    name: imported(path.read_text(), MODULES) - {name}
    for name, path in MODULES.items()
    if name not in FRONT_DOOR
}


def package_of(module: str) -> tuple[str, int]:
    """The package of a module and the number of its layer."""
    packages = {name: number for number, names in enumerate(LAYERS) for name in names}
    name = ".".join(module.split(".")[:2])
    name = name if name in packages else "dithead"
    return name, packages[name]


def test_imports_are_seen_wherever_they_stand() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from dithead.bundle.manifest import Manifest
def later():
    import dithead.errors
    from dithead.bundle import libraries
"""
    found = imported(source, MODULES)
    assert found == {"dithead.bundle.manifest", "dithead.errors", "dithead.bundle.libraries"}


def test_packages_import_only_the_layers_before_their_own() -> None:
    wrong = []
    for importer, names in IMPORTS.items():
        package, layer = package_of(importer)
        for name in sorted(names):
            other, other_layer = package_of(name)
            if other != package and other_layer >= layer:
                wrong.append(f"{importer} imports {name}")
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises a CycleError that names them


def test_the_key_of_an_exported_file_covers_all_that_the_export_imports() -> None:
    reached, waiting = set(), {"dithead.export.bundle"}
    while waiting:
        reached |= waiting
        waiting = {name for module in waiting for name in IMPORTS.get(module, ())} - reached
    hashed = {path.relative_to(ROOT) for path in source_files()}
    missing = {MODULES[name].relative_to(ROOT) for name in reached} - hashed
    assert missing == set()
    assert Path("dithead/bundle/graphspecs.py") in hashed
