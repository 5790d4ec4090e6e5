"""A painting job: a folder that any number of workers, on any machine that sees it, work off shard by shard.

    JOB/order.json             the generator to load, the set's folder and plan, what every row of the manifest repeats
    JOB/plan.parquet           the plan, a row group a shard (unless it lies elsewhere already)
    JOB/claims/00003.claim     who is at work on shard 3; a dead worker's claim is taken over
    JOB/00003-00000017.parquet  batch 17 of shard 3, encoded, waiting for the rest of its shard

Which worker paints a shard changes nothing: seeds and batches are the plan's, and every worker paints on one thread.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cilkit import artifacts
from cilkit.data.shards import MANIFEST, merge_manifest
from cilkit.errors import UserError
from cilkit.locks import Claim, claim
from cilkit.synthesis.generators import Generator, OutOfMemory, load_generator
from cilkit.synthesis.plan import Plan, open_plan, plan_hash, save_plan
from cilkit.synthesis.writer import Writer

if TYPE_CHECKING:
    import pandas as pd

POLL = 0.2  # seconds until a worker that found every shard taken looks again


class Job:
    """One plan on its way into one folder; `path` is the job's own folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.order = json.loads((self.path / "order.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} holds no readable order.json ({error}); expected the folder of a painting job"
            ) from None
        self.folder = (self.path / self.order["folder"]).resolve()  # found also when the job is gone

    @classmethod
    def begin(
        cls,
        plan: "Plan | pd.DataFrame",
        painter: Generator,
        folder: Path,
        scratch: Path,
        shard_size: int = 0,
        facts: Mapping[str, str] | None = None,
    ) -> "Job":
        """The job of this plan, new or as it was left. UserError if the folder holds images of another one."""
        on_disk, folder, scratch = isinstance(plan, Plan), folder.resolve(), scratch.resolve()  # ".." leaves no link
        origin = origin_of(plan.hash if on_disk else plan_hash(plan), painter) | dict(facts or {})
        cut = plan.n_shards if on_disk else shard_size
        named = artifacts.canonical([origin, cut, os.path.relpath(folder, scratch)])
        path = scratch / hashlib.sha256(named.encode()).hexdigest()[:16]
        path.mkdir(parents=True, exist_ok=True)
        (path / "claims").mkdir(exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        if not on_disk:
            kept = path / "plan.parquet"
            plan = open_plan(kept) if kept.exists() else save_plan(kept, plan, shard_size)
        order = {
            "folder": os.path.relpath(folder, path),  # relative: another machine may see the disk under another name
            "plan": os.path.relpath(plan.path.resolve(), path),
            "generator": painter.id,
            "spec": _absolute(painter.spec) if hasattr(painter, "spec") else None,
            "given": dict(getattr(painter, "given", {})),
            "origin": origin,
        }
        artifacts.write_json(path / "order.json", order)
        job = cls(path)
        if foreign := job._foreign():
            shutil.rmtree(path)
            raise UserError(
                f"{folder} holds images of another plan or generator ({foreign}); paint into another folder, or delete "
                "them first"
            )
        return job

    @cached_property
    def plan(self) -> Plan:
        return open_plan(self.path / self.order["plan"])

    @property
    def origin(self) -> dict:
        return self.order["origin"]

    def load(self) -> Generator:
        """The generator of the order, in this process. UserError if it is not the one that the job began with."""
        self.demand_spec()
        painter = load_generator(self.order["spec"], **self.order["given"])
        if painter.digest != self.origin["generator_digest"]:
            raise UserError(f"generator {painter.id} changed while it was painting; run it again")
        return painter

    def demand_spec(self) -> None:
        """UserError for a generator that only the process that began the job can use."""
        if self.order["spec"] is None:
            raise UserError(
                f"generator {self.order['generator']!r} is an object of one process, which others cannot load; "
                "paint with workers=1"
            )

    def _foreign(self) -> str:
        """What is there of another plan or generator, or cut otherwise: the manifest, the first or last finished shard,
        or the batches of a job that was left."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        done = [*self.folder.glob(MANIFEST)] or sorted(self.folder.glob("*.rows.parquet"), key=_number)
        for path in dict.fromkeys(done[:1] + done[-1:]):
            rows = [len(self.plan)] if path.name == MANIFEST else self.plan.shard_rows[_number(path) :][:1]
            try:
                with ParquetFile(path) as file:
                    known = [name for name in self.origin if name in file.schema_arrow.names]
                    first = file.read_row_group(0, known).slice(0, 1).to_pylist()
                    if first != [self.origin] or [file.metadata.num_rows] != rows:
                        return path.name
            except ArrowException:
                raise UserError(f"{path} is damaged; see `cilkit doctor {self.folder}`") from None
        for order in self.path.parent.glob("*/order.json"):
            with suppress(UserError):  # a job that ended just now
                other = Job(order.parent)
                if other.path != self.path and other.folder == self.folder:
                    if any(other.path.glob("*-*.parquet")) or any(other.path.glob("claims/*")):
                        return str(other.path)
                    shutil.rmtree(other.path, ignore_errors=True)  # begun, and nothing painted
        return ""

    # ------------------------------------------------------------ what is done

    def finished(self) -> set[int]:
        """Numbers of the shards that are whole: all of them once there is a manifest."""
        if (self.folder / MANIFEST).exists():
            return set(range(self.plan.n_shards))
        return {_number(path) for path in self.folder.glob("*.rows.parquet")}

    def is_finished(self, shard: int) -> bool:
        """The same of one shard, without listing the folder."""
        return (self.folder / f"{shard:05d}.rows.parquet").exists() or (self.folder / MANIFEST).exists()

    def unfinished(self) -> list[int]:
        return sorted(set(range(self.plan.n_shards)) - self.finished())

    def batch_file(self, shard: int, batch: int) -> Path:
        return self.path / f"{shard:05d}-{batch:08d}.parquet"

    def batch_files(self, shard: int) -> list[Path]:
        """The kept batches of a shard, in order."""
        return sorted(self.path.glob(f"{shard:05d}-*.parquet"))

    def kept(self) -> int:
        """Images that are safe on the disk, in shards or in batches that wait for theirs."""
        from pyarrow.parquet import read_metadata

        rows, finished = self.plan.shard_rows, self.finished()
        images = sum(rows[shard] for shard in finished)
        for path in self.path.glob("*-*.parquet"):
            with suppress(FileNotFoundError):  # another process has put it into its shard just now
                images += 0 if _number(path) in finished else read_metadata(path).num_rows
        return images

    def claim(self, what: int | str) -> Claim | None:
        """Hold a shard, or None. UserError where the job was removed while it was unfinished."""
        name = what if isinstance(what, str) else f"{what:05d}"
        try:
            return claim(self.path / "claims" / f"{name}.claim")
        except FileNotFoundError:
            if (self.folder / MANIFEST).exists():  # another process has closed the job
                return None
            raise UserError(f"{self.path} was removed while it was painting; paint again") from None

    def close(self) -> None:
        """The manifest, last of all; then nothing but the image set is left. Of several that come here, one does it."""
        while (held := self.claim("manifest")) is None:
            if not (self.path / "claims").exists():
                shutil.rmtree(self.path, ignore_errors=True)
                return
            time.sleep(POLL)
        with held:
            merge_manifest(self.folder)
            for path in self.folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)  # half a file of a worker that was killed
            shutil.rmtree(self.path, ignore_errors=True)  # others may look for something to do in it


def _number(path: Path) -> int:
    """The shard that a file belongs to: 00003.rows.parquet, 00003-00000017.parquet."""
    return int(path.name.split(".")[0].split("-")[0])


def _absolute(spec: str) -> str:
    """A generator's folder as every process finds it; a name as it is."""
    return str(Path(spec).absolute()) if (Path(spec) / "model_index.json").is_file() else str(spec)


def origin_of(plan_hash: str, painter: Generator) -> dict:
    """What every row of the manifest repeats: who painted it, how, after which plan."""
    settings = painter.settings
    return {
        "generator_id": painter.id,
        "generator_digest": painter.digest,
        "scheduler": settings["scheduler"],
        "steps": settings["steps"],
        "guidance": settings["guidance"],
        "negative_prompt": settings.get("negative_prompt") or "",
        "settings": artifacts.canonical(settings),
        "licence": getattr(painter, "licence", ""),
        "plan_hash": plan_hash,
    }


def work(job: Job, painter: Generator) -> Iterator[int]:
    """Work off a job beside whoever else does, until no shard is left: yields the images of each batch painted here.

    Whole batches are kept by a `Writer` while the next is painted; closing the iterator waits for the one in its hands.
    """
    brush = Brush(painter)
    with Writer(job) as writer:
        unfinished = job.unfinished()  # listed once: the folder may hold thousands of shards
        while unfinished:
            for shard in unfinished:
                if writer.claim(shard):
                    yield from _paint_shard(job, shard, brush, writer)
            writer.flush()  # the last ones in our own hands
            unfinished = [shard for shard in unfinished if not job.is_finished(shard)]
            if unfinished:
                time.sleep(POLL)  # others are at them; if one dies, its shard is ours


def _paint_shard(job: Job, shard: int, brush: "Brush", writer: Writer) -> Iterator[int]:
    rows = job.plan.rows(shard)
    brush.painter.check(rows["class_name"].unique().tolist(), rows["prompt"].unique().tolist())
    for batch, members in rows.groupby("batch_id"):
        if not job.batch_file(shard, batch).exists():
            writer.keep(shard, batch, *brush.paint(members))
            yield len(members)
    writer.assemble(shard)


class Brush:
    """A generator that is never handed more images than the device's memory holds at once."""

    def __init__(self, painter: Generator):
        self.painter, self.fits = painter, 0  # images that fit, once more did not; 0: no limit met yet

    def paint(self, rows: "pd.DataFrame") -> tuple[np.ndarray, "pd.DataFrame"]:
        """One batch: uint8 (n, size, size, 3), and its rows with batch_size (images really painted together),
        repainted (how often an image came out blank and was painted again) and precision."""
        at_once = min(limit for limit in (len(rows), self.fits, self._most()) if limit)
        images, sizes, repainted, start = [], [], [], 0
        while start < len(rows):
            part = rows.iloc[start : start + at_once]
            try:
                images.append(paint_batch(self.painter, part))
            except OutOfMemory:
                if len(part) == 1:
                    raise UserError(
                        f"not even one image of {self.painter.id} at {self.painter.size} pixels fits into the device's "
                        "memory; paint smaller images or with half precision"
                    ) from None
                self.fits = at_once = len(part) // 2
                continue
            again = getattr(self.painter, "repaints", {})
            sizes += [len(part)] * len(part)
            repainted += [again.get(position, 0) for position in range(len(part))]
            start += len(part)
        precision = getattr(self.painter, "precision", "")
        return np.concatenate(images), rows.assign(batch_size=sizes, repainted=repainted, precision=precision)

    def _most(self) -> int:
        try:
            return getattr(self.painter, "most_at_once", int)()
        except OutOfMemory:  # it paints a few images to find out
            return 1


def paint_batch(painter: Generator, rows: "pd.DataFrame") -> np.ndarray:
    """Rows of a plan, painted together: uint8 (n, size, size, 3). UserError if the generator gives anything else."""
    images = painter.paint(rows["prompt"].tolist(), rows["seed"].tolist(), rows["class_name"].tolist())
    expected = (len(rows), painter.size, painter.size, 3)
    if images.dtype != np.uint8 or images.shape != expected:
        raise UserError(f"{painter.id} painted {images.dtype} {images.shape}; expected uint8 {expected} of its paint()")
    return images
