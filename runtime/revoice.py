"""The whole job in one call: open a model, re-voice a video, write the result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from dithead.errors import ConfigError
from dithead.face.choice import FaceChoice
from dithead.face.networks import FaceModels
from dithead.face.speakers import Speakers
from dithead.kernels.attention import AttentionBackend
from dithead.options import Options, ReferenceMode
from dithead.runtime.backends import (
    Backend,
    check_backend,
    check_face_models,
    limit_threads,
    open_graphs,
)
from dithead.runtime.checked import checked_device
from dithead.runtime.defaults import IN_FLIGHT, default_threads
from dithead.runtime.media.extend import ExtendMode
from dithead.runtime.media.inputs import Input, as_input
from dithead.runtime.media.outputs import Encoding, Output, as_output
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.runtime.pipeline import Summary, stream_file

PathLike = str | os.PathLike[str]


def revoice(
    video: PathLike | Input,
    audio: PathLike | Input,
    out: PathLike | Output,
    *,
    checkpoint: PathLike | Callable[[], PathLike] | None = None,
    bundle: PathLike | Callable[[str], PathLike | None] | None = None,
    backend: Backend | None = None,
    device: torch.device | str = "cpu",
    audio_weights: PathLike | None = None,
    attention: AttentionBackend | None = None,
    face_models: FaceModels | None = None,
    face_weights: PathLike | None = None,
    steps: int | None = None,
    seed: int = 0,
    reference: ReferenceMode = "fixed",
    face: FaceChoice = "largest",
    faces: PathLike | Speakers | None = None,
    on_no_face: Literal["pass", "error"] = "pass",
    generate_every: int = 1,
    detail: bool = True,
    interpolate: int = 1,
    extend: ExtendMode | None = None,
    encoding: Encoding | None = None,
    keep_tracks: bool = True,
    in_flight: int = IN_FLIGHT,
    batch: int = 1,
    overlap: bool = True,
    threads: int | None = None,
    progress: Callable[[int, int | None, float], None] | None = None,
) -> Summary:
    """Make the face in a video speak an audio track, and write the result.

    It does what the command ``dithead stream`` does, with the same defaults. To re-voice many
    videos with one model, or frames as they arrive, open a :class:`dithead.Session`.

    Args:
        video: any video that FFmpeg opens: a file, a URL, numbered or still pictures, "-" for
            standard input; or a :class:`dithead.Input` with its own settings.
        audio: anything with an audio track, the video itself included.
        out: the file to write (.mp4, .m4v, .mov, .mkv, .webm, .ts, .flv), a URL, or "-" for
            standard output.
        checkpoint: name of a packaged checkpoint, or a .safetensors file; or a function that makes
            one, called when inputs and options have been checked. None takes ``tiny``.
        bundle: folder written by ``dithead export``, instead of a checkpoint; or a function that
            returns the folder of a checkpoint's bundle, such as :func:`dithead.cached_bundle`, or
            None to run the checkpoint; called when inputs and options have been checked.
        backend: what runs the model, never replaced by another: ``torch``, ``onnxruntime``,
            ``tensorrt`` or ``tensorrt-rtx``. None takes ``torch``, or ``onnxruntime`` for a bundle.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        audio_weights: of the speech encoder, for a checkpoint that does not use the packaged one;
            see :func:`dithead.audio.load_audio_encoder`.
        attention: attention of the denoiser, with the back end ``torch``: ``auto``, ``sdpa``,
            ``math``, ``flash``, ``xformers`` or ``triton``. None takes ``auto``: ``triton`` on
            NVIDIA's GPUs where it is installed, and otherwise ``sdpa``.
        face_models: networks that find faces, with the back end ``torch``: ``mediapipe``, which
            come with the package, or ``fan``, S3FD and FAN. None takes ``mediapipe``; a bundle has
            its own.
        face_weights: folder of S3FD's and FAN's weights. None takes the one in the user's cache.
        steps: denoising steps a frame. None takes the model's own number.
        seed: seed of the initial noise.
        reference: what the model sees of the face: ``fixed``, its first good frame, or
            ``previous``, the frame generated before.
        face: who speaks: ``"largest"``, a number from the left, a point (x, y) or a box (left, top,
            right, bottom) in pixels of the first frame that shows the face.
        faces: who speaks when, instead of ``face``: a file with a line for each turn, or
            :class:`dithead.Speakers`.
        on_no_face: ``pass`` keeps frames without the face as they are, ``error`` stops there.
        generate_every: 2 generates every second face and lets RIFE interpolate those between.
        detail: show the frame's own skin and lips, warped to the generated mouth. False shows the
            generated face itself.
        interpolate: 2 doubles the frame rate: N frames become 2N - 1.
        extend: what to do when the audio is longer than the video: ``trim``, ``loop``, ``pingpong``
            or ``freeze``. None takes ``freeze`` for a still picture, otherwise ``trim``.
        encoding: container, video encoder and quality; see :class:`dithead.Encoding`.
        keep_tracks: keep the video's other audio tracks, subtitles, chapters and tags if the output
            has room for them.
        in_flight: maximum number of frames in progress. More cost memory and latency.
        batch: number of frames denoised together, with a fixed reference: higher throughput, but
            higher latency.
        overlap: run the stages in parallel; False runs them one after the other.
        threads: CPU threads of each stage. None takes a quarter of the cores, or all of them
            without overlap. PyTorch's own setting is restored afterwards.
        progress: called with the number of frames done, their total (None if unknown), and the time
            in seconds that they reach: once with 0 frames when the model is loaded, then after each
            frame, from another thread.

    Returns:
        What was done: frames, faces, speed and notes.

    Raises:
        ConfigError: an option is invalid, or two contradict each other.
        MediaError: an input or the output cannot be used.
        CheckpointError, ExportError: the checkpoint or the bundle cannot be used.
        BackendUnavailable: a package or device is missing.
        StreamError: a stage failed. No file is left under the output's name.
    """
    if threads is None:
        threads = default_threads(overlap)
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    device = checked_device(device)
    options = Options(
        steps=steps,
        seed=seed,
        reference=reference,
        face=face,
        speakers=faces if faces is None or isinstance(faces, Speakers) else Speakers.read(faces),
        on_no_face=on_no_face,
        generate_every=generate_every,
        detail=detail,
    )
    video, audio, output = as_input(video), as_input(audio), as_output(out)
    encoding = encoding or Encoding()
    encoding.options(encoding.codec(output.muxer(encoding)), output.streamed)  # fails early
    total = _frames_to_come(video, audio, extend, progress is not None)
    _check_weights(bundle, checkpoint, audio_weights, batch)
    check_face_models(face_models, face_weights, bundle is not None)
    given = bundle is not None
    check_backend(backend or ("onnxruntime" if given else "torch"), given, attention)
    if callable(checkpoint):
        checkpoint = checkpoint()
    if callable(bundle):
        bundle = bundle(os.fspath(checkpoint or "tiny"))
    if backend is None:
        backend = "torch" if bundle is None else "onnxruntime"
    with _threads(backend, threads):
        graphs = open_graphs(
            backend,
            checkpoint=os.fspath(checkpoint or "tiny"),
            bundle=bundle,
            device=device,
            audio_weights=audio_weights,
            threads=threads,
            attention=attention,
            face_models=face_models,
            face_weights=face_weights,
        )
        told = None
        if (tell := progress) is not None:
            tell(0, total, 0.0)

            def told(frames: int, time_s: float) -> None:
                tell(frames, total, time_s)

        return stream_file(
            video,
            audio,
            output,
            graphs,
            options,
            backend=backend,
            interpolate=interpolate,
            extend=extend,
            encoding=encoding,
            keep_tracks=keep_tracks,
            in_flight=in_flight,
            batch=batch,
            overlap=overlap,
            progress=told,
        )


def _check_weights(bundle: object, checkpoint: object, audio_weights: object, batch: int) -> None:
    """Raise ConfigError if a bundle, or what makes one, contradicts other options."""
    if bundle is None:
        return
    if audio_weights is not None or (checkpoint is not None and not callable(bundle)):
        raise ConfigError(
            "a bundle holds its own weights",
            hint="leave the checkpoint and the audio weights out",
        )
    if callable(bundle) and batch > 1:
        raise ConfigError(
            "the bundle that is made for this machine's CPU takes one frame at a time",
            hint=f"export one with --batch {batch} and give it, or leave the batch out",
        )


def _frames_to_come(video: Input, audio: Input, extend: str | None, count: bool) -> int | None:
    """Open the inputs, so that bad ones fail before the model is loaded, and count the frames if
    requested.

    Inputs that can be read only once are left for the run.
    """
    frames = rate = sound_s = None
    if not video.once:
        with VideoSource(video) as source:
            rate, frames = source.info.average_rate, source.info.frame_count
            if source.info.still or extend not in (None, "trim"):
                frames = None
    if not audio.once:
        sound = AudioSource(audio)
        if count and not audio.scheme:  # requires decoding it once
            sound_s = sound.duration_s
    if sound_s is None or rate is None:
        return frames
    return min(round(sound_s * rate), frames or sys.maxsize)


@contextmanager
def _threads(backend: Backend, threads: int) -> Iterator[None]:
    """Limit the threads while the run lasts."""
    before = torch.get_num_threads()
    limit_threads(backend, threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
