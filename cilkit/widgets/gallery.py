"""A gallery of an image set: page through it, look closely, accept and reject; a contact sheet where nobody can click.

What the browser shows and asks is here and in `gallery.js`; what it is about, in `browsing.py`, which knows no browser.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit.errors import UserError
from cilkit.synthesis import writer
from cilkit.widgets import sheets
from cilkit.widgets.base import View, script, sheet
from cilkit.widgets.browsing import KEPT, LEFT_OUT, NOT_SCORED, ORDER, STATES, SUSPECT, Collection, Query

if TYPE_CHECKING:
    from cilkit.synthesis.neighbours import Neighbours

PAGES = (1, 500)  # images on a page, from … to
NEAREST = 6  # real images beside a painted one
ORDERS = {ORDER: "in the set's order", SUSPECT: "what the rules leave out first, then the least sharp"}
PLANS = 20  # counted bulk decisions that may still be confirmed


class Gallery(View):
    """The live view of a `Collection`; `.collection` is what notebooks use.

    page:       images on a page. query: which are shown first.
    reviewer:   who decides, until somebody else is named in the view. reasons: those that are offered.
    rubric:     noted with every decision: by which version of which instructions.
    neighbours: makes a `Neighbours` when real images are first asked for; None: there are none.
    """

    _esm = script("gallery")
    _css = sheet("gallery")

    def __init__(
        self,
        collection: Collection,
        page: int = 60,
        query: Query | None = None,
        reviewer: str = "",
        reasons: Sequence[str] = (),
        rubric: str = "",
        neighbours: Callable[[], Neighbours] | None = None,
    ) -> None:
        if not PAGES[0] <= page <= PAGES[1]:
            raise UserError(f"page is {page}; a page holds {PAGES[0]} to {PAGES[1]} images")
        self.collection, self.page, self.query = collection, int(page), query or Query()
        collection.select(self.query)  # a wrong one is told where it was written
        self.reviewer, self.reasons, self.rubric = str(reviewer), [str(reason) for reason in reasons], str(rubric)
        self._neighbours, self._plans = neighbours, {}
        self._thumbs = writer.Thumbs(collection.images)
        super().__init__()

    @cached_property
    def _near(self) -> Neighbours:
        return self._neighbours()

    # ---- what stands where nobody can click

    def still(self) -> bytes:
        first = self._first()
        pairs = zip(self._tiles(first, self.query.sort), self._thumbs.encoded(first), strict=True)
        said = [sheets.Tile(picture, tile["class"], tile["state"], _more(tile)) for tile, picture in pairs]
        return sheets.sheet(said, self._headline())

    def words(self) -> str:
        names = [f"{tile['class']} ({tile['state']})" for tile in self._tiles(self._first()[:5])]
        return f"Gallery. {self._headline()}" + (f" First: {', '.join(names)}." if names else "")

    def _first(self) -> np.ndarray:
        self.collection.refresh()
        return self.collection.select(self.query)[: self.page]

    def _headline(self) -> str:
        shown, total = len(self._first()), len(self.collection.select(self.query))
        _, accepted, rejected = self.collection.progress().sum(axis=0).tolist()
        query = self.query
        order = ORDERS.get(query.sort, f"by {query.sort}, {'descending' if query.descending else 'ascending'}")
        asked = [text for text in (query.class_name, query.decision, query.verdict) if text]
        under = f" ({', '.join(asked)})" if asked else ""
        decided = f"{accepted + rejected:,} of {len(self.collection):,} decided"
        return (
            f"{shown:,} of {total:,} images{under}, {order}. {decided}: {accepted:,} accepted, {rejected:,} rejected."
        )

    # ---- what the view asks

    def answer_hello(self) -> dict[str, Any]:
        """What the toolbar offers."""
        self.collection.refresh()
        verdicts = self.collection.verdicts
        found = [] if verdicts is None else sorted(set(verdicts.tolist()) - {KEPT, NOT_SCORED})
        file = None if self.collection.decisions is None else str(self.collection.decisions.path)
        return {
            "images": len(self.collection),
            "classes": [name for name, n in zip(self.collection.class_names, self._sizes(), strict=True) if n],
            "sorts": self.collection.sorts,
            "scores": list(self.collection.scores),
            "verdicts": [] if verdicts is None else [KEPT, LEFT_OUT, *found],
            "states": list(STATES),
            "query": asdict(self.query),
            "page": self.page,
            "reviewer": self.reviewer,
            "reasons": self.reasons,
            "file": file,
            "real": self._neighbours is not None,
            **self._standing(),
        }

    def answer_page(self, query: dict, number: int = 0, anew: bool = False) -> tuple[dict[str, Any], list[bytes]]:
        """One page of a query, its pictures in the buffers; `anew`: with what is under the query by now."""
        self.collection.refresh()
        places = self.collection.listed(_query(query), bool(anew))
        pages = max(1, -(-len(places) // self.page))
        number = min(max(0, int(number)), pages - 1)
        places, total = places[number * self.page : (number + 1) * self.page], len(places)
        pictures = self._thumbs.encoded(places)
        told = {
            "tiles": self._tiles(places, str(query.get("sort", ""))),
            "number": number,
            "pages": pages,
            "total": total,
        }
        return {**told, **self._standing()}, pictures

    def answer_decide(self, places: list, decision: str, by: str = "", why: str = "") -> dict[str, Any]:
        """Decide about these images, as one step."""
        places = self._known(places)
        count = self.collection.decide(places, decision, str(by), str(why), self.rubric)
        return {"count": count, "tiles": self._marks(places), **self._standing()}

    def answer_undo(self, by: str = "", shown: Sequence = ()) -> dict[str, Any]:
        """Take the last step back; the images that are shown come as they are now."""
        count = self.collection.undo(str(by))
        return {"count": count, "tiles": self._marks(self._known(shown)), **self._standing()}

    def answer_count(
        self, query: dict, score: str, comparison: str, threshold: float, decision: str, again: bool = False
    ) -> dict[str, Any]:
        """How many a bulk decision would be about; `plan` names exactly these images to `answer_apply`."""
        self.collection.refresh()
        asked = (_query(query), str(score), str(comparison), float(threshold), str(decision), bool(again))
        places, spared = self.collection.beyond(*asked)
        plan = f"{time.monotonic_ns()}"
        self._plans[plan] = (places, decision, f"{score} {comparison} {threshold:g}")
        while len(self._plans) > PLANS:
            self._plans.pop(next(iter(self._plans)))
        return {"count": len(places), "spared": spared, "plan": plan}

    def answer_apply(self, plan: str, by: str = "", why: str = "", shown: Sequence = ()) -> dict[str, Any]:
        """Do what was counted, as one step; the reason is what was asked for, and `why`."""
        if plan not in self._plans:
            raise UserError("this count is done or out of date; count again")
        places, decision, asked = self._plans.pop(plan)
        why = f"{asked}; {why}" if why else asked
        count = self.collection.decide(places.tolist(), decision, str(by), why, self.rubric)
        return {"count": count, "tiles": self._marks(self._known(shown)), **self._standing()}

    def answer_zoom(self, place: int) -> tuple[dict[str, Any], list[bytes]]:
        """One image as it is, with all that is known of it."""
        self.collection.refresh()
        (place,) = self._known([place])
        found = self.collection.facts(place)
        return {**found, "decision": _plain(found["decision"]), "manifest": _plain(found["manifest"])}, [
            writer.original(self.collection.images, place)
        ]

    def answer_real(self, place: int) -> tuple[dict[str, Any], list[bytes]]:
        """The real images nearest to one image; the first question takes longer, since it looks at all of them."""
        if self._neighbours is None:
            raise UserError("no real images were given; name a benchmark in benchmark=…")
        (place,) = self._known([place])
        pixels = writer.pixels(self.collection.images, place)
        places, distances = self._near.nearest([pixels], NEAREST)
        real = self._near.others
        found = [
            {"class": real.class_names[real.labels[at]], "image_id": str(real.ids[at]), "distance": float(distance)}
            for at, distance in zip(places[0].tolist(), distances[0].tolist(), strict=True)
        ]
        pictures = [writer.encode_webp(real.read([at])[0]) for at in places[0].tolist()]
        return {"found": found, "searched": len(real), "all": self._near.all}, pictures

    def _sizes(self) -> list[int]:
        return self.collection.images.counts.tolist()

    def _standing(self) -> dict[str, Any]:
        """Progress a class, as [undecided, accepted, rejected], and whether there is something to undo."""
        rows = self.collection.progress().tolist()
        return {"progress": [row for row in rows if sum(row)], "steps": self.collection.steps}

    def _known(self, places: Sequence) -> list[int]:
        """Places as the view names them, checked."""
        found = [int(place) for place in places]
        if any(not 0 <= place < len(self.collection) for place in found):
            raise UserError("this image is not in the gallery any more; run the cell again")
        return found

    def _marks(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """What is decided about these images."""
        one, told = self.collection, []
        for place in places:
            row = one.decisions.get(str(one.ids[place])) if one.decisions is not None else None
            by, why = (str(row.get(key, "")) if row else "" for key in ("by", "why"))
            told.append({"place": int(place), "state": STATES[one.state[place]], "by": by, "why": why})
        return told

    def _tiles(self, places: Sequence[int], sort: str = "") -> list[dict[str, Any]]:
        """What the view tells of these images beside their pictures: marks, names, and the score of this order."""
        one, scored = self.collection, "sharpness" if sort == SUSPECT else sort
        told = self._marks(places)
        for tile in told:
            place = tile["place"]
            value = one.scores[scored][place] if scored in one.scores else np.nan
            tile |= {
                "id": str(one.ids[place]),
                "class": one.class_names[one.labels[place]],
                "verdict": "" if one.verdicts is None else str(one.verdicts[place]),
                "scored": scored,
                "score": None if np.isnan(value) else float(value),
            }
        return told


def _more(tile: dict[str, Any]) -> str:
    """Why the rules leave an image out, or the score by which it stands where it does."""
    if tile["verdict"] not in ("", KEPT, NOT_SCORED):
        return tile["verdict"]
    return "" if tile["score"] is None else f"{tile['scored']} {tile['score']:.3g}"


def _query(asked: dict) -> Query:
    """What the view asks for, as a Query; UserError for what is none."""
    try:
        return Query(**{key: bool(value) if key == "descending" else str(value) for key, value in asked.items()})
    except TypeError:
        raise UserError(f"{sorted(asked)} is no query of this gallery; run the cell again") from None


def _plain(row: dict | None) -> dict[str, str | int | float | None] | None:
    """A row with values that travel as JSON; a whole number too large for JavaScript travels as text."""
    if row is None:
        return None
    kept = (bool, float, type(None))
    return {
        str(key): value
        if isinstance(value, kept) and value == value or isinstance(value, int) and abs(value) < 2**53
        else str(value)
        for key, value in row.items()
    }
