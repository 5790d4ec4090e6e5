"""Recipes: the papers' transforms, literally and in distribution, against torchvision's."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp, kstest
from sklearn.datasets import load_sample_images
from torchvision import transforms as tv
from torchvision.transforms import functional as F

from cilkit.data import augment, recipes, transforms
from cilkit.data.transforms import Input
from cilkit.errors import UserError

PHOTO = load_sample_images().images[0].copy()  # (427, 640, 3)
OURS = Input(224, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), "bicubic", 0.9)
BICUBIC, BILINEAR = tv.InterpolationMode.BICUBIC, tv.InterpolationMode.BILINEAR
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pipeline(*steps, mean=(0.0,) * 3, std=(1.0,) * 3):
    return tv.Compose([*steps, tv.ToTensor(), tv.Normalize(mean, std)])


def both(train, test, mean=(0.0,) * 3, std=(1.0,) * 3):
    return pipeline(*train, mean=mean, std=std), pipeline(*test, mean=mean, std=std)


FLIP, CENTRE = tv.RandomHorizontalFlip(), [tv.Resize(256, BICUBIC), tv.CenterCrop(224)]
BRIGHT = tv.ColorJitter(brightness=63 / 255)
WIDE = [tv.RandomResizedCrop(224, (0.05, 1.0), interpolation=BILINEAR), FLIP]
CROP = [tv.RandomResizedCrop(224, interpolation=BICUBIC), FLIP]
LITERAL = {  # as the papers' code has them: (train, test)
    "timm": both(CROP, [tv.Resize(248, BICUBIC), tv.CenterCrop(224)], OURS.mean, OURS.std),
    "slca_cifar": both([*CROP, BRIGHT], CENTRE, CIFAR_MEAN, CIFAR_STD),
    "slca_imagenet_r": both(CROP, CENTRE, *IMAGENET),
    "slca_fine_grained": both([tv.Resize((300, 300), BICUBIC), tv.RandomCrop(224), FLIP], CENTRE, *IMAGENET),
    "lucir_cifar": both([tv.RandomCrop(32, padding=4), FLIP], [], (0.5071, 0.4866, 0.4409), (0.2009, 0.1984, 0.2023)),
    "lucir_imagenet": both(
        [tv.RandomResizedCrop(224), FLIP], [tv.Resize(256), tv.CenterCrop(224)], *IMAGENET
    ),
    "pilot": both(WIDE, CENTRE),
    "ranpac": both(WIDE, CENTRE),
    "ranpac_cifar": both(WIDE, [tv.Resize(224, BICUBIC), tv.CenterCrop(224)]),
    "icarl_cifar": both([tv.RandomCrop(32, padding=4, fill=(129, 124, 112)), FLIP], [], CIFAR_MEAN),
    "pretrain_full": both(
        [tv.RandomResizedCrop(224, (0.2, 1.0), interpolation=BICUBIC), FLIP, tv.ColorJitter(0.4, 0.4, 0.4)]
        + [tv.RandAugment()],
        CENTRE, OURS.mean, OURS.std,
    ),
    "gmm": both(
        [tv.RandomResizedCrop(224, (0.5, 1.0), interpolation=BICUBIC)],
        [tv.Resize(224, BICUBIC), tv.CenterCrop(224)],
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}  # fmt: skip


def made(name):
    """At its own size: 32 for the CIFAR-sized presets."""
    return transforms.recipe(name, OURS, recipes.PRESETS[name].size)


def pixels_for(name):
    return PHOTO[100:132, 200:232] if recipes.PRESETS[name].size == 32 else PHOTO[:240, :320]


def test_every_preset_is_compared_and_names_its_source():
    assert set(LITERAL) | {"timm_test"} == set(recipes.PRESETS)
    for preset in recipes.PRESETS.values():
        assert any(tag in preset.source for tag in ("[code]", "[remembered]", "[ours]"))


@pytest.mark.parametrize("name", LITERAL)
def test_testing_is_the_papers_within_two_levels(name):
    shapes = [(240, 320), (224, 224), (101, 333), (331, 500)] if recipes.PRESETS[name].size == 224 else [(32, 32)]
    images = [PHOTO[:height, :width] for height, width in shapes]
    found = made(name).test(images)
    expected = torch.stack([LITERAL[name][1](Image.fromarray(image)) for image in images])
    std = torch.tensor(made(name).std).view(3, 1, 1)
    difference = ((found - expected) * std * 255).abs()
    assert difference.max() < 2.01 and difference.mean() < 0.05  # Pillow 13 filters rows first where that saves work


@pytest.mark.parametrize("name", LITERAL)
def test_training_has_the_papers_distribution(name):
    """Of each variant: mean, left against right (flips), top against bottom (places), detail (scale)."""
    image, n = pixels_for(name), 160
    found = made(name).train([image] * n, generator(3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        expected = torch.stack([LITERAL[name][0](Image.fromarray(image)) for _ in range(n)])
    half = found.shape[-1] // 2
    figures = {
        "mean": lambda x: x.mean((1, 2, 3)),
        "left": lambda x: x[..., :half].mean((1, 2, 3)) - x[..., half:].mean((1, 2, 3)),
        "top": lambda x: x[..., :half, :].mean((1, 2, 3)) - x[..., half:, :].mean((1, 2, 3)),
        "detail": lambda x: x.diff(dim=-1).abs().mean((1, 2, 3)),
    }
    for what, figure in figures.items():
        assert ks_2samp(figure(found), figure(expected), method="asymp").pvalue > 1e-3, what


@pytest.mark.parametrize(("height", "width"), [(375, 500), (32, 32), (60, 500), (500, 20)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.05, 1.0)])
def test_boxes_are_drawn_as_torchvision_draws_them(height, width, area):
    n = 3000
    ours = recipes.random_boxes(np.tile([height, width], (n, 1)), area, generator(7))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        image = torch.empty(3, height, width)
        theirs = np.array([tv.RandomResizedCrop.get_params(image, area, (3 / 4, 4 / 3)) for _ in range(n)])
    top, left, high, wide = ours.T
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= height).all() and (left + wide <= width).all()
    figures = {
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "area": lambda b: b[:, 2] * b[:, 3],
        "centre": lambda b: b[:, 0] + b[:, 2] / 2 + 3 * b[:, 1] + b[:, 3] * 1.5,
    }
    for what, figure in figures.items():
        assert ks_2samp(figure(ours), figure(theirs), method="asymp").pvalue > 1e-3, what


def test_no_box_fits_a_thin_image_so_the_central_one_is_taken():
    sizes = np.array([[20, 500], [500, 20], [300, 400]])
    boxes = recipes.random_boxes(sizes, (1.0, 1.0), generator())
    assert boxes[0].tolist() == [0, (500 - 27) // 2, 20, 27] and boxes[1].tolist() == [(500 - 27) // 2, 0, 27, 20]
    assert boxes[2].tolist() == [0, 0, 300, 400]


@pytest.mark.parametrize("name", sorted(LITERAL))
def test_flips_and_places_are_fair(name):
    """Half of the images are mirrored, none for GMM; where a window is drawn, each of its places is equally likely."""
    n, size = 6000, recipes.PRESETS[name].size
    plan = recipes.PRESETS[name].train_plan(np.full((n, 2), size), size, generator(5))
    assert abs(plan.flip.mean() - (0.0 if name == "gmm" else 0.5)) < 0.026  # four standard deviations
    first, last = {"slca_fine_grained": (0, 76), "lucir_cifar": (-4, 4), "icarl_cifar": (-4, 4)}.get(name, (0, 0))
    for places in plan.window.T:
        counts = np.bincount(places - first, minlength=last - first + 1)
        assert len(counts) == last - first + 1 and (first == last or chisquare(counts).pvalue > 1e-3)


def test_brightness_factors_are_uniform_about_one():
    sizes = np.full((4000, 2), 32)
    factors = recipes.PRESETS["slca_cifar"].train_plan(sizes, 224, generator()).brightness
    assert kstest((factors - 1) * 255 / 63, "uniform", args=(-1, 2)).pvalue > 1e-3
    assert recipes.PRESETS["timm"].train_plan(sizes, 224, generator()).brightness is None


def test_randaugment_is_torchvisions_image_by_image():
    """Every operation with both signs, mixed in one batch: each image as torchvision changes it alone."""
    levels = torch.from_numpy(PHOTO[:48, :40]).permute(2, 0, 1).repeat(28, 1, 1, 1)  # uint8 (28, 3, 48, 40)
    order = torch.randperm(28, generator=generator(1))
    picked, signs = order % 14, order // 14
    found = augment._operated(levels, picked, signs, 9)
    space = tv.RandAugment()._augmentation_space(31, (48, 40))
    assert len(space) == 14
    for row in range(28):
        name, (magnitudes, signed) = list(space.items())[picked[row]]
        by = float(magnitudes[9]) if magnitudes.ndim else 0.0
        by = -by if signed and signs[row] else by
        expected = tv.autoaugment._apply_op(levels[row], name, by, tv.InterpolationMode.NEAREST, None)
        assert torch.equal(found[row], expected), name


def test_colour_jitter_blends_as_torchvision_does():
    """One factor at a time, on whole levels; jitter 0 and no operation leave the image as it is."""
    image = torch.from_numpy(PHOTO[:48, :40]).permute(2, 0, 1)
    levels = image[None].float()
    assert torch.equal(augment.colours(levels.clone(), 0.0, 0, 9, generator()), levels)
    grey = augment._grey(levels)
    for factor in (0.6, 1.0, 1.37):
        blends = {
            "brightness": augment._blended(levels, 0.0, factor),
            "contrast": augment._blended(levels, grey.round().mean((1, 2, 3), keepdim=True), factor),
            "saturation": augment._blended(levels, grey, factor),
        }
        for name, found in blends.items():
            expected = getattr(tv.functional, f"adjust_{name}")(image, factor).float()
            assert (found[0] - expected).abs().max() <= 1, name


def test_images_of_the_cached_size_are_cut_not_filtered():
    """A short side of 256, and 300 x 300 for birds and cars: what comes out stands in the image, level for level."""
    wide = PHOTO[:256, :341]
    r = transforms.recipe("slca_imagenet_r", Input(224))
    levels = r.test([wide]) * 255 * torch.tensor(r.std).view(3, 1, 1) + 255 * torch.tensor(r.mean).view(3, 1, 1)
    np.testing.assert_allclose(levels[0].permute(1, 2, 0), wide[16:240, 58:282], atol=1e-3)

    square = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    r = transforms.recipe("slca_fine_grained", Input(224))
    cuts = r.train(np.stack([square] * 20), generator()) * 255 * torch.tensor(r.std).view(3, 1, 1)
    cuts = (cuts + 255 * torch.tensor(r.mean).view(3, 1, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    places = [(side, top, left) for side in (0, 1) for top in range(77) for left in range(77)]
    both_ways = square, square[:, ::-1]
    corners = {both_ways[side][top, left : left + 8].tobytes(): (side, top, left) for side, top, left in places}
    seen = set()
    for cut in cuts:
        side, top, left = corners[cut[0, :8].tobytes()]
        assert np.array_equal(both_ways[side][top : top + 224, left : left + 224], cut)
        seen.add((side, top, left))
    assert len(seen) > 15 and {side for side, _, _ in seen} == {0, 1}


def test_a_recipe_depends_on_its_generator_only():
    images = [PHOTO[:200, :300], PHOTO[:120, :90]]
    before = torch.random.get_rng_state()
    r = made("slca_cifar")
    first, again, other = (r.train(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.shape == (2, 3, 224, 224) and first.dtype == torch.float32


def test_image_size_scales_the_lengths():
    small = transforms.recipe("slca_fine_grained", OURS, 112)
    assert small.size == 112 and small.preset.train_plan(np.array([[90, 80]]), 112, generator()).resized.tolist() == [
        [150, 150]
    ]
    assert small.preset.test_plan(np.array([[90, 80]]), 112).resized.tolist() == [[144, 128]]
    assert transforms.recipe("timm", Input(0)).size == 224  # a backbone that takes any size: the preset's
    assert transforms.recipe("pilot", Input(192)).size == 192


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("crop_pct", "crop_mode"), [(0.95, "center"), (1.0, "center"), (1.0, "squash"), (0.9, "squash")]
)
def test_timm_is_timms_own_evaluation(filter_name, crop_pct, crop_mode):
    from timm.data import create_transform

    config = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": filter_name}
    config |= {"crop_pct": crop_pct, "crop_mode": crop_mode}
    theirs = create_transform((3, 64, 64), is_training=False, **config)
    images = [PHOTO[:100, :213], PHOTO[:300, :333]]
    expected = torch.stack([theirs(Image.fromarray(image)) for image in images])
    ours = transforms.recipe("timm_test", Input(64, **config))
    assert not ours.augments and torch.equal(ours.train(images, generator()), ours.test(images))
    difference = (ours.test(images) - expected).abs() * 255 * torch.tensor(ours.std).view(3, 1, 1)
    assert difference.max() < 2.01 and difference.mean() < 0.05


def test_bad_names_are_named():
    with pytest.raises(UserError, match=r"no recipe 'slca_cifr' \(did you mean 'slca_cifar'\?\); take one of none, "):
        transforms.recipe("slca_cifr", OURS)
    with pytest.raises(UserError, match="asks for 'lanczos' resizing"):
        transforms.recipe("timm", Input(224, interpolation="lanczos"))


MAGNITUDE_9 = {  # of RandAugment's operations for 224 x 224 pixels, by torchvision's public functions
    "Identity": lambda x: x,
    "ShearX": lambda x: F.affine(x, 0.0, [0, 0], 1.0, [math.degrees(math.atan(0.09)), 0.0], center=[0, 0]),
    "ShearY": lambda x: F.affine(x, 0.0, [0, 0], 1.0, [0.0, math.degrees(math.atan(0.09))], center=[0, 0]),
    "TranslateX": lambda x: F.affine(x, 0.0, [int(224 * 150 / 331 * 0.3), 0], 1.0, [0.0, 0.0]),
    "TranslateY": lambda x: F.affine(x, 0.0, [0, int(224 * 150 / 331 * 0.3)], 1.0, [0.0, 0.0]),
    "Rotate": lambda x: F.rotate(x, 9.0),
    "Brightness": lambda x: F.adjust_brightness(x, 1.27),
    "Color": lambda x: F.adjust_saturation(x, 1.27),
    "Contrast": lambda x: F.adjust_contrast(x, 1.27),
    "Sharpness": lambda x: F.adjust_sharpness(x, 1.27),
    "Posterize": lambda x: F.posterize(x, 7),
    "Solarize": lambda x: F.solarize(x, 255 * 0.7),
    "AutoContrast": F.autocontrast,
    "Equalize": F.equalize,
}


def test_torchvisions_private_rand_augment_is_what_it_was():
    """`augment.colours` asks torchvision's private functions what the operations are and does them by those."""
    changed = "torchvision's RandAugment changed: look at augment._space and augment._operated"
    image = torch.from_numpy(PHOTO[:224, :224]).permute(2, 0, 1)[None]
    names = [name for name, _, _ in augment._space(image)]
    assert names == list(MAGNITUDE_9), changed
    for number, (name, literal) in enumerate(MAGNITUDE_9.items()):
        found = augment._operated(image, torch.tensor([number]), torch.tensor([0]), 9)
        difference = (found.float() - literal(image).float()).abs()
        assert difference.max() <= 1, f"{name}: {changed}"
        if name in ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"):
            continue
        other = augment._operated(image, torch.tensor([number]), torch.tensor([1]), 9)
        assert not torch.equal(found, other), f"{name} has no sign; {changed}"
