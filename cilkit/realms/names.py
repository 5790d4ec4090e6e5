"""When two names mean one class, and which names mean none that could be painted."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cilkit.realms.parsing import Report, Row

NAME_LIMIT = 80  # characters of a name; our decision (the longest published one has 34)
_IRREGULAR = {"leaves": "leaf", "knives": "knife", "wolves": "wolf", "loaves": "loaf", "shelves": "shelf"}
_IRREGULAR |= {"geese": "goose", "mice": "mouse", "feet": "foot", "teeth": "tooth", "men": "man", "women": "woman"}
_ENDINGS = ((r"(x|ch|sh|ss|z)es$", r"\1"), (r"oes?$", "o"), (r"ies?$", "y"), (r"([^sui])s$", r"\1"))
_RANKS = {"var", "subsp", "ssp", "f", "cv"}
_SYNONYMS = ("repeated scientific name", "scientific synonym")  # repairs that drop another name of a kept row
_TAG = re.compile(r"</?[a-z!?][^<>]{0,500}>", re.IGNORECASE)
_VAGUE = {"other", "others", "misc", "miscellaneous", "various", "etc", "none", "n/a", "unknown", "unnamed", "name"}
_VAGUE |= {"and others", "and more", "and so on", "others like it", "anything else", "various others"}
_SENSE = r"sound|noise|smell|scent|odou?r|aroma|taste|flavou?r|feeling"
_NOT_SEEN = re.compile(rf"(?:{_SENSE})s? of\b|.*\s(?:{_SENSE})s?$|(?:{_SENSE})s?$")
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget) (?:(?:all|any|everything|the|your|previous|prior|above)\b\s?)+|\bsystem prompt\b"
    r"|^(?:i am|i'm|i can(?:not|'t)|i'm sorry|as an? (?:ai|language)|you are|please|note that|here (?:is|are))\b"
    r"|^(?:sorry|sure|note)[,.:]"
)


def plain(text: str) -> str:
    """NFKC, single spaces, no bold marks, nothing that nobody sees."""
    return " ".join(visible(unicodedata.normalize("NFKC", text).replace("**", "")).split())


def visible(text: str) -> str:
    """The text without control, bidirectional, private and unpaired surrogate characters; white space stays."""
    if text.isascii() and text.isprintable():
        return text
    hidden = {ord(c) for c in set(text) if unicodedata.category(c)[0] == "C" and not c.isspace()}
    return text.translate(dict.fromkeys(hidden)) if hidden else text


def normal(text: str) -> str:
    """The form in which two names are the same text: `plain` and case folded."""
    return plain(text).casefold()


def without_markup(text: str) -> str:
    """The text without HTML tags, its character references resolved first."""
    return _TAG.sub(" ", html.unescape(unicodedata.normalize("NFKC", text)))


def canonical(name: str) -> str:
    """The form in which two names mean one class: case, hyphens, apostrophes, plural and article set aside.

    "The Blue_Tits" and "blue tit" are one; "love-seat" and "love seat" too. Never empty where the name is not.
    """
    text = re.sub(r"['’`]s\b|['’`]", "", normal(name))
    words = re.sub(r"[\s_\-‐-―/.,:;\"“”()]+", " ", text).split()
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(map(_singular, words)) or normal(name)


def _singular(word: str) -> str:
    if word in _IRREGULAR or len(word) <= 3:
        return _IRREGULAR.get(word, word)
    for ending, instead in _ENDINGS:
        if re.search(ending, word):
            return re.sub(ending, instead, word)
    return word


def species(scientific_name: str) -> str:
    """Genus and epithets of a scientific name, without author, year and a repeated epithet; "" for "".

    "Parus major Linnaeus, 1758", "Parus major major" and "Parus major" are one species. A variety, a subspecies of
    another name and a cultivar stay apart: "Brassica oleracea var. botrytis" is cauliflower, the cabbage is not.
    """
    words = plain(scientific_name).replace("×", " x ").split()
    found = [words[0].casefold()] if words else []
    for word in words[1:]:
        bare = word.strip(".,()").casefold()
        if word[:1] in "'‘’\"":
            return " ".join([*found, normal(scientific_name).partition(word[:1])[2]])
        if (word[:1].islower() and bare not in (*_RANKS, *found[1:])) or (len(found) == 1 and bare.isalpha()):
            found.append(bare)
    return " ".join(found)


def unusable(name: str) -> str:
    """Why a name is no class that could be painted: "empty name", "not visual", "not a class"; "" where it is one."""
    text = normal(name)
    if not text or all(unicodedata.category(c)[0] in "PZ" for c in text):
        return "empty name"
    if text.strip(" .:") in _VAGUE or is_instruction(text):
        return "not a class"
    return "not visual" if _NOT_SEEN.match(text) else ""


def misnamed(name: str) -> str:
    """Why a name written by hand can name no concept, "" where it can."""
    if name and len(name) <= NAME_LIMIT and plain(name) == name:
        return ""
    return f"{name!r:.100} cannot name a concept, expected 1 to {NAME_LIMIT} plain characters"


def is_instruction(text: str) -> bool:
    """Whether a text talks to its reader ("ignore the above", "as an AI") instead of naming or describing."""
    return bool(_INSTRUCTION.search(text.casefold()))


def merged(rows: Iterable[Row], report: Report, exclude: Sequence[str] = ()) -> list[Row]:
    """The rows of all subtypes, each class once: the first row that bears its name or its scientific name is kept.

    Names are compared by `canonical`, scientific ones by `species`, "P. major" read as the one genus that the rows
    give it; the notebook compares exact strings. A scientific name cut at a dot is reported and kept: seven cabbages
    were left as "Brassica oleracea va", and their common names differ. Rows that name no class, and those of
    `exclude`, are left out. Every row left out is a line of the report.
    """
    rows = list(rows)
    barred, genera = {canonical(name) for name in exclude}, _genera(rows)
    kept, names, scientific, cuts = [], {}, {}, set()
    for row in rows:
        label = f"{row.name} ({row.scientific_name})" if row.scientific_name else row.name
        name, latin = canonical(row.name), species(row.scientific_name)
        latin = genera.get(latin, latin)
        if what := unusable(row.name) or ("not a class" if is_instruction(row.description) else ""):
            report.add(row.where, what, label)
        elif name in barred:
            report.add(row.where, "excluded name", label)
        elif not row.cut and latin in scientific:
            seen = normal(row.scientific_name) in scientific[latin]
            report.add(row.where, "repeated scientific name" if seen else "scientific synonym", label)
            scientific[latin].add(normal(row.scientific_name))
        elif name in names:
            what = "repeated name" if normal(row.name) == names[name] else "same name in another form"
            report.add(row.where, what, label)
        else:
            if row.cut and row.cut in cuts:
                report.add(row.where, "scientific name shared, cut at a dot", label, label)
            names[name] = normal(row.name)
            cuts |= {row.cut} - {""}
            if latin and not row.cut:
                scientific[latin] = {normal(row.scientific_name)}
            kept.append(row)
    return kept


def synonyms_of(rows: Iterable[Row], report: Report) -> dict[str, list[str]]:
    """The common names that were dropped because a kept row bears the scientific name: name -> names.

    Premonition's birds list one species as Black-necked and as Eared Grebe. The second row is left out here, but the
    class was foreseen under both names.
    """
    kept = {species(row.scientific_name): row.name for row in rows if row.scientific_name}
    found: dict[str, list[str]] = {}
    for repair in report.repairs:
        label = re.fullmatch(r"(.+) \((.+?)\)", repair.before) if repair.what in _SYNONYMS else None
        if label and species(label[2]) in kept:
            found.setdefault(kept[species(label[2])], []).append(label[1])
    return found


def _genera(rows: Sequence[Row]) -> dict[str, str]:
    """ "p. major" -> "parus major", for each abbreviated name that exactly one full name of the rows can stand for."""
    full: dict[str, set[str]] = {}
    for name in {species(row.scientific_name) for row in rows}:
        genus, _, rest = name.partition(" ")
        if rest and not genus.endswith("."):
            full.setdefault(f"{genus[0]}. {rest}", set()).add(name)
    return {short: names.pop() for short, names in full.items() if len(names) == 1}
