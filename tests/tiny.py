"""A benchmark and a backbone small enough to learn in a second, for tests of learners and the loop."""

import numpy as np
import torch

from cilkit import backbones, learners
from cilkit.data import Benchmark, ImageSet, Stream

ARGS = {"channels": [8, 8, 16, 16], "stem_width": 8}  # over the default ones: 16 features


def image_set(classes=6, per_class=8, seed=0, prefix="class") -> ImageSet:
    """Each class is a colour at a place, under noise: 16 x 16 images that a small network can tell apart."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(classes), per_class))
    images = random.integers(0, 60, (len(labels), 16, 16, 3))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(label, 3)
        image[5 * row : 5 * row + 6, 5 * column : 5 * column + 6, label % 3] += 150
    return ImageSet.from_arrays(images.astype(np.uint8), labels, [f"{prefix} {c}" for c in range(classes)])


def stream(classes=6, increments=2, per_class=8) -> Stream:
    benchmark = Benchmark("tiny", image_set(classes, per_class), image_set(classes, 5, seed=1))
    return Stream(benchmark, order_seed=1993, increments=increments)


def domain_stream(classes=3, per_class=6) -> Stream:
    """The same colours and places, bright, dark and inverted."""
    parts = []
    for seed, n in ((0, per_class), (1, 4)):
        plain = image_set(classes, n, seed)
        images = np.concatenate([plain.images(), plain.images() // 2, 255 - plain.images()])
        labels, domains = np.tile(plain.labels, 3), np.repeat(np.arange(3), len(plain))
        names = ("bright", "dark", "inverted")
        parts.append(ImageSet.from_arrays(images, labels, plain.class_names, domains=domains, domain_names=names))
    return Stream(Benchmark("tiny worlds", *parts), order_seed=1993, protocol="domain")


def backbone(seed=0) -> backbones.Backbone:
    return backbones.create(seed=seed, model_args=ARGS)


# What each learner needs to be over in a second; of the others, two epochs a task in batches of 8.
CASES: dict[str, dict] = {
    "coda_prompt": {"components": 2},  # six tasks' keys have to be orthogonal in 32 numbers
    "coda_prompt+alignment": {"components": 2},
    "der": {"total": 12, "minibatch_size": 6},  # full within the first task
    "foster": {"boosting_epochs": 1, "compression_epochs": 2},
    "gdumb": {"total": 20},
    "gmm": {
        "per_class": 2,
        "balanced": True,
        "train": "language",
        "lr": 0.02,
        "warmup": 2,
        "epochs": 6,
        "batch_size": 4,
    },
    "gmm_linear": {"per_class": 2, "lr": 0.02, "warmup": 2, "micro_batch": 3},
    "nearest_mean": {},
    "podnet": {"proxies": 3, "milestones": (), "tuning_epochs": 1},
    "ranpac": {"projection": 40},
    "slca": {"epochs": 2, "align_epochs": 2, "align_per_class": 16},
}
TINY = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift"}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}


def transformer(seed=0) -> backbones.Backbone:
    return backbones.create("vit_tiny_patch16_224", seed, VIT)


class Painter:
    """Paints a class's mean image under noise: stands in for a generator that is trained."""

    def __init__(self):
        self.means = np.zeros((0, 16, 16, 3), np.float32)

    @property
    def bytes(self):
        return self.means.nbytes

    def fit(self, sets, names, seed):
        pixels, labels = (
            np.concatenate([getter(one) for one in sets]) for getter in (ImageSet.images, lambda s: s.labels)
        )
        self.means = np.stack([pixels[labels == label].mean(0) for label in range(len(names))]).astype(np.float32)

    def paint(self, names, per_class, seed):
        labels = np.repeat(np.arange(len(names)), per_class)
        noise = np.random.default_rng(seed).normal(0, 20, (len(labels), 16, 16, 3))
        pixels = (self.means[labels] + noise).clip(0, 255).astype(np.uint8)
        return ImageSet.from_arrays(pixels, labels, list(names))

    def state(self):
        return {"means": torch.from_numpy(self.means)}

    def load(self, state):
        self.means = state["means"].numpy()


def case(name: str, seed=0, **changes) -> learners.Learner:
    """The learner of this name, small, on a backbone that it can use."""
    found = learners.find(name)
    declared = learners.settings(name, {})
    own = CASES.get(name, CASES.get(name.partition("+")[0], {}))
    hyper = {key: value for key, value in TINY.items() if key in declared} | own | changes
    network = transformer(seed) if found.needs == "transformer" else backbone(seed)
    images = {"images": image_set(seed=7)} if getattr(found, "takes_images", False) else {}
    if getattr(found, "paints_itself", False):
        images = {"images": Painter()}
    words = {"captioner": captioner(network), "text_encoder": letters} if learners.writes(name) else {}
    return learners.create(name, network, seed=seed, **images, **words, **hyper)


def captioner(network, classes=6):
    """A language model of random weights that reads a backbone's tokens."""
    from cilkit.captioning import assembled

    captions = [f"this is a photo of a class {c}." for c in range(classes)]
    return assembled.create(network, captions, dim=16, depth=1, seed=0)


def letters(texts):
    """A text encoder: how often each letter, digit or space occurs, of length one; (n, 37)."""
    found = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz0123456789 "] for text in texts])
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def learn(learner, tasks):
    """The learner, after it has learnt these tasks; nothing is tested or written."""
    for task in tasks:
        list(learner.learn(task))
    return learner
