"""wav2vec2 in its real architecture with small sizes and random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dithead.audio import wav2vec2 as ours

REAL_SIZES = dict(ours.SIZES)
TINY: dict[str, Any] = {
    **REAL_SIZES,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", "-", *"abcdefghijklmnopqrstuvwxyz"]


def save_tiny_wav2vec2(folder: Path, **changes: Any) -> Path:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(3)
    Wav2Vec2ForCTC(Wav2Vec2Config(**{**TINY, **changes})).save_pretrained(folder)
    write_letters(folder, LETTERS)
    return folder


def write_letters(folder: Path, letters: list[str]) -> None:
    numbers = {letter: number for number, letter in enumerate(letters)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
