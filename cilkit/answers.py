"""Written answers: the name that an answer holds, the class seen that it is nearest to, and what answers get wrong.

GMM (Cao et al., CVPR 2024) classifies by text: a model writes "this is a photo of a [CLS].", a text encoder embeds what
stands for [CLS] and the names of the classes seen so far, and the most similar name is the prediction. The released
code cuts answers at fixed places (read: 26 characters from the left, 76 in all); here they are parsed by pattern.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cilkit.errors import UserError

LONGEST = 1000  # characters of an answer that are read; what a model goes on to say is no label
SENTENCE = (
    "this is a photo of a {}."  # inferred from the released parser and outputs; the paper: "This is a photo of …"
)
SCALE = 100.0  # of cosines as logits: CLIP's own bound of it (quoted); no prediction depends on it
UNFINISHED = re.compile(r"(?:\.[\s#]*|##)$")  # a full stop or the rest of a stop mark; one "#" may be a name's: "C#"
FIGURES = ("exact match", "exact match, prefixes repaired", "out of vocabulary", "future class", "prefix of one class")

Encoder = Callable[[list[str]], np.ndarray]  # texts -> unit vectors, float32 (n, dim)


def normalised(text: str) -> str:
    """One form for what reads the same: NFKC, no case, underscores and hyphens as spaces, no full stop at an end."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"[\s_\u2010-]+", " ", text).strip(" .")


def check_names(names: Sequence[str]) -> None:
    """UserError for an empty name, and for two that no answer could tell apart."""
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        form = normalised(name)
        if not form:
            raise UserError(f"class {place} has the name {name!r}, which leaves nothing to write; give it a name")
        if form in first:
            raise UserError(
                f"classes {first[form]} ({names[first[form]]!r}) and {place} ({name!r}) read the same, so that no "
                "answer could tell them apart; rename one of them"
            )
        first[form] = place


class Sentence:
    """An answer's form, with {} for the name: "this is a photo of a {}."."""

    def __init__(self, form: str = SENTENCE) -> None:
        before, *rest = form.split("{}")
        if len(rest) != 1:
            raise UserError(f"the sentence {form!r} has {len(rest)} places {{}} for the name; expected one")
        self.form = form
        words = [re.escape(word) for word in before.split()]
        if words and words[-1] in ("a", "an", "the"):  # a model may write "an", or leave it out
            words[-1] = r"(?:(?:an?|the)\b)?"
        self._before = re.compile(r"(?<!\w)" + r"\s*".join(words), re.IGNORECASE) if words else None
        words = [re.escape(word) for word in rest[0].split()]
        after = r"\s*" + r"\s+".join(words) + r"[\s#]*$"
        self._after = re.compile(after, re.IGNORECASE) if words else UNFINISHED

    def fill(self, name: str) -> str:
        return self.form.replace("{}", name)

    def parse(self, answer: str) -> str:
        """The name that an answer holds: what follows the sentence's beginning, wherever that stands before a stop mark
        "###", up to the end of the line; the first line where the sentence is missing; "" of an empty answer.

        The sentence's end is taken off, with what is left of a stop mark; of an answer cut short, the full stop.
        """
        text = answer[:LONGEST].strip().partition("###")[0]
        found = self._before.search(text) if self._before else None
        line, *_ = text[found.end() if found else 0 :].strip().splitlines() or [""]
        ended = self._after.search(line) if found or not self._before else None
        return line[: ended.start()].strip() if ended else UNFINISHED.sub("", line).strip(" .")


@dataclass(frozen=True)
class NameMatcher:
    """Names seen -> the one nearest to what was written, by cosine of text embeddings.

    names:    of the classes seen, by label.
    encode:   the text encoder.
    template: what both are put into before they are embedded, e.g. "a photo of a {}"; "{}": bare, as released (read).
    spaced:   embed names without underscores and case (ours); False: as they stand (read).
    """

    names: Sequence[str]
    encode: Encoder
    template: str = "{}"
    spaced: bool = True

    def scores(self, written: Sequence[str]) -> np.ndarray:
        """Cosines, float32 (n, seen), of written names; all 0 for an empty one.

        A name written exactly scores above every other. Each text is embedded once, however often it was written, and
        each product is summed by itself, in float64 and one order: neither the other answers nor a matrix product's
        blocks change a score, and names of the same embedding tie exactly.
        """
        check_names(self.names)
        place = {normalised(name): label for label, name in enumerate(self.names)}
        texts = list(dict.fromkeys(written))
        known = [place.get(normalised(text)) for text in texts]
        cosines = np.zeros((len(texts), len(self.names)), np.float32)
        some = [row for row, text in enumerate(texts) if normalised(text)]
        if some:
            names = self._embedded(self.names).astype(np.float64)  # (seen, dim)
            for row, vector in zip(some, self._embedded([texts[row] for row in some]), strict=True):
                cosines[row] = (names * vector).sum(1)
        for row, label in enumerate(known):
            if label is not None:
                cosines[row, label] = max(1.0, float(cosines[row].max())) + 1e-5
        rows = {text: row for row, text in enumerate(texts)}
        return cosines[[rows[text] for text in written]]

    def predict(self, written: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Labels int64 (n,), the lower one of two that tie, and scores (n, seen)."""
        scores = self.scores(written)
        return scores.argmax(1), scores

    def _embedded(self, texts: Sequence[str]) -> np.ndarray:
        shown = [normalised(text) if self.spaced else text for text in texts]
        vectors = np.asarray(self.encode([self.template.replace("{}", text) for text in shown]), np.float32)
        if vectors.ndim != 2 or len(vectors) != len(shown) or not np.isfinite(vectors).all():
            raise UserError(
                f"the text encoder gave {vectors.shape} for {len(shown)} texts, or numbers that are not finite; it has "
                "to give a row a text"
            )
        return vectors


def nearest(scores: np.ndarray, names: Sequence[str], count: int = 3) -> list[list[tuple[str, float]]]:
    """The `count` best names of each row of scores (n, seen), with their scores."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [[(names[label], float(row[label])) for label in best] for row, best in zip(scores, order, strict=True)]


def figures(written: Sequence[str], labels: np.ndarray, names: Sequence[str], seen: int) -> dict[str, float]:
    """What the written names get right and wrong by string alone, in percent of the answers; FIGURES are its keys.

    written: parsed names. labels: int64 (n,). names: of all the stream's classes, of which the first `seen` are learnt.
    An answer is out of vocabulary where it names no class seen; "future class" and "prefix of one class" (which can be
    repaired: "german shepherd d") are parts of those.
    """
    if not len(written):
        return dict.fromkeys(FIGURES, float("nan"))
    forms = [normalised(name) for name in names]
    place = {form: label for label, form in enumerate(forms)}
    exact, repaired, outside, future, prefix = (np.zeros(len(written), bool) for _ in FIGURES)
    for i, (text, label) in enumerate(zip(written, labels, strict=True)):
        form = normalised(text)
        named = place.get(form)
        exact[i] = repaired[i] = named is not None and named < seen and named == label
        outside[i] = named is None or named >= seen
        future[i] = named is not None and named >= seen
        if outside[i] and not future[i] and form:
            begun = [label for label, name in enumerate(forms[:seen]) if name.startswith(form)]
            prefix[i] = len(begun) == 1
            repaired[i] = prefix[i] and begun[0] == label
    shares = (exact, repaired, outside, future, prefix)
    return {name: 100 * float(share.mean()) for name, share in zip(FIGURES, shares, strict=True)}
