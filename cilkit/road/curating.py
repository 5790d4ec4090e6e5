"""Between notebooks 02 and 03: which of the painted images teach."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.road.inputs import device_of, input_of, placed, threads_set_to, upstream, with_artifact

VERSION = 2  # part of the key: raise it when the same parameters come to mean another payload
KEEP, SCORES = "keep.parquet", "scores.parquet"


def score(images, backbone: Any = "", text_image: str = "", device: str = "auto", threads: int = 1, most: int = 0):
    """The artifact that holds `curation.scores` of an image set as scores.parquet: made once, for all rules.

    backbone:   what judges how well an image agrees with its class: an artifact, a timm name, a folder; "": nothing.
    text_image: a CLIP of transformers instead, by folder or hub name ("owner/name", "owner/name@revision").
    most:       score about so many images, the first of each class, for a look; 0: all.
    """
    from cilkit.road.weights import Weights
    from cilkit.synthesis import curation

    images = upstream(images, "images")
    judge, text_image = Weights(backbone) if backbone else None, _pinned(text_image)
    inputs = {"images": images.artifact} | (judge.inputs if judge else {})
    identity: dict[str, Any] = {"threads": threads, "text_image": _identity_of(text_image)}
    identity |= {"backbone": judge.identity} if judge else {}
    if 0 < most < len(images):
        identity["most"] = most
        classes = curation.by_class(images)
        each = math.ceil(most / len(classes))
        images = images.select(np.sort(np.concatenate([members[:each] for members in classes])))

    def make(work: artifacts.Work) -> None:
        with threads_set_to(threads):
            network = judge.load().to(device_of(device)) if judge else None
            on = str(device_of(device)) if text_image else "cpu"
            table = curation.scores(images, network, text_image, on, work.scratch)
        artifacts.write_parquet(work.path / SCORES, table)

    return artifacts.obtain("scores", VERSION, identity, inputs, make, {"device": device})


def curate(
    images,
    rules: Mapping[str, Any] | None = None,
    decisions: str = "",
    backbone: Any = "",
    text_image: str = "",
    benchmarks: Sequence[str] = (),
    device: str = "auto",
    threads: int = 1,
):
    """The images that pass the rules and that nobody rejected: an `ImageSet` with `.artifact`, which holds no pixels.

    rules:      as of `curation.decided`; None: no blank images, of near-duplicates the first.
    decisions:  a file of `curation.Decisions`, "" for none; they overrule the rules.
    backbone, text_image: as of `score`; asked only where a rule is about agreement.
    benchmarks: names of benchmarks whose overlap with the realm the card tells.
    """
    import pandas as pd

    from cilkit.data import benchmarks as real
    from cilkit.synthesis import cards, curation

    images = upstream(images, "images")
    rules = dict(curation.RULES if rules is None else rules)
    curation.check_rules(rules)
    judges = (backbone, text_image) if "agreement" in rules else ("", "")
    if "agreement" in rules and not any(judges):
        raise UserError("the rule agreement needs somebody who judges it; give a backbone or text_image")
    decisions = placed(decisions)
    if decisions and not Path(decisions).is_file():
        raise UserError(
            f"there is no file of decisions at {decisions!r}; check its path, give '', or begin it: the first decision "
            "in a gallery with this file does"
        )
    by_hand = curation.Decisions(decisions) if decisions else None
    for note in by_hand.notes if by_hand is not None else ():
        print(f"cilkit: {note}", flush=True)
    realm = input_of(images.artifact, "realm")
    inputs = {"images": images.artifact, "realm": realm.artifact}
    if rules:
        inputs["scores"] = score(images, *judges, device, threads)
    decided = by_hand.rows() if by_hand is not None else []
    identity = {"rules": rules, "decisions": decided, "benchmarks": list(benchmarks)}

    def make(work: artifacts.Work) -> None:
        scores = pd.read_parquet(inputs["scores"].file(SCORES)) if rules else pd.DataFrame({"image_id": images.ids})
        table = curation.decided(scores, rules, by_hand)
        chosen = images.select(table["keep"].to_numpy())
        if not len(chosen):
            reasons = ", ".join(curation.rejected_by(table))
            raise UserError(f"nothing would be left of {images.artifact.name} ({reasons}); loosen the rules")
        artifacts.write_parquet(work.path / KEEP, table)
        artifacts.write_json(work.path / "decisions.json", decided)
        path = images.artifact.path / cards.CARD
        base = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        cards.write_card(
            work.path,
            realm=realm,
            counts=_counts(chosen),
            style=base.get("style", ""),
            rejected=curation.rejected_by(table),
            rules=rules,
            overlaps=cards.overlaps_of(realm, {name: real.class_names(name) for name in benchmarks}),
            base=base | {"chosen_from": images.artifact.digest},
        )

    return open_curated(artifacts.obtain("images", VERSION, identity, inputs, make))


def open_curated(artifact: artifacts.Artifact):
    """The `ImageSet` of an artifact with keep.parquet: rows of the set it was chosen from, without the empty classes.

    UserError where that set is gone, or holds other images.
    """
    import pandas as pd

    base = input_of(artifact, "images")
    table = pd.read_parquet(artifact.file(KEEP), columns=["image_id", "keep"])
    if not np.array_equal(base.ids, table["image_id"].to_numpy().astype(str)):
        raise UserError(f"{artifact.name} does not list the images of {base.artifact.name}; curate that set again")
    chosen = base.select(table["keep"].to_numpy())
    return with_artifact(chosen.keep_classes(list(_counts(chosen))), artifact)


def _counts(images) -> dict[str, int]:
    """Images a class, of the classes that have any."""
    counted = zip(images.class_names, images.counts.tolist(), strict=True)
    return {name: number for name, number in counted if number}


def _pinned(text_image: str) -> str:
    """A folder, or a hub's name with the commit that lies in the hub's cache, or else the newest."""
    text_image = placed(text_image)
    if not text_image or Path(text_image).is_dir():
        return text_image
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = text_image.partition("@")
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
        path = cached if isinstance(cached, str) else hf_hub_download(name, "config.json", revision=revision or None)
        return f"{name}@{Path(path).parent.name}"
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"text_image {text_image!r} is neither a folder nor to be had from the Hugging Face hub or its cache "
            f"({type(error).__name__}); correct the name, or give a folder"
        ) from None


def _identity_of(text_image: str) -> str:
    """A pinned name, or what a folder holds."""
    files = sorted(path for path in Path(text_image).rglob("*") if path.is_file()) if text_image else []
    listed = [[path.relative_to(text_image).as_posix(), artifacts.sha256_of(path)] for path in files]
    return hashlib.sha256(artifacts.canonical(listed).encode()).hexdigest() if listed else text_image
