"""Checkpoints: one safetensors file whose header contains the configuration and the provenance.
Never pickles."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dithead.errors import CheckpointError, ConfigError
from dithead.filehash import hash_file
from dithead.jsontext import parse_json

ASSETS = Path(__file__).parent / "assets"
RANDOM = "random:"
"""Begins the name of weights that are drawn in the shapes of a preset, such as ``random:paper``."""
_CONFIG_KEY = "dithead_config"
_BASE_KEY, _BASE_HASH_KEY = "dithead_base", "dithead_base_sha256"
UP, DOWN = ".up", ".down"
"""In an adapted checkpoint, the change of a weight W (R, C) is ``W.up`` (R, K) times ``W.down`` (K,
C)."""


def asset_path(name: str) -> Path:
    """Path of a weight file that ships with the package.

    Args:
        name: file name without suffix, for example ``"rife"``.

    Raises:
        CheckpointError: no such file; the message lists those that exist.
    """
    path = ASSETS / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in ASSETS.glob("*.safetensors"))) or "none"
        raise CheckpointError(
            f"no packaged weights named {name!r} (packaged: {known})",
            hint="give the path of a .safetensors file instead",
        )
    return path


def asset_named(source: str | Path) -> bool:
    """Whether this is a name of packaged weights, not a path."""
    return not ("/" in str(source) or str(source).endswith(".safetensors"))


def random_preset(source: str | Path) -> str | None:
    """The preset whose weights are to be drawn; None for a checkpoint that was trained."""
    name = str(source)
    return name.removeprefix(RANDOM) if name.startswith(RANDOM) else None


def resolve(source: str | Path) -> Path:
    """Path of a checkpoint: the name of a packaged one (``"tiny"``), or a path.

    Raises:
        CheckpointError: no packaged checkpoint has this name, or its weights are drawn.
    """
    if (preset := random_preset(source)) is not None:
        raise CheckpointError(
            f"{source} is no file: its weights are drawn",
            hint=f"run it with --backend torch, or export it with --preset {preset}",
        )
    if not asset_named(source):
        return Path(source)
    from dithead.config import PRESETS  # which in turn needs the encoders, and those this file

    packaged = [name for name in PRESETS if (ASSETS / f"{name}.safetensors").is_file()]
    if source not in packaged:
        raise CheckpointError(
            f"no packaged checkpoint named {str(source)!r} (packaged: {', '.join(packaged)})",
            hint="give the path of a .safetensors file instead",
        )
    return asset_path(str(source))


def save(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = torch.float16,
) -> None:
    """Write a checkpoint under a temporary name and rename it, so a half-written file never has the
    final name.

    Args:
        path: the file to write; its folder must exist.
        tensors: state dict. Floating tensors are stored as ``dtype`` (``None`` keeps each as it
            is).
        config: JSON-able configuration, read back by :func:`load`.
        provenance: free text fields for people (origin, licence, command).
    """
    path = Path(path)
    out = {
        name: (
            t.detach().to("cpu", dtype)
            if dtype is not None and t.is_floating_point()
            else t.detach().cpu()
        )
        .contiguous()
        .clone()
        for name, t in tensors.items()
    }
    metadata = {_CONFIG_KEY: json.dumps(dict(config)), **(provenance or {})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(out, temporary, metadata=metadata)
        temporary.chmod(0o644)  # safetensors makes its files readable only by their owner
        os.replace(temporary, path)
    except SafetensorError as error:
        raise CheckpointError(
            f"cannot write {path} ({error})", hint="choose another path"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_adapted(
    path: str | Path,
    changes: Mapping[str, torch.Tensor],
    base: str | Path,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write only what differs from another checkpoint, which :func:`load` then looks for again: by
    its name if it is packaged, otherwise by its path from the new file.

    Args:
        changes: tensors that take the place of the base's, or pairs of factors (:data:`UP`,
            :data:`DOWN`) whose product is added to one.
        base: name or path of the other checkpoint.

    Raises:
        ConfigError: the base itself, or one that it changes in turn, would be overwritten.
    """
    whole = resolve(base)
    config = load_config(whole)
    check_not_a_base(path, base)
    named = str(base)
    if not asset_named(base):
        named = os.path.join(
            os.curdir, os.path.relpath(whole.resolve(), Path(path).resolve().parent)
        )
    origin = {_BASE_KEY: named, _BASE_HASH_KEY: hash_file(whole)}
    save(path, changes, config, {**(provenance or {}), **origin})


