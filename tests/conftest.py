"""What every test shares: seeds, a fixed thread count, footage, and the skipping of GPU tests."""

from __future__ import annotations

import os
import random
import shutil
import threading
import wave
from collections.abc import Callable, Collection, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

# Nothing in the suite may depend on a download: set before any import of a hub client.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The Triton kernels run in its interpreter where there is no GPU. Triton reads this when imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import av
import hypothesis
import numpy as np
import pytest
import torch
from bundles import HAS_RTX, SMALL
from emulated_cuda import EmulatedCuda
from filelock import FileLock
from streams import BLANK, TIMES, warble

from dithead import checkpoint, footage
from dithead.audio import AudioConfig, AudioEncoder, load_audio_encoder
from dithead.config import DiffusionConfig, DiTConfig, DitHeadConfig, FaceConfig, VQGANConfig
from dithead.errors import DitheadError
from dithead.export import cli
from dithead.export.bundle import ExportOptions, export_bundle
from dithead.face.networks import FaceNetworks
from dithead.model import DitHead
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs

SEED = 20231206
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = int(
    os.environ.get("DITHEAD_TEST_THREADS", max(1, min(2, (os.cpu_count() or 1) // WORKERS)))
)
if WORKERS > 1:  # what the tests start keeps to the same part of the cores
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
FOOTAGE_DIR = Path(__file__).resolve().parents[2] / "shared" / "data"

hypothesis.settings.register_profile("dithead", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("dithead")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked gpu where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random state and the same thread count (bits depend on both)."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes what costs much once for all workers of a run: (name, what fills a folder) -> folder.

    Whoever asks while it is being made waits for it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the run's, in which each worker has a folder

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def carphone_clip() -> Path:
    """Path of the carphone clip (120 frames, 176x144, 29.97 fps)."""
    try:
        return footage.carphone()
    except DitheadError as error:
        pytest.skip(str(error))


@pytest.fixture
def astronaut() -> np.ndarray:
    """A portrait, (512, 512, 3) uint8 RGB; NASA, public domain."""
    data = pytest.importorskip("skimage.data", reason="the portrait comes with scikit-image")
    return np.array(data.astronaut())


@pytest.fixture(scope="session")
def shared_footage() -> Path:
    """The folder of training footage, which is no part of the project: clips/ and grid_s1/."""
    folder = Path(os.environ.get("DITHEAD_FOOTAGE", FOOTAGE_DIR))
    if not folder.is_dir():
        pytest.skip(f"no footage at {folder}; point DITHEAD_FOOTAGE at a folder that has it")
    return folder


@pytest.fixture(scope="session")
def random_models() -> TorchGraphs:
    """A small model with random weights behind the real face and speech models.

    For tests of timing, geometry and exactness, which hold for any weights.
    """
    torch.manual_seed(SEED)
    config = DitHeadConfig(
        face=FaceConfig(crop_px=64),
        vqgan=VQGANConfig((8, 8, 16), (8, 8, 16), blocks=1, attention=False, codebook_size=64),
        dit=DiTConfig(width=32, depth=2, heads=2, conditioning="tokens"),
        diffusion=DiffusionConfig(prediction="velocity", schedule="cosine", steps=2),
        audio=AudioConfig(layers=(3,)),
    )
    model = DitHead(config)
    with torch.no_grad():
        for parameter in model.dit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        # Of about the colour of skin: anything else the detail layer takes for something in front.
        last = model.face_vqgan.decoder.layers[-1]
        last.weight.mul_(0.1)
        last.bias.copy_(torch.tensor([0.5, 0.2, 0.05]))
    model.eval().requires_grad_(False)
    audio = load_audio_encoder(config.audio)
    return TorchGraphs(model, audio, FaceNetworks.load())


@pytest.fixture(scope="session")
def whisper() -> AudioEncoder:
    """The packaged encoder of speech, as it is configured without further ado."""
    return load_audio_encoder(AudioConfig())


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Nine frames of a portrait that moves; the sixth shows no face."""
    data = pytest.importorskip("skimage.data", reason="the portrait comes with scikit-image")
    portrait = torch.from_numpy(np.array(data.astronaut())).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(portrait, scale_factor=2 / 3, mode="area")[0]
    image = small.round().byte().permute(1, 2, 0).numpy()
    frames = [image[14 + i : 174 + i, 70 + i : 230 + i].copy() for i in range(len(TIMES))]
    frames[BLANK][:] = 90
    return frames


@pytest.fixture(scope="session")
def sound() -> np.ndarray:
    return warble(0.4)


@pytest.fixture(scope="session")
def session(random_models: TorchGraphs) -> Session:
    """The small random model."""
    return Session(random_models)


@pytest.fixture(scope="session")
def specification(
    random_models: TorchGraphs, pictures: list[np.ndarray], sound: np.ndarray
) -> Callable[[Options], list[np.ndarray]]:
    """What dithead.pipeline makes of the frames and the sound, by options."""
    made: dict[Options, list[np.ndarray]] = {}

    def expected(options: Options) -> list[np.ndarray]:
        if options not in made:
            torch.set_num_threads(1)
            frames = [
                (torch.from_numpy(image), float(at))
                for image, at in zip(pictures, TIMES, strict=True)
            ]
            images = revoice(frames, torch.from_numpy(sound), random_models, options)
            made[options] = [image.numpy() for image in images]
        return made[options]

    return expected


@pytest.fixture
def emulated_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCuda]:
    """A CUDA device in the process, for this thread and those of streams."""
    torch.set_num_threads(1)
    # A GPU knows no oneDNN: what it is compared with, bit for bit, should take none either.
    monkeypatch.setattr("dithead.linear._ONEDNN", False)
    device = EmulatedCuda()
    with device.replacing_cuda(monkeypatch), torch.inference_mode():
        yield device


@pytest.fixture
def portrait_clip(tmp_path: Path, astronaut: np.ndarray) -> Callable[..., Path]:
    """Writes clips of the portrait moving a little: (name, times_s, blank frames, size) -> path."""

    def write(
        name: str,
        times_s: Sequence[Fraction],
        blank: Collection[int] = (),
        size: tuple[int, int] = (160, 160),
    ) -> Path:
        path = tmp_path / name
        base = Fraction(1, 90000)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(25), options={"bf": "0"})
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = base
            for i, time_s in enumerate(times_s):
                shift = 2 * (i % 8)
                picture = astronaut[20 + shift : 260 + shift, 104 + shift : 344 + shift]
                if i in blank:
                    picture = np.full_like(picture, 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
                frame = frame.reformat(*size, format="yuv420p")
                frame.pts, frame.time_base = round(time_s / base), base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture
def tone_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a WAV file of so many seconds of a warbling tone."""

    def write(seconds: float, name: str = "audio.wav", rate_hz: int = 22050) -> Path:
        time_s = np.arange(round(seconds * rate_hz)) / rate_hz
        samples = 0.3 * np.sin(2 * np.pi * (220 + 90 * np.sin(7 * time_s)) * time_s)
        path = tmp_path / name
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate_hz)
            file.writeframes((samples * 32767).astype("<i2").tobytes())
        return path

    return write


@pytest.fixture
def talking_clip(
    portrait_clip: Callable[..., Path], tone_file: Callable[..., Path]
) -> Callable[..., Path]:
    """Writes half a second of the portrait with a tone: (path, blank frames) -> path."""

    def write(path: Path, blank: Collection[int] = ()) -> Path:
        silent = portrait_clip("source.mp4", [Fraction(i, 25) for i in range(12)], blank)
        with (
            VideoSource(silent) as source,
            VideoSink(path, source.info, audio=AudioSource(tone_file(0.5))) as sink,
        ):
            for frame in source:
                sink.write(frame)
        return path

    return write


@pytest.fixture(scope="session")
def checkpoint_file(random_models: TorchGraphs, made_once: Callable[..., Path]) -> Path:
    """The small random model as a file."""
    model = random_models.dithead

    def write(folder: Path) -> None:
        checkpoint.save(folder / "small.safetensors", model.state_dict(), model.config.to_dict())

    return made_once("checkpoint", write) / "small.safetensors"


@pytest.fixture(scope="session")
def small_bundle(checkpoint_file: Path, made_once: Callable[..., Path]) -> Path:
    """A bundle of three graphs of the small random model."""
    flavour = "tensorrt-rtx" if HAS_RTX else None
    options = ExportOptions(graphs=SMALL, flavour=flavour)
    return (
        made_once("small", lambda f: export_bundle(str(checkpoint_file), f / "bundle", options))
        / "bundle"
    )


@pytest.fixture
def bundle_copy(small_bundle: Path, tmp_path: Path) -> Path:
    """That bundle, to be damaged."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def shipped_bundle(made_once: Callable[..., Path]) -> Path:
    """The shipped checkpoint as a whole bundle; DITHEAD_BUNDLE names one made before."""
    if made := os.environ.get("DITHEAD_BUNDLE"):
        return Path(made)

    def export(folder: Path) -> None:
        arguments = ["--fp16", "--largest-rectangle", "256", "-o", str(folder / "bundle")]
        assert cli.main([*arguments, "--quiet"]) == 0

    return made_once("shipped", export) / "bundle"


@pytest.fixture
def pipe_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file's bytes into a pipe as they are asked for; the pipe's path.

    Where ``held`` is given, the pipe is kept open until it is set. After 20 s it is set here.
    """

    def make(content: bytes, held: threading.Event | None = None) -> Path:
        path = tmp_path / f"pipe{len(list(tmp_path.iterdir()))}"
        os.mkfifo(path)

        def feed() -> None:
            try:
                with open(path, "wb", buffering=0) as pipe:
                    for start in range(0, len(content), 5000):
                        pipe.write(content[start : start + 5000])
                    if held is not None and not held.wait(20):
                        held.set()
            except BrokenPipeError:
                pass

        threading.Thread(target=feed, daemon=True).start()
        return path

    return make


@pytest.fixture
def unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves out is seen. Random numbers are the same in every test."""
    torch.manual_seed(0)
    for name in ("empty", "empty_like", "empty_strided"):
        make = getattr(torch, name)

        def filled(
            *args: Any, make: Callable[..., torch.Tensor] = make, **kwargs: Any
        ) -> torch.Tensor:
            made = make(*args, **kwargs)
            if made.device.type == "meta" or type(made) is not torch.Tensor:
                return made
            return made.fill_(float("nan") if made.is_floating_point() else 171)

        monkeypatch.setattr(torch, name, filled)
