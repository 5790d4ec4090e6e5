import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from cilkit import backbones, masked
from cilkit.errors import UserError


def load_script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parent.parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images_of(count=3, size=16, seed=0, channels=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def order_of(count=3, patches=16, seed=0):
    return masked.orders(count, patches, torch.Generator().manual_seed(seed))


def autoencoder(detail=True, seed=0):
    network = tiny.transformer(seed).double()
    torch.manual_seed(seed)
    return network, masked.Autoencoder(network, early=2, width=6, detail=detail).double()


def test_patches_are_cut_row_after_row_and_put_back():
    images = images_of(2, size=12)
    cut = masked.to_patches(images, 4)
    for place in range(9):
        row, column = divmod(place, 3)
        expected = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.equal(cut[:, place], expected.reshape(2, 48))
    assert torch.equal(masked.to_images(cut, 4), images)


def test_masks_differ_between_images_and_draws_and_show_every_patch_alike():
    generator = torch.Generator().manual_seed(0)
    first, second = (masked.orders(2000, 16, generator) for _ in range(2))
    for order in (first, second):
        assert torch.equal(order.sort(1).values, torch.arange(16).expand(2000, 16))
    assert len(first.unique(dim=0)) == 2000 and not torch.equal(first, second)
    shown = torch.zeros(2000, 16).scatter(1, first[:, :4], 1.0).mean(0)
    assert (shown - 0.25).abs().max() < 0.04  # four standard deviations
    assert torch.equal(first, masked.orders(2000, 16, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("arguments", ({}, {"class_token": False, "global_pool": "avg"}, {"pre_norm": True}))
def test_all_patches_shown_are_timm_s_own_pass_in_any_order(arguments):
    network, images, order = backbones.create("vit_tiny_patch16_224", 0, tiny.VIT | arguments), images_of(), order_of()
    network.eval()
    whole, none = masked.encode(network, images, "student")
    torch.testing.assert_close(whole, network.model.forward_features(images))
    moved, early = masked.encode(network, images, "student", order, early=len(network.blocks))
    prefix = network.model.num_prefix_tokens
    torch.testing.assert_close(moved[:, prefix:], masked.at(whole[:, prefix:], order), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.model.norm(early), moved)
    assert none is None and network.forwarded["student"] == 6


def test_hidden_pixels_reach_nothing_and_visible_ones_do():
    network, coder = autoencoder()
    images, order = images_of().double(), order_of()
    black = masked.paste(torch.zeros_like(images), images, order, 4, 4)
    for one, other in zip(*(coder(network, given, order, 4, "student") for given in (images, black)), strict=True):
        torch.testing.assert_close(one, other)
    place = int(order[0, 3])
    row, column = 4 * (place // 4), 4 * (place % 4)
    changed = images.clone()
    changed[0, :, row, column] += 1
    main, other = (coder(network, given, order, 4, "student")[0] for given in (images, changed))
    assert (main[0] - other[0]).abs().max() > 1e-4 and torch.equal(main[1:], other[1:])


def test_the_decoder_puts_tokens_and_mask_tokens_where_they_belong():
    """Loops over images and places, then the block, norm and Linear as they are."""
    _, coder = autoencoder()
    decoder, order = coder.decoder, order_of(2)
    tokens = torch.randn(2, 1 + 4, 32, dtype=torch.float64)
    rows = []
    for one, places in zip(tokens, order, strict=True):
        row = [one[0] + decoder.positions[0]]
        for place in range(16):
            rank = places.tolist().index(place)
            row.append((one[1 + rank] if rank < 4 else decoder.mask_token) + decoder.positions[1 + place])
        rows.append(torch.stack(row))
    expected = decoder.pixels(decoder.norm(decoder.block(torch.stack(rows))))[:, 1:]
    torch.testing.assert_close(decoder(tokens, order), expected)


def test_positions_start_as_sines_of_row_and_column():
    waves = masked.waves(16, 32)
    for place in range(16):
        for where, start in ((place // 4, 0), (place % 4, 16)):
            for i in range(8):
                angle = where / 10000 ** (i / 8)
                assert abs(waves[place, start + i] - math.sin(angle)) < 1e-6
                assert abs(waves[place, start + 8 + i] - math.cos(angle)) < 1e-6
    assert masked.waves(9, 30).shape == (9, 30) and len(masked.waves(9, 30).unique(dim=0)) == 9


def test_pasting_makes_the_loss_that_over_hidden_patches():
    images, predicted, order = images_of(seed=1), images_of(seed=2), order_of()
    pasted = masked.paste(predicted, images, order, 4, 4)
    truth, guess, whole = (masked.to_patches(one, 4) for one in (images, predicted, pasted))
    hidden = 0.0
    for image in range(3):
        for rank, place in enumerate(order[image].tolist()):
            assert torch.equal(whole[image, place], (truth if rank < 4 else guess)[image, place])
            hidden += 0 if rank < 4 else float((guess - truth)[image, place].square().mean()) / 36
    assert float((pasted - images).square().mean()) == pytest.approx(0.75 * hidden)


def test_high_frequencies_lose_the_mean_and_keep_a_checkerboard():
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    board = 1 - 2 * ((rows + columns) % 2)
    waves = {f: torch.cos(2 * math.pi * f * columns) for f in (0.1, 0.3, 0.35, 0.45)}
    for image, share in ((torch.full((20, 20), 3.0), 0), (board, 1), *((waves[f], f >= 0.35) for f in waves)):
        torch.testing.assert_close(masked.high_frequencies(image[None, None])[0, 0], share * image, atol=1e-5, rtol=0)
    mixed = 2 + board + waves[0.1]
    torch.testing.assert_close(masked.high_frequencies(mixed[None, None])[0, 0], board, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", (7, 8))
def test_high_frequencies_equal_a_literal_transform(size):
    """A shifted plane whose central box is zeroed, by double sums, in complex float64."""
    image = images_of(1, size, channels=1)[0, 0].double().numpy()
    places = np.arange(size)
    expected = np.zeros((size, size), complex)
    for u in range(-(size // 2), (size + 1) // 2):
        for v in range(-(size // 2), (size + 1) // 2):
            if abs(u) / size < 0.35 and abs(v) / size < 0.35:
                continue
            wave = np.exp(2j * np.pi * (u * places[:, None] + v * places) / size)
            expected += (image * wave.conj()).sum() * wave / size**2
    found = masked.high_frequencies(torch.from_numpy(image)[None, None])[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_details_come_from_early_numbers_that_are_detached():
    network, coder = autoencoder()
    images, order = images_of().double(), order_of()
    main, details = coder(network, images, order, 4, "student")
    _, early = masked.encode(network, images, "student", order[:, :4], early=2)
    again = coder.decoder(coder.expand(early[:, :, :6]), order)
    expected = masked.high_frequencies(masked.to_images(again, 4))
    torch.testing.assert_close(details, expected)
    details.square().sum().backward(retain_graph=True)
    assert all(value.grad is None for value in network.parameters()) and coder.expand.weight.grad.any()
    main.square().sum().backward()
    assert network.blocks[0].mlp.fc1.weight.grad.any()
    plain = autoencoder(detail=False)[1](network, images, order, 4, "student")
    assert not plain[1].any()


def test_the_mask_token_learns():
    network, coder = autoencoder(detail=False)
    images, order, token = images_of().double(), order_of(), coder.decoder.mask_token
    assert any(token is value for value in coder.parameters())

    def loss():
        return (coder.rebuild(network, images, order, 4, "student") - images).square().mean()

    start, before = token.detach().clone(), loss()
    before.backward()
    with torch.no_grad():  # a step along the slope of the mask token alone
        slope = float(token.grad.square().sum())
        token -= 1e-3 * token.grad
        assert slope > 0 and not torch.equal(token, start)
        assert float(before - loss()) == pytest.approx(1e-3 * slope, rel=0.05)


def test_a_short_training_rebuilds_held_out_digits_better_than_their_surroundings_do():
    """Plain 8 x 8 scans in patches of 2 x 2, 4 of 16 visible: above bilinear in-painting and mean colour, and above the
    mean training image, which is all that a decoder blind to the visible patches could learn."""
    from sklearn.datasets import load_digits

    script = load_script("perf/reconstruction.py")
    scans = torch.from_numpy(load_digits().images)[:, None].expand(-1, 3, -1, -1).float() / 8 - 1
    train, test = scans[:1257], scans[1257:1457]
    small = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 1, "num_heads": 4}
    network = backbones.create("vit_tiny_patch16_224", 0, small)
    torch.manual_seed(0)
    coder = masked.Autoencoder(network, early=1, width=6, detail=False)
    optimiser = torch.optim.AdamW([*network.parameters(), *coder.parameters()], 0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.02, total_steps=300)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        batch = train[torch.randint(len(train), (64,), generator=generator)]
        order = masked.orders(64, 16, generator)
        loss = (coder.rebuild(network, batch, order, 4, "student") - batch).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    order = masked.orders(len(test), 16, torch.Generator().manual_seed(1))
    with torch.no_grad():
        rebuilt = coder.rebuild(network, test, order, 4, "student").clamp(-1, 1)
    levels = [((one + 1) * 127.5).permute(0, 2, 3, 1).double().numpy() for one in (rebuilt, test, train)]
    found = script.table(levels[0], levels[1], order.numpy(), 4, levels[2].mean(0))
    assert found["rebuilt"] > found["mean image"] + 0.4
    assert found["rebuilt"] > found["bilinear"] + 3 and found["rebuilt"] > found["mean colour"] + 2


@pytest.mark.parametrize("arch", ("", "swin_tiny_patch4_window7_224"))
def test_other_networks_are_refused(arch):
    with pytest.raises(UserError, match="cannot be masked patch by patch; take a plain vision transformer"):
        masked.grid_of(backbones.create(arch))
