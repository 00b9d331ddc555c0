"""Whisper's encoder read from CTranslate2's file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from speech import voiced

from dithead import checkpoint
from dithead.audio import AudioConfig, load_audio_encoder
from dithead.audio.config import WHISPER, WHISPER_BASE, WHISPERS, WhisperSizes
from dithead.audio.encoder import whisper_settings
from dithead.audio.whisper import WhisperBody, sinusoids
from dithead.errors import BackendUnavailable, CheckpointError, ConfigError
from dithead.train import cli
from dithead.train.convert.whisper import convert_whisper, packaged_parts, read_ctranslate2


def write_ctranslate2(path: Path, variables: dict[str, np.ndarray], version: int = 6) -> None:
    """Write CTranslate2's binary format, with one alias."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", version) + string("WhisperSpec")
    data += struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        dtype_id = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}[array.dtype.name]
        data += struct.pack("<BI", dtype_id, array.nbytes) + array.tobytes()
    path.write_bytes(data + struct.pack("<I", 1) + string("alias") + string(next(iter(variables))))


def encoder_variables(
    tensors: dict[str, torch.Tensor] | None = None, sizes: WhisperSizes = WHISPERS[WHISPER]
) -> dict[str, np.ndarray]:
    """An encoder, or the packaged one, as CTranslate2 variables, stacked as CTranslate2 stacks
    them."""
    if tensors is None:
        tensors, _ = checkpoint.load(checkpoint.asset_path("whisper_tiny_en_encoder"))
    state = {name: tensor.half().numpy() for name, tensor in tensors.items()}
    variables = {"encoder/num_heads": np.array(sizes.heads, dtype=np.int16)}

    def put(target: str, source: str, weight: str, bias: str) -> None:
        variables[f"encoder/{target}/{weight}"] = state[f"{source}.weight"]
        variables[f"encoder/{target}/{bias}"] = state[f"{source}.bias"]

    put("conv1", "conv1", "weight", "bias")
    put("conv2", "conv2", "weight", "bias")
    put("layer_norm", "layer_norm", "gamma", "beta")
    for i in range(sizes.blocks):
        target, source = f"layer_{i}", f"layers.{i}"
        attention = f"{source}.self_attn"
        stacked = f"encoder/{target}/self_attention/linear_0"
        variables[f"{stacked}/weight"] = np.concatenate(
            [state[f"{attention}.{part}_proj.weight"] for part in "qkv"]
        )
        variables[f"{stacked}/bias"] = np.concatenate(
            [
                state[f"{attention}.q_proj.bias"],
                np.zeros(sizes.width, np.float16),
                state[f"{attention}.v_proj.bias"],
            ]
        )
        put(f"{target}/self_attention/linear_1", f"{attention}.out_proj", "weight", "bias")
        norm = f"{source}.self_attn_layer_norm"
        put(f"{target}/self_attention/layer_norm", norm, "gamma", "beta")
        put(f"{target}/ffn/linear_0", f"{source}.fc1", "weight", "bias")
        put(f"{target}/ffn/linear_1", f"{source}.fc2", "weight", "bias")
        put(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm", "gamma", "beta")
    return variables


def test_conversion_splits_and_names_every_tensor(tmp_path: Path) -> None:
    source, out = tmp_path / "model.bin", tmp_path / "out.safetensors"
    write_ctranslate2(source, encoder_variables())
    assert np.array_equal(read_ctranslate2(source)["alias"], 6)
    convert_whisper(source, out)
    expected, expected_config = checkpoint.load(checkpoint.asset_path("whisper_tiny_en_encoder"))
    found, config = checkpoint.load(out)
    assert config == expected_config
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_conversion_refuses_damaged_sources(tmp_path: Path) -> None:
    source, out = tmp_path / "model.bin", tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match="no file"):
        convert_whisper(source, out)
    variables = encoder_variables()
    write_ctranslate2(source, variables, version=3)
    with pytest.raises(CheckpointError, match="format version 6, found 3"):
        convert_whisper(source, out)
    write_ctranslate2(source, variables)
    whole = source.read_bytes()
    source.write_bytes(whole[:-100_000])
    with pytest.raises(CheckpointError, match="ends early"):
        convert_whisper(source, out)
    source.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="goes on"):
        convert_whisper(source, out)
    variables["encoder/layer_0/self_attention/linear_0/bias"][400] = 1.0
    write_ctranslate2(source, variables)
    with pytest.raises(CheckpointError, match="keys have a bias"):
        convert_whisper(source, out)
    del variables["encoder/conv2/bias"]
    write_ctranslate2(source, variables)
    with pytest.raises(CheckpointError, match="conv2/bias"):
        convert_whisper(source, out)
    assert not out.exists()


