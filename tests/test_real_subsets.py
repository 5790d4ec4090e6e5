"""The layout of real subsets, and the MobileNetV2 conversion against torchvision's network and what it sees."""

import gzip
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad

from cilkit import backbones
from cilkit.data import benchmarks, transforms

HOME = Path(__file__).resolve().parent.parent
DATA = HOME.parent / "shared" / "data"
spec = importlib.util.spec_from_file_location("real_subsets", HOME / "scripts" / "real_subsets.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

real = pytest.mark.skipif(not (DATA / script.MOBILENET).exists(), reason="../shared/data holds no real bundles")


def bundle(path, classes, domains=()):
    """Two training images and one test image a class and domain, PNG-encoded one behind the other."""
    random = np.random.default_rng(0)
    rows = [(c, d, split) for c in range(len(classes)) for d in range(max(len(domains), 1)) for split in (0, 1, 0)]
    pixels = random.integers(0, 256, (len(rows), 8, 8, 3)).astype(np.uint8)
    blobs = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        blobs.append(np.frombuffer(buffer.getvalue(), np.uint8))
    label, domain, split = np.array(rows).T
    arrays = {"blob": np.concatenate(blobs), "offset": np.cumsum([0, *map(len, blobs)]), "label": label, "split": split}
    if domains:
        arrays |= {"domain": domain, "domains": np.array(domains)}
    np.savez(path, classes=np.array(classes), **arrays)
    return script.Bundle(path), pixels, label, domain, split == 1


@pytest.fixture
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))


def test_cifar_becomes_a_folder_that_the_catalogue_reads_pixel_by_pixel(tmp_path, own_root):
    laid, pixels, label, _, test = bundle(tmp_path / "cifar.npz", ["apple", "aquarium_fish"])
    script.lay_out_cifar(laid, tmp_path / "cifar100")
    found = benchmarks.load(f"folder:{tmp_path / 'cifar100'}")
    assert found.class_names == ["apple", "aquarium fish"]
    for part, rows in ((found.train, ~test), (found.test, test)):
        assert np.array_equal(part.images(), pixels[rows]) and np.array_equal(part.labels, label[rows])


def test_pacs_becomes_what_the_official_archive_unpacks_to(tmp_path, own_root):
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    classes = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    laid, pixels, label, domain, test = bundle(tmp_path / "pacs.npz", classes, domains)
    script.lay_out_pacs(laid, tmp_path / "pacs")
    found = benchmarks.load("pacs", root=str(tmp_path / "pacs"), partial=True)
    assert (found.class_names, found.domain_names, found.complete) == (classes, domains, False)
    for part, rows in ((found.train, ~test), (found.test, test)):
        number = np.array([int(Path(name).stem) for name in part.ids])  # as laid out
        assert sorted(number) == np.flatnonzero(rows).tolist()
        assert np.array_equal(part.images(), pixels[number]) and np.array_equal(part.labels, label[number])
        assert np.array_equal(part.domains, domain[number])


def test_fashion_is_halved_between_the_stream_and_a_generator(tmp_path, own_root):
    """Three training images and one test image a class, in a mixed order; the first two are the generator's."""
    random = np.random.default_rng(0)
    labels = np.concatenate([random.permutation(10) for _ in range(3)]).astype(np.uint8)
    images = random.integers(1, 256, (40, 28, 28)).astype(np.uint8)
    arrays = {"x_train": images[:30], "y_train": labels, "x_test": images[30:], "y_test": labels[:10]}
    np.savez(tmp_path / "fashion.npz", **arrays)
    script.lay_out_fashion(tmp_path / "fashion.npz", tmp_path, half=2)
    names = benchmarks.class_names("fashion_mnist")
    found = benchmarks.load(f"folder:{tmp_path / 'fashion'}")
    assert sorted(found.class_names) == sorted(names) and "T-shirt or top" in names
    for part, pixels, numbers in ((found.train, images[:30], labels), (found.test, images[30:], labels[:10])):
        rows = np.array([int(Path(name).stem) for name in part.ids])
        assert [part.class_names[k] for k in part.labels] == [names[k] for k in numbers[rows]]
        grey = np.pad(pixels[rows], ((0, 0), (2, 2), (2, 2)))
        assert np.array_equal(part.images(), np.repeat(grey[..., None], 3, -1))
        assert part is found.test or sorted(rows) == list(range(20, 30))
    apart = [int(path.stem) for path in (tmp_path / "fashion_for_generator" / "train").glob("*/*.png")]
    assert sorted(apart) == list(range(20))


def test_missing_bundles_are_left_out_with_a_sentence(tmp_path, monkeypatch, capsys):
    bundle(tmp_path / "cifar100_32.npz", ["apple"])
    monkeypatch.setattr("sys.argv", ["real_subsets.py", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    script.main()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and f"{tmp_path} holds no pacs_64.npz; its subset is left out" in said
    assert len(list((tmp_path / "out" / "cifar100" / "train" / "apple").iterdir())) == 2


@pytest.fixture(scope="module")
def photos():
    """Photographs of PACS, 12 dogs and 12 elephants, as the network sees them."""
    pacs = script.Bundle(DATA / "pacs_64.npz")
    photo = pacs.domain == pacs.domains.index("photo")
    rows = [
        i
        for name in ("dog", "elephant")
        for i in np.flatnonzero(photo & (pacs.labels == pacs.classes.index(name)))[:12]
    ]
    pixels = np.stack([np.asarray(pacs.image(i)) for i in rows])
    return transforms.recipe("timm_test", script.INPUT).test(pixels)


@real
def test_mobilenet_s_features_are_those_of_torchvision_s_network_on_the_same_weights(photos, tmp_path):
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    theirs = mobilenet_v2(weights=None, num_classes=1001).eval()
    theirs.load_state_dict(load_file(DATA / script.MOBILENET))
    script.convert_mobilenet(DATA / script.MOBILENET, tmp_path)
    ours = backbones.load(tmp_path).eval()
    assert (ours.tag, ours.input, ours.dim) == ("mobilenetv2_100.ptq_in1k", script.INPUT, 1280)
    with torch.no_grad():
        found = ours(photos[:3], "probe")
        other_padding = theirs.features(photos[:3]).mean((2, 3))
        for layer in theirs.modules():  # TensorFlow pads even sizes at the right and the bottom only
            if getattr(layer, "stride", None) == (2, 2):
                layer.padding = (0, 0)
                layer.register_forward_pre_hook(lambda _, inputs: pad(inputs[0], (0, 1, 0, 1)))
        expected = theirs.features(photos[:3]).mean((2, 3))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - other_padding).abs().max() > 0.1
    assert all(int(norm.num_batches_tracked) == 1 for norm in ours.norms)


@real
def test_mobilenet_names_what_is_on_the_photographs(photos):
    import timm

    names = json.loads(gzip.decompress((DATA / "class_lists.json.gz").read_bytes()))["imagenet_1001"]
    model = timm.create_model("mobilenetv2_100", num_classes=1001, **script.ARGS).eval()
    model.load_state_dict(script.mobilenet_weights(DATA / script.MOBILENET))
    with torch.no_grad():
        found = model(photos).argmax(1).tolist()
    first, last = (
        next(i for i, name in enumerate(names) if name.startswith(dog)) for dog in ("Chihuahua", "Mexican hair")
    )
    dogs = sum(first <= i <= last for i in found[:12])
    elephants = sum("elephant" in names[i] or "tusker" in names[i] for i in found[12:])
    assert dogs >= 8 and elephants >= 7  # of 12 each; 116 dog breeds and 3 elephants among 1,001 classes
