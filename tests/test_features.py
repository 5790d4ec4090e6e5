import json

import numpy as np
import pytest
from tiny import backbone, image_set

from cilkit import artifacts, backbones
from cilkit.data import Benchmark, ShardWriter, open_set
from cilkit.errors import Stopped, UserError
from cilkit.features import FeatureBank
from cilkit.road import features as road


class Counting:
    """Features that name the image: its position, and how often it was seen."""

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen += images.index.tolist()
        return np.stack([images.index, -images.index], axis=1).astype(np.float32)


@pytest.fixture
def images():
    return image_set(classes=3, per_class=10)


def test_every_image_passes_once_whatever_is_asked_for(images):
    random, bank, forward = np.random.default_rng(0), FeatureBank(), Counting()
    asked = 0
    for _ in range(30):
        some = images.select(random.integers(0, len(images), random.integers(0, 12)))  # with repetitions
        found = bank.of(some, forward)
        assert found.dtype == np.float32 and found.shape == (len(some), 2)
        assert np.array_equal(found[:, 0], some.index) and np.array_equal(found[:, 1], -some.index)
        asked += len(some)
    assert len(forward.seen) == len(set(forward.seen)) and bank.reused == asked - len(forward.seen)


def test_new_images_are_forwarded_in_the_order_of_asking(images):
    bank, forward = FeatureBank(), Counting()
    bank.of(images.select(np.array([4])), forward)
    bank.of(images.select(np.array([9, 4, 2, 9, 7])), forward)
    assert forward.seen == [4, 9, 2, 7]


def test_what_is_not_kept_passes_again(images):
    bank, forward = FeatureBank(), Counting()
    bank.of(images.select(np.arange(3)), forward)
    for _ in range(2):
        found = bank.of(images.select(np.array([5, 1, 5])), forward, keep=False)
        assert found[:, 0].tolist() == [5, 1, 5]
    assert forward.seen == [0, 1, 2, 5, 5] and bank.reused == 4


def test_two_sets_do_not_share_places(images):
    bank, forward, other = FeatureBank(), Counting(), image_set(classes=3, per_class=10, seed=1)
    bank.of(images, forward)
    bank.of(other, forward)
    assert len(forward.seen) == len(images) + len(other) and bank.reused == 0
    bank.of(images.of_classes([1]), forward)
    assert bank.reused == 10


def test_a_bank_goes_on_where_its_state_left_off(images):
    bank, forward = FeatureBank(), Counting()
    bank.of(images.select(np.array([3, 1])), forward)
    again = FeatureBank()
    again.load(bank.state())
    found = again.of(images.select(np.array([1, 2, 3])), forward)
    assert found[:, 0].tolist() == [1, 2, 3] and forward.seen == [3, 1, 2] and again.reused == 2
    assert bank.state().keys() == {"reused", f"positions.{images.source.key}", f"features.{images.source.key}"}


def test_a_filled_bank_needs_no_pass_and_is_no_part_of_the_state(images, tmp_path):
    np.save(tmp_path / "features.npy", np.arange(60, dtype=np.float32).reshape(30, 2))
    bank, forward = FeatureBank(), Counting()
    bank.fill(images.source.key, np.load(tmp_path / "features.npy", mmap_mode="r"))
    assert bank.of(images.of_classes([2]), forward)[:, 0].tolist() == (2 * np.flatnonzero(images.labels == 2)).tolist()
    assert forward.seen == [] and bank.reused == 10 and bank.state().keys() == {"reused"}


def test_a_bank_belongs_to_one_backbone(images):
    bank = FeatureBank()
    bank.of(images.select(np.arange(2)), Counting())
    with pytest.raises(UserError, match="a bank for each backbone"):
        bank.of(images.select(np.arange(2, 4)), lambda some: np.zeros((len(some), 5), np.float32))


def test_the_bank_of_a_real_backbone_is_what_extract_gives_and_is_counted(images):
    made, bank = backbone().eval(), FeatureBank()

    def forward(some):
        return backbones.extract(made, some, "test")

    for seen in ([0], [0, 1], [0, 1, 2]):
        found = bank.of(images.of_classes(seen), forward)
    np.testing.assert_allclose(found, backbones.extract(made, images.images(), "probe"), atol=1e-5)
    assert dict(made.forwarded) == {"test": len(images), "probe": len(images)}


# ---------------------------------------------------------------- kept for every run


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))

    def make(work):
        for seed, part in enumerate(("train", "test")):
            some, writer = image_set(classes=3, per_class=9, seed=seed), ShardWriter(work.path / part)
            for name, pixels, label in zip(some.ids, some.images(), some.labels, strict=True):
                row = {"image_id": name, "class_id": int(label), "class_name": f"class {label}"}
                writer.add(pixels, row)
            writer.close()

    artifact = artifacts.obtain("benchmark", 1, {"name": "tiny"}, {}, make)
    parts = [open_set(artifact.path / part, classes=["class 2", "class 0"]) for part in ("train", "test")]
    return Benchmark("tiny", *parts, artifact=artifact)


class Random:
    """Weights as the road hands them on; keeps the backbones that it loaded."""

    inputs: dict = {}
    identity = {"backbone": "tiny"}

    def __init__(self):
        self.loaded = []

    def load(self):
        self.loaded.append(backbone())
        return self.loaded[-1]


def test_features_are_made_once_for_all_runs_and_fill_a_bank(benchmark):
    weights, bank = Random(), FeatureBank()
    artifact = road.features(benchmark, "train", weights, device="cpu")
    kept = np.load(artifact.file(road.FEATURES), mmap_mode="r")
    facts = json.loads(artifact.file("features.json").read_text())
    assert facts == {"backbone": "resnet10t.random", "dim": 16, "forwarded": 27, "images": 27}
    assert weights.loaded[0].forwarded == {"statistics": 27}
    bank.fill(benchmark.train.source.key, kept)
    found = bank.of(benchmark.train, Counting())
    expected = backbones.extract(backbone().eval(), benchmark.train, "probe")
    np.testing.assert_allclose(found, expected, atol=1e-5)  # rows are places in the source, classes left out or not
    assert bank.reused == len(benchmark.train) == 18
    assert road.features(benchmark, "train", weights, device="cpu").digest == artifact.digest
    assert len(weights.loaded) == 1 and road.features(benchmark, "test", weights, device="cpu").key != artifact.key
    with pytest.raises(UserError, match="no part 'validation'"):
        road.features(benchmark, "validation", weights)


def test_an_interrupted_pass_goes_on_where_it_was(benchmark, monkeypatch):
    monkeypatch.setattr(road, "PIECE", 10)
    whole = backbones.extract
    calls = []

    def stumbling(*arguments):
        calls.append(arguments[1].index.tolist())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(backbones, "extract", stumbling)
    weights = Random()
    with pytest.raises(Stopped):
        road.features(benchmark, "train", weights, device="cpu")
    artifact = road.features(benchmark, "train", weights, device="cpu")
    assert calls == [list(range(10)), list(range(10, 20)), list(range(10, 20)), list(range(20, 27))]
    assert sum(made.forwarded.total() for made in weights.loaded) == 27
    source = benchmark.train.at(np.arange(27), np.zeros(27, int))
    by_piece = np.concatenate([whole(backbone(), source.select(slice(a, a + 10)), "probe") for a in (0, 10, 20)])
    assert np.array_equal(np.load(artifact.file(road.FEATURES)), by_piece)
    assert not (artifact.path / "scratch").exists()
