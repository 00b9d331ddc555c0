"""The graphs of a bundle: their inputs, outputs and open dimensions.

The names are the contract of a bundle; docs/architecture.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dithead.config import DitHeadConfig
from dithead.errors import ConfigError
from dithead.face.mesh import MOST_SAMPLES
from dithead.face.networks import FaceModels
from dithead.graphs import RECTANGLE_SIZES


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension that a graph leaves open, with the sizes that its engines accept."""

    name: str
    least: int
    typical: int
    most: int


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph: what the exporters and the manifest need to know about it besides its module."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    engine: bool = True
    """Whether it becomes an engine."""
    reduced: bool = False
    """Whether it runs in the requested precision. The others are float32 in every bundle: they
    compute geometry, and from 1024 on, coordinates in float16 are off by up to half a pixel."""
    dynamic: Mapping[str, Mapping[int, Axis]] = field(default_factory=dict)
    """Open dimensions, by input or output and position."""

    @property
    def shared(self) -> bool:
        """Whether it can run several streams at once: whether it has a dimension ``B``."""
        return any(axis.name == "B" for axes in self.dynamic.values() for axis in axes.values())


_TABLE = """
face_detector: frame -> boxes scores keypoints
face_sighting: box keypoints -> region
face_region.SAMPLES: frame region -> picture
face_landmarks: picture region -> mesh score
face_judge: picture region mesh score last_mesh last_looks person reference mouths ->
  looks mouth light around measures
face_look: mesh -> region points
face_picture: picture -> frame
face_likeness: known looks -> unlike
face_light: reference looks -> light
looks_mix: before latest share -> looks
frame_glance: frame -> glance
scene_change: glances inside -> changes
face_sides: frame mesh looks known -> sides seen
crop_smoother: mesh state elapsed_s -> transform polygon next_state
generated_mesh: shape transform -> wanted
face_shape: source wanted transform habit elapsed_s -> target next_habit
masked_encoder: crop -> masked
reference_encoder: crop -> reference
reference_mix: before latest share -> reference
audio_encoder: chunk -> features
audio_window: features first_index time_us -> window
noise: seed frame_index -> noise
dit_context: window -> context
dit_timestep: timestep -> modulation
dit_step: noisy masked reference context modulation timestep following -> latent
face_decoder: latent light -> face
shape_head: latent -> shape
interpolator: first second t -> middle
face_crop.SIDE: rectangle transform light -> crop lit
face_blend.SIDE: face rectangle crop transform polygon -> composited soft_mask
face_detail.SIDE: rectangle blended soft_mask transform polygon source wanted target ->
  detailed covered
"""
"""Every graph with its inputs and outputs, in the order of a bundle."""
_WITHOUT_ENGINE = (
    *("face_sighting", "face_look", "face_picture", "face_likeness", "face_light", "looks_mix"),
    *("frame_glance", "scene_change", "face_sides", "reference_mix"),
    *("crop_smoother", "generated_mesh", "face_shape", "audio_window", "noise"),
)
"""Graphs that are too small to gain from an engine, or compute in integers."""
_REDUCED = (
    *("masked_encoder", "reference_encoder", "audio_encoder"),
    *("dit_context", "dit_step", "face_decoder", "interpolator"),
)
_SHARED = (
    *("masked_encoder", "reference_encoder", "audio_encoder"),
    *("dit_context", "dit_timestep", "dit_step", "face_decoder"),
)
"""Graphs that can work for several streams at once."""
_OF_THE_SHAPE_HEAD = ("shape_head", "generated_mesh")
NETWORKS = (
    *("face_landmarks", "masked_encoder", "reference_encoder", "audio_encoder"),
    *("dit_timestep", "dit_context", "dit_step", "face_decoder", "shape_head"),
)
"""The graphs that ONNX Runtime runs on a CPU; PyTorch runs the others there."""
_FRAME = {0: Axis("H", 64, 1080, 8192), 1: Axis("W", 64, 1080, 8192)}
_INTERPOLATED = {2: Axis("H", 64, 512, 2176), 3: Axis("W", 64, 512, 2176)}
_DYNAMIC = {
    "face_detector": {"frame": _FRAME},
    "face_region": {"frame": _FRAME},
    "frame_glance": {"frame": _FRAME},
    "face_sides": {"frame": _FRAME},
    "interpolator": dict.fromkeys(("first", "second", "middle"), _INTERPOLATED),
}


