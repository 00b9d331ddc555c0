"""The VQGAN: shapes, quantisation, gradients."""

from dataclasses import replace

import pytest
import torch

from dithead.config import VQGANConfig
from dithead.vqgan import VQGAN, Codebook, ResidualBlock

CONFIG = VQGANConfig((8, 16, 16), (8, 16, 16), blocks=1, attention=True, codebook_size=32)
PLAIN = replace(
    CONFIG,
    fold=2,
    encoder_channels=(8, 16),
    decoder_channels=(8, 16),
    decoder_blocks=(1, 2),
    upsampling="shuffle",
    norm="none",
    attention=False,
    latent_channels=8,
    codebook_groups=2,
)


@pytest.mark.parametrize("config", [CONFIG, PLAIN])
def test_shapes_and_factor(config: VQGANConfig) -> None:
    model = VQGAN(config)
    latent = model.encode(torch.rand(2, 3, 32, 32))
    assert config.factor == 4
    assert latent.shape == (2, config.latent_channels, 8, 8)
    assert model.decode(latent).shape == (2, 3, 32, 32)


def test_without_norms_a_block_begins_as_the_identity() -> None:
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(ResidualBlock(16, 16, "none")(x), x)
    assert not any(isinstance(m, torch.nn.GroupNorm) for m in VQGAN(PLAIN).decoder.modules())


def test_groups_of_channels_are_quantised_apart() -> None:
    codebook = Codebook(50, 6, groups=2)
    latent = torch.randn(2, 6, 3, 5)
    first, second = Codebook(50, 3), Codebook(50, 3)
    with torch.no_grad():
        first.entries.copy_(codebook.entries[:50])
        second.entries.copy_(codebook.entries[50:])
    apart = torch.cat([first(latent[:, :3]), second(latent[:, 3:])], dim=1)
    assert torch.equal(codebook(latent), apart)
    mixed = [
        book.mix(part, 0.01) for book, part in ((first, latent[:, :3]), (second, latent[:, 3:]))
    ]
    torch.testing.assert_close(codebook.mix(latent, 0.01), torch.cat(mixed, dim=1))


def test_a_latent_may_be_decoded_as_it_is() -> None:
    model = VQGAN(replace(PLAIN, softness=None)).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    latent = torch.randn(1, 8, 8, 8)
    assert torch.equal(model.decode(latent), model.decoder(latent).clamp(-1, 1))


def test_a_share_of_a_batch_passes_the_codebook_and_the_rest_gets_noise() -> None:
    model = VQGAN(PLAIN)
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = model(torch.rand(4, 3, 32, 32), quantised_share=0.5)
    torch.testing.assert_close(seen[0][:2], model.codebook(out.features)[:2])
    assert torch.equal(seen[0][2:], out.features[2:])
    noisy = model(torch.rand(4, 3, 32, 32), quantised_share=0.0, noise=0.1)
    off = (seen[1] - noisy.features).std() / noisy.features.std()
    assert 0.0 < off < 0.1


def test_codebook_takes_the_nearest_entry() -> None:
    codebook = Codebook(50, 4)
    latent = torch.randn(2, 4, 3, 5)
    distance = torch.cdist(latent.movedim(1, -1).reshape(-1, 4), codebook.entries)
    assert torch.equal(codebook.indices(latent).flatten(), distance.argmin(1))
    entries = codebook.lookup(codebook.indices(latent))
    assert torch.equal(codebook(entries), entries)


@pytest.mark.parametrize("softness", [0.0, 0.01])
def test_latent_scale_is_undone_before_decoding(softness: float) -> None:
    model = VQGAN(replace(CONFIG, softness=softness)).eval()
    image = torch.rand(1, 3, 32, 32)
    before = model.decode(model.encode(image))
    model.latent_mean.fill_(0.3)
    model.latent_std.fill_(2.5)
    torch.testing.assert_close(model.decode(model.encode(image)), before, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_softly_quantised_latent_does_not_jump_between_entries() -> None:
    torch.manual_seed(3)
    soft, hard = (VQGAN(replace(CONFIG, softness=s)).eval() for s in (0.01, 0.0))
    hard.load_state_dict(soft.state_dict())
    entries = soft.codebook.entries.detach()
    closest = int((torch.cdist(entries, entries) + 9.0 * torch.eye(len(entries))).argmin())
    a, b = entries[closest // len(entries)], entries[closest % len(entries)]
    corner = torch.zeros(1, 4, 8, 8)
    corner[..., 0, 0] = 1  # elsewhere it is flat, which the norms would take away

    def change(model: VQGAN) -> float:
        low, high = (
            model.decode(corner * (a + part * (b - a))[:, None, None]) for part in (0.499, 0.501)
        )
        return float((high - low).abs().max())

    assert change(soft) < 0.1 * change(hard)
    torch.testing.assert_close(
        soft.codebook.mix(corner + a[:, None, None], 1e-7), hard.codebook(corner + a[:, None, None])
    )


def test_gradient_passes_the_codebook_and_reaches_its_entries() -> None:
    model = VQGAN(CONFIG)
    out = model(torch.rand(2, 3, 32, 32))
    (out.image.square().mean() + out.codebook_loss).backward()
    assert model.encoder.layers[0].weight.grad.abs().max() > 0  # type: ignore[union-attr]
    used = out.indices.unique()
    gradient = model.codebook.entries.grad
    assert gradient is not None
    assert (gradient[used].abs().sum(1) > 0).all()


def test_one_level_more_makes_a_latent_of_the_same_size_from_twice_the_picture() -> None:
    """512 pixels at f = 16 and 256 at f = 8; and back."""
    small = VQGAN(VQGANConfig((8,) * 4, (8,) * 4, blocks=1, codebook_size=16, attention=False))
    large = VQGAN(VQGANConfig((8,) * 5, (8,) * 5, blocks=1, codebook_size=16, attention=False))
    with torch.inference_mode():
        latent = large.eval().encode(torch.rand(1, 3, 512, 512))
        assert latent.shape == small.eval().encode(torch.rand(1, 3, 256, 256)).shape
        assert large.decode(latent).shape == (1, 3, 512, 512)
