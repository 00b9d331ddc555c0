"""What is exported: every graph with the names, shapes and ranges of its inputs and outputs.

The names are the contract of a bundle; docs/architecture.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.config import DitHeadConfig
from dithead.controls import FaceShape
from dithead.errors import ConfigError
from dithead.face.crop import BLEND_ANCHORS, STABLE_POINTS, blend_polygon, stable_template
from dithead.face.judge import GALLERY, LOOKS_SHAPE, MOUTH_SHAPE
from dithead.face.mesh import INNER_LOWER, INNER_UPPER, INPUT_SIZE, MOST_SAMPLES
from dithead.face.tracker import STATE_SIZE
from dithead.graphs import RECTANGLE_SIZES

FRAME_RANGE = (64, 1080, 8192)
"""Least, typical and largest height or width of a frame."""
INTERPOLATED_RANGE = (64, 512, 2176)
"""The same for the frames that the interpolator takes in an engine."""
MESH_POINTS = 468


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension that a graph leaves open."""

    name: str
    least: int
    typical: int
    most: int


_SHARED = (
    *("masked_encoder", "reference_encoder", "audio_encoder"),
    *("dit_context", "dit_timestep", "dit_step", "face_decoder"),
)
"""Graphs that can work for several streams at once."""
_HEIGHT, _WIDTH = Axis("H", *FRAME_RANGE), Axis("W", *FRAME_RANGE)
_HEIGHT_BETWEEN, _WIDTH_BETWEEN = Axis("H", *INTERPOLATED_RANGE), Axis("W", *INTERPOLATED_RANGE)


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph: what the exporters and the manifest need to know beside its module."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    engine: bool = True
    """Whether it becomes an engine."""
    reduced: bool = False
    """Whether it runs in the precision asked for. The others are float32 in every bundle: their
    work is geometry, and coordinates in float16 are off by up to half a pixel from 1024 on."""
    dynamic: Mapping[str, Mapping[int, Axis]] = field(default_factory=dict)
    """Open dimensions, by input or output and position."""

    @property
    def shared(self) -> bool:
        """Whether it takes several streams at once: whether it has a dimension ``B``."""
        return any(axis.name == "B" for axes in self.dynamic.values() for axis in axes.values())


def graph_specs(largest_rectangle: int = 1024, shape_head: bool = True) -> list[GraphSpec]:
    """Every graph of a bundle.

    Args:
        largest_rectangle: side in pixels of the largest rectangle round a face that is provided
            for; one of ``RECTANGLE_SIZES``.
        shape_head: whether the model has one.

    Raises:
        ConfigError: no such size.
    """
    if largest_rectangle not in RECTANGLE_SIZES:
        raise ConfigError(
            f"the largest rectangle must be one of {', '.join(map(str, RECTANGLE_SIZES))}, "
            f"not {largest_rectangle}"
        )
    frame = {0: _HEIGHT, 1: _WIDTH}
    between = {2: _HEIGHT_BETWEEN, 3: _WIDTH_BETWEEN}
    specs = [
        GraphSpec(
            "face_detector",
            ("frame",),
            ("boxes", "scores", "keypoints"),
            dynamic={"frame": frame},
        ),
        *(
            GraphSpec(
                f"face_region.{samples}",
                ("frame", "region"),
                ("picture",),
                dynamic={"frame": frame},
            )
            for samples in (1, MOST_SAMPLES)
        ),
        GraphSpec("face_landmarks", ("picture", "region"), ("mesh", "score")),
        GraphSpec(
            "face_judge",
            (
                *("picture", "region", "mesh", "score", "last_mesh", "last_looks"),
                *("person", "reference", "mouths"),
            ),
            ("looks", "mouth", "light", "measures"),
        ),
        GraphSpec(
            "face_tracker",
            ("mesh", "state", "elapsed_s"),
            ("transform", "polygon", "next_state"),
            engine=False,
        ),
        GraphSpec(
            "face_shape",
            ("source", "wanted", "transform", "habit", "elapsed_s"),
            ("target", "next_habit"),
            engine=False,
        ),
        GraphSpec("masked_encoder", ("crop",), ("masked",), reduced=True),
        GraphSpec("reference_encoder", ("crop",), ("reference",), reduced=True),
        GraphSpec("audio_encoder", ("chunk",), ("features",), reduced=True),
        GraphSpec(
            "audio_window", ("features", "first_index", "time_us"), ("window",), engine=False
        ),
        GraphSpec("noise", ("seed", "frame_index"), ("noise",), engine=False),
        GraphSpec("dit_context", ("window",), ("context",), reduced=True),
        GraphSpec("dit_timestep", ("timestep",), ("modulation",)),
        GraphSpec(
            "dit_step",
            ("noisy", "masked", "reference", "context", "modulation", "timestep", "following"),
            ("latent",),
            reduced=True,
        ),
        GraphSpec("face_decoder", ("latent",), ("face",), reduced=True),
        *([GraphSpec("shape_head", ("latent",), ("shape",))] if shape_head else []),
        GraphSpec(
            "interpolator",
            ("first", "second", "t"),
            ("middle",),
            reduced=True,
            dynamic={"first": between, "second": between, "middle": between},
        ),
    ]
    for side in (size for size in RECTANGLE_SIZES if size <= largest_rectangle):
        specs.append(GraphSpec(f"face_crop.{side}", ("rectangle", "transform"), ("crop",)))
        specs.append(
            GraphSpec(
                f"face_blend.{side}",
                ("face", "rectangle", "crop", "transform", "polygon"),
                ("composited", "soft_mask"),
            )
        )
        specs.append(
            GraphSpec(
                f"face_detail.{side}",
                (
                    *("rectangle", "blended", "soft_mask", "transform", "polygon"),
                    *("source", "wanted", "target"),
                ),
                ("detailed", "covered"),
            )
        )
    return specs


