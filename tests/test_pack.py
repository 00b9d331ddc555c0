"""One checkpoint of the parts that the stages have trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from denoisers import small_config

from dithead import checkpoint
from dithead.config import DiffusionConfig, VQGANConfig
from dithead.model import DitHead, build_dit
from dithead.train.pack import pack
from dithead.vqgan import VQGAN


def test_a_denoiser_keeps_the_steps_that_it_was_trained_for(tmp_path: Path) -> None:
    """The rest of the sampler is the configuration's."""
    weights, vqgan, packed = (tmp_path / f"{n}.safetensors" for n in ("dit", "vqgan", "packed"))
    small = VQGANConfig((8, 8, 8, 8), (8, 8, 8, 8), blocks=1, attention=False, codebook_size=64)
    config = replace(small_config("base"), vqgan=small)
    trained = replace(config, diffusion=DiffusionConfig(steps=8))
    checkpoint.save(weights, build_dit(config).state_dict(), trained.to_dict())
    checkpoint.save(vqgan, VQGAN(small).state_dict(), config.to_dict())
    pack(config, packed, vqgan, vqgan, weights, None, {})
    found = DitHead.load(packed).config.diffusion
    assert found == replace(config.diffusion, steps=8, schedule="linear", prediction="noise")
    assert found.noise_scale == 0.7
