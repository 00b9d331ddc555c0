"""PyTorch state dicts as other projects publish them: pickles, of which only tensors are read."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.errors import CheckpointError

_COUNTER = "num_batches_tracked"


def published_tensors(
    path: Path, network: nn.Module, name: str, expected: str, hint: str
) -> dict[str, Tensor]:
    """The state dict of a file, checked against the network.

    Args:
        name: the network's name, and expected: what the file should be, for the messages.
        hint: what to do about another file.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is no file of PyTorch weights ({reason})", hint=hint
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state dict: expected {expected}", hint=hint)
    tensors = {str(key): value for key, value in state.items()}
    for key, value in network.state_dict().items():
        if key.endswith(_COUNTER):  # which files of older versions lack, and inference never reads
            tensors.setdefault(key, torch.zeros_like(value))
    try:
        checkpoint.load_into(network, tensors, path)
    except CheckpointError as error:
        raise CheckpointError(f"no weights of {name}: {error.message}", hint=hint) from error
    return tensors
