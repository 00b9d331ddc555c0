"""Convert the weights of S3FD and FAN that the package ``face-alignment`` downloads.

    dithead train convert fan -o FOLDER

``face-alignment`` 1.5.0 keeps them as PyTorch's state dicts, ``s3fd-619a316812.pth`` and
``2DFAN4-11f355bf06.pth.tar``, in the folder of ``torch.hub``. Files that are there, or that are
given, are read without the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch

from dithead import checkpoint
from dithead.errors import BackendUnavailable, CheckpointError
from dithead.face.fan import Fan
from dithead.face.fanweights import FILES, fan_folder, fetch_hint
from dithead.face.s3fd import S3fd
from dithead.filehash import hash_file
from dithead.train.convert.published import published_tensors


@dataclass(frozen=True, slots=True)
class _Published:
    """One network as it is published."""

    name: str
    file: str
    option: str
    paper: str
    trained_on: str


_S3FD = _Published("S3FD", "s3fd-619a316812.pth", "--s3fd", "arXiv 1708.05237", "WIDER FACE")
_FAN = _Published("FAN", "2DFAN4-11f355bf06.pth.tar", "--fan", "arXiv 1703.07332", "300W-LP")


def convert_fan(
    folder: Path | None = None, s3fd: Path | None = None, fan: Path | None = None
) -> Path:
    """Write both networks' weights as DiT-Head checkpoints in float32.

    Args:
        folder: where to write; it is made if it is missing. None takes the one in the user's cache.
        s3fd, fan: files of weights; None takes those of ``torch.hub``'s folder, to which the
            package downloads what is missing.

    Returns:
        The folder.

    Raises:
        BackendUnavailable: a file is missing, and so is the package that downloads it.
        CheckpointError: a file is missing, damaged or of another network.
    """
    folder = fan_folder(folder)
    given = ((_S3FD, s3fd, S3fd()), (_FAN, fan, Fan()))
    found = [(what, _source(what, path, folder), net) for what, path, net in given]
    hint = f"remove it, and {fetch_hint(folder)}"
    read = [
        (
            what,
            path,
            published_tensors(path, net, what.name, f"{what.file} of face-alignment", hint),
        )
        for what, path, net in found
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for what, path, tensors in read:
            checkpoint.save(
                folder / FILES[what.name],
                tensors,
                config={"model": what.name},
                provenance={
                    "origin": f"{what.file}, which face-alignment 1.5.0 downloads",
                    "origin_sha256": hash_file(path),
                    "origin_url": "https://github.com/1adrianb/face-alignment",
                    "licence": "published with face-alignment, BSD-3-Clause; trained on "
                    f"{what.trained_on}, which has terms of its own",
                    "paper": what.paper,
                },
                dtype=None,
            )
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {folder} ({error})", hint="choose another folder with -o"
        ) from error
    return folder


def _source(what: _Published, given: Path | None, folder: Path) -> Path:
    """The file with a network's weights, downloaded if need be."""
    if given is not None:
        if given.is_file():
            return given
        raise CheckpointError(
            f"no weights of {what.name} at {given}: expected {what.file} of face-alignment",
            hint=f"{fetch_hint(folder)}, without {what.option}",
        )
    cached = Path(torch.hub.get_dir(), "checkpoints", what.file)
    return cached if cached.is_file() else _downloaded(what, cached)


def _downloaded(what: _Published, cached: Path) -> Path:
    try:
        from face_alignment import api, utils
        from face_alignment.detection.sfd import sfd_detector
    except ImportError as error:
        raise BackendUnavailable(
            f"no weights of {what.name} at {cached}, and face-alignment, which downloads them, is "
            f"not installed ({error})",
            hint=f"pip install 'dithead[fan]', or give the file with {what.option}",
        ) from error
    urls = {**sfd_detector.models_urls, **api.models_urls}
    url = next((u for u in urls.values() if Path(urlparse(u).path).name == what.file), None)
    if url is None:
        raise BackendUnavailable(
            f"the face-alignment that is installed downloads no {what.file}",
            hint="pip install face-alignment==1.5.0",
        )
    try:
        return Path(utils.load_file_from_url(url))
    except OSError as error:  # urllib's errors are among them
        raise CheckpointError(
            f"no weights of {what.name} at {cached}, and {url} cannot be downloaded ({error})",
            hint=f"try again, or fetch the file elsewhere and give it with {what.option}",
        ) from error