def check_not_a_base(path: str | Path, base: str | Path) -> None:
    """Raise ConfigError if a file is a checkpoint, or one that it changes in turn. The checkpoint
    must be one that :func:`load` reads."""
    whole: Path | None = resolve(base)
    while whole is not None and whole.is_file():
        if whole.resolve() == Path(path).resolve():
            raise ConfigError(
                f"{path} is needed: it is the checkpoint to adapt, or one that that changes",
                hint="choose another name for the result",
            )
        with safe_open(whole, framework="pt") as file:
            named = (file.metadata() or {}).get(_BASE_KEY)
        whole = None if named is None or asset_named(named) else whole.parent / named


def load(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint written by :func:`save` or :func:`save_adapted`; the latter's base is read,
    too, and what comes back is whole.

    Returns:
        The tensors (floating ones as float32, on the CPU) and the configuration.

    Raises:
        CheckpointError: the file is missing, is not a safetensors file, or was not written by
        DiT-Head.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    config = _config_in(metadata, path)
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    if _BASE_KEY in metadata:
        whole = _base_of(path, metadata[_BASE_KEY], metadata.get(_BASE_HASH_KEY, ""))
        tensors = _changed(load(whole)[0], tensors, path)
    return tensors, config


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's configuration alone.

    Raises:
        CheckpointError: see :func:`load`.
    """
    path = Path(path)
    with _opened(path) as file:
        return _config_in(file.metadata() or {}, path)


def load_provenance(path: str | Path) -> dict[str, str]:
    """Read the free text fields that a checkpoint was saved with.

    Raises:
        CheckpointError: see :func:`load`.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        _config_in(metadata, path)
    return {name: text for name, text in metadata.items() if name != _CONFIG_KEY}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open."""
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}",
            hint="give the path of a .safetensors file",
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error})",
            hint="fetch or make it again",
        ) from error


def _config_in(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The configuration in a checkpoint's header."""
    if _CONFIG_KEY not in metadata:
        raise CheckpointError(
            f"{path} carries no DiT-Head configuration: it was not written by dithead-train"
        )
    try:
        config = parse_json(metadata[_CONFIG_KEY])
        if not isinstance(config, dict):
            raise ValueError(f"expected settings by name, found {type(config).__name__}")
    except ValueError as error:
        raise CheckpointError(f"{path} carries a damaged configuration ({error})") from error
    return config


def _base_of(path: Path, name: str, digest: str) -> Path:
    """The checkpoint that an adapted one changes."""
    base = asset_path(name) if asset_named(name) else path.parent / name
    hint = "adapt again, to the checkpoint that is there"
    if not base.is_file():
        raise CheckpointError(f"{path} changes {base}, which is not there", hint=hint)
    if hash_file(base) != digest:
        raise CheckpointError(f"{path} changes another version of {base}", hint=hint)
    return base


def _changed(
    base: dict[str, torch.Tensor], changes: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """A base's tensors with the changes of an adapted checkpoint."""
    for name, value in changes.items():
        of = name.removesuffix(UP).removesuffix(DOWN)
        shape = value.shape
        if name != of:
            shape = _product_shape(changes.get(f"{of}{UP}"), changes.get(f"{of}{DOWN}"))
        if of not in base or base[of].shape != shape:
            raise CheckpointError(f"{path} does not fit the checkpoint that it changes: {name}")
        if name.endswith(UP):
            base[of] = base[of] + value @ changes[f"{of}{DOWN}"]
        elif name == of:
            base[of] = value
    return base


def _product_shape(up: torch.Tensor | None, down: torch.Tensor | None) -> torch.Size:
    """The shape of ``up @ down``; of nothing, if there is no such product."""
    if up is None or down is None or not up.dim() == down.dim() == 2 or len(up.T) != len(down):
        return torch.Size([0])
    return torch.Size([len(up), down.shape[1]])


def load_into(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: str | Path
) -> None:
    """Load tensors into a module; a missing or unknown tensor, or one of another shape, is an
    error.

    Raises:
        CheckpointError: the tensors do not fit; the message names the first few that do not.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{n}: expected {tuple(expected[n].shape)}, found {tuple(tensors[n].shape)}"
        for n in sorted(expected.keys() & tensors.keys())
        if expected[n].shape != tensors[n].shape
    ]
    if missing or unknown or shapes:
        parts = [
            f"{label} {names[:3]}"
            for label, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        parts += shapes[:3]
        raise CheckpointError(
            f"{source} does not fit this {type(module).__name__}: {'; '.join(parts)}",
            hint="use the checkpoint with the configuration it was trained with",
        )
    module.load_state_dict(dict(tensors))
