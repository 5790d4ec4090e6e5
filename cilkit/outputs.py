"""What a learner says about test images, whole (logits) or compact, and which of it a run keeps under its cap.

A head's logits over c classes weigh 4c bytes an image. Where all stages together would pass the cap, `Scores` stand in
for them: about 100 bytes an image and 6 a task block, from which every metric and every table of `analysis` is
computed with the same result. One folder a stage:

after_00/index.npy, labels.npy    int64 (n,): place in the benchmark's test set, stream label
after_00/tasks.npy                int64 (n,): the images' task, where it does not follow from the class
after_00/logits_<head>.npy        float32 (n, seen), or scores_<head>.npy: a structured array, a row an image
after_00/features.npy             float32 (n, dim)
after_00/texts.json               a list of answers, of a model that writes
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from cilkit import artifacts
from cilkit.errors import UserError

CAP = 200_000_000  # bytes that a run's outputs and backbone may take unless more is asked for
TOP = 16  # classes of which a compact score keeps the logits
KEEPABLE = ("logits", "features", "backbone")
TEXTS, LONGEST_TEXT = "texts.json", 2000  # characters of an answer that are kept


@dataclass(frozen=True)
class Outputs:
    """What a learner says about test images: one forward pass, shared by all heads."""

    ids: np.ndarray  # (n,) which images
    labels: np.ndarray  # int64 (n,), stream labels
    heads: dict[str, np.ndarray] = field(repr=False)  # name -> logits, float32 (n, seen)
    features: np.ndarray | None = field(default=None, repr=False)  # float32 (n, dim)
    tasks: np.ndarray | None = field(default=None, repr=False)  # int64 (n,) each image's task; None: by its class
    texts: list[str] | None = field(default=None, repr=False)  # what was written of each image, by a model that writes

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def seen(self) -> int:
        """Classes that the heads know."""
        return next(iter(self.heads.values())).shape[1]

    def logits(self, head: str) -> np.ndarray:
        if head not in self.heads:
            raise UserError(f"head {head!r} is unknown; these outputs have {', '.join(self.heads)}.")
        return self.heads[head]

    def predictions(self, head: str) -> np.ndarray:
        """int64 (n,): the stream label of the largest logit."""
        return self.logits(head).argmax(1)


# ---------------------------------------------------------------- compact


@dataclass(frozen=True)
class Scores:
    """What the metrics need of a head's logits, a row an image; p are the softmax probabilities over the seen classes.

    Equal logits are ranked by class number, so that rank 0 is what `argmax` predicts.
    """

    predictions: np.ndarray  # int64 (n,), stream labels
    rank: np.ndarray  # int64 (n,): classes placed before the true one; 0 is correct
    true_logit: np.ndarray  # float32 (n,)
    log_sum_exp: np.ndarray  # float64 (n,)
    square_sum: np.ndarray  # float64 (n,): sum of squared probabilities
    top: np.ndarray  # int64 (n, k): the k = min(16, seen) largest classes, the largest first
    top_logits: np.ndarray  # float32 (n, k)
    block_max: np.ndarray  # float32 (n, tasks seen): the largest logit among the classes of each task
    block_argmax: np.ndarray  # int64 (n, tasks seen): the class that has it

    def __len__(self) -> int:
        return len(self.predictions)

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, task_of_class: Sequence[int], top: int = TOP) -> "Scores":
        """From logits (n, seen); labels: int64 (n,); task_of_class: the task of each class, at least (seen,).

        top: classes of which the logits are kept; 1 is enough for every figure, and several times as fast to find.
        """
        labels, tasks = np.asarray(labels), np.asarray(task_of_class)[: logits.shape[1]]
        step = 1 + 2**22 // logits.shape[1]  # images at a time: the memory stays below 100 MB
        pieces = [slice(start, start + step) for start in range(0, max(1, len(labels)), step)]
        rows = [_scores(np.asarray(logits[piece]), labels[piece], tasks, top) for piece in pieces]
        return cls(*(np.concatenate(columns) for columns in zip(*rows, strict=True)))

    @property
    def correct(self) -> np.ndarray:
        """bool (n,)."""
        return self.rank == 0

    @property
    def confidence(self) -> np.ndarray:
        """The predicted class's probability, float64 (n,)."""
        return np.exp(self.top_logits[:, 0] - self.log_sum_exp)

    @property
    def true_probability(self) -> np.ndarray:
        """p of the true class, float64 (n,)."""
        return np.exp(self.true_logit - self.log_sum_exp)

    def task_known(self, tasks: np.ndarray) -> np.ndarray:
        """Predictions when each image's task is known (task-incremental): int64 (n,). tasks: int64 (n,)."""
        return self.block_argmax[np.arange(len(self)), tasks]

    def save(self, folder: str | Path, head: str) -> Path:
        """One file, `scores_<head>.npy`; classes are written in two bytes where they fit."""
        whole = np.uint16 if max(self.rank.max(initial=0), self.block_argmax.max(initial=0)) < 2**16 else np.int32
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values = {name: value.astype(whole) if value.dtype.kind in "iu" else value for name, value in values.items()}
        table = np.empty(len(self), [(name, value.dtype, value.shape[1:]) for name, value in values.items()])
        for name, value in values.items():
            table[name] = value
        return artifacts.save_npy(Path(folder) / f"scores_{head}.npy", table)

    @classmethod
    def load(cls, folder: str | Path, head: str) -> "Scores":
        table = load_npy(Path(folder) / f"scores_{head}.npy")
        columns = [table[one.name] for one in fields(cls)]
        return cls(*(column.astype(np.int64) if column.dtype.kind in "iu" else column for column in columns))


