"""Inputs on which graphs are compared: random ones, and real ones from a clip."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead import footage
from dithead.bundle.graphspecs import GraphSpec, graph_specs
from dithead.config import DitHeadConfig
from dithead.controls import FaceShape
from dithead.errors import MediaError
from dithead.face.crop import BLEND_ANCHORS, STABLE_POINTS, blend_polygon, stable_template
from dithead.face.cropsmoother import STATE_SIZE
from dithead.face.judge import GALLERY, MOUTH_SHAPE
from dithead.face.likeness import LOOKS_SHAPE, MOST_COMPARED
from dithead.face.mesh import INNER_LOWER, INNER_UPPER
from dithead.face.networks import PICTURE_PX, FaceModels
from dithead.face.passing import MOST_SIDES, SIDES_SHAPE
from dithead.face.scene import COLUMNS, GLANCES, ROWS
from dithead.graphs import Graphs
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.torchgraphs import TorchGraphs

MESH_POINTS = 468
FRAMES = 12
"""How many frames of a clip are re-voiced."""
SPEECH_SAMPLES = 32000
"""How much of the packaged speech is used: 2 s at 16 kHz."""


def example_inputs(
    spec: GraphSpec,
    config: DitHeadConfig,
    generator: torch.Generator,
    batch: int = 1,
    face_models: FaceModels = "mediapipe",
) -> dict[str, Tensor]:
    """Random inputs of a graph, in their real range; open sizes of frames are random, too.

    Args:
        batch: number of streams, for a graph from :func:`dithead.bundle.graphspecs.with_batch`.
        face_models: which networks find faces.
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
        """A mesh with a plausible mouth, in pixels."""
        points = uniform(MESH_POINTS, 3, low=-0.4, high=0.4)
        along = torch.linspace(0.0, 1.0, len(INNER_UPPER))
        for edge, depth in ((INNER_UPPER, -0.02), (INNER_LOWER, opening)):
            points[list(edge), 0] = 0.24 * (along - 0.5)
            points[list(edge), 1] = 0.18 + depth * torch.sin(math.pi * along)
        points[:, :2] = points[:, :2] @ transform[:, :2].T + transform[:, 2]
        return points

    def smooth(height: int, width: int) -> Tensor:
        """A picture without noise; noise would change with the last digit of a position."""
        coarse = uniform(1, 3, 8, 8, low=0.0)
        return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)

    def rectangle() -> Tensor:
        return (255 * smooth(side, side)[0].permute(1, 2, 0)).round().to(torch.uint8)

    def similarity() -> Tensor:
        """A crop that fills most of the rectangle, turned a little."""
        across = side or min(height, breadth)
        roll, scale = float(uniform(low=-0.3, high=0.3)), across * 0.7
        c, s = scale * math.cos(roll), scale * math.sin(roll)
        return torch.tensor([[c, -s, across / 2], [s, c, across / 2]])

    def upright_mesh(region: Tensor) -> Tensor:
        """A mesh that fills a region (1, 5) as a face does, in frame pixels."""
        points = uniform(MESH_POINTS, 3, low=-0.4, high=0.4)
        points[list(STABLE_POINTS), :2] = stable_template()
        cos, sin = region[0, 4].cos(), region[0, 4].sin()
        turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        points[:, :2] = (0.6 * region[0, 2] * points[:, :2]) @ turn.T + region[0, :2]
        return points

    def looks(*count: int) -> Tensor:
        return uniform(*count, *LOOKS_SHAPE, low=40.0, high=200.0)

    def light(rows: int) -> Tensor:
        return torch.stack(
            [uniform(rows, 3, low=0.7, high=1.4), uniform(rows, 3, low=-0.3, high=0.3)], 1
        )

    def context() -> Tensor:
        if config.dit.conditioning == "paper":
            return normal(batch, 1, width)
        return normal(depth, 2, batch, heads, audio.window_frames, width // heads)

    height, breadth = int(integer(120, 360)), int(integer(120, 360))
    picture_px = PICTURE_PX[face_models]
    a_latent = (batch, channels, latent, latent)
    a_crop = (batch, 3, crop_px, crop_px)
    if kind in ("face_region", "face_landmarks", "face_judge"):
        middle = torch.tensor([[breadth / 2, height / 2]])
        region = torch.cat([middle, uniform(1, 1, low=60, high=200).expand(1, 2)], 1)
        region = torch.cat([region, uniform(1, 1, low=-0.5, high=0.5)], 1)
        if kind == "face_region":
            return {"frame": picture(height, breadth), "region": region}
        fitted = {"picture": smooth(picture_px, picture_px), "region": region}
        if kind == "face_landmarks":
            return fitted
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
            **{name: normal(*a_latent) for name in ("noisy", "masked", "reference")},
            "context": context(),
            "modulation": 0.3 * normal(batch, rows, width),
            "timestep": following + config.diffusion.timesteps // 2,
            "following": following,
        }
    if kind in ("face_shape", "face_detail"):
        side = side or 256
        transform = similarity()
        source, wanted = face(transform, 0.01), face(transform, 0.05)
        wanted[:, :2] = source[:, :2] + 0.1 * (wanted[:, :2] - source[:, :2])
        elapsed_s, before = torch.tensor(0.04), (face(transform, 0.01), face(transform, 0.01))
        _, habit = FaceShape()(*before, transform, FaceShape.initial_habit(), elapsed_s)
        meshes = {"source": source, "wanted": wanted, "transform": transform}
        shape = {**meshes, "habit": habit, "elapsed_s": elapsed_s}
        if kind == "face_shape":
            return shape
        return {
            **{"rectangle": rectangle(), "blended": rectangle()},
            "soft_mask": (2 * smooth(side, side)[0, 0] - 0.5).clamp(0, 1),
            "polygon": outline(),
            "target": FaceShape()(**shape)[0],
            **meshes,
        }
    if kind == "interpolator":  # a smooth picture that moves: flow in noise is arbitrary
        still = smooth(height + 4, breadth + 4)
        first, second = still[..., :-4, :-4], still[..., 4:, 2:-2]
        return {"first": first, "second": second, "t": torch.tensor(0.5)}
    return {
        "face_detector": lambda: {"frame": picture(height, breadth)},
        "crop_smoother": lambda: {
            "mesh": 150.0 + 40.0 * normal(MESH_POINTS, 3),
            "state": torch.zeros(STATE_SIZE),
            "elapsed_s": torch.tensor(0.04),
        },
        "masked_encoder": lambda: {"crop": uniform(*a_crop)},
        "reference_encoder": lambda: {"crop": uniform(*a_crop)},
        "audio_encoder": lambda: {"chunk": 0.2 * normal(batch, audio.chunk_samples)},
        "noise": lambda: {"seed": integer(0, 2**31), "frame_index": integer(0, 2**31)},
        "dit_timestep": lambda: {"timestep": integer(0, config.diffusion.timesteps, batch)},
        "dit_context": lambda: {"window": normal(batch, *audio.window_shape)},
        "face_decoder": lambda: {"latent": normal(*a_latent), "light": light(batch)},
        "shape_head": lambda: {"latent": normal(*a_latent)},
        "face_crop": lambda: {
            **{"rectangle": rectangle(), "transform": similarity(), "light": light(1)[0]}
        },
        "face_sighting": lambda: {
            "box": torch.tensor([100.0, 80.0, 220.0, 200.0]) + uniform(4, low=-20.0, high=20.0),
            "keypoints": uniform(6, 2, low=80.0, high=220.0),
        },
        "face_look": lambda: {"mesh": 150.0 + 40.0 * normal(MESH_POINTS, 3)},
        "face_picture": lambda: {"picture": smooth(picture_px, picture_px)},
        "face_likeness": lambda: {"known": looks(MOST_COMPARED), "looks": looks()},
        "face_light": lambda: {"reference": looks(), "looks": looks()},
        "looks_mix": lambda: {"before": looks(), "latest": looks(), "share": torch.tensor(0.3)},
        "frame_glance": lambda: {"frame": picture(height, breadth)},
        "scene_change": lambda: {
            "glances": uniform(GLANCES, ROWS, COLUMNS, 3, low=0.0, high=255.0),
            "inside": (uniform(ROWS, COLUMNS) > 0.5).float(),
        },
        "face_sides": lambda: {
            "frame": (255 * smooth(height, breadth)[0].permute(1, 2, 0)).round().to(torch.uint8),
            "mesh": face(similarity(), 0.02),
            **{"looks": looks(), "known": 0.3 * normal(MOST_SIDES + 1, *SIDES_SHAPE)},
        },
        "reference_mix": lambda: {
            **{"before": normal(*a_latent), "latest": normal(*a_latent)},
            "share": torch.tensor(0.3),
        },
        "generated_mesh": lambda: {
            "shape": uniform(MESH_POINTS, 2, low=-0.5, high=0.5),
            "transform": similarity(),
        },
        "face_blend": lambda: {
            "face": uniform(*a_crop),
            "rectangle": picture(side, side),
            "crop": uniform(*a_crop),
            "transform": similarity(),
            "polygon": outline(),
        },
    }[kind]()


