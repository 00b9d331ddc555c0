"""Counts what a frame at batch 1 costs: bytes, arithmetic and launches of every operation, with the
references and with the kernels. Nothing is computed: tensors have shapes and no memory.

Bytes are what an operation must read and write if nothing stays in a cache; arithmetic is products
and sums of matrices and convolutions alone (two a multiplication), as the rest is cheaper than its
bytes everywhere. Weights and feature maps have 2 bytes (float16) unless the operation says
otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dithead.config import DitHeadConfig, preset
from dithead.graphs import DiTContext, DiTStep, DiTTimestep, FaceDecoder, MaskedEncoder
from dithead.kernels.choice import Impl, preferring
from dithead.model import DitHead

_VIEWS = {
    "view", "_unsafe_view", "reshape", "transpose", "permute", "slice", "select", "unsqueeze",
    "squeeze", "expand", "t", "split", "chunk", "unbind", "detach", "alias", "as_strided", "empty",
    "empty_like", "new_empty", "unfold", "empty_strided",
}  # fmt: skip
_LAUNCHES = {"group_norm_silu": 3, "native_group_norm": 2}
"""Kernels of an operation that is not one. Both group norms read their input twice."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a GPU can do at most, by its data sheet."""

    name: str
    gbytes_per_s: float
    """Of its memory."""
    tflops: float
    """Dense float16 products, added up in float32."""

    def floor_ms(self, costs: Iterable[Cost]) -> float:
        """No less time than this."""
        return 1e3 * floor_s(costs, 1e9 * self.gbytes_per_s, 1e12 * self.tflops)


CARDS = (
    Card("L4", 300, 121),
    Card("A100 80 GB SXM", 2039, 312),
    Card("RTX 4090", 1008, 165),
    Card("RTX 5090", 1792, 209),
    Card("H100 SXM", 3350, 989),
    Card("H200", 4800, 989),
)
"""NVIDIA's data sheets and architecture white papers; without sparsity."""


@dataclass(slots=True)
class Cost:
    """What operations of one kind cost."""

    launches: int = 0
    bytes: int = 0
    operations: int = 0

    def add(self, launches: int, size: int, operations: int) -> None:
        """Add an operation."""
        self.launches += launches
        self.bytes += size
        self.operations += operations


def floor_s(costs: Iterable[Cost], bytes_per_s: float, products_per_s: float) -> float:
    """No less time than this: each operation is limited by its bytes or by its products."""
    return sum(max(one.bytes / bytes_per_s, one.operations / products_per_s) for one in costs)


class _Counter(TorchDispatchMode):
    """Adds up operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if not self.paused and name not in _VIEWS:
            size = _bytes_of([*tree_leaves(args), *tree_leaves(kwargs), *tree_leaves(out)])
            if name in _LAUNCHES:
                size += _bytes_of([args[0]])
            self.costs[name].add(_LAUNCHES.get(name, 1), size, _operations(func, args, kwargs, out))
        return out


class _OneAttention(TorchFunctionMode):
    """PyTorch's fused attention is one launch on a GPU, whatever it is made of elsewhere."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.counter.paused = True
        try:
            q, k, v = args
            out = torch.empty_like(q)
        finally:
            self.counter.paused = False
        operations = 4 * q.numel() * k.shape[2]
        self.counter.costs["scaled_dot_product_attention"].add(
            1, _bytes_of([q, k, v, out]), operations
        )
        return out


def _bytes_of(values: list[Any]) -> int:
    """Of the tensors among them, each once, and no more of one than is seen."""
    seen = {}
    for x in values:
        if isinstance(x, Tensor):
            distinct = 1
            for length, stride in zip(x.shape, x.stride(), strict=True):
                distinct *= length if stride else 1
            seen[id(x)] = distinct * x.element_size()
    return sum(seen.values())


