"""Whisper's encoder read from CTranslate2's file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dithead import checkpoint
from dithead.errors import CheckpointError
from dithead.train.convert.whisper import convert_whisper, read_ctranslate2


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


def encoder_variables() -> dict[str, np.ndarray]:
    """The packaged encoder as CTranslate2 variables, stacked as CTranslate2 stacks them."""
    tensors, _ = checkpoint.load(checkpoint.asset_path("whisper_tiny_en_encoder"))
    state = {name: tensor.half().numpy() for name, tensor in tensors.items()}
    variables = {"encoder/num_heads": np.array(6, dtype=np.int16)}

    def put(target: str, source: str, weight: str, bias: str) -> None:
        variables[f"encoder/{target}/{weight}"] = state[f"{source}.weight"]
        variables[f"encoder/{target}/{bias}"] = state[f"{source}.bias"]

    put("conv1", "conv1", "weight", "bias")
    put("conv2", "conv2", "weight", "bias")
    put("layer_norm", "layer_norm", "gamma", "beta")
    for i in range(4):
        target, source = f"layer_{i}", f"layers.{i}"
        attention = f"{source}.self_attn"
        stacked = f"encoder/{target}/self_attention/linear_0"
        variables[f"{stacked}/weight"] = np.concatenate(
            [state[f"{attention}.{part}_proj.weight"] for part in "qkv"]
        )
        variables[f"{stacked}/bias"] = np.concatenate(
            [
                state[f"{attention}.q_proj.bias"],
                np.zeros(384, np.float16),
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
