"""Curation as data: scores of every image, rules over the scores, and people's decisions, which overrule the rules.

Nothing is thrown away: `decided` says of every image whether it is kept and, if not, the one reason why. What a person
decides is appended to a file and never rewritten.
"""

import math
import operator
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit import artifacts
from cilkit.data import loading
from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError, near_name, reason_of
from cilkit.progress import bar
from cilkit.synthesis import inspection
from cilkit.synthesis.decisions import ACCEPT, Decisions

if TYPE_CHECKING:
    import pandas as pd

    from cilkit.backbones import Backbone

PIXELS = 1 << 21  # pixels of images that are scored at once, by each of
THREADS = min(8, os.cpu_count() or 1)
SCORED = ("blank", "contrast", "sharpness", "agreement")  # the scores that a rule can judge, in this order
DUPLICATES = ("first", "sharpest", "all")  # what is kept of a cluster of near-duplicates
COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
RULES = {"blank": False, "duplicates": "first"}  # where none are given
BY_HAND = "by hand"


def scores(
    images: ImageSet,
    backbone: "Backbone | None" = None,
    text_image: str = "",
    device: str = "cpu",
    scratch: Path | None = None,
) -> "pd.DataFrame":
    """Scores of every image: DataFrame image_id, class_name, contrast, sharpness, blank, duplicate_of, cluster,
    agreement.

    contrast, sharpness: as of `inspection`, in grey levels. blank: a contrast below inspection.BLANK_RANGE.
    duplicate_of:    the first image of the class that it nearly equals, "" for none; images of different sizes are
                     never duplicates. cluster: number of the group that it forms with them, -1 for a lone image.
    agreement:       with a `backbone` as of `agreement_with_means`, with `text_image` as of `agreement_with_text`,
                     NaN with neither. device: where text_image computes; a backbone is where it was put.
    scratch:         a folder in which the classes that are done are kept: an interrupted scoring goes on with the next.
    """
    import pandas as pd

    if backbone is not None and text_image:
        raise UserError("agreement was asked for with a backbone and with text_image; give one of them")
    names = np.asarray(images.class_names, dtype=object)[images.labels]
    columns = {"image_id": images.ids, "class_name": names, **_looked_at(images, scratch)}
    if backbone is not None:
        columns["agreement"] = agreement_with_means(images, backbone)
    elif text_image:
        columns["agreement"] = agreement_with_text(images, text_image, device)
    else:
        columns["agreement"] = np.full(len(images), np.nan)
    return pd.DataFrame(columns)


def by_class(images: ImageSet) -> list[np.ndarray]:
    """Positions of the images of each class that has any, in the set's order."""
    parts = np.split(np.argsort(images.labels, kind="stable"), np.cumsum(images.counts)[:-1])
    return [members for members in parts if len(members)]


def _looked_at(images: ImageSet, scratch: Path | None) -> dict[str, np.ndarray]:
    """The scores that need the pixels only, every image decoded once; of a class, small copies are held together."""
    found = np.empty((len(images), 3))  # as of `_of_a_class`
    classes = by_class(images)
    files = [scratch and scratch / f"scores-{number:05d}.npy" for number in range(len(classes))]
    kept = [bool(file) and file.exists() for file in files]
    done = sum(len(members) for members, there in zip(classes, kept, strict=True) if there)
    images.read(slice(0, 1))  # a set that fits into memory is decoded here as a whole, not by every thread
    with bar("scores", len(images), done) as tick:
        for members, file, there in zip(classes, files, kept, strict=True):
            rows = np.load(file) if there else _of_a_class(images.select(members), tick)
            if file and not there:
                artifacts.save_npy(file, rows)
            found[members] = rows
            firsts = rows[:, 2].astype(int)
            found[members, 2] = np.where(firsts < 0, -1, members[firsts])
    contrast, sharp, first = found[:, 0], found[:, 1], found[:, 2].astype(int)
    twins, firsts = np.flatnonzero(first >= 0), np.unique(first[first >= 0])
    cluster, duplicate_of = np.full(len(images), -1), np.full(len(images), "", dtype=object)
    cluster[firsts] = np.arange(len(firsts))
    cluster[twins], duplicate_of[twins] = cluster[first[twins]], images.ids[first[twins]]
    blank = contrast < inspection.BLANK_RANGE
    return {"contrast": contrast, "sharpness": sharp, "blank": blank, "duplicate_of": duplicate_of, "cluster": cluster}


