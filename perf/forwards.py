"""Images forwarded through a backbone beyond what each learner declares: 0, for every learner and kind of pass.

    python perf/forwards.py [--epochs 1] [--images 20]

Each learner, each plug-in with every learner that takes it, and the arms that change what is forwarded learn a part of
`digits_photo` in four uneven tasks: the small convnet, or the small transformer for methods that attach to one. The
formula `declared(stream)` stands beside what the backbone counted; no formula holds a pass that serves diagnosis only.
A few minutes on one thread. Last line: JSON.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch

from cilkit import backbones, incremental, learners
from cilkit.data import Benchmark, ImageSet, Stream, load
from cilkit.errors import UserError
from cilkit.synthesis import glyphs
from cilkit.synthesis.classwise import Classwise

# Learner -> parameters that change what is forwarded.
ARMS = {
    "slca": [{"slow_rate": 0.0}, {"align_epochs": 0}],
    "icarl+synthetic_replay": [{"a": 0.0}, {"b": 0.0}, {"split_norm": True}],
    "lwf+generative_replay": [{"labels": "solver"}],
    "ewc": [{"penalty": 0.0}, {"fisher": "batch"}, {"fisher_images": 7}],
    "bic": [{"cumulative": True}],
    "der": [{"alpha": 0.0}, {"beta": 0.0}, {"dedup": True}],
    "ranpac": [{"phase1": how} for how in ("none", "adapter", "finetune")] + [{"projection": 0}],
    "aper": [{"phase1": how} for how in ("adapter", "prompts", "finetune")],
}


def part_of(images: ImageSet, per_class: int) -> ImageSet:
    rows = [np.flatnonzero(images.labels == label)[:per_class] for label in range(len(images.class_names))]
    return images.select(np.sort(np.concatenate(rows)))


def painted() -> ImageSet:
    """A few font renderings of the digits, in place of paintings: only their number matters here."""
    names = [f"digit {word}" for word in "zero one two three four five six seven eight nine".split()]
    return ImageSet.from_arrays(*glyphs.render_set(names, per_class=5, seed=0), names)


def with_plugins() -> Iterator[str]:
    """ "ewc+alignment" and so on, of all that go together."""
    for name in learners.NAMES:
        for plugin in learners.PLUGINS:
            try:
                learners.find(f"{name}+{plugin}")
            except UserError:
                continue
            yield f"{name}+{plugin}"


def cases() -> Iterator[tuple[str, dict]]:
    for name in (*learners.NAMES, *with_plugins()):
        for parameters in ({}, *ARMS.get(name, [])):
            yield name, parameters


def made(name: str, parameters: dict, epochs: int, images: ImageSet):
    found, known = learners.find(name), learners.settings(name, {})
    transformer = found.needs == "transformer" or parameters.get("phase1") in ("adapter", "prompts")
    given = {"epochs": epochs} if "epochs" in known else {}
    if learners.paints_itself(name):
        given["images"] = Classwise(steps=2, batch=8, lr=1e-3, width=8, size=16, sampling=2, ema=0.9)
    elif learners.takes_images(name):
        given["images"] = images
    return learners.create(name, backbones.create("small_vit" if transformer else "", seed=0), **given, **parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=1, help="epochs a task")
    parser.add_argument("--images", type=int, default=20, help="training images a class, at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whole, images, begun = load("digits_photo"), painted(), time.perf_counter()
    benchmark = Benchmark("part", part_of(whole.train, arguments.images), part_of(whole.test, arguments.images // 2))
    stream = Stream(benchmark, order_seed=1993, increments=[2, 3, 1, 4])
    print(f"{'learner':52s}{'kind':12s}{'declared':>10s}{'forwarded':>10s}")
    beyond = 0
    for name, parameters in cases():
        learner = made(name, parameters, arguments.epochs, images)
        incremental.run_stream(learner, stream, None)
        declared, spent = Counter(learner.declared(stream)), learner.backbone.forwarded
        what = " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])
        for kind in sorted(declared | spent):
            mark = "" if declared[kind] == spent[kind] else "  <-"
            print(f"{what:52s}{kind:12s}{declared[kind]:10d}{spent[kind]:10d}{mark}", flush=True)
            beyond += abs(spent[kind] - declared[kind])
    print(f"{time.perf_counter() - begun:.0f} s")
    print(json.dumps({"name": "images_beyond_declared", "value": beyond, "unit": "images"}))


if __name__ == "__main__":
    main()