def with_batch(spec: GraphSpec, config: DitHeadConfig, most: int) -> GraphSpec:
    """A graph that takes up to so many streams at once, where it is one that streams can share:
    dimension ``B`` is open in its inputs and outputs."""
    if spec.name not in _SHARED:
        return spec
    axis = Axis("B", 1, most, most)
    keys = 0 if config.dit.conditioning == "paper" else 2  # behind the block, and key or value
    ports = {name: keys if name == "context" else 0 for name in (*spec.inputs, *spec.outputs)}
    return replace(spec, dynamic={name: {position: axis} for name, position in ports.items()})


def select(specs: Iterable[GraphSpec], names: Iterable[str]) -> list[GraphSpec]:
    """The specs that go by names; ``face_region``, ``face_crop``,
    ``face_blend`` and ``face_detail`` stand for all sizes.

    Raises:
        ConfigError: a name that none goes by.
    """
    specs, wanted = list(specs), list(names)
    known = {spec.name for spec in specs} | {spec.name.partition(".")[0] for spec in specs}
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"unknown graph {unknown[0]!r}; choose from {', '.join(sorted(known))}")
    return [s for s in specs if s.name in wanted or s.name.partition(".")[0] in wanted]


def example_inputs(
    spec: GraphSpec, config: DitHeadConfig, generator: torch.Generator, batch: int = 1
) -> dict[str, Tensor]:
    """Random inputs of a graph, in the range that it meets; open sizes of frames are drawn, too.

    Args:
        batch: streams at once, for a graph from :func:`with_batch`.
    """
    kind, _, side_text = spec.name.partition(".")
    side = int(side_text or 0)
    crop_px, latent = config.face.crop_px, config.latent_size
    channels, audio = config.vqgan.latent_channels, config.audio
    depth, heads, width = config.dit.depth, config.dit.heads, config.dit.width

    def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def integer(low: int, high: int, count: int = 1) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    def picture(height: int, width: int) -> Tensor:
        return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)

    def outline() -> Tensor:
        return blend_polygon(uniform(1, BLEND_ANCHORS, low=-0.4, high=0.4))[0]

    def face(transform: Tensor, opening: float) -> Tensor:
        """A mesh whose mouth is one, in pixels."""
        points = uniform(MESH_POINTS, 3, low=-0.4, high=0.4)
        along = torch.linspace(0.0, 1.0, len(INNER_UPPER))
        for edge, depth in ((INNER_UPPER, -0.02), (INNER_LOWER, opening)):
            points[list(edge), 0] = 0.24 * (along - 0.5)
            points[list(edge), 1] = 0.18 + depth * torch.sin(math.pi * along)
        points[:, :2] = points[:, :2] @ transform[:, :2].T + transform[:, 2]
        return points

    def smooth(height: int, width: int) -> Tensor:
        """A picture without noise, which a position in its last digit would change."""
        coarse = uniform(1, 3, 8, 8, low=0.0)
        return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)

    def similarity() -> Tensor:
        """A crop that fills most of the rectangle, turned a little."""
        roll, scale = float(uniform(low=-0.3, high=0.3)), side * 0.7
        c, s = scale * math.cos(roll), scale * math.sin(roll)
        return torch.tensor([[c, -s, side / 2], [s, c, side / 2]])

    def mesh() -> Tensor:
        return 150.0 + 40.0 * normal(MESH_POINTS, 3)

    def upright_mesh(region: Tensor) -> Tensor:
        """A mesh that fills a region (1, 5) as a face does, in frame pixels."""
        points = uniform(MESH_POINTS, 3, low=-0.4, high=0.4)
        points[list(STABLE_POINTS), :2] = stable_template()
        cos, sin = region[0, 4].cos(), region[0, 4].sin()
        turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        points[:, :2] = (0.6 * region[0, 2] * points[:, :2]) @ turn.T + region[0, :2]
        return points

    def context() -> Tensor:
        if config.dit.conditioning == "paper":
            return normal(batch, 1, width)
        return normal(depth, 2, batch, heads, audio.window_frames, width // heads)

    height, breadth = int(integer(120, 360)), int(integer(120, 360))
    a_latent = (batch, channels, latent, latent)
    a_crop = (batch, 3, crop_px, crop_px)
    if kind == "face_tracker":
        state = torch.zeros(STATE_SIZE)
        return {"mesh": mesh(), "state": state, "elapsed_s": torch.tensor(0.04)}
    if kind in ("face_region", "face_landmarks", "face_judge"):
        middle = torch.tensor([[breadth / 2, height / 2]])
        region = torch.cat([middle, uniform(1, 1, low=60, high=200).expand(1, 2)], 1)
        region = torch.cat([region, uniform(1, 1, low=-0.5, high=0.5)], 1)
        if kind == "face_region":
            return {"frame": picture(height, breadth), "region": region}
        fitted = {"picture": smooth(INPUT_SIZE, INPUT_SIZE), "region": region}
        if kind == "face_landmarks":
            return fitted

        def looks(*count: int) -> Tensor:
            return uniform(*count, *LOOKS_SHAPE, low=40.0, high=200.0)

        seen, last = (upright_mesh(region) + 0.3 * normal(MESH_POINTS, 3) for _ in range(2))
        return {
            **fitted,
            **{"mesh": seen[None], "score": uniform(1, low=0.0), "last_mesh": last},
            **{"last_looks": looks(), "person": looks(GALLERY), "reference": looks()},
            "mouths": 0.1 * normal(GALLERY, *MOUTH_SHAPE),
        }
    if kind == "audio_window":
        time_us = int(integer(0, 10_000_000))
        return {
            "features": normal(audio.block_features, audio.feature_dim),
            "first_index": torch.tensor(audio.block_start(time_us)),
            "time_us": torch.tensor(time_us),
        }
    if kind == "dit_step":
        following = integer(-1, config.diffusion.timesteps // 2, batch)
        rows = 1 if config.dit.conditioning == "paper" else 7 * depth + 2
        if config.dit.skip:
            rows += math.ceil(3 * config.dit.patch**2 * channels / width)
        return {
            "noisy": normal(*a_latent),
            "masked": normal(*a_latent),
            "reference": normal(*a_latent),
            "context": context(),
            "modulation": 0.3 * normal(batch, rows, width),
            "timestep": following + config.diffusion.timesteps // 2,
            "following": following,
        }
    if kind == "face_crop":
        rectangle = (255 * smooth(side, side)[0].permute(1, 2, 0)).round().to(torch.uint8)
        return {"rectangle": rectangle, "transform": similarity()}
    if kind == "face_blend":
        return {
            "face": uniform(*a_crop),
            "rectangle": picture(side, side),
            "crop": uniform(*a_crop),
            "transform": similarity(),
            "polygon": outline(),
        }
    if kind in ("face_shape", "face_detail"):
        side = side or 256
        transform = similarity()
        source, wanted = face(transform, 0.01), face(transform, 0.05)
        wanted[:, :2] = source[:, :2] + 0.1 * (wanted[:, :2] - source[:, :2])
        elapsed_s, before = torch.tensor(0.04), (face(transform, 0.01), face(transform, 0.01))
        _, habit = FaceShape()(*before, transform, FaceShape.initial_habit(), elapsed_s)
        shape = {
            "source": source,
            "wanted": wanted,
            "transform": transform,
            "habit": habit,
            "elapsed_s": elapsed_s,
        }
        if kind == "face_shape":
            return shape
        return {
            "rectangle": (255 * smooth(side, side)[0].permute(1, 2, 0)).round().to(torch.uint8),
            "blended": (255 * smooth(side, side)[0].permute(1, 2, 0)).round().to(torch.uint8),
            "soft_mask": (2 * smooth(side, side)[0, 0] - 0.5).clamp(0, 1),
            "polygon": outline(),
            "target": FaceShape()(**shape)[0],
            **{name: shape[name] for name in ("source", "wanted", "transform")},
        }
    if kind == "interpolator":  # a smooth picture that moves: flow in noise is arbitrary
        still = smooth(height + 4, breadth + 4)
        first, second = still[..., :-4, :-4], still[..., 4:, 2:-2]
        return {"first": first, "second": second, "t": torch.tensor(0.5)}
    return {
        "face_detector": lambda: {"frame": picture(height, breadth)},
        "masked_encoder": lambda: {"crop": uniform(*a_crop)},
        "reference_encoder": lambda: {"crop": uniform(*a_crop)},
        "audio_encoder": lambda: {"chunk": 0.2 * normal(batch, audio.chunk_samples)},
        "noise": lambda: {"seed": integer(0, 2**31), "frame_index": integer(0, 2**31)},
        "dit_timestep": lambda: {"timestep": integer(0, config.diffusion.timesteps, batch)},
        "dit_context": lambda: {"window": normal(batch, *audio.window_shape)},
        "face_decoder": lambda: {"latent": normal(*a_latent)},
        "shape_head": lambda: {"latent": normal(*a_latent)},
    }[kind]()