def _scores(logits: np.ndarray, labels: np.ndarray, tasks: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """The fields of `Scores`, in their order, of a piece of rows."""
    rows, classes = np.arange(len(labels)), np.arange(logits.shape[1])
    true = logits[rows, labels]
    ahead = (logits > true[:, None]) | ((logits == true[:, None]) & (classes < labels[:, None]))
    largest = logits.max(1).astype(float)
    shifted = np.exp(logits - largest[:, None])  # float64 (n, seen)
    total = shifted.sum(1)
    square_sum = (shifted**2).sum(1) / total**2
    top = logits.argmax(1)[:, None] if k == 1 else _largest(logits, min(k, len(classes)))
    block_max = np.empty((len(rows), tasks.max() + 1), logits.dtype)
    block_argmax = np.empty(block_max.shape, np.int64)
    for task in range(block_max.shape[1]):
        of_task = np.flatnonzero(tasks == task)
        best = logits[:, of_task].argmax(1)
        block_max[:, task], block_argmax[:, task] = logits[rows, of_task[best]], of_task[best]
    log_sum_exp = largest + np.log(total)
    return (
        logits.argmax(1), ahead.sum(1), true, log_sum_exp, square_sum,
        top, np.take_along_axis(logits, top, 1), block_max, block_argmax,
    )  # fmt: skip


def _largest(logits: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest, the largest first, the lower column first where equal: int64 (n, k)."""
    least = -np.partition(-logits, k - 1, axis=1)[:, k - 1 : k]  # the k-th largest value
    above, equal = logits > least, logits == least
    chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdims=True)))
    columns = np.nonzero(chosen)[1].reshape(len(logits), k)
    order = np.argsort(-np.take_along_axis(logits, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)


# ---------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class Keep:
    """What a run keeps whole. Without logits there are compact scores; ids, labels and figures are always kept."""

    logits: bool = True
    features: bool = True
    backbone: bool = True
    bytes: int = 0  # what outputs and backbone will take together


def plan(
    images_after: Sequence[int],
    seen_after: Sequence[int],
    heads: int,
    dim: int,
    backbone_bytes: int,
    cap: int = CAP,
    keep: Collection[str] = (),
) -> Keep:
    """What is kept: what `keep` names, and under the cap logits before features before the backbone.

    images_after, seen_after: test images and classes known after each task; dim: numbers a feature (0: none).
    """
    for name in keep:
        if name not in KEEPABLE:
            raise UserError(f"{name!r} cannot be kept; choose among {', '.join(KEEPABLE)}.")
    images, seen, blocks = np.array(images_after), np.array(seen_after), np.arange(len(seen_after)) + 1
    whole = np.where(seen <= 2**16, 2, 4)  # bytes of a class number
    row = 2 * whole + 4 + 8 + 8 + (np.minimum(TOP, seen) + blocks) * (whole + 4)
    compact = heads * int((images * row).sum())
    prices = {"logits": heads * int((images * seen).sum()) * 4 - compact}  # what they add; negative for few classes
    prices |= {"features": int(images.sum()) * dim * 4, "backbone": int(backbone_bytes)}
    total = 16 * int(images.sum()) + compact
    chosen, asked = [], sum(prices[name] for name in {*keep})
    for name, price in prices.items():
        if name in keep or total + price <= cap:
            chosen.append(name)
            total += 0 if name in keep else price
    return Keep(*(name in chosen for name in KEEPABLE), bytes=total + asked)


def write(folder: str | Path, outputs: Outputs, task_of_class: Sequence[int], keep: Keep) -> None:
    """One stage's outputs into `folder`, logits or compact scores, each file whole."""
    folder = Path(folder)
    arrays = {"index": outputs.ids, "labels": outputs.labels}
    arrays |= {} if outputs.tasks is None else {"tasks": outputs.tasks}
    for name, array in arrays.items():
        artifacts.save_npy(folder / f"{name}.npy", np.asarray(array, np.int64))
    for head, logits in outputs.heads.items():
        logits = np.asarray(logits, np.float32)
        if keep.logits:
            artifacts.save_npy(folder / f"logits_{head}.npy", logits)
        else:
            Scores.of(logits, outputs.labels, task_of_class).save(folder, head)
    if keep.features and outputs.features is not None:
        artifacts.save_npy(folder / "features.npy", np.asarray(outputs.features, np.float32))
    if outputs.texts is not None:
        artifacts.write_json(folder / TEXTS, [text[:LONGEST_TEXT] for text in outputs.texts])


def read(folder: str | Path, heads: Sequence[str]) -> Outputs:
    """What `write` left, with the heads whose logits it kept."""
    folder = Path(folder)
    logits = {head: load_npy(path) for head in heads if (path := folder / f"logits_{head}.npy").exists()}
    optional = {name: load_npy(path) for name in ("features", "tasks") if (path := folder / f"{name}.npy").exists()}
    return Outputs(
        load_npy(folder / "index.npy"), load_npy(folder / "labels.npy"), logits, **optional, texts=read_texts(folder)
    )


def read_texts(folder: Path) -> list[str] | None:
    """The answers of one stage; None where nothing was written."""
    path = folder / TEXTS
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete the run's folder and run it again.") from error


def load_npy(path: Path) -> np.ndarray:
    """An array of a run; what cannot be read is named."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete the run's folder and run it again.") from error
