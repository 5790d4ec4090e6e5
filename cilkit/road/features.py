"""Features of a benchmark behind a frozen backbone: each image once, for every run that asks for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from cilkit import artifacts
from cilkit import precision as numbers
from cilkit.errors import UserError
from cilkit.progress import bar
from cilkit.road.inputs import device_of, threads_set_to

if TYPE_CHECKING:
    from cilkit.data import Benchmark
    from cilkit.road.weights import Weights

VERSION = 1  # part of the key: raise it when the same parameters come to mean another payload
FEATURES = "features.npy"
PIECE = 20_000  # images between two places where an interrupted pass can go on


def features(
    benchmark: Benchmark,
    part: str,
    weights: Weights,
    recipe: str = "none",
    image_size: int = 0,
    threads: int = 1,
    device: str = "auto",
    precision: str = "float32",
) -> artifacts.Artifact:
    """The artifact whose `features.npy`, float32 (n, dim), has in row i the features of image i of a part.

    part:   "train" or "test". Row i belongs to position i of its source, so `FeatureBank.fill(source.key, array)` takes
            the array as it is, memory-mapped.
    recipe: its test transform comes before the backbone; `image_size` as in `transforms.recipe`.
    `features.json` says which backbone it was, and how many images were forwarded.
    """
    if part not in ("train", "test"):
        raise UserError(f"a benchmark has no part {part!r}; take 'train' or 'test'")
    identity = {"part": part, "recipe": recipe, "image_size": image_size, "threads": threads, **weights.identity}
    identity |= {} if precision == "float32" else {"precision": precision}
    inputs = {"benchmark": benchmark.artifact, **weights.inputs}

    def make(work: artifacts.Work) -> None:
        from cilkit.data import transforms

        images = getattr(benchmark, part)
        n = len(images.source.sizes)
        whole = images.at(np.arange(n), np.zeros(n, np.int64))  # classes that the benchmark leaves out too
        with threads_set_to(threads):
            network = numbers.prepare(weights.load().to(device_of(device)), precision)
            made_for = transforms.recipe(recipe, network.input, image_size)
            pieces = _pieces(network, whole, "test" if part == "test" else "statistics", made_for, work)
        _join(pieces, work.path / FEATURES)
        facts = {"backbone": network.tag, "images": n, "dim": network.dim, "forwarded": n}
        artifacts.write_json(work.path / "features.json", facts)

    return artifacts.obtain("features", VERSION, identity, inputs, make, execution={"device": device})


def opened(artifact: artifacts.Artifact) -> np.ndarray:
    """float32 (n, dim), memory-mapped."""
    return np.load(artifact.file(FEATURES), mmap_mode="r")


def _pieces(network, images, kind: str, recipe, work: artifacts.Work) -> list:
    """The features piece by piece in scratch files; what an earlier attempt finished is not computed again."""
    from cilkit import backbones

    paths = []
    with bar("features", len(images)) as tick:
        for start in range(0, len(images), PIECE):
            paths.append(work.scratch / f"features-{start // PIECE:05d}.npy")
            some = images.select(slice(start, start + PIECE))
            if not paths[-1].exists():
                artifacts.save_npy(paths[-1], backbones.extract(network, some, kind, recipe))
            tick(len(some))
    return paths


def _join(paths: list, target) -> None:
    """One array of all pieces, without holding it in memory."""
    arrays = [np.load(path, mmap_mode="r") for path in paths]
    beside = target.with_name(f".{target.name}.tmp")
    shape = sum(len(array) for array in arrays), arrays[0].shape[1]
    joined = np.lib.format.open_memmap(beside, "w+", np.float32, shape)
    np.concatenate(arrays, out=joined)
    joined.flush()
    os.replace(beside, target)
