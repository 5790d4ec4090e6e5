"""Notebook 06: a stream's classes are named in writing."""

from __future__ import annotations

from typing import Any

from cilkit.answers import SENTENCE
from cilkit.road.aligning import prealign
from cilkit.road.inputs import verb_of
from cilkit.road.learning import compare
from cilkit.road.weights import VLM


@verb_of("06_generative_classifier")
def answer(
    arms: dict[str, dict],
    images: Any = "",
    learner: str = "gmm",
    alignment: dict | None = None,
    backbone: Any = "none",
    arch: str = "small_resnet",
    model_args: dict | None = None,
    seed_init: int = 0,
    threads: int = 1,
    device: str = "auto",
    sentence: str = SENTENCE,
    **shared: Any,
) -> dict[str, Any]:
    """A model that writes, in several arms on one stream: arm -> `Run`. The verb of notebook 06 and its files.

    images, alignment: what the captioner is aligned on, and further settings of `prealign`; of no use to a backbone
                       "vlm:NAME", which brings its own language model.
    The rest as in `compare`.
    """
    common = {"backbone": backbone, "arch": arch, "model_args": model_args, "seed_init": seed_init}
    common |= {"threads": threads, "device": device}
    captioner = None
    if not str(backbone).startswith(VLM):
        captioner = prealign(images, sentence=sentence, **common, **(alignment or {}))
    return compare(learner, arms, captioner=captioner, sentence=sentence, **common, **shared)
