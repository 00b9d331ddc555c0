"""wav2vec2's CTC logits, the paper's audio features, and where its weights come from: a folder, a
file, or the hub. They do not ship with the package."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from dithead.audio.config import WAV2VEC2_LOGITS, AudioConfig
from dithead.audio.encoder import AudioEncoder
from dithead.errors import BackendUnavailable, CheckpointError
from dithead.jsontext import parse_json

if TYPE_CHECKING:
    from transformers import Wav2Vec2ForCTC

WAV2VEC2_SOURCE = "jonatasgrosman/wav2vec2-large-xlsr-53-english"
HUB = "hub"
"""Asks for :data:`WAV2VEC2_SOURCE` from the hub, as that name itself does."""
SIZES: dict[str, object] = {
    "vocab_size": WAV2VEC2_LOGITS,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
"""What config.json of wav2vec2-large-xlsr-53-english says."""
ADVICE = (
    f"fetch it with `hf download {WAV2VEC2_SOURCE} --local-dir FOLDER` and give FOLDER as the "
    f"audio encoder's weights, or give {HUB!r} to have it fetched"
)
_CONFIG, _WEIGHTS, _VOCABULARY = "config.json", "model.safetensors", "vocab.json"


class Wav2Vec2Encoder(AudioEncoder):
    """wav2vec2's CTC logits, the paper's audio features (Baevski et al., 2020).

    The encoder's receptive field is 25 ms at a step of 20, so 2.5 ms of zeros on either side give
    every 20 ms of the chunk one feature, centred on it.

    A whole file gives other logits than its chunks: every position attends to all others, and each
    chunk is normalised by itself. docs/paper.md says how far they differ. What is equal to the bit
    is a clip on the grid of chunks and the same clip as a stream.

    Args:
        config: its ``encoder`` must be "wav2vec2-xlsr-english".
        body: from :func:`load_wav2vec2` or :func:`random_wav2vec2`.
        fold_weight_norm: compute the positional convolution's weight once, which export needs.
    """

    def __init__(
        self, config: AudioConfig, body: Wav2Vec2ForCTC, fold_weight_norm: bool = True
    ) -> None:
        super().__init__(config)
        self.body = body
        convolution = self.body.wav2vec2.encoder.pos_conv_embed.conv
        if fold_weight_norm and nn.utils.parametrize.is_parametrized(convolution, "weight"):
            nn.utils.parametrize.remove_parametrizations(convolution, "weight")
        self.requires_grad_(False)
        self.eval()

    def encode(self, samples: Tensor) -> Tensor:
        mean = samples.mean(dim=-1, keepdim=True)
        variance = samples.var(dim=-1, keepdim=True, correction=0)
        samples = (samples - mean) / (variance + 1e-7).sqrt()  # as its feature extractor does
        samples = F.pad(samples, (40, 40))  # (B, chunk_samples + 80)
        dtype = self.body.lm_head.weight.dtype
        logits: Tensor = self.body(samples.to(dtype)).logits  # (B, chunk_features, 33)
        return logits[:, self.hop].float()


def require_transformers() -> Any:
    """The package with wav2vec2's layers; nothing else needs it.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise BackendUnavailable(
            "the speech encoder wav2vec2 needs the package transformers",
            hint="pip install 'dithead[wav2vec2]'",
        ) from error
    return transformers


def random_wav2vec2() -> Wav2Vec2ForCTC:
    """A CTC model in the shape of wav2vec2-large-xlsr-53-english with random weights: to measure
    sizes and speed."""
    transformers = require_transformers()
    model: Wav2Vec2ForCTC = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**SIZES))
    return model


def load_wav2vec2(weights: str | Path) -> Wav2Vec2ForCTC:
    """Load the paper's CTC model.

    Args:
        weights: a Hugging Face folder with config.json, model.safetensors and perhaps vocab.json;
            a .safetensors file alone, of which only the sizes can be checked; or
            :data:`WAV2VEC2_SOURCE` or :data:`HUB`, to fetch that folder into the hub's cache.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or another model.
        BackendUnavailable: transformers is not installed.
    """
    path = find_wav2vec2(weights)
    if path.is_file():
        return _load_file(path)
    for name in (_CONFIG, _WEIGHTS):
        if not (path / name).is_file():
            raise CheckpointError(f"wav2vec2: no {name} in {path}; {ADVICE}")
    _check_sizes(path / _CONFIG)
    if (path / _VOCABULARY).is_file():
        _check_letters(path / _VOCABULARY)
    return _load(path, path)


def find_wav2vec2(weights: str | Path) -> Path:
    """Where given weights are: the path itself, or the folder in the hub's cache, fetched if it is
    not there yet. Raises CheckpointError: nothing is there."""
    path = Path(weights)
    if not path.exists() and path.as_posix() in (HUB, WAV2VEC2_SOURCE):
        path = _fetched()
    if not path.exists():
        raise CheckpointError(f"wav2vec2: there is no folder or file {path}; {ADVICE}")
    return path


