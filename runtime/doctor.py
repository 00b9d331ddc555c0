"""``dithead-doctor``: what this machine can run, what is missing, and the command that installs
it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dithead.errors import BackendUnavailable, DitheadError

if TYPE_CHECKING:
    import torch

    from dithead.bundle.manifest import Manifest

State = Literal["ok", "missing", "unusable"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    group: str
    name: str
    state: State
    detail: str
    remedy: str = ""
    """The one command, or the one action, that helps if it is not ok."""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _extra(group: str, module: str, package: str, extra: str | None, purpose: str) -> Finding:
    """A package that is only imported where it is used: from an extra, or to be installed alone."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        state: State = "missing" if isinstance(error, ModuleNotFoundError) else "unusable"
        detail = f"{purpose}; not installed" if state == "missing" else f"{purpose}; {error}"
        wanted = package if extra is None else f"'dithead[{extra}]'"
        return Finding(group, package, state, detail, f"pip install {wanted}")
    return Finding(group, package, "ok", f"{purpose}; {_version(package)}")


def look_at_torch() -> list[Finding]:
    """PyTorch and the GPUs that it sees."""
    import torch

    threads = f"{torch.get_num_threads()} threads"
    found = [Finding("PyTorch", "torch", "ok", f"{torch.__version__}, {threads} on the CPU")]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        detail = f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {memory}"
        found.append(Finding("PyTorch", f"cuda:{index}", "ok", detail))
    if len(found) == 1:
        detail = "this build has CUDA, but sees no GPU"
        remedy = "install NVIDIA's driver (nvidia-smi must list the GPU)"
        if torch.version.cuda is None:
            detail = "this build has no CUDA"
            remedy = "pip install --force-reinstall torch (a build for CUDA, not for the CPU)"
        found.append(Finding("PyTorch", "CUDA", "missing", detail, remedy))
    return [
        *found,
        _look_at_kernels(),
        _look_at_flash(),
        _extra("PyTorch", "xformers.ops", "xformers", "xformers", "--attention xformers"),
        _extra("PyTorch", "transformers", "transformers", "wav2vec2", "the encoder wav2vec2"),
        _extra("PyTorch", "cuda.bindings", "cuda-bindings", None, "the streams of --device cuda"),
    ]


def _look_at_kernels() -> Finding:
    """The Triton kernels, and on which GPUs they run."""
    import torch

    from dithead.kernels.choice import IMPLEMENTATIONS, VARIABLE, interpreted, missing

    purpose = "the kernels of --backend torch on a GPU"
    found = _extra("PyTorch", "triton", "triton", "triton", purpose)
    meant = os.environ.get(VARIABLE)
    if meant and meant not in IMPLEMENTATIONS:
        remedy = f"set {VARIABLE} to one of {', '.join(IMPLEMENTATIONS)}"
        return Finding("PyTorch", "triton", "unusable", f"{VARIABLE}={meant}", remedy)
    if found.state != "ok":
        return found
    told = [found.detail] + ([f"{VARIABLE}={meant}"] if meant else [])
    if interpreted():
        told.append("in Triton's interpreter, very slow (TRITON_INTERPRET=1)")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reasons = {d: missing(d) for d in (torch.device("cuda", index) for index in range(count))}
    for device, reason in reasons.items():
        told.append(f"{device}: {reason or _use_of_kernels(device)}")
    state: State = "ok" if None in reasons.values() or not reasons else "unusable"
    remedy = "" if state == "ok" else "nothing to do: PyTorch's own kernels run instead"
    return Finding("PyTorch", "triton", state, "; ".join(told), remedy)


def _look_at_flash() -> Finding:
    """The versions of FlashAttention, and which of them each GPU takes."""
    import torch

    from dithead.kernels.attention import flash

    there = flash.installed()
    if not there:
        return _extra("PyTorch", "flash_attn", "flash-attn", "flash", "--attention flash")
    told = ["--attention flash", *(f"FlashAttention {v.number} ({v.module})" for v in there)]
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    state: State = "ok"
    for device in (torch.device("cuda", index) for index in devices):
        try:
            version, _ = flash.flash_attention(flash.capability(device))
            told.append(f"{device} takes {version.number}")
        except BackendUnavailable:
            told.append(f"none suits {device}")
            state = "unusable"
    remedy = "" if state == "ok" else "pip install 'dithead[flash]'"
    return Finding("PyTorch", "flash-attn", state, "; ".join(told), remedy)


def _use_of_kernels(device: torch.device) -> str:
    from dithead.kernels.settings import known

    count = known(device)
    if count == 0:
        return "used, not tuned for this GPU (dithead bench kernels --tune)"
    return f"used, tuned for {count} sizes"


