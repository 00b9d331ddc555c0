"""Presets, validation and the round trip through JSON."""

import json
from dataclasses import replace

import pytest

from dithead.config import (
    PRESETS,
    DiffusionConfig,
    DiTConfig,
    DitHeadConfig,
    FaceConfig,
    VQGANConfig,
    preset,
)
from dithead.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert DitHeadConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_paper_preset_states_the_papers_numbers() -> None:
    config = preset("paper")
    assert (config.dit.depth, config.dit.heads, config.dit.width, config.dit.patch) == (
        24,
        16,
        1024,
        2,
    )
    assert config.latent_size == 32
    assert config.vqgan.latent_channels == 4
    frames, features = config.audio.window_shape
    assert frames * features == 363
    assert (config.diffusion.schedule, config.diffusion.prediction) == ("linear", "noise")
    assert config.diffusion.steps == 250


def test_a_picture_twice_as_large_costs_the_denoiser_no_more_at_f_16() -> None:
    large, small = preset("difftalk"), preset("paper")
    assert (large.face.crop_px, large.vqgan.factor) == (2 * small.face.crop_px, 16)
    assert large.latent_size == small.latent_size == 32


def test_the_multilingual_base_differs_in_what_it_hears_with() -> None:
    base, other = preset("base"), preset("base-multilingual")
    assert (base.audio.encoder, other.audio.encoder) == ("whisper-tiny.en", "whisper-base")
    assert other.audio.feature_dim == 512
    assert replace(other, preset="base", audio=base.audio) == base


def test_unknown_names_list_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="paper-512"):
        preset("huge")
    values = preset("tiny").to_dict()
    values["dit"]["widht"] = 3
    with pytest.raises(ConfigError, match=r"widht.*width"):
        DitHeadConfig.from_dict(values)


@pytest.mark.parametrize(
    "build",
    [
        lambda: FaceConfig(crop_px=100),
        lambda: FaceConfig(mask_softness=0.0),
        lambda: FaceConfig(crop_span=0.4),
        lambda: FaceConfig(crop_span=0.9, crop_down=0.1),
        lambda: VQGANConfig(latent_channels=6, codebook_groups=4),
        lambda: VQGANConfig(norm="batch"),  # type: ignore[arg-type]
        lambda: VQGANConfig(softness=-1.0),
        lambda: VQGANConfig(decoder_blocks=(1, 2)),
        lambda: VQGANConfig(upsampling="bilinear"),  # type: ignore[arg-type]
        lambda: DiTConfig(width=100, heads=16),
        lambda: DiTConfig(conditioning="both"),  # type: ignore[arg-type]
        lambda: DiffusionConfig(schedule="square"),  # type: ignore[arg-type]
        lambda: DiffusionConfig(steps=0),
        lambda: DiffusionConfig(steps=1001),
    ],
)
def test_invalid_values_are_refused(build: object) -> None:
    with pytest.raises(ConfigError):
        build()  # type: ignore[operator]
