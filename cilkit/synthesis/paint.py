"""From plan to shards: batches painted in this process or in several, resumed after an interruption to the same bytes.

A painted batch is kept in the scratch folder until its shard is complete; a shard then appears whole. So an
interruption costs at most the batches in hand. Which process paints a batch changes nothing: seeds and batches are the
plan's, and every process paints on one thread.
"""

import errno
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cilkit import artifacts
from cilkit.data.shards import MANIFEST, ShardWriter, encode_png, write_shard
from cilkit.errors import Stopped, UserError
from cilkit.synthesis.crew import Crew
from cilkit.synthesis.generators import Generator, load_generator
from cilkit.synthesis.plan import COLUMNS, plan_hash

if TYPE_CHECKING:
    import pandas as pd

SHARD_SIZE = 1000  # images a shard, rounded down to whole batches


def paint_plan(
    plan: "pd.DataFrame",
    generator: str | Path | Generator,
    folder: str | Path,
    *,
    workers: int = 1,
    scratch: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    shard_size: int = SHARD_SIZE,
) -> dict[str, float]:
    """Paint a plan into `folder` as an image set (tar shards and manifest); what is there already is not painted again.

    workers: processes of one thread each; with 1 this process paints. scratch: where batches wait for their shard (by
    default in the folder; removed at the end). progress: called with (images so far, images in all).
    Returns what was measured: images painted now, seconds, images_per_second. Raises UserError for prompts that the
    generator cannot paint, a folder that holds another plan's images, a full disk; Stopped when interrupted.
    """
    missing = [column for column in COLUMNS if column not in plan.columns]
    if missing:
        raise UserError(f"the plan lacks the column {missing[0]!r}; expected {', '.join(COLUMNS)}, as of make_plan")
    painter = load_generator(generator)
    painter.check(plan["class_name"].unique().tolist(), plan["prompt"].unique().tolist())
    job = _Job(plan, painter, Path(folder), Path(scratch or Path(folder) / "scratch"), shard_size)
    start, before = time.perf_counter(), job.kept
    try:
        with closing(job.paint(workers)) as painted:
            for _ in painted:
                if progress:
                    progress(job.kept, len(plan))
        job.close()
    except KeyboardInterrupt:
        raise Stopped(
            f"painting was stopped; {job.kept} of {len(plan)} images are kept, run it again to go on"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {folder} is full; {job.kept} of {len(plan)} images are kept: free some space and run it again"
        ) from None
    seconds, images = time.perf_counter() - start, len(plan) - before
    return {"images": images, "seconds": seconds, "images_per_second": images / max(seconds, 1e-9)}