def _of_a_class(images: ImageSet, tick: Callable[[int], None]) -> np.ndarray:
    """Of images of one class, float (n, 3): contrast, sharpness, and which image each nearly equals, -1 for none.

    THREADS read and look at PIXELS each at once; of what they saw, small copies stay.
    """
    found = np.full((len(images), 3), -1.0)
    sizes, group = np.unique(images.sizes, axis=0, return_inverse=True)
    for number, size in enumerate(sizes.tolist()):
        members = np.flatnonzero(group.reshape(-1) == number)
        cuts = _pieces(members, max(1, PIXELS // math.prod(size)))
        look = lambda cut: _seen(np.stack(images.read(cut)))  # noqa: E731
        small, hashes = [], []
        for cut, seen in zip(cuts, loading.in_order(look, cuts, THREADS, THREADS), strict=True):
            found[cut, 0], found[cut, 1] = seen[:2]
            small.append(seen[2])
            hashes.append(seen[3])
            tick(len(cut))
        for twin, first in inspection.near_duplicates(np.concatenate(small), np.concatenate(hashes)).items():
            found[members[twin], 2] = members[first]
    return found


def _seen(pixels: np.ndarray) -> tuple[np.ndarray, ...]:  # uint8 (b, h, w, 3)
    looks = (inspection.contrasts, inspection.sharpness, inspection.reduced, inspection.perceptual_hashes)
    return tuple(look(pixels) for look in looks)


def agreement_with_means(images: ImageSet, backbone: "Backbone") -> np.ndarray:
    """How much nearer each image is to its class than to any other, float (n,) in [-2, 2]; our decision.

    Cosine with the mean of its class's other images minus the largest cosine with another class's mean (of features of
    length one, as in iCaRL's nearest mean): above 0, the nearest class mean left one out is its own. NaN for the only
    image of a class, and where there is one class only.
    """
    from cilkit import backbones
    from cilkit.data.transforms import recipe

    prepared = recipe("timm_test" if backbone.input.size else "none", backbone.input)
    features = backbones.extract(backbone, images, "statistics", prepared)  # (n, dim)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)  # in place: it may be large
    counts, labels = images.counts, images.labels
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, labels, features)
    means, found = _unit(sums), np.empty(len(images))
    for rows in _pieces(np.arange(len(images)), 4096):
        own = (features[rows] * _unit(sums[labels[rows]] - features[rows])).sum(axis=1)
        cosines = features[rows] @ means.T  # (b, classes)
        cosines[np.arange(len(rows)), labels[rows]] = -np.inf
        cosines[:, counts == 0] = -np.inf
        found[rows] = own - cosines.max(axis=1)
    found[(counts[labels] < 2) | np.isinf(found)] = np.nan
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _pieces(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(rows, range(size, len(rows), size))


def agreement_with_text(images: ImageSet, name: str, device: str = "cpu") -> np.ndarray:
    """Cosine of each image with "a photo of CLASS", float (n,), by a CLIP of transformers.

    name: a folder, or a hub name, with a revision as "owner/name@revision".
    """
    import torch
    from transformers import AutoConfig, AutoImageProcessor, CLIPVisionModelWithProjection

    from cilkit.realms.text_embedding import TextEncoder

    name, revision = (name, None) if Path(name).is_dir() else (name.partition("@")[0], name.partition("@")[2] or None)
    encoder = TextEncoder(name, "a photo of {name}", revision, device)
    text = encoder.embed(images.class_names)  # (classes, dim)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        config.vision_config.projection_dim = config.projection_dim
        model = CLIPVisionModelWithProjection.from_pretrained(name, revision=revision, config=config.vision_config)
        processor = AutoImageProcessor.from_pretrained(name, revision=revision)
    except Exception as error:  # the hub's client and damaged folders raise many unrelated classes
        raise UserError(
            f"text_image {name!r} is no CLIP that can be loaded ({reason_of(error)}); give another"
        ) from error
    model, found = model.to(device).eval(), np.empty(len(images))
    with bar("agreement", len(images)) as tick, torch.no_grad():
        for rows in _pieces(np.arange(len(images)), 64):
            shown = processor(images=list(images.read(rows)), return_tensors="pt").to(device)
            seen = model(**shown).image_embeds.float().cpu().numpy()  # (b, dim)
            found[rows] = (_unit(seen) * text[images.labels[rows]]).sum(axis=1)
            tick(len(rows))
    return found


def check_rules(rules: Mapping[str, Any]) -> None:
    """UserError for a rule that is none: its name is unknown, or what it asks for."""
    for name, wanted in rules.items():
        _passes(name, wanted, np.zeros(0))


def _passes(name: str, wanted: Any, score: np.ndarray) -> np.ndarray:
    """Which of the images pass a rule, bool (n,), by this score (n,)."""
    known = (*SCORED, "duplicates")
    if name not in known:
        raise UserError(f"rule {name!r} is unknown{near_name(name, known)}; rules are {', '.join(known)}")
    if name == "duplicates":
        if wanted not in DUPLICATES:
            raise UserError(f"rule duplicates is {wanted!r}; expected one of {', '.join(DUPLICATES)}")
        return np.ones(len(score), bool)  # decided once the other rules are
    if name == "blank":
        if not isinstance(wanted, bool):
            raise UserError(f"rule blank is {wanted!r}; expected true or false")
        return score == wanted
    found = re.fullmatch(r"\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)\s*", str(wanted))
    if not found:
        raise UserError(f"rule {name} is {wanted!r}; expected a comparison such as '>=3'")
    return COMPARISONS[found[1]](score, float(found[2])) | np.isnan(score)


def decided(
    scores: "pd.DataFrame", rules: Mapping[str, Any] | None = None, decisions: Decisions | None = None
) -> "pd.DataFrame":
    """DataFrame image_id, keep, reason: one row an image, the reason "" for an image that is kept by the rules.

    rules: e.g. {"blank": False, "sharpness": ">=3", "duplicates": "first", "agreement": ">=0.2"}: what a kept image
    must fulfil; of a cluster of duplicates the first or the sharpest of those that fulfil the rest, or all. A score
    that is NaN is not judged. A decision overrules every rule, and an accepted duplicate stands for its cluster.
    """
    import pandas as pd

    rules = RULES if rules is None else rules
    reason = np.full(len(scores), "", dtype=object)
    check_rules(rules)
    for name in (name for name in SCORED if name in rules):  # in one order, so that a reason does not depend on theirs
        bad = ~_passes(name, rules[name], scores[name].to_numpy())
        reason[bad & (reason == "")] = name if name == "blank" else f"{name} not {str(rules[name]).strip()}"
    by_hand = _by_hand(scores, decisions, reason)
    if rules.get("duplicates", "all") != "all":
        _without_duplicates(scores, rules["duplicates"], by_hand == ACCEPT, reason)
    keep = (reason == "") | (by_hand == ACCEPT)
    return pd.DataFrame({"image_id": scores["image_id"], "keep": keep, "reason": reason})


def _by_hand(scores: "pd.DataFrame", decisions: Decisions | None, reason: np.ndarray) -> np.ndarray:
    """What was decided about each image, "" for nothing; writes it into `reason`."""
    found = np.full(len(scores), "", dtype=object)
    place = {image_id: row for row, image_id in enumerate(scores["image_id"])} if decisions else {}
    for row in decisions.rows() if decisions else ():
        if row["image_id"] not in place:
            raise UserError(
                f"{decisions.path} decides about {row['image_id']!r}, which the image set does not hold; "
                "delete the line, or give the decisions about this set"
            )
        at = place[row["image_id"]]
        found[at], reason[at] = row["decision"], f"{BY_HAND}: {row['why']}" if row["why"] else BY_HAND
    return found


def _without_duplicates(scores: "pd.DataFrame", which: str, accepted: np.ndarray, reason: np.ndarray) -> None:
    clusters = scores["cluster"].to_numpy()
    alive = (clusters >= 0) & ((reason == "") | accepted)
    best = -scores["sharpness"].to_numpy() if which == "sharpest" else np.arange(len(scores))
    taken = set()
    for row in sorted(np.flatnonzero(alive), key=lambda row: (not accepted[row], best[row], row)):
        if clusters[row] in taken and not accepted[row]:
            reason[row] = "duplicates"
        taken.add(clusters[row])


def rejected_by(table: "pd.DataFrame") -> dict[str, int]:
    """Images that `decided` leaves out, by reason; what people wrote about theirs is not told apart."""
    reasons = table.loc[~table["keep"], "reason"].map(lambda reason: reason.partition(": ")[0])
    return {reason: int(number) for reason, number in sorted(reasons.value_counts().items())}
