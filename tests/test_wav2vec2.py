"""wav2vec2: where its weights come from, what is refused, and what it makes of a chunk.

The architecture is that of transformers with random weights: small, and once in its real size."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import spec_of
from speech import voiced
from speechweights import LETTERS, REAL_SIZES, TINY, save_tiny_wav2vec2, write_letters
from torch import Tensor

from dithead.audio import (
    AUDIO_PRESETS,
    AudioConfig,
    AudioEncoder,
    AudioFeatureStream,
    Wav2Vec2Encoder,
    encode_audio,
    find_audio_weights,
    load_audio_encoder,
    load_wav2vec2,
    normalise_loudness,
    random_wav2vec2,
)
from dithead.audio import wav2vec2 as ours
from dithead.audio.config import WAV2VEC2_LOGITS
from dithead.config import PRESETS, preset
from dithead.errors import BackendUnavailable, CheckpointError
from dithead.export.onnx import export_onnx
from dithead.train import cli

CONFIG = AUDIO_PRESETS["wav2vec2-xlsr-english"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The real architecture with small sizes, in the place of the real ones."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(ours, "SIZES", TINY)


def test_wav2vec2_equals_its_own_pipeline(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    save_tiny_wav2vec2(tmp_path)
    chunk = voiced(2.0)[None]
    found = load_audio_encoder(CONFIG, tmp_path)(chunk)
    assert found.shape == (1, 16, 33)
    values = Wav2Vec2FeatureExtractor(do_normalize=True)(
        chunk[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_values
    reference = Wav2Vec2ForCTC.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = reference(torch.nn.functional.pad(values, (40, 40))).logits
    assert expected.shape == (1, 100, 33)
    torch.testing.assert_close(found, expected[:, 74:90], rtol=1e-4, atol=1e-4)


def test_wav2vec2_weight_norm_folds_without_change(tmp_path: Path) -> None:
    save_tiny_wav2vec2(tmp_path)
    folded, kept = (
        Wav2Vec2Encoder(CONFIG, load_wav2vec2(tmp_path), fold_weight_norm=f) for f in (True, False)
    )
    assert not any("parametrizations" in name for name in folded.state_dict())
    assert any("parametrizations" in name for name in kept.state_dict())
    chunk = voiced(2.0)[None]
    torch.testing.assert_close(folded(chunk), kept(chunk), rtol=1e-5, atol=1e-5)


def test_wav2vec2_missing_weights_say_where_to_get_them(tmp_path: Path) -> None:
    save_tiny_wav2vec2(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for weights in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="jonatasgrosman/wav2vec2-large-xlsr-53-english"):
            load_audio_encoder(CONFIG, weights)


def test_wav2vec2_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for make in (
        lambda: load_audio_encoder(CONFIG, tmp_path),
        lambda: load_audio_encoder(CONFIG),
        random_wav2vec2,
    ):
        with pytest.raises(BackendUnavailable, match=r"pip install 'dithead\[wav2vec2\]'"):
            make()
    load_audio_encoder(AudioConfig())  # the packaged one needs nothing


def test_wav2vec2_damaged_or_other_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny_wav2vec2(tmp_path, vocab_size=20)
    with pytest.raises(CheckpointError, match="expected vocab_size 33, found 20"):
        load_audio_encoder(CONFIG, tmp_path)
    save_tiny_wav2vec2(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["lm_head.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_audio_encoder(CONFIG, tmp_path)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot load"):
        load_audio_encoder(CONFIG, tmp_path)


def test_wrong_contents_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the right format and with the right settings, but of another model: transformers, too,
    has a report of that, on stderr."""
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging as notes

    weights = save_tiny_wav2vec2(tmp_path / "w") / "model.safetensors"
    tensors = load_file(weights)
    other = {f"other.{name}": tensor for name, tensor in tensors.items()}
    narrow = {**tensors, "lm_head.weight": torch.zeros(33, 31)}
    video, out = tmp_path / "v" / "v.mp4", tmp_path / "out"
    video.parent.mkdir()
    video.touch()
    monkeypatch.setitem(PRESETS, "test", replace(preset("tiny"), audio=CONFIG))
    command = ["prepare", "--shards", "--preset=test", f"--videos={video.parent}", f"--out={out}"]
    notes.reset_format()  # makes its handler, which otherwise may have kept an earlier stderr
    before = notes.get_verbosity(), notes.is_progress_bar_enabled()
    handler = logging.StreamHandler(sys.stderr)
    notes.add_handler(handler)
    try:
        for wrong, what in (
            (other, r"has no \['lm_head.bias'.*; has \['other.lm_head.bias'"),
            (narrow, r"lm_head\.weight: expected \(33, 32\), found \(33, 31\)"),
        ):
            save_file(wrong, weights, metadata={"format": "pt"})
            capfd.readouterr()  # what saving it said
            for given in (weights, weights.parent):
                assert cli.main([*command, f"--audio-weights={given}"]) == 1
                (line,) = capfd.readouterr().err.splitlines()
                assert re.search(f"wav2vec2: {given} holds another model .*{what}", line), line
                assert f"hf download {ours.WAV2VEC2_SOURCE} --local-dir FOLDER" in line
    finally:
        notes.remove_handler(handler)
    assert (notes.get_verbosity(), notes.is_progress_bar_enabled()) == before
    assert not out.exists()


