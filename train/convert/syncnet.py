"""Convert the published weights of SyncNet.

    dithead train convert syncnet syncnet_v2.model syncnet.safetensors

The file is a state dict of PyTorch's. It is read here alone, and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from dithead import checkpoint
from dithead.errors import CheckpointError
from dithead.filehash import hash_file
from dithead.train.convert.published import published_tensors
from dithead.train.evaluation.syncnet import PUBLISHED, URL, SyncNet, fetch_hint


def convert_syncnet(source: Path, out: Path) -> None:
    """Write SyncNet's weights as a DiT-Head checkpoint in float32.

    Args:
        source: ``syncnet_v2.model``, as it is published.
        out: the ``.safetensors`` file to write.

    Raises:
        CheckpointError: the source is missing, damaged or of another network, or ``out`` cannot be
            written.
    """
    hint = fetch_hint(out)
    if not source.is_file():
        raise CheckpointError(f"no weights of SyncNet at {source}: expected {PUBLISHED}", hint=hint)
    tensors = published_tensors(source, SyncNet(), "SyncNet", PUBLISHED, hint)
    try:
        checkpoint.save(
            out,
            tensors,
            config={"model": "SyncNet"},
            provenance={
                "origin": PUBLISHED,
                "origin_sha256": hash_file(source),
                "origin_url": URL,
                "licence": "published with syncnet_python, MIT; trained on footage of the BBC, "
                "which has terms of its own",
                "paper": "Chung and Zisserman, Out of time: automated lip sync in the wild, 2016",
                "command": "dithead train convert syncnet IN OUT",
            },
            dtype=None,
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {out} ({error})", hint="choose another file"
        ) from error
