"""Weights of which each process keeps a part (FSDP2), and their way into whole tensors and back."""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor, nn

from dithead.errors import BackendUnavailable


def shard(model: nn.Module, device: torch.device) -> None:
    """Replace a denoiser's parameters by this process's part of each, block by block: only the
    block at work is whole (FSDP2, ``torch.distributed.fsdp.fully_shard``).

    Raises:
        BackendUnavailable: this version of PyTorch has no FSDP2.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise BackendUnavailable(
            f"sharding needs PyTorch 2.6 or later, and this is {torch.__version__}",
            hint="install a later one, or leave --shard out",
        ) from error
    # Whoever changes such a view in place loses gradients; the denoiser changes nothing in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in cast(nn.ModuleList, model.blocks):
        # The model calls these two outside their block's forward, which would gather them.
        for part in (block.cross_kv, block.modulation):
            if isinstance(part, nn.Module):
                fully_shard(part, mesh=mesh)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` has been here."""
    return hasattr(model, "set_requires_gradient_sync")


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on the CPU. If it is sharded, every process must ask at once."""
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().cpu()


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, not a copy; all of one that is not sharded."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if not hasattr(target, "full_tensor"):
        target.copy_(value)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded = cast(DTensor, target)
    value = value.to(sharded.device)
    # Every process has read the value: nothing needs to be sent.
    part = distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)
    sharded.to_local().copy_(part.to_local())