class Recorder:
    """Runs graphs through another :class:`~dithead.graphs.Graphs` and keeps some of each graph's
    inputs."""

    def __init__(self, graphs: Graphs, specs: Iterable[GraphSpec], keep: int = 2) -> None:
        self._graphs = graphs
        self.config, self.device = graphs.config, graphs.device
        self._specs = {spec.name: spec for spec in specs}
        self._keep = keep
        self._calls: dict[str, int] = {}
        self.cases: dict[str, list[dict[str, Tensor]]] = {}

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Like the recorded graphs; keeps the 1st, 8th, 15th, ... inputs, up to ``keep``."""
        calls = self._calls.get(name, 0)
        self._calls[name] = calls + 1
        cases = self.cases.setdefault(name, [])
        if name in self._specs and calls % 7 == 0 and len(cases) < self._keep:
            copies = (value.clone() for value in inputs)
            cases.append(dict(zip(self._specs[name].inputs, copies, strict=True)))
        return self._graphs.run(name, *inputs)


def record_real_inputs(
    models: TorchGraphs, clip: Path, largest_rectangle: int
) -> dict[str, list[dict[str, Tensor]]]:
    """Re-voice the beginning of a clip with the packaged speech, and keep the inputs of each graph.

    Returns:
        Inputs by name, by graph.

    Raises:
        MediaError: the clip cannot be read or shows no face.
    """
    recorder = Recorder(models, graph_specs(largest_rectangle, models.config.shape_head))
    with av.open(str(footage.speech())) as container:  # 16 kHz mono, 16 bits
        blocks = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    samples = torch.from_numpy(np.concatenate(blocks)[:SPEECH_SAMPLES]) / 32768
    frames = _first_frames(clip)
    pictures = list(revoice(frames, samples, recorder, Options(steps=4)))
    if "dit_step" not in recorder.cases:
        raise MediaError(f"no face in the first {FRAMES} frames of {clip}: give another --clip")
    with torch.inference_mode():
        first, second = (p.permute(2, 0, 1)[None].float() / 255.0 for p in pictures[:2])
        recorder.run("interpolator", first, second, torch.tensor(0.5))
    return recorder.cases


def _first_frames(clip: Path) -> list[tuple[Tensor, float]]:
    """The first frames of a clip, (H, W, 3) uint8, with times as at 25 frames a second."""
    try:
        with av.open(str(clip)) as container:
            decoded = list(islice(container.decode(video=0), FRAMES))
    except (av.FFmpegError, IndexError) as error:  # no file, no video, or no picture in it
        raise MediaError(f"{clip} cannot be read ({error}): give another --clip") from error
    if len(decoded) < 2:
        raise MediaError(
            f"{clip} has {len(decoded)} frame(s): give a --clip with two frames or more"
        )
    pictures = [frame.to_ndarray(format="rgb24") for frame in decoded]
    return [(torch.from_numpy(picture), i / 25) for i, picture in enumerate(pictures)]