def _operations(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    ours = _OPERATIONS.get(func._schema.name)
    if ours is not None:
        return ours(*args)
    count = flop_registry.get(func._overloadpacket)
    return count(*args, **(kwargs or {}), out_val=out) if count else 0


def _operations_of_attention(q: Tensor, k: Tensor, v: Tensor) -> int:
    return 4 * q.numel() * k.shape[1]


def _operations_of_audio_attention(x: Tensor, q: Tensor, k: Tensor, *_: Any) -> int:
    return 4 * q.numel() * k.shape[2] + 2 * q.numel() * q.shape[2]


_OPERATIONS: dict[str, Callable[..., int]] = {
    "dithead::attention": _operations_of_attention,
    "dithead::audio_attention": _operations_of_audio_attention,
}
"""Of our own operations with products; PyTorch counts its own."""


def _half(module: nn.Module) -> nn.Module:
    return module.to("meta", torch.float16).eval()


def graphs_of_a_frame(config: DitHeadConfig) -> dict[str, Callable[[], object]]:
    """What the generator's networks do for a frame with the fixed reference, by graph; a step of
    the denoiser, not all of them."""
    with torch.device("meta"):
        model = DitHead(config)
    model.to(torch.float16).requires_grad_(False)

    def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    size, channels = config.latent_size, config.vqgan.latent_channels
    latent, crop = empty(1, channels, size, size), empty(1, 3, *[config.face.crop_px] * 2)
    now = empty(1, dtype=torch.int64)
    with torch.device("cpu"):
        encoder = MaskedEncoder(config.face, model.masked_vqgan)
    window = empty(1, *config.audio.window_shape)
    hearing = _half(DiTContext(model.dit))
    context = hearing(window)
    modulation = _half(DiTTimestep(model.dit))(now)
    step = _half(DiTStep(model.dit, model.diffusion))
    # The schedule's tables stay float32.
    for name in ("signal", "sigma"):
        table = getattr(model.diffusion, name)
        setattr(model.diffusion, name, table.float())
    _half(encoder)
    decoder = _half(FaceDecoder(model.face_vqgan))
    light = empty(1, 2, 3)
    given = latent, latent, latent, context, modulation, now, now
    return {
        "masked_encoder": lambda: encoder(crop),
        "dit_context": lambda: hearing(window),
        "dit_step": lambda: step(*given),
        "face_decoder": lambda: decoder(latent, light),
    }


def count(config: DitHeadConfig, impl: Impl) -> dict[str, dict[str, Cost]]:
    """Costs by graph and operation.

    Args:
        impl: ``reference`` or ``triton``.

    Raises:
        BackendUnavailable: triton is not installed.
    """
    found = {}
    with preferring(impl), torch.no_grad():
        for name, run in graphs_of_a_frame(config).items():
            run()  # what is computed once from the weights
            counter = _Counter()
            with counter, _OneAttention(counter):
                run()
            found[name] = dict(counter.costs)
    return found


def report(names: Sequence[str]) -> str:
    """Tables in Markdown: every operation of a frame of these presets, and the floors.

    Raises:
        ConfigError: no such preset. BackendUnavailable: see :func:`count`.
    """
    return "\n\n".join(_report(preset(name)) for name in names)


def _report(config: DitHeadConfig) -> str:
    before, after = count(config, "reference"), count(config, "triton")
    lines = [
        f"### `{config.preset}`",
        "",
        "| graph | operation | launches | MB | GFLOP | launches, fused | MB | GFLOP |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for graph, costs in before.items():
        names = sorted({*costs, *after[graph]}, key=lambda name: _order(name, costs, after[graph]))
        for name in names:
            row = [_cells(kinds.get(name)) for kinds in (costs, after[graph])]
            lines.append(f"| `{graph}` | {name} | {' | '.join(row)} |")
        row = [_cells(_total(kinds.values())) for kinds in (costs, after[graph])]
        lines.append(f"| `{graph}` | **all** | {' | '.join(row)} |")
    lines += ["", "| floor, ms | " + " | ".join(f"{graph}, fused" for graph in before) + " |"]
    lines.append("|---" * (len(before) + 1) + "|")
    for card in CARDS:
        cells = [
            f"{card.floor_ms(before[graph].values()):.3f}, "
            f"{card.floor_ms(after[graph].values()):.3f}"
            for graph in before
        ]
        lines.append(f"| {card.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _total(costs: Iterable[Cost]) -> Cost:
    total = Cost()
    for cost in costs:
        total.add(cost.launches, cost.bytes, cost.operations)
    return total


def _order(name: str, *kinds: dict[str, Cost]) -> tuple[int, str]:
    return -max(costs[name].bytes for costs in kinds if name in costs), name


def _cells(cost: Cost | None) -> str:
    if cost is None:
        return " | | "
    return f"{cost.launches} | {cost.bytes / 1e6:.2f} | {cost.operations / 1e9:.2f}"
