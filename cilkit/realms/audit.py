"""How much of a benchmark was foreseen: its class names held against a realm's concepts.

No filter against the downstream classes exists in Premonition's notebook (read in source), so its results mix foreseen
with unforeseen classes; every realm and benchmark are audited here before they meet, and `overlap` names what to leave
out for the honest arm.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.realms.names import canonical
from cilkit.realms.realm import Concept, Realm
from cilkit.realms.text_embedding import Likeness, likeness

if TYPE_CHECKING:
    import pandas as pd

MATCHES = ("exact", "normalised", "containment", "fuzzy", "embedding", "n-grams", "none")  # best first
FUZZY = 0.85  # least similarity (difflib ratio) that counts as a fuzzy match: our decision
SAME = ("exact", "normalised")  # the kinds of match that mean the same class


def words(name: str) -> tuple[str, ...]:
    """A class name as comparable words: `names.canonical` without leading number and other marks."""
    return tuple(re.findall(r"[^\W_]+", canonical(re.sub(r"^\d+[._]", "", name))))


def audit(
    realm: Realm,
    class_names: Sequence[str],
    encoder: str | Likeness = "",
    threshold: float | None = None,
) -> pd.DataFrame:
    """For every benchmark class the concept nearest to it: DataFrame class, concept, match, score (0 to 1).

    match: "exact" (equal strings), "normalised" (equal words), "containment" (one's words within the other's), "fuzzy"
    (similar spelling), "embedding" or "n-grams" (cosine), "none" (concept "", score 0). Scientific names are compared
    as well.
    encoder: compares the classes that nothing else matched: a text encoder of transformers (hub name or folder), or
    "n-grams", which needs no model; "" for no such comparison. threshold: its least cosine (None: the encoder's own).
    """
    import pandas as pd

    others = [(concept.name, name) for concept in realm.concepts for name in _names(concept, realm)]
    found = _nearest([[name] for name in class_names], others, encoder, threshold)
    table = pd.DataFrame(found, columns=["match", "score", "concept"]).round({"score": 3})
    table.insert(0, "class", list(class_names))
    return table[["class", "concept", "match", "score"]]


def overlap(
    realm: Realm,
    class_names: Sequence[str],
    kinds: Iterable[str] = SAME,
    encoder: str | Likeness = "",
    threshold: float | None = None,
) -> list[str]:
    """Names of the concepts whose best match among the benchmark's classes is one of these kinds; in the realm's order.

    The other parameters are those of `audit`.
    """
    kinds = set(kinds)
    for kind in sorted(kinds - set(MATCHES)):
        raise UserError(f"kind of match {kind!r} is unknown; expected some of {', '.join(MATCHES)}")
    askers = [_names(concept, realm) for concept in realm.concepts]
    found = _nearest(askers, [(name, name) for name in class_names], encoder, threshold)
    return [concept.name for concept, (match, _, _) in zip(realm.concepts, found, strict=True) if match in kinds]


def _names(concept: Concept, realm: Realm) -> list[str]:
    """Its name, its scientific name, and the names of rows that were dropped as its repetition."""
    return [name for name in (concept.name, concept.scientific_name, *realm.synonyms.get(concept.name, ())) if name]


Match = tuple[str, float, str]  # kind, score, what was found ("" for "none")


def _nearest(
    askers: Sequence[Sequence[str]], others: Sequence[tuple[str, str]], encoder: str | Likeness, threshold: float | None
) -> list[Match]:
    """The best match of each asker, which goes by any of its names, among others (what it is, its name)."""
    prepared = [(label, words(name), name) for label, name in others]
    letters = np.array([_letters(have) for _, have, _ in prepared]).reshape(-1, 64)
    found = [_spelled(names, prepared, letters) for names in askers]
    left = [place for place, (match, _, _) in enumerate(found) if match == "none"]
    if encoder and left and others:
        by = likeness(encoder)
        least = by.threshold if threshold is None else threshold
        if not 0 <= least <= 1:
            raise UserError(f"threshold {least} is no cosine that could be a match; give one from 0 to 1")
        texts = [(place, _readable(name)) for place in left for name in askers[place]]
        cosines = by.cosines([text for _, text in texts], [_readable(name) for _, name in others])  # (texts, others)
        for (place, _), row in zip(texts, cosines, strict=True):
            nearest = int(row.argmax())
            if row[nearest] >= least and row[nearest] > found[place][1]:
                found[place] = (by.kind, float(row[nearest]), others[nearest][0])
    return found


def _spelled(names: Sequence[str], prepared: Sequence[tuple[str, tuple[str, ...], str]], letters: np.ndarray) -> Match:
    best = ("none", 0.0, "")
    for name in names:
        wanted = words(name)
        shared = np.minimum(letters, _letters(wanted)).sum(1)  # (others,): at most so many letters stand in both
        close = 2 * shared >= FUZZY * (letters.sum(1) + _letters(wanted).sum())  # difflib's ratio cannot be higher
        for (label, have, text), near in zip(prepared, close.tolist(), strict=True):
            match, score = _compare(have, text, wanted, name, near)
            if (MATCHES.index(match), -score) < (MATCHES.index(best[0]), -best[1]):
                best = (match, score, label)
    return best


def _letters(name: Sequence[str]) -> np.ndarray:
    """How often each letter stands in a name's words, int64 (64,); rare ones share a place, which bounds from above."""
    return np.bincount([ord(letter) % 64 for letter in " ".join(name)], minlength=64)


def _readable(name: str) -> str:
    return re.sub(r"^\d+[._]", "", name).replace("_", " ")


def _compare(have: tuple[str, ...], text: str, wanted: tuple[str, ...], name: str, near: bool) -> tuple[str, float]:
    if text == name:
        return "exact", 1.0
    if have == wanted:
        return "normalised", 1.0
    if _within(have, wanted) or _within(wanted, have):
        return "containment", min(len(have), len(wanted)) / max(len(have), len(wanted))
    score = _similarity(" ".join(have), " ".join(wanted)) if near else 0.0
    return ("fuzzy", score) if score >= FUZZY else ("none", 0.0)


def _within(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """Whether the words of `short` stand together, in order, in `long`."""
    return 0 < len(short) < len(long) and f" {' '.join(short)} " in f" {' '.join(long)} "


def _similarity(one: str, other: str) -> float:
    """difflib's ratio, which depends on the order of the two unless they are put in one."""
    return difflib.SequenceMatcher(None, *sorted((one, other))).ratio()