def look_at_engines() -> list[Finding]:
    """ONNX, ONNX Runtime with its providers, and the flavours of TensorRT."""
    from dithead.bundle.libraries import MODULES, load_flavour, load_onnxruntime

    group = "Export and engines"
    found = [
        _extra(group, "onnx", "onnx", "export", "writes ONNX files"),
        _extra(group, "onnxscript", "onnxscript", "export", "writes ONNX files"),
    ]
    for name in ("onnxruntime", *MODULES):
        detail = "runs bundles" if name == "onnxruntime" else "builds engines"
        try:
            library = load_onnxruntime() if name == "onnxruntime" else load_flavour(name)
        except BackendUnavailable as error:
            state: State = "unusable" if "is damaged" in error.message else "missing"
            detail = f"{detail}; {error.message}"
            found.append(Finding(group, name, state, detail, error.hint or ""))
            continue
        detail = f"{detail}; {library.__version__}"
        if name == "onnxruntime":
            providers = library.get_available_providers()
            kinds = (provider.removesuffix("ExecutionProvider") for provider in providers)
            detail = f"{detail}; providers: {', '.join(kinds)}"
        found.append(Finding(group, name, "ok", detail))
    return found


def look_at_media() -> list[Finding]:
    """Codecs in PyAV's FFmpeg."""
    import av

    group = "FFmpeg"
    found = [Finding(group, "av", "ok", f"PyAV {av.__version__}")]
    codecs: tuple[tuple[str, Literal["r", "w"], str], ...] = (
        ("h264", "r", "reads H.264"),
        ("libx264", "w", "writes H.264"),
        ("aac", "w", "writes AAC"),
        ("h264_cuvid", "r", "FFmpeg can read H.264 on an NVIDIA GPU (NVDEC)"),
        ("h264_nvenc", "w", "FFmpeg can write H.264 on an NVIDIA GPU (NVENC)"),
    )
    for name, mode, purpose in codecs:
        try:
            av.Codec(name, mode)
        except ValueError:
            remedy = (
                "build PyAV against an FFmpeg that has it: pip install --no-binary av av"
                if "GPU" in purpose
                else "pip install --force-reinstall av"
            )
            found.append(Finding(group, name, "missing", purpose, remedy))
        else:
            found.append(Finding(group, name, "ok", purpose))
    return found


def look_at_face_models() -> list[Finding]:
    """The networks that find faces: the packaged ones, and the weights of S3FD and FAN."""
    from dithead.face.fanweights import FILES, fan_folder, load_fan

    group = "Face models"
    found = [
        Finding(group, "mediapipe", "ok", "come with the package"),
        _extra(group, "face_alignment", "face-alignment", "fan", "fetches the weights of fan"),
    ]
    try:
        folder = fan_folder()
        remedy = f"dithead train convert fan -o {folder}"
        if not any((folder / file).is_file() for file in FILES.values()):
            detail = f"S3FD and FAN, for --face-models fan; no weights in {folder}"
            return [*found, Finding(group, "fan", "missing", detail, remedy)]
        load_fan(folder)
    except DitheadError as error:
        return [*found, Finding(group, "fan", "unusable", error.message, error.hint or "")]
    return [*found, Finding(group, "fan", "ok", f"S3FD and FAN, in {folder}")]


def look_at_checkpoints(extra: Sequence[Path] = ()) -> list[Finding]:
    """Packaged checkpoints and those that were asked about."""
    from dithead import checkpoint
    from dithead.config import DitHeadConfig

    found = []
    packaged = sorted(checkpoint.ASSETS.glob("*.safetensors"))
    for path in [*packaged, *extra]:
        try:
            tensors, values = checkpoint.load(path)
            if "dit" not in values and path in packaged:
                continue  # a face, speech or interpolation model
            preset = DitHeadConfig.from_dict(values).preset
        except DitheadError as error:
            remedy = "give a checkpoint of this version, or train or fetch it again"
            found.append(Finding("Checkpoints", str(path), "unusable", str(error), remedy))
            continue
        size = sum(tensor.numel() for tensor in tensors.values()) / 1e6
        name = path.stem if path in packaged else str(path)
        detail = f"preset {preset}, {size:.1f} M parameters"
        found.append(Finding("Checkpoints", name, "ok", detail))
    return found