def _fetched() -> Path:
    """The folder of the model in the hub's cache, downloaded if it is not there yet."""
    require_transformers()
    from huggingface_hub import constants, snapshot_download

    wanted = [_CONFIG, _WEIGHTS, _VOCABULARY]
    try:
        return Path(snapshot_download(WAV2VEC2_SOURCE, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"wav2vec2: no {_WEIGHTS} of {WAV2VEC2_SOURCE} in the cache {constants.HF_HUB_CACHE}, "
            f"and it cannot be fetched ({str(error).splitlines()[0]}); where there is a network, "
            f"{ADVICE}"
        ) from error


def _load_file(path: Path) -> Wav2Vec2ForCTC:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = require_transformers().Wav2Vec2Config(**SIZES)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"wav2vec2: {path} is not a readable safetensors file ({error}); {ADVICE}"
        ) from error
    return _load(None, path, config=config, state_dict=tensors)


def _load(where: Path | None, source: Path, **given: Any) -> Wav2Vec2ForCTC:
    """The model from a folder, or from what is given, and nothing but the whole of it."""
    from safetensors import SafetensorError

    given = given or {"local_files_only": True, "use_safetensors": True}
    # Tensors of other shapes are then in the report, with both shapes, and are refused below.
    given |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            loaded: Any = require_transformers().Wav2Vec2ForCTC.from_pretrained(where, **given)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"wav2vec2: cannot load {source} ({text}); {ADVICE}") from error
    model: Wav2Vec2ForCTC
    model, report = loaded
    layers = "wav2vec2.encoder.layers."
    further = sorted(name for name in report["unexpected_keys"] if name.startswith(layers))
    if further:
        raise CheckpointError(
            f"wav2vec2: {source} has more than {SIZES['num_hidden_layers']} layers ({further[0]}): "
            f"this is another wav2vec2 than {WAV2VEC2_SOURCE}; {ADVICE}"
        )
    # The embedding of masked stretches is only used in training; some releases leave it out.
    missing = sorted(set(report["missing_keys"]) - {"wav2vec2.masked_spec_embed"})
    wrong = [f"has no {missing[:3]}"] if missing else []
    if missing and report["unexpected_keys"]:
        wrong.append(f"has {sorted(report['unexpected_keys'])[:3]}")
    wrong += [
        f"{name}: expected {tuple(expected)}, found {tuple(found)}"
        for name, found, expected in sorted(report["mismatched_keys"])[:3]
    ]
    if wrong:
        raise CheckpointError(
            f"wav2vec2: {source} holds another model than {WAV2VEC2_SOURCE} ({'; '.join(wrong)}); "
            f"{ADVICE}"
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting on stderr what it loads: we say what is wrong ourselves, in
    one line."""
    notes = require_transformers().utils.logging
    level, bar = notes.get_verbosity(), notes.is_progress_bar_enabled()
    notes.set_verbosity(notes.CRITICAL)
    notes.disable_progress_bar()
    try:
        yield
    finally:
        notes.set_verbosity(level)
        if bar:
            notes.enable_progress_bar()


def _check_sizes(path: Path) -> None:
    """Raise CheckpointError if a config.json is that of another model."""
    values = _read(path)
    found = require_transformers().Wav2Vec2Config.from_dict(values)
    for name, wanted in {"model_type": "wav2vec2", **SIZES}.items():
        # What the file leaves out is transformers' default, the model's kind apart.
        value = values.get(name) if name == "model_type" else getattr(found, name)
        if value != wanted:
            raise CheckpointError(
                f"wav2vec2: expected {name} {wanted}, found {value} in {path}: this is another "
                f"model than {WAV2VEC2_SOURCE}; {ADVICE}"
            )


def _check_letters(path: Path) -> None:
    """Raise CheckpointError if a vocab.json does not number 33 outputs with the English letters:
    another language's model may have as many."""
    found = _read(path)
    numbers = sorted(number for number in found.values() if isinstance(number, int))
    letters = {name.lower() for name in found if len(name) == 1 and name.isalpha()}
    if numbers == list(range(WAV2VEC2_LOGITS)) and letters == set(string.ascii_lowercase):
        return
    other = sorted(letters ^ set(string.ascii_lowercase))
    raise CheckpointError(
        f"wav2vec2: expected {WAV2VEC2_LOGITS} outputs with the letters a to z, found {len(found)} "
        f"in {path}"
        + (f", which differ in {' '.join(other[:5])}" if other else "")
        + f": this is another language's model; {ADVICE}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"wav2vec2: cannot read {path} ({error}); {ADVICE}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"wav2vec2: expected an object in {path}; {ADVICE}")
    return found
