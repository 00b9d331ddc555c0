"""The runtime as a library: a session holds the weights, a stream is one speaker.

    session = Session.open(checkpoint="tiny")
    with session.open_stream(Options(steps=2)) as stream:
        stream.push_audio(samples)                  # 16 kHz mono, as it comes
        stream.push_frame(image, time_s)            # (H, W, 3) uint8 RGB
        stream.finish()                             # or finish_audio(), where the sound ends first
        for frame in stream.frames():
            show(frame.image, frame.time_s)

The total length need not be known. Every pushed frame comes out, in order, with its own time;
without a face it comes out unchanged. After the end of the sound, frames are silent.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from dithead.errors import ConfigError
from dithead.face.networks import FaceModels
from dithead.generator import FrameGenerator
from dithead.kernels.attention import AttentionBackend
from dithead.options import Options
from dithead.runtime.backends import Backend, RuntimeGraphs, open_graphs
from dithead.runtime.checked import checked_device, checked_number, checked_rate
from dithead.runtime.defaults import IN_FLIGHT, WAITING
from dithead.runtime.media.sources import SPEECH_RATE_HZ
from dithead.runtime.pictures import Layout, checked_layout, chosen_footage
from dithead.runtime.schedule.batch import WAIT_S, Batcher
from dithead.runtime.schedule.devicelanes import make_lanes
from dithead.runtime.schedule.lanes import Lanes
from dithead.runtime.schedule.trace import Trace
from dithead.runtime.stream import IDLE_MODES, IdleMode, Stream, StreamSettings


class Session:
    """The weights of a model on a device. Streams share it, from any thread.

    Args:
        graphs: the model, run by a back end.
        batch: number of frames of different streams that may be denoised together. 1 keeps streams
            apart: each gives exactly the frames that it would give alone. A larger number is faster
            on a GPU, and differs only by the rounding of sums in another order.
        batch_wait_s: how long a stream waits for the others to fill a batch.

    Raises:
        ConfigError: the batch is smaller than 1.
    """

    def __init__(self, graphs: RuntimeGraphs, batch: int = 1, batch_wait_s: float = WAIT_S) -> None:
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, not {batch}")
        self.graphs = graphs
        self._batcher: Batcher | None = None
        if batch > 1:
            lanes = make_lanes(graphs.device, graphs.replayable)
            self._batcher = Batcher(lanes, batch, batch_wait_s)

    @classmethod
    def open(
        cls,
        backend: Backend = "torch",
        *,
        checkpoint: str = "tiny",
        bundle: str | Path | None = None,
        device: torch.device | str = "cpu",
        audio_weights: str | Path | None = None,
        threads: int | None = None,
        attention: AttentionBackend | None = None,
        face_models: FaceModels | None = None,
        face_weights: str | Path | None = None,
        batch: int = 1,
    ) -> Session:
        """Load a checkpoint or a bundle.

        Args:
            backend: ``torch`` runs a checkpoint; ``onnxruntime``, ``tensorrt`` and ``tensorrt-rtx``
                run a bundle. It is never replaced by another.
            checkpoint: name of a packaged checkpoint, or a .safetensors file.
            bundle: folder written by ``dithead export``.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            audio_weights: of the speech encoder, for a checkpoint that does not use the packaged
                one; see :func:`dithead.audio.load_audio_encoder`.
            threads: CPU threads of a graph, for ``onnxruntime``. None takes PyTorch's number.
            attention: attention of the denoiser, with ``torch``: ``auto``, ``sdpa``, ``math``,
                ``flash``, ``xformers`` or ``triton``. None takes ``auto``: ``triton`` on NVIDIA's
                GPUs where it is installed, and otherwise ``sdpa``.
            face_models: networks that find faces, with ``torch``: ``mediapipe``, which come with
                the package, or ``fan``, S3FD and FAN. None takes ``mediapipe``; a bundle has its
                own.
            face_weights: folder of S3FD's and FAN's weights; None takes that in the user's cache.
            batch: see :class:`Session`. A bundle must have been made for batches of that size
                (``dithead export --batch``).

        Raises:
            ConfigError: an option is invalid, or two contradict each other.
            CheckpointError, ExportError: the checkpoint or the bundle cannot be used.
            BackendUnavailable: a package or device is missing.
        """
        return cls(
            open_graphs(
                backend,
                checkpoint=checkpoint,
                bundle=bundle,
                device=checked_device(device),
                audio_weights=audio_weights,
                threads=threads,
                attention=attention,
                face_models=face_models,
                face_weights=face_weights,
            ),
            batch,
        )

    def open_stream(
        self,
        options: Options | None = None,
        *,
        interpolate: int = 1,
        in_flight: int = IN_FLIGHT,
        waiting: int = WAITING,
        batch: int = 1,
        portrait: np.ndarray | None = None,
        loop: str | os.PathLike[str] | None = None,
        fps: Fraction | float = 25,
        layout: Layout = "rgb",
        idle: IdleMode = "wait",
        patience_s: float | None = None,
        realtime: bool = True,
        sample_rate_hz: int | None = None,
        trace: Trace | None = None,
        lanes: Lanes | None = None,
    ) -> Stream:
        """Open a stream for one speaker.

        Args:
            options: options of the method. interpolate: 2 puts a frame between every two (RIFE).
            in_flight: maximum number of frames in progress; fewer cost throughput, more cost
                latency.
            waiting: number of pushed frames that may wait before those. In live use, sound for a
                frame comes up to 0.38 s after it with ``tiny`` (``audio.longest_wait_ms`` of the
                configuration), and there must be room for the frames of that time; if all sound is
                already there, 1 is enough.
            batch: number of frames of this stream denoised together, with a fixed reference; each
                waits for the last of them.
            portrait: a still picture (H, W, 3) uint8 RGB instead of pushed frames, shown at
                ``fps``.
            loop: a video file instead of pushed frames, played forwards and backwards in turn, at
                its own rate. Its sound is ignored.
            fps: frame rate of a portrait; with pushed frames, it gives the length of the first one.
            layout: layout of pushed and pulled pictures: ``rgb``, ``bgr`` or ``yuv420p``; see
                :data:`dithead.runtime.pictures.LAYOUTS`.
            idle: what happens while there is no sound. ``wait``: frames wait for it, and a portrait
                or loop ends with it. ``rest``: the stream goes on by itself, with the mouth at
                rest. ``pass``: the same, but frames pass through unchanged. Speech may begin again
                at any time.
            patience_s: with ``rest`` and ``pass``, how long a frame waits for sound before the next
                moment counts as silent; None takes what the model must hear ahead plus 0.1 s. A
                portrait or loop without ``realtime`` does not wait.
            realtime: with ``rest`` and ``pass``, whether a portrait or loop runs at the pace of the
                clock, leaving frames out where the machine is too slow; otherwise it runs as fast
                as frames are pulled.
            sample_rate_hz: rate of pushed sound; None takes that of the first push, or 16 kHz with
                ``rest`` and ``pass``, where sound goes out before the first push.
            trace: where every stage's work is recorded. lanes: what orders the stages' work; None
                takes the device's own.

        Raises:
            ConfigError: an option is invalid, or two contradict each other.
            MediaError: the clip to loop cannot be read.
        """
        if interpolate not in (1, 2):
            raise ConfigError(f"interpolate must be 1 or 2, not {interpolate}")
        if waiting < 1:
            raise ConfigError(f"waiting must be at least 1, not {waiting}")
        if idle not in IDLE_MODES:
            raise ConfigError(f"unknown idle mode {idle!r}; expected {', '.join(IDLE_MODES)}")
        rate = checked_number(fps, "frames per second", ConfigError).limit_denominator(100_100)
        if rate <= 0:
            raise ConfigError(f"fps must be above 0, not {fps}")
        if idle == "wait" and patience_s is not None:
            raise ConfigError("patience_s is for idle='rest' and idle='pass'")
        if idle != "wait":
            if patience_s is None:
                patience_s = self.graphs.config.audio.longest_wait_ms / 1000 + 0.1
            patience = float(checked_number(patience_s, "patience_s in seconds", ConfigError))
            if patience < 0:
                raise ConfigError(f"patience_s must be at least 0, not {patience_s}")
        if sample_rate_hz is not None:
            sample_rate_hz = checked_rate(sample_rate_hz, ConfigError)
        elif idle != "wait":
            sample_rate_hz = SPEECH_RATE_HZ
        layout = checked_layout(layout)
        settings = StreamSettings(
            interpolate=interpolate,
            in_flight=in_flight,
            waiting=waiting,
            batch=batch,
            rate=rate,
            layout=layout,
            idle=idle,
            patience_s=None if idle == "wait" else patience,
            realtime=realtime and idle != "wait",
            sample_rate_hz=sample_rate_hz,
            footage=chosen_footage(portrait, loop, rate, layout, ConfigError),
            trace=trace,
            lanes=lanes,
            batcher=self._batcher,
        )
        return Stream(lambda: FrameGenerator(self.graphs, options or Options()), settings)