def _engine_options(manifest: Manifest) -> str:
    """The command that makes a bundle's engines again, and the speech encoder that no package
    contains."""
    from dithead.audio.config import WHISPER

    engines = [engine for entry in manifest.graphs for engine in entry.engines]
    options = []
    if engines:
        options = ["--engines", engines[0].flavour]
        options += ["--batch", ",".join(map(str, sorted({engine.batch for engine in engines})))]
    narrowed = {e.compute_capability for e in engines if e.flavour == "tensorrt-rtx"} - {"portable"}
    if narrowed:
        options += ["--compute-capability", narrowed.pop()]
    audio = manifest.config.get("audio")
    if isinstance(audio, dict) and audio.get("encoder", WHISPER) != WHISPER:
        options += ["--audio-weights", "WEIGHTS"]
    if manifest.face_models != "mediapipe":
        options += ["--face-models", manifest.face_models]
    return " ".join(options) + " " if options else ""


def look_at_bundle(folder: Path) -> list[Finding]:
    """Whether a bundle is complete and fits what is installed."""
    from dithead.bundle import manifest as mf
    from dithead.bundle.graphspecs import graph_specs
    from dithead.bundle.libraries import load_flavour

    group, remedy = "Bundles", f"dithead-export -o {folder}"
    try:
        manifest = mf.read_manifest(folder)
        random = not manifest.checkpoint_sha256
        source = "--preset" if random else "--checkpoint"
        name = str(manifest.config.get("preset", "PRESET")) if random else manifest.checkpoint
        remedy = (
            f"dithead-export {source} {shlex.quote(name)} --precision {manifest.precision} "
            f"--targets {','.join(manifest.targets)} --largest-rectangle "
            f"{manifest.largest_rectangle} {_engine_options(manifest)}"
            f"-o {shlex.quote(str(folder))}"
        )
        config = manifest.model_config()
        for file in manifest.files():
            mf.check_file(folder, file)
        wanted = graph_specs(manifest.largest_rectangle, config.shape_head)
    except DitheadError as error:
        return [Finding(group, str(folder), "unusable", str(error), remedy)]
    have = {entry.name for entry in manifest.graphs}
    lacking = [spec.name for spec in wanted if spec.name not in have]
    if lacking:
        detail = f"a part of a bundle: {len(lacking)} graphs are not in it, such as '{lacking[0]}'"
        return [Finding(group, str(folder), "unusable", detail, remedy)]
    targets = " and ".join(manifest.targets)
    detail = f"{manifest.checkpoint} for {targets}, {manifest.precision}; every file is whole"
    found = [Finding(group, str(folder), "ok", detail)]
    engines = [engine for entry in manifest.graphs for engine in entry.engines]
    for flavour, built in sorted({(e.flavour, e.version) for e in engines}):
        executed = sum(e.executed for e in engines if e.flavour == flavour)
        detail = f"{flavour} {built}, {executed} of {len(engines)} run on a GPU"
        wrong, advice = "", ""
        try:
            here = str(load_flavour(flavour).__version__)
            if here != built:
                wrong, advice = f"{here} is installed", remedy
        except BackendUnavailable as error:
            wrong, advice = error.message, error.hint or ""
        state: State = "unusable" if wrong else "ok"
        detail = f"{detail}; {wrong}" if wrong else detail
        found.append(Finding(group, f"{folder}: engines", state, detail, advice))
    return found


def examine(bundles: Sequence[Path] = (), checkpoints: Sequence[Path] = ()) -> list[Finding]:
    """Check everything."""
    looks: list[Callable[[], list[Finding]]] = [
        look_at_torch,
        look_at_engines,
        look_at_media,
        look_at_face_models,
        lambda: look_at_checkpoints(checkpoints),
    ]
    found = [finding for look in looks for finding in look()]
    for folder in bundles:
        found += look_at_bundle(folder)
    return found


def _as_text(findings: Sequence[Finding]) -> str:
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    lines = [f"{system}, {os.cpu_count()} CPU cores"]
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        mark = {"ok": "ok      ", "missing": "missing ", "unusable": "unusable"}[finding.state]
        lines.append(f"  {mark}  {finding.name}: {finding.detail}")
        if finding.remedy:
            lines.append(f"            -> {finding.remedy}")
    return "\n".join(lines)


def main(argv: list[str] | None = None, prog: str = "dithead-doctor") -> int:
    """Entry point of ``dithead-doctor``.

    Returns:
        0, or 1 if a bundle or checkpoint that was asked about cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Say what this machine can run, what is missing, and what gets it.",
    )
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="a bundle to examine, too"
    )
    parser.add_argument(
        "--checkpoint", type=Path, action="append", default=[], help="a checkpoint, too"
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    args = parser.parse_args(argv)
    bundles = list(args.bundle)
    if not bundles and (Path("bundle") / "manifest.json").is_file():
        bundles.append(Path("bundle"))
    findings = examine(bundles, args.checkpoint)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(_as_text(findings))
    asked = [f for f in findings if f.group in ("Bundles", "Checkpoints")]
    return 1 if any(f.state == "unusable" for f in asked) else 0
