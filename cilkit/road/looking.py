"""Where a person looks at images and decides: a gallery over an image set, its scores and a file of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.road.inputs import placed, upstream


def gallery(
    images,
    scores: Any = None,
    decisions: str | Path = "",
    reviewer: str = "",
    page: int = 60,
    reasons: Sequence[str] = ("wrong class", "two of them", "cut off", "blurred"),
    rules: Mapping[str, Any] | None = None,
    benchmark: Any = "",
    features: Any = "",
    sort: str = "",
    descending: bool = False,
    rubric: str = "",
):
    """A gallery to page through, look closely, accept and reject; without a browser, a contact sheet of its first page.

    images:    an `ImageSet`, or an artifact of images by object, name, folder or parameter file.
    scores:    what `cilkit.score` gave, or a DataFrame with image_id and columns of numbers; None: no scores.
    decisions: the file of decisions, begun with the first one; relative to the repository. "": to look only.
    reviewer, rubric: noted with each decision: who decides, and by which version of which instructions.
    reasons:   those that the view offers; any other may be typed.
    rules:     as of `cilkit.curate`: what they would leave out is told and can be filtered by; None: the usual ones.
    benchmark: its training images are shown beside a painted one, the nearest first: a name, a Benchmark, an ImageSet.
    features:  what nearest means: a backbone as in 03, 04; "": principal components of the pixels.
    sort:      "order", a score, or "left out first" (by the rules, then the least sharp); "": that, where there are
               scores.
    """
    import pandas as pd

    from cilkit.data.imagesets import ImageSet
    from cilkit.road.curating import SCORES
    from cilkit.synthesis.decisions import Decisions
    from cilkit.widgets.browsing import ORDER, SUSPECT, Collection, Query
    from cilkit.widgets.gallery import Gallery

    images = images if isinstance(images, ImageSet) else upstream(images, "images")
    if isinstance(scores, artifacts.Artifact):
        scores = pd.read_parquet(scores.file(SCORES))
    if scores is not None and not isinstance(scores, pd.DataFrame):
        raise UserError(f"scores are {type(scores).__name__}; give what cilkit.score gave, or a DataFrame")
    if isinstance(reasons, str):
        raise UserError(f"reasons is the text {reasons!r}; give a list of texts")
    by_hand = Decisions(file_of_decisions(decisions)) if decisions else None
    for note in by_hand.notes if by_hand is not None else ():
        print(f"cilkit: {note}", flush=True)
    if by_hand is None:
        print('cilkit: this gallery is to look only; to accept and reject, name a file: decisions="reports/mine.jsonl"')
    elif not by_hand.path.exists():
        print(f"cilkit: {decisions} is begun with the first decision")
    collection = Collection(images, scores, by_hand, rules)
    query = Query(sort or (SUSPECT if collection.verdicts is not None else ORDER), descending)
    real = (lambda: _neighbours(benchmark, features)) if benchmark != "" else None
    return Gallery(collection, page, query, reviewer, reasons, rubric, real)


def file_of_decisions(decisions: str | Path) -> Path:
    """Where a file of decisions lies or will lie: a relative name is the repository's, as `cilkit.curate` finds it."""
    path, home = Path(placed(str(decisions))).expanduser(), artifacts.repository()
    path = path if path.is_absolute() or home is None else home / path
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise UserError(f"decisions {str(decisions)!r} is no file; name a file such as 'reports/mine.jsonl'")
    return path


def _neighbours(benchmark: Any, features: Any):
    from cilkit.data import benchmarks
    from cilkit.synthesis.neighbours import Neighbours

    real = benchmarks.load(benchmark) if isinstance(benchmark, str) else benchmark
    network = None
    if features:
        from cilkit.road.weights import Weights

        network = Weights(features).load()
    return Neighbours(getattr(real, "train", real), network)