def graph_specs(largest_rectangle: int = 1024, shape_head: bool = True) -> list[GraphSpec]:
    """Every graph of a bundle.

    Args:
        largest_rectangle: side in pixels of the largest rectangle round a face for which there are
            graphs; one of ``RECTANGLE_SIZES``.
        shape_head: whether the model has one.

    Raises:
        ConfigError: no such size.
    """
    if largest_rectangle not in RECTANGLE_SIZES:
        raise ConfigError(
            f"the largest rectangle must be one of {', '.join(map(str, RECTANGLE_SIZES))}, "
            f"not {largest_rectangle}"
        )
    lines = _TABLE.replace("\n  ", " ").strip().splitlines()
    specs = []
    for line in (line for line in lines if ".SIDE" not in line):
        sizes = (1, MOST_SAMPLES) if ".SAMPLES" in line else (0,)
        specs += [_spec(line, size) for size in sizes]
    for side in (size for size in RECTANGLE_SIZES if size <= largest_rectangle):
        specs += [_spec(line, side) for line in lines if ".SIDE" in line]
    return [spec for spec in specs if shape_head or spec.name not in _OF_THE_SHAPE_HEAD]


def networks(shape_head: bool, face_models: FaceModels = "mediapipe") -> tuple[str, ...]:
    """Those of :data:`NETWORKS` that a model has, with or without a shape head; and the face
    detector, unless it comes with the package."""
    found = ("face_detector", *NETWORKS) if face_models == "fan" else NETWORKS
    return tuple(name for name in found if shape_head or name not in _OF_THE_SHAPE_HEAD)


def _spec(line: str, size: int) -> GraphSpec:
    """A line of the table as a graph; the size replaces its SAMPLES or SIDE."""
    name, _, ports = line.partition(":")
    inputs, _, outputs = ports.partition("->")
    kind, _, sized = name.partition(".")
    return GraphSpec(
        f"{kind}.{size}" if sized else kind,
        tuple(inputs.split()),
        tuple(outputs.split()),
        engine=kind not in _WITHOUT_ENGINE,
        reduced=kind in _REDUCED,
        dynamic=_DYNAMIC.get(kind, {}),
    )


def with_batch(spec: GraphSpec, config: DitHeadConfig, most: int) -> GraphSpec:
    """A graph for up to ``most`` streams at once: dimension ``B`` is open in its inputs and
    outputs. A graph that streams cannot share stays as it is."""
    if spec.name not in _SHARED:
        return spec
    axis = Axis("B", 1, most, most)
    keys = 0 if config.dit.conditioning == "paper" else 2  # after the axes block, and key or value
    ports = {name: keys if name == "context" else 0 for name in (*spec.inputs, *spec.outputs)}
    return replace(spec, dynamic={name: {position: axis} for name, position in ports.items()})


def select(specs: Iterable[GraphSpec], names: Iterable[str]) -> list[GraphSpec]:
    """The graphs with the given names; ``face_region``, ``face_crop``, ``face_blend`` and
    ``face_detail`` stand for all their sizes.

    Raises:
        ConfigError: there is no graph with one of the names.
    """
    specs, wanted = list(specs), list(names)
    known = {spec.name for spec in specs} | {spec.name.partition(".")[0] for spec in specs}
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"unknown graph {unknown[0]!r}; choose from {', '.join(sorted(known))}")
    return [s for s in specs if s.name in wanted or s.name.partition(".")[0] in wanted]
