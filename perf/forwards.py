"""Images forwarded through a backbone beyond what each learner declares: 0, for every learner and kind of pass.

    python perf/forwards.py [--epochs 1]

Each learner learns `digits_photo` in five tasks of two classes; its formula `declared(stream)` is set beside what the
backbone counted. The last line is JSON. Under a minute on one thread at one epoch a task.
"""

import argparse
import json
from collections import Counter

import torch

from cilkit import backbones, incremental, learners
from cilkit.data import ImageSet, Stream, load
from cilkit.synthesis import glyphs

ARMS = {"distillation": (0.0, 1.0), "replay": (1.0, 0.0), "both": (1.0, 1.0)}


def painted() -> ImageSet:
    """A few font renderings of the digits, in place of paintings: only their number matters here."""
    names = [f"digit {word}" for word in "zero one two three four five six seven eight nine".split()]
    return ImageSet.from_arrays(*glyphs.render_set(names, per_class=5, seed=0), names)


def cases(epochs: int):
    """(what, learner, parameters) of every learner and of each arm of synthetic replay."""
    images = painted()
    for name in learners.NAMES:
        if name == "synthetic_replay":
            for arm, (a, b) in ARMS.items():
                yield f"{name}: {arm}", name, {"epochs": epochs, "a": a, "b": b, "images": images}
        else:
            yield name, name, {} if name == "nearest_mean" else {"epochs": epochs}
    yield "slca, frozen backbone", "slca", {"epochs": epochs, "slow_rate": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=1, help="epochs a task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stream = Stream(load("digits_photo"), order_seed=1993, increments=2)
    print(f"{'learner':32s}{'kind':12s}{'declared':>10s}{'forwarded':>10s}")
    beyond = 0
    for what, name, parameters in cases(arguments.epochs):
        learner = learners.create(name, backbones.create(seed=0), seed=0, **parameters)
        incremental.run_stream(learner, stream, None)
        declared, spent = Counter(learner.declared(stream)), learner.backbone.forwarded
        for kind in sorted(declared | spent):
            print(f"{what:32s}{kind:12s}{declared[kind]:10d}{spent[kind]:10d}")
            beyond += abs(spent[kind] - declared[kind])
    print(json.dumps({"name": "images_beyond_declared", "value": beyond, "unit": "images"}))


if __name__ == "__main__":
    main()