def test_shards_without_their_encoder_are_refused_before_they_begin(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "v.mp4").touch()
    out = tmp_path / "out"
    command = ["prepare", "--shards", "--preset=paper", f"--videos={tmp_path / 'v'}"]
    for given, what in (
        ([], "wav2vec2 does not ship with DiT-Head"),
        (["--audio-weights=hub"], rf"{ours.WAV2VEC2_SOURCE} in the cache {tmp_path / 'cache'}"),
        ([f"--audio-weights={tmp_path / 'no'}"], rf"no folder or file {tmp_path / 'no'}"),
    ):
        assert cli.main([*command, f"--out={out}", *given]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert re.search(what, line), line
        assert f"hf download {ours.WAV2VEC2_SOURCE} --local-dir FOLDER" in line
    assert not out.exists()


def test_shards_hear_through_the_hubs_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their contents are in the plan, by which a run with others is refused."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PRESETS, "test", replace(preset("tiny"), audio=CONFIG))
    model = tmp_path / "cache" / ("models--" + ours.WAV2VEC2_SOURCE.replace("/", "--"))
    commit = "1" * 40
    save_tiny_wav2vec2(model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    (tmp_path / "list").write_text("gone.mp4\n")
    command = ["prepare", "--shards", "--preset=test", f"--list={tmp_path / 'list'}", "--workers=1"]
    assert cli.main([*command, f"--out={tmp_path / 'out'}", "--audio-weights=hub"]) == 0
    plan = json.loads((tmp_path / "out" / "work" / "plan").read_text())
    assert plan["settings"]["audio_weights"].startswith(f"{commit}:")


def test_the_sizes_are_those_of_the_papers_model() -> None:
    assert REAL_SIZES["num_hidden_layers"] == 24 and REAL_SIZES["hidden_size"] == 1024
    assert REAL_SIZES["vocab_size"] == WAV2VEC2_LOGITS == len(LETTERS) == 33


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, "expected num_hidden_layers 2, found 3"),
        ({"hidden_size": 64}, "expected hidden_size 32, found 64"),
        ({"vocab_size": 32}, "expected vocab_size 33, found 32"),
        ({"do_stable_layer_norm": False}, "expected do_stable_layer_norm True, found False"),
    ],
)
def test_another_wav2vec2_is_refused_by_its_config(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_tiny_wav2vec2(tmp_path, **change)
    with pytest.raises(CheckpointError, match=message):
        load_wav2vec2(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    save_tiny_wav2vec2(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "hubert"}))
    with pytest.raises(CheckpointError, match="model_type wav2vec2, found hubert"):
        load_wav2vec2(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_wav2vec2(tmp_path)


@pytest.mark.parametrize(
    ("letters", "message"),
    [
        (LETTERS[:-1], "a to z, found 32 in .*, which differ in z"),
        ([*LETTERS[:6], "ü", *LETTERS[7:]], "found 33 in .*, which differ in ü"),
        ([*LETTERS, "<x>"], "found 34 in"),
    ],
)
def test_another_language_is_refused_by_its_letters(
    tmp_path: Path, letters: list[str], message: str
) -> None:
    save_tiny_wav2vec2(tmp_path)
    write_letters(tmp_path, letters)
    with pytest.raises(CheckpointError, match=message):
        load_wav2vec2(tmp_path)


def test_letters_may_be_missing_or_of_either_case(tmp_path: Path) -> None:
    save_tiny_wav2vec2(tmp_path)
    write_letters(tmp_path, [*LETTERS[:7], *(letter.upper() for letter in LETTERS[7:])])
    load_wav2vec2(tmp_path)
    (tmp_path / "vocab.json").unlink()
    load_wav2vec2(tmp_path)


def test_a_file_alone_is_the_same_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny_wav2vec2(tmp_path / "folder")
    alone = (folder / "model.safetensors").rename(tmp_path / "alone.safetensors")
    found = load_audio_encoder(CONFIG, alone)(voiced(2.0)[None])
    alone.rename(folder / "model.safetensors")
    assert torch.equal(found, load_audio_encoder(CONFIG, folder)(voiced(2.0)[None]))
    tensors = load_file(folder / "model.safetensors")
    tensors["wav2vec2.encoder.layers.2.layer_norm.weight"] = torch.ones(32)
    save_file(tensors, alone, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"more than 2 layers .*layers\.2"):
        load_wav2vec2(alone)
    del tensors["wav2vec2.encoder.layers.2.layer_norm.weight"]
    tensors["lm_head.weight"], tensors["lm_head.bias"] = torch.zeros(32, 32), torch.zeros(32)
    save_file(tensors, alone, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.bias: expected \(33,\), found \(32,\)"):
        load_wav2vec2(alone)
    alone.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_wav2vec2(alone)


@pytest.mark.parametrize("name", ["hub", "jonatasgrosman/wav2vec2-large-xlsr-53-english"])
def test_the_hubs_cache_is_read_only_when_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite runs offline (conftest.py), so what is not in the cache cannot be fetched."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    message = rf"no model.safetensors of jonatas.* in the cache {tmp_path}.*`hf download "
    with pytest.raises(CheckpointError, match=message):
        load_wav2vec2(name)
    model = tmp_path / ("models--" + ours.WAV2VEC2_SOURCE.replace("/", "--"))
    commit = "0" * 40
    save_tiny_wav2vec2(model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    assert find_audio_weights(CONFIG, Path(name)) == model / "snapshots" / commit
    found = load_audio_encoder(CONFIG, Path(name))(voiced(2.0)[None])
    expected = load_audio_encoder(CONFIG, model / "snapshots" / commit)(voiced(2.0)[None])
    assert torch.equal(found, expected)
    with pytest.raises(CheckpointError, match="no folder or file other/wav2vec2; fetch it with"):
        load_wav2vec2("other/wav2vec2")


def tiny_encoder(config: AudioConfig = CONFIG) -> AudioEncoder:
    torch.manual_seed(3)
    return Wav2Vec2Encoder(config, random_wav2vec2())


def test_a_stream_equals_the_clip_on_the_same_grid() -> None:
    encoder, sound = tiny_encoder(), voiced(3.0)
    clip, stream = encode_audio(encoder, sound), AudioFeatureStream(encoder)
    for piece in sound.split(1777):
        stream.push(piece)
    stream.finish()
    for time_s in (0.0, 0.44, 1.2345, 2.96):
        assert torch.equal(stream.window(time_s), clip.window(time_s))


def test_convolutions_of_a_chunk_are_those_of_the_whole_but_at_its_edges() -> None:
    """A feature sees 25 ms; the chunk's first and last reach 2.5 ms beyond it."""
    layers = tiny_encoder().body.wav2vec2.feature_extractor  # type: ignore[operator, union-attr]
    sound = torch.nn.functional.pad(voiced(4.0)[None], (40, 40))
    with torch.no_grad():
        whole = layers(sound)  # (1, 16, 200)
        first, count = 320 * 50, 320 * 100
        part = layers(sound[:, first : first + count + 80])  # with the sound's own edges
        padded = torch.nn.functional.pad(sound[:, first + 40 : first + count + 40], (40, 40))
        chunk = layers(padded)
    assert whole.shape[2] == 200 and part.shape[2] == chunk.shape[2] == 100
    torch.testing.assert_close(part, whole[:, :, 50:150], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunk[:, :, 1:-1], whole[:, :, 51:149], rtol=1e-4, atol=1e-5)
    assert (chunk[:, :, 0] - whole[:, :, 50]).abs().max() > 1e-3


def differences(encoder: AudioEncoder) -> tuple[float, float]:
    """How far three chunks of 4 s of sound are from the whole of it in one piece: root mean square,
    relative to the whole's own spread over time; correlation."""
    sound, config = voiced(4.0), encoder.config
    whole = whole_file(encoder, sound)
    starts = [hop * config.hop_samples - config.left_context_samples for hop in (5, 7, 9)]
    chunks = torch.stack([sound[start : start + config.chunk_samples] for start in starts])
    with torch.no_grad():
        chunked = encoder(chunks).flatten(0, 1)  # (3 * 16, 33)
    rows = [hop * config.hop_features + i for hop in (5, 7, 9) for i in range(config.hop_features)]
    mean = whole.mean(0)
    a, b = chunked - mean, whole[rows] - mean
    off = (a - b).square().mean().sqrt() / b.square().mean().sqrt()
    return float(off), float((a * b).sum() / (a.norm() * b.norm()))


def whole_file(encoder: AudioEncoder, sound: Tensor) -> Tensor:
    """(N, 33): the logits of a whole file at once, as the paper has them."""
    samples = normalise_loudness(sound[None])
    samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        logits: Tensor = encoder.body(torch.nn.functional.pad(samples, (40, 40))).logits[0]  # type: ignore[operator, union-attr]
    return logits


def test_chunks_differ_from_the_whole_file_and_more_context_helps() -> None:
    """Every position attends to all others: nothing makes the two equal."""
    short = AudioConfig(
        encoder="wav2vec2-xlsr-english",
        features_per_frame=1,
        hop_ms=320,
        left_context_ms=80,
        right_context_ms=40,
    )
    off, alike = differences(tiny_encoder())
    near, _ = differences(tiny_encoder(short))
    assert 0.0 < off < near
    assert alike > 0.9


@pytest.mark.slow  # 315 M parameters: a minute on one core, and 3 GB
def test_the_real_size_runs_in_chunks(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    encoder = Wav2Vec2Encoder(CONFIG, random_wav2vec2())
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(315e6, rel=0.01)
    assert len(encoder.body.wav2vec2.encoder.layers) == 24  # type: ignore[union-attr, arg-type]
    off, alike = differences(encoder)
    with capsys.disabled():
        print(f"chunks and whole file: {off:.3f} of the spread, correlation {alike:.4f}")
    assert 0.0 < off < 0.5 and alike > 0.9


def test_the_exported_graph_equals_transformers_module(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="exporting needs the extra 'export'")
    runtime = pytest.importorskip("onnxruntime", reason="the graph is run by ONNX Runtime")
    from transformers import Wav2Vec2FeatureExtractor

    encoder, chunk = tiny_encoder(), voiced(2.0)[None]
    path = tmp_path / "audio_encoder.onnx"
    export_onnx(encoder, spec_of("audio_encoder"), {"chunk": chunk}, path)
    (found,) = runtime.InferenceSession(path).run(None, {"chunk": chunk.numpy()})
    values = Wav2Vec2FeatureExtractor(do_normalize=True)(
        normalise_loudness(chunk)[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_values
    with torch.no_grad():
        expected = encoder.body(torch.nn.functional.pad(values, (40, 40))).logits[:, 74:90]  # type: ignore[operator, union-attr]
    assert expected.std() > 0.01
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)  # float32