BASE = AudioConfig(encoder="whisper-base")
SMALL = WhisperSizes(blocks=3, width=64, heads=4)


def test_bases_sizes() -> None:
    assert WHISPERS[WHISPER_BASE] == (6, 512, 8)
    assert BASE.feature_dim == 512 and BASE.window_shape == (11, 1024)
    assert AudioConfig(encoder="whisper-base", layers=(0, 6)).feature_dim == 1024
    with pytest.raises(ConfigError, match="layers"):
        AudioConfig(encoder="whisper-base", layers=(7,))


@torch.no_grad()
def test_base_is_converted_from_its_two_parts_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WHISPERS, WHISPER_BASE, SMALL)  # type: ignore[arg-type]
    whole, out = tmp_path / "model.bin", tmp_path / "base.safetensors"
    body = WhisperBody(80, 64, 3, 4, 256, length=100).half().float().eval()
    write_ctranslate2(whole, encoder_variables(body.state_dict(), SMALL))
    data = whole.read_bytes()
    parts = [tmp_path / "model.bin.part1", tmp_path / "model.bin.part2"]
    parts[0].write_bytes(data[: len(data) // 2])
    parts[1].write_bytes(data[len(data) // 2 :])
    arguments = ["convert", "whisper", "--model", "base", "--out", str(out)]
    assert cli.main([*arguments, "--source", *map(str, parts)]) == 0
    encoder = load_audio_encoder(AudioConfig(encoder="whisper-base"), out)
    chunk = voiced(2.0)[None]
    found = encoder(chunk)
    assert found.shape == (1, 16, 64)
    loaded = encoder.body.state_dict()  # type: ignore[union-attr]
    for name, tensor in body.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    every = load_audio_encoder(AudioConfig(encoder="whisper-base", layers=(0, 3)), out)(chunk)
    torch.testing.assert_close(every[..., 64:], found)


def test_missing_and_damaged_weights_say_how_to_make_them(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"

    def refused(what: str) -> None:
        with pytest.raises(CheckpointError, match=what) as caught:
            load_audio_encoder(BASE, path)
        line = str(caught.value)
        assert line.startswith("whisper-base: ") and str(path) in line and "\n" not in line
        assert "`dithead train convert whisper --model base --out FILE`" in line

    refused("no checkpoint at")
    path.write_bytes(b"nothing")
    refused("not a readable safetensors file")
    checkpoint.save(path, {"conv1.bias": torch.zeros(512)}, whisper_settings(WHISPER_BASE))
    refused("missing")


def test_one_whisper_is_not_taken_for_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "model.bin", tmp_path / "out.safetensors"
    write_ctranslate2(source, encoder_variables())
    arguments = ["convert", "whisper", "--out", str(out), "--source", str(source)]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr().err
    assert "blocks=6, width=512" in printed and "blocks=4, width=384" in printed
    assert not out.exists()
    assert cli.main([*arguments, "--model", "tiny.en"]) == 0
    with pytest.raises(CheckpointError, match=r"'whisper-base', found 'whisper-tiny.en'; make its"):
        load_audio_encoder(BASE, out)
    with pytest.raises(CheckpointError, match=r"whisper-base does not ship .* --model base --out"):
        load_audio_encoder(BASE)
    with pytest.raises(CheckpointError, match="is a folder, and this checkpoint hears through"):
        load_audio_encoder(BASE, tmp_path)
    assert cli.main(["convert", "whisper", "--out", str(tmp_path / "no" / "x.safetensors")]) == 1
    assert "a folder that exists" in capsys.readouterr().err


@torch.no_grad()
def test_the_real_base_is_whisper(tmp_path: Path) -> None:
    try:
        parts = packaged_parts("base")
    except BackendUnavailable as missing:
        pytest.skip(f"{missing}")
    out = tmp_path / "base.safetensors"
    convert_whisper(parts, out, "base")
    positions = read_ctranslate2(*parts)["encoder/position_encodings/encodings"]
    ours = sinusoids(1500, 512).numpy()
    np.testing.assert_allclose(positions.astype(np.float32), ours, atol=1e-3)  # float16
    encoder = load_audio_encoder(BASE, out)
    loud, silent = encoder(voiced(2.0)[None]), encoder(torch.zeros(1, BASE.chunk_samples))
    assert loud.isfinite().all() and loud.std() > 0.5
    assert (loud - silent).square().mean().sqrt() > 0.5
