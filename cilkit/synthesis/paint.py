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
from cilkit.synthesis.plan import plan_hash

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
        sizes = plan.groupby("batch_id").size()
        self.batch_size = int(sizes.max())
        self.batches = {int(number): rows for number, rows in plan.groupby("batch_id")}
        self.per_shard = max(1, shard_size // self.batch_size)
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
        self.finished = set(self.writer.finished)

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

    def _shard(self, batch: int) -> int:
        return batch // self.per_shard

    def _file(self, batch: int) -> Path:
        return self.scratch / f"batch-{batch:06d}.npy"

    def _there(self, batch: int) -> bool:
        return self._shard(batch) in self.finished or self._file(batch).exists()

    @property
    def kept(self) -> int:
        """Images painted so far, in shards or in the scratch folder."""
        return sum(len(rows) for batch, rows in self.batches.items() if self._there(batch))

    def paint(self, workers: int) -> Iterator[int]:
        """Paint what is missing; yields the number of every batch painted, its shard written if that completed it."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        for shard in sorted({self._shard(batch) for batch in self.batches} - self.finished):
            self._assemble(shard)
        todo = [batch for batch in self.batches if not self._there(batch)]
        if workers > 1 and len(todo) > 1:
            painted = Crew(self.painter, self.scratch).paint([self._request(batch) for batch in todo], workers)
        else:
            painted = self._paint_here(todo)
        with closing(painted):
            for batch in painted:
                self._assemble(self._shard(batch))
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

    def _paint_here(self, todo: list[int]) -> Iterator[int]:
        for batch in todo:
            paint_batch(self.painter, self._request(batch))
            yield batch

    def _assemble(self, shard: int) -> None:
        """Write the shard if all its batches are painted, then drop their files."""
        batches = [batch for batch in self.batches if self._shard(batch) == shard]
        files = [self._file(batch) for batch in batches]
        if not all(file.exists() for file in files):
            return
        members = [
            pair for batch, file in zip(batches, files, strict=True) for pair in self._members(batch, np.load(file))
        ]
        write_shard(self.folder, shard, members)
        self.finished.add(shard)
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


def paint_batch(painter: Generator, request: dict) -> None:
    """Paint one batch of a plan and keep it as `.npy`: uint8 (n, size, size, 3)."""
    images = painter.paint(request["prompts"], request["seeds"], request["concepts"])
    expected = (len(request["prompts"]), painter.size, painter.size, 3)
    if images.dtype != np.uint8 or images.shape != expected:
        raise UserError(
            f"{painter.id} painted {images.dtype} {images.shape}; expected uint8 {expected}, check its paint()"
        )
    artifacts.save_npy(request["file"], images)
