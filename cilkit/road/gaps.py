"""Notebook 07: how far paintings lie from the real images that they foresaw, whole and class by class."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit import artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError
from cilkit.road.inputs import device_of, opener_of, threads_set_to, upstream
from cilkit.road.weights import Weights

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1  # part of the key: raise it when the same parameters come to mean another payload
COMPONENTS = 30  # leading principal components of the real pixels, where no backbone is named
SIDE = 32  # pixels that an image is shrunk to before
FEWEST = 10  # images of a class on either side, below which its distances say nothing


@opener_of("gap")
@dataclass(frozen=True)
class Gap:
    """`whole` and, a row a class that both sets have, `by_class`: the figures of `cilkit.analysis.domain_gap`, and
    images, how many of either set they compare."""

    artifact: Artifact

    @property
    def whole(self) -> dict[str, float]:
        return self._read()["whole"]

    @property
    def by_class(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self._read()["classes"]).T.rename_axis("class")

    def _read(self) -> dict[str, Any]:
        return json.loads(self.artifact.file("gap.json").read_text())


def gap(
    images: Any,
    benchmark: Any,
    classes: Sequence[str] = (),
    features: str = "",
    number: int = 400,
    seed: int = 0,
    threads: int = 1,
    device: str = "auto",
) -> Gap:
    """How far an image set lies from a benchmark's training images, as an artifact.

    images:    an image set, its artifact or a 02 parameter file.
    benchmark: a `Benchmark`, or its name.
    classes:   of the image set, those that are compared as a whole (that a backbone has seen, say); (): all.
    features:  a backbone as in `cilkit.run`, in whose features it is measured; "": the 30 leading principal components
               of the real pixels, in units of their mean deviation. Distances of one kind of features alone compare.
    number:    images of either set, drawn by `seed`, in the whole and at most in a class. Classes with fewer than 10 in
               either set have no row.
    """
    from cilkit.data import benchmarks

    images = upstream(images, "images")
    real = benchmarks.load(benchmark) if isinstance(benchmark, str) else benchmark
    if number < FEWEST:
        raise UserError(f"number is {number}; expected {FEWEST} images or more, to have distances that say something")
    for name in classes:
        if name not in images.class_names:
            raise UserError(f"{images.artifact.name} has no class {name!r}; check `classes`")
    weights = Weights(features) if features else None
    inputs = {"images": images.artifact, "benchmark": real.artifact, **(weights.inputs if weights else {})}
    identity = {"classes": sorted(classes), "number": number, "seed": seed}
    identity |= {"threads": threads, **weights.identity} if weights else {"backbone": "pixels"}

    def make(work: artifacts.Work) -> None:
        painted = images.keep_classes(list(classes)) if classes else images
        if weights:
            with threads_set_to(threads):
                found = _figures(real.train, images, painted, _network(weights, device), number, seed)
        else:
            found = _figures(real.train, images, painted, _components(real.train, number, seed), number, seed)
        artifacts.write_json(work.path / "gap.json", found)

    return Gap(artifacts.obtain("gap", VERSION, identity, inputs, make, execution={"device": device}))


def _figures(real, images, painted, features: Callable, number: int, seed: int) -> dict[str, dict]:
    """{"whole": figures of `painted`, "classes": {class: figures}}."""
    shared = [name for name in real.class_names if name in set(images.class_names)]
    of_class = {name: (real.keep_classes([name]), images.keep_classes([name])) for name in shared}
    pairs = {name: pair for name, pair in of_class.items() if min(map(len, pair)) >= FEWEST}
    by_class = {name: _between(*pair, features, number, seed) for name, pair in pairs.items()}
    return {"whole": _between(real, painted, features, number, seed), "classes": by_class}


def _between(real, painted, features: Callable, number: int, seed: int) -> dict[str, float]:
    """The figures of as many images of either set, at most `number`."""
    from cilkit import analysis

    size = min(number, len(real), len(painted))
    sides = [features(_drawn(one, size, seed)) for one in (real, painted)]  # (size, dim)
    return {"images": size, **analysis.domain_gap(*sides, seed=seed)}


def _drawn(images, size: int, seed: int):
    return images.select(np.sort(np.random.default_rng(seed).choice(len(images), size, replace=False)))


def _components(real, number: int, seed: int) -> Callable:
    """Images -> their leading principal components (n, COMPONENTS), those of so many real ones."""
    pixels = _pixels(_drawn(real, min(number, len(real)), seed))
    centre = pixels.mean(0)
    directions = np.linalg.svd(pixels - centre, full_matrices=False)[2][:COMPONENTS].T  # (pixels, components)
    unit = ((pixels - centre) @ directions).std()
    return lambda images: (_pixels(images) - centre) @ directions / unit


def _pixels(images) -> np.ndarray:
    """float64 (n, SIDE * SIDE * 3), values in 0 … 1."""
    from cilkit.data.decoding import shrunk

    return np.stack([shrunk(image, square=SIDE) for image in images.read()]).reshape(len(images), -1) / 255


def _network(weights: Weights, device: str) -> Callable:
    """Images -> the backbone's features (n, dim), behind its own test transform."""
    from cilkit import backbones
    from cilkit.data import transforms

    network = weights.load().to(device_of(device))
    recipe = transforms.recipe("timm_test", network.input)
    return lambda images: backbones.extract(network, images, "probe", recipe)