class _Job:
    """One plan on its way into one folder."""

    def __init__(self, plan: "pd.DataFrame", painter: Generator, folder: Path, scratch: Path, shard_size: int):
        self.plan, self.painter, self.folder = plan, painter, folder
        self.batches = {int(number): rows for number, rows in plan.groupby("batch_id")}
        per_shard = max(1, shard_size // max(map(len, self.batches.values())))
        self.shards: dict[int, list[int]] = {}  # shard -> its batches
        for batch in self.batches:
            self.shards.setdefault(batch // per_shard, []).append(batch)
        self.origin = {
            "generator_id": painter.id,
            "generator_digest": painter.digest,
            "scheduler": painter.settings["scheduler"],
            "steps": painter.settings["steps"],
            "guidance": painter.settings["guidance"],
            "plan_hash": plan_hash(plan),
        }
        self.scratch = scratch / hashlib.sha256(artifacts.canonical(self.origin).encode()).hexdigest()[:16]
        self.writer = ShardWriter(folder)
        self._tidy()
        self._compare()
        finished = self.writer.finished
        self.todo = {
            shard: {batch for batch in batches if not self._file(batch).exists()}
            for shard, batches in self.shards.items()
            if shard not in finished
        }  # unfinished shard -> its batches that are not painted yet
        self.kept = len(plan) - sum(len(self.batches[batch]) for todo in self.todo.values() for batch in todo)

    def _tidy(self) -> None:
        """Remove what a killed process left half written."""
        for path in [*self.folder.glob(".*.tmp"), *self.scratch.glob(".*.tmp")]:
            path.unlink(missing_ok=True)

    def _compare(self) -> None:
        import pandas as pd

        for path in [*self.folder.glob(MANIFEST), *sorted(self.folder.glob("*.rows.parquet"))]:
            there = pd.read_parquet(path, columns=list(self.origin)).drop_duplicates().to_dict("records")
            if there != [self.origin]:
                raise UserError(
                    f"{self.folder} holds images of another plan or generator ({path.name}); paint into another "
                    "folder, or delete that one first"
                )

    def _file(self, batch: int) -> Path:
        return self.scratch / f"batch-{batch:06d}.npy"

    def paint(self, workers: int) -> Iterator[int]:
        """Paint what is missing; yields the number of every batch painted, its shard written if that completed it."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        for shard in [shard for shard, todo in self.todo.items() if not todo]:
            self._assemble(shard)
        shard_of = {batch: shard for shard, todo in self.todo.items() for batch in sorted(todo)}
        requests = [self._request(batch) for batch in shard_of]
        if workers > 1 and len(requests) > 1:
            painted = Crew(self.painter, self.scratch).paint(requests, workers)
        else:
            painted = self._paint_here(requests)
        with closing(painted):
            for batch in painted:
                self.kept += len(self.batches[batch])
                self.todo[shard_of[batch]].discard(batch)
                if not self.todo[shard_of[batch]]:
                    self._assemble(shard_of[batch])
                yield batch

    def _request(self, batch: int) -> dict:
        rows = self.batches[batch]
        return {
            "batch": batch,
            "file": str(self._file(batch)),
            "prompts": rows["prompt"].tolist(),
            "seeds": rows["seed"].tolist(),
            "concepts": rows["class_name"].tolist(),
        }

    def _paint_here(self, requests: list[dict]) -> Iterator[int]:
        for request in requests:
            artifacts.save_npy(request["file"], paint_batch(self.painter, request))
            yield request["batch"]

    def _assemble(self, shard: int) -> None:
        """Write a shard whose batches are all painted, then drop their files."""
        files = [self._file(batch) for batch in self.shards[shard]]
        painted = zip(self.shards[shard], map(np.load, files), strict=True)
        write_shard(self.folder, shard, [pair for batch, images in painted for pair in self._members(batch, images)])
        del self.todo[shard]
        for file in files:
            file.unlink()

    def _members(self, batch: int, images: np.ndarray) -> Iterator[tuple[bytes, dict]]:
        rows = self.batches[batch]
        for image, row in zip(images, rows.to_dict("records"), strict=True):
            height, width = image.shape[:2]
            row |= {"width": width, "height": height, "batch_size": len(rows)}
            yield encode_png(image), row | self.origin

    def close(self) -> None:
        """The manifest, last of all; then nothing but the image set is left."""
        self.writer.close()
        for path in [*self.folder.glob("*.rows.parquet"), *self.scratch.glob("*")]:
            path.unlink(missing_ok=True)
        self.scratch.rmdir()
        if self.scratch.parent == self.folder / "scratch" and not any(self.scratch.parent.iterdir()):
            self.scratch.parent.rmdir()


def paint_batch(painter: Generator, request: dict) -> np.ndarray:
    """One batch of a plan: uint8 (n, size, size, 3). UserError if the generator gives anything else."""
    images = painter.paint(request["prompts"], request["seeds"], request["concepts"])
    expected = (len(request["prompts"]), painter.size, painter.size, 3)
    if images.dtype != np.uint8 or images.shape != expected:
        raise UserError(f"{painter.id} painted {images.dtype} {images.shape}; expected uint8 {expected} of its paint()")
    return images
