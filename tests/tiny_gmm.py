"""GMM's learner at its smallest: a stream whose names give answers of all lengths, and a captioner that learns anew."""

import tiny
import torch

from cilkit import learners
from cilkit.data import Benchmark, ImageSet, Stream

NAMES = ["ox", "german_shepherd dog", "cat", "great white shark", "bee", "yorkshire_terrier"]  # answers of all lengths


def named(names):
    """Two classes a task, in this order; the images of tests.tiny."""
    parts = []
    for part, each in ((0, 8), (1, 3)):
        plain = tiny.image_set(len(names), each, part)
        parts.append(ImageSet.from_arrays(plain.images(), plain.labels, names))
    return Stream(Benchmark("named", *parts), None, 2)


def create(name="gmm", network=None, **changes):
    """A captioner that is to learn anew, two epochs a task; nothing is kept unless a test asks for it."""
    settings = {"epochs": 2, "batch_size": 8, "per_class": 0, "lr": 0.01, "warmup": 2, "seed": 0} | changes
    network = network or tiny.backbone()
    words = {"captioner": tiny.captioner(network), "text_encoder": tiny.letters}
    return learners.create(name, network, **{**words, **settings})


def start(learner, task):
    """The first batch of a task."""
    learner.sizes.append(len(task.classes))
    learner.begin_task(task)
    return next(learner.batches(task, 0))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    """Names of what is no longer bit-equal."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def gradients(learner, batch):
    for _, value in learner.learnt():
        value.grad = None
    terms = learner.descend(batch)
    return terms, torch.cat([value.grad.flatten() for _, value in learner.learnt()])
