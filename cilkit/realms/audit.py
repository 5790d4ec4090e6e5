"""How much of a benchmark was foreseen: its class names held against a realm's concepts.

No filter against the downstream classes exists in Premonition's notebook (read in source), so its results mix foreseen
with unforeseen classes; every realm and benchmark are audited here before they meet, and `overlap` names what to leave
out for the honest arm.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

from cilkit.realms.parsing import normal
from cilkit.realms.realm import Concept, Realm

MATCHES = ("exact", "normalised", "containment", "fuzzy", "none")  # best first
FUZZY = 0.85  # least similarity (difflib ratio) that counts as a fuzzy match: our decision
SAME = ("exact", "normalised")  # the kinds of match that mean the same class


def words(name: str) -> tuple[str, ...]:
    """A class name as comparable words: case folded, without punctuation, leading number, plural or possessive s."""
    text = re.sub(r"^\d+[._]", "", normal(name))
    text = re.sub(r"['’]s\b|['’]", "", text)
    return tuple(_singular(word) for word in re.findall(r"[^\W_]+", text))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def audit(realm: Realm, class_names: Sequence[str]):
    """For every benchmark class the concept nearest to it: DataFrame class, concept, match, score (0 to 1).

    match: "exact" (equal strings), "normalised" (equal words), "containment" (one's words within the other's), "fuzzy"
    (similar spelling), "none" (concept "", score 0). Scientific names are compared as well.
    """
    import pandas as pd

    named = [(concept, words(text), text) for concept in realm.concepts for text in _names(concept)]
    rows = [(name, *_best(name, named)) for name in class_names]
    return pd.DataFrame(rows, columns=["class", "concept", "match", "score"])


def overlap(realm: Realm, class_names: Sequence[str], kinds: Iterable[str] = SAME) -> list[str]:
    """Names of the concepts that are a benchmark class already, by these kinds of match; in the realm's order."""
    wanted, classes = set(kinds), [(words(name), name) for name in class_names]
    found = []
    for concept in realm.concepts:
        names = [(words(text), text) for text in _names(concept)]
        matches = (min((_compare(*have, *one) for have in names), key=_rank)[0] for one in classes)
        if any(match in wanted for match in matches):
            found.append(concept.name)
    return found


def _names(concept: Concept) -> list[str]:
    return [name for name in (concept.name, concept.scientific_name) if name]


def _best(name: str, named: list[tuple[Concept, tuple[str, ...], str]]) -> tuple[str, str, float]:
    wanted = words(name)
    found = [(*_compare(have, text, wanted, name), concept.name) for concept, have, text in named]
    match, score, concept = min(found, key=_rank, default=("none", 0.0, ""))
    return (concept if match != "none" else ""), match, round(score, 3)


def _rank(found: tuple) -> tuple[int, float]:
    return MATCHES.index(found[0]), -found[1]


def _compare(have: tuple[str, ...], text: str, wanted: tuple[str, ...], name: str) -> tuple[str, float]:
    if text == name:
        return "exact", 1.0
    if have == wanted:
        return "normalised", 1.0
    if _within(have, wanted) or _within(wanted, have):
        return "containment", min(len(have), len(wanted)) / max(len(have), len(wanted))
    score = _similarity(" ".join(have), " ".join(wanted))
    return ("fuzzy", score) if score else ("none", 0.0)


def _within(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """Whether the words of `short` stand together, in order, in `long`."""
    return 0 < len(short) < len(long) and f" {' '.join(short)} " in f" {' '.join(long)} "


def _similarity(one: str, other: str) -> float:
    """difflib's ratio where it reaches FUZZY, else 0; its cheap upper bounds come first."""
    if 2 * min(len(one), len(other)) < FUZZY * (len(one) + len(other)):
        return 0.0
    matcher = difflib.SequenceMatcher(None, one, other)
    if matcher.quick_ratio() < FUZZY or matcher.ratio() < FUZZY:
        return 0.0
    return matcher.ratio()
