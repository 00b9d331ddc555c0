"""The whole method, offline, in the plainest code: the specification that every runtime must equal.

Frames come in as pictures with presentation times, audio as 16 kHz samples; nothing here knows
about files, threads or queues.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from dithead.audio import encode_audio
from dithead.generator import FrameGenerator, Prepared
from dithead.graphs import Graphs
from dithead.options import Options
from dithead.patch import put_patch
from dithead.torchgraphs import SpeechGraph


def revoice(
    frames: Iterable[tuple[Tensor, float]], samples: Tensor, graphs: Graphs, options: Options
) -> Iterator[Tensor]:
    """Re-voice a video given as pictures.

    Args:
        frames: pairs of a picture (H, W, 3) uint8 RGB and its presentation time in seconds.
        samples: (S,) float32 in [-1, 1], 16 kHz mono, time 0 at the first sample.

    Yields:
        One picture (H, W, 3) uint8 for each frame; a frame without a face comes back unchanged.
    """
    with torch.inference_mode():
        features = encode_audio(SpeechGraph(graphs), samples)
    generator = FrameGenerator(graphs, options)
    held: tuple[Tensor, Prepared] | None = None  # a frame whose face may be interpolated
    last: tuple[float, tuple[Tensor, Tensor]] | None = None  # time and face, generated last
    for index, (frame, time_s) in enumerate(frames):
        prepared = generator.prepare(frame, time_s, index, features.window)
        if held is not None and (prepared is None or prepared.found.fresh):
            yield _lay(generator, *held, generator.generate(held[1]))  # nothing to interpolate from
            held = last = None
        if prepared is None:
            yield frame
            last = None
            continue
        if options.generate_every == 2 and last and not held and not prepared.found.fresh:
            held = frame, prepared
            continue
        face = generator.generate(prepared)
        if held is not None and last is not None:
            part = (held[1].time_s - last[0]) / (time_s - last[0])
            with torch.inference_mode():
                between = generator.fill(last[1], face, part)
            yield _lay(generator, *held, between)
            held = None
        yield _lay(generator, frame, prepared, face)
        last = time_s, face
    if held is not None:
        yield _lay(generator, *held, generator.generate(held[1]))


def _lay(
    generator: FrameGenerator, frame: Tensor, prepared: Prepared, made: tuple[Tensor, Tensor]
) -> Tensor:
    return put_patch(frame, generator.finish(prepared, made))
