"""What a gallery knows without a browser: images in an order, under filters, and what people decide about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError, near_name
from cilkit.synthesis import curation
from cilkit.synthesis.decisions import ACCEPT, COUNTED, REJECT, WITHDRAWN, Decisions

if TYPE_CHECKING:
    import pandas as pd

UNDECIDED, ACCEPTED, REJECTED = "undecided", "accepted", "rejected"
STATES = (UNDECIDED, ACCEPTED, REJECTED)  # by the number that stands for each
OF_DECISION = {WITHDRAWN: 0, ACCEPT: 1, REJECT: 2}
KEPT, LEFT_OUT, NOT_SCORED = "kept", "left out", "not scored"
ORDER, SUSPECT = "order", "left out first"  # orders that are no score
NO_SCORES = ("image_id", "class_name", "duplicate_of", "cluster")
REMEMBERED = 8  # lists of images under a query that are kept, so that a page does not change while one pages


@dataclass(frozen=True)
class Query:
    """Which images, in which order.

    sort:       ORDER, a column of the scores, or SUSPECT: what the rules leave out, then the least sharp.
    class_name: one class, "" for all. decision: one of STATES, "" for all.
    verdict:    KEPT, LEFT_OUT, NOT_SCORED or one reason of the rules, "" for all.
    """

    sort: str = ORDER
    descending: bool = False
    class_name: str = ""
    decision: str = ""
    verdict: str = ""


class Collection:
    """Images with scores, what rules say of them, and decisions in a file that others may append to as well.

    scores:    DataFrame with image_id and any columns of numbers, as of `curation.scores`; of all images or of some.
    decisions: None: to look only.
    rules:     as of `curation.decided`; None: the usual ones, as far as there are scores for them.
    """

    def __init__(
        self,
        images: ImageSet,
        scores: pd.DataFrame | None = None,
        decisions: Decisions | None = None,
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        self.images, self.decisions = images, decisions
        self.ids = images.ids
        self.labels, self.class_names = images.labels, images.class_names
        self._place = {image_id: place for place, image_id in enumerate(self.ids.tolist())}
        self.scores = {} if scores is None else self._aligned(scores)
        self.verdicts = None if scores is None else self._judged(scores, rules)
        self._state = np.zeros(len(images), np.int8)  # index into STATES
        self._steps: list[tuple[list[dict], list[dict | None]]] = []  # what was written, and what held before
        self._lists: dict[Query, np.ndarray] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self.ids)

    def _places_of(self, scores: pd.DataFrame) -> np.ndarray:
        """Places of the scored images, int (rows,); -1 for one that this set does not hold (it was curated)."""
        if "image_id" not in scores:
            raise UserError("scores lack the column 'image_id'; give a table as of cilkit.score")
        found = np.array([self._place.get(image_id, -1) for image_id in scores["image_id"]], np.int64)
        if not (found >= 0).any():
            raise UserError("none of the scored images is in this image set; give the scores of these images")
        return found

    def _aligned(self, scores: pd.DataFrame) -> dict[str, np.ndarray]:
        """Every numeric column as float (n,), in the set's order; NaN for an image that was not scored."""
        places, found = self._places_of(scores), {}
        for name in scores.columns:
            if name not in NO_SCORES and scores[name].dtype.kind in "biuf":
                values = np.full(len(self), np.nan)
                values[places[places >= 0]] = scores[name].to_numpy(float)[places >= 0]
                if not np.isnan(values).all():
                    found[str(name)] = values
        return found

    def _judged(self, scores: pd.DataFrame, rules: Mapping[str, Any] | None) -> np.ndarray:
        """What the rules say of each image: object (n,), KEPT, NOT_SCORED, or the reason why it is left out."""
        needed = {"duplicates": "cluster"}
        if rules is None:
            rules = {name: rule for name, rule in curation.RULES.items() if needed.get(name, name) in scores}
        curation.check_rules(rules)
        missing = [name for name in rules if needed.get(name, name) not in scores]
        if missing:
            raise UserError(f"the rule {missing[0]!r} needs a column {needed.get(missing[0], missing[0])!r} of scores")
        table, places = curation.decided(scores, rules), self._places_of(scores)
        said = np.where(table["keep"].to_numpy(), KEPT, table["reason"].to_numpy(object))
        found = np.full(len(self), NOT_SCORED, dtype=object)
        found[places[places >= 0]] = said[places >= 0]
        return found

    @property
    def sorts(self) -> list[str]:
        return [ORDER, *([SUSPECT] if self.verdicts is not None else []), *self.scores]

    @property
    def state(self) -> np.ndarray:
        """Indices into STATES, int8 (n,)."""
        return self._state

    def refresh(self) -> None:
        """Take in what was appended to the file of decisions, here or elsewhere."""
        if self.decisions is None:
            return
        self.decisions.refresh()
        for image_id in self.decisions.changed:
            row, place = self.decisions.get(image_id), self._place.get(image_id)
            if place is not None:  # a curated set lacks images that decisions may well be about
                self._state[place] = OF_DECISION[row["decision"]] if row else 0
        self.decisions.changed.clear()

    def select(self, query: Query) -> np.ndarray:
        """Places of the images under a query, int64 (m,), in its order; equal scores in the set's, NaN last."""
        keep = np.ones(len(self), bool)
        if query.class_name:
            keep &= self.labels == self._label(query.class_name)
        if query.decision:
            if query.decision not in STATES:
                raise UserError(f"decision {query.decision!r} is not one of {', '.join(STATES)}")
            keep &= self._state == STATES.index(query.decision)
        if query.verdict:
            keep &= self._said(query.verdict)
        places = np.flatnonzero(keep)
        if query.sort == ORDER:
            return places[::-1] if query.descending else places
        keys = self._keys(query.sort)[places]
        return places[np.argsort(-keys if query.descending else keys, kind="stable")]

    def _label(self, name: str) -> int:
        if name not in self.class_names:
            raise UserError(f"there is no class {name!r}{near_name(name, self.class_names)}")
        return self.class_names.index(name)

    def _said(self, verdict: str) -> np.ndarray:
        if self.verdicts is None:
            raise UserError("without scores no rule says anything; give scores")
        if verdict == LEFT_OUT:
            return (self.verdicts != KEPT) & (self.verdicts != NOT_SCORED)
        return self.verdicts == verdict

    def _keys(self, sort: str) -> np.ndarray:
        if sort == SUSPECT and self.verdicts is not None:
            group = 1.0 - self._said(LEFT_OUT)
            group[self.verdicts == NOT_SCORED] = np.nan
            sharp = self.scores.get("sharpness", np.zeros(len(self)))
            ranks = np.empty(len(self))
            ranks[np.lexsort((sharp, group))] = np.arange(len(self))
            return np.where(np.isnan(group), np.nan, ranks)
        if sort not in self.scores:
            raise UserError(f"there is no order {sort!r}{near_name(sort, self.sorts)}; take {', '.join(self.sorts)}")
        return self.scores[sort]

    def listed(self, query: Query, anew: bool = False) -> np.ndarray:
        """`select`, remembered: an image decided about stays on its page until the list is asked for anew."""
        if anew or query not in self._lists:
            self._lists[query] = self.select(query)
            while len(self._lists) > REMEMBERED:
                self._lists.pop(next(iter(self._lists)))
        return self._lists[query]

    def beyond(
        self, query: Query, score: str, comparison: str, threshold: float, decision: str, again: bool = False
    ) -> tuple[np.ndarray, int]:
        """Of the images under a query, those whose score compares so with the threshold: (places, decided ones spared).

        again: also those about which somebody has decided; otherwise they are spared. An image that has no score, or
        this decision already, is never among them.
        """
        if score not in self.scores:
            raise UserError(f"there is no score {score!r}{near_name(score, list(self.scores))}")
        if comparison not in curation.COMPARISONS or not math.isfinite(threshold):
            raise UserError(f"{comparison!r} {threshold} is no comparison; take one of < <= > >= and a number")
        places = self.select(query)
        places = places[curation.COMPARISONS[comparison](self.scores[score][places], threshold)]
        places = places[self._state[places] != OF_DECISION[decision]]
        open_ones = places if again else places[self._state[places] == 0]
        return open_ones, len(places) - len(open_ones)

    def decide(self, places: Sequence[int], decision: str, by: str = "", why: str = "", rubric: str = "") -> int:
        """Append one decision about each of these images, as one step; how many were decided about."""
        if self.decisions is None:
            raise UserError("this gallery is to look only; name a file in decisions=… to decide")
        if decision not in OF_DECISION:
            raise UserError(f"decision {decision!r} is not one of {', '.join(OF_DECISION)}")
        self.refresh()
        places = [place for place in places if decision != WITHDRAWN or self._state[place]]
        more = {"rubric": rubric} if rubric else {}
        ids = self.ids[np.asarray(places, np.int64)].tolist()
        rows = [{"image_id": i, "decision": decision, "by": by, "why": why, **more} for i in ids]
        if rows:
            self._write(rows)
        return len(rows)

    def _write(self, rows: list[dict]) -> None:
        before = [self.decisions.get(row["image_id"]) for row in rows]
        self._steps.append((self.decisions.append(rows), before))
        self.refresh()

    def undo(self, by: str = "") -> int:
        """Append what held before the last step that is not undone; about how many images. 0: nothing to undo.

        Images about which somebody has decided since then are left as they are. What held before is written with its
        own reviewer and reason; `undone` says who undid.
        """
        self.refresh()
        while self._steps:
            written, before = self._steps.pop()
            rows = []
            for row, old in zip(written, before, strict=True):
                if _said(self.decisions.get(row["image_id"])) == _said(row):
                    none = {"image_id": row["image_id"], "decision": WITHDRAWN, "by": by, "why": "undone"}
                    rows.append({**(old or none), "undone": by})
            if rows:
                self.decisions.append(rows)
                self.refresh()
                return len(rows)
        return 0

    @property
    def steps(self) -> int:
        """Steps that `undo` can take back: those of this gallery since it was opened."""
        return len(self._steps)

    def progress(self) -> np.ndarray:
        """Images of each class in each state, int64 (classes, 3), columns as STATES."""
        cells = np.bincount(3 * self.labels + self._state, minlength=3 * len(self.class_names))
        return cells.reshape(-1, 3)

    def facts(self, place: int) -> dict[str, Any]:
        """What is known of one image: id, class, scores, verdict, the line that decides, its row of the manifest."""
        image_id = str(self.ids[place])
        return {
            "image_id": image_id,
            "class_name": self.class_names[self.labels[place]],
            "scores": {name: _number(values[place]) for name, values in self.scores.items()},
            "verdict": "" if self.verdicts is None else str(self.verdicts[place]),
            "state": STATES[self._state[place]],
            "decision": self.decisions.get(image_id) if self.decisions is not None else None,
            "manifest": manifest_row(self.images, place),
        }


def _said(row: dict | None) -> tuple | None:
    """What a line decides, without its date: an undo writes an older line again."""
    return None if row is None or row["decision"] == WITHDRAWN else tuple(row.get(key) for key in COUNTED)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def manifest_row(images: ImageSet, place: int) -> dict[str, Any]:
    """One row of the manifest, read from its row group alone; {} for images that never were on disk."""
    from pyarrow.parquet import ParquetFile

    from cilkit.data.shards import MANIFEST

    folder = getattr(images.source, "folder", None)
    if folder is None:
        return {}
    row = int(images.index[place])
    with ParquetFile(folder / MANIFEST, memory_map=True) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return file.read_row_group(group).slice(row, 1).to_pylist()[0]
            row -= rows
    return {}
