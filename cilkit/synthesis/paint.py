"""From plan to image set, with one worker or many: begun, resumed after an interruption to the same bytes, and merged.

A painted batch is kept in the job's folder until its shard is complete; a shard then appears whole. So an interruption
costs at most one painted batch a worker. See `job` for what a worker does, `writer` for what happens beside it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cilkit.errors import Stopped, UserError, near_name
from cilkit.synthesis.crew import UNWRITABLE, Crew
from cilkit.synthesis.generators import Generator, load_generator
from cilkit.synthesis.job import Job, work
from cilkit.synthesis.plan import Plan, demand_rows

if TYPE_CHECKING:
    import pandas as pd

EXECUTORS = ("processes", "ray")


def paint_plan(
    plan: "Plan | pd.DataFrame",
    generator: str | Path | Generator,
    folder: str | Path,
    *,
    workers: int = 1,
    scratch: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    executor: str = "processes",
    address: str = "",
    shard_size: int = 0,
    facts: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Paint a plan into `folder` as an image set (tar shards and manifest); what is there already is not painted again.

    workers: processes, or Ray actors, of one thread each; with 1 process this one paints. More may join from anywhere:
    `python -m cilkit.synthesis.worker JOB`. scratch: where the job's folder lies until the end (by default in the
    folder). progress: called with (images so far, images in all). executor: "processes" of this machine, or "ray" at
    `address` ("" starts it here). shard_size: images a shard of a plan in memory, see `plan.batches_per_shard`. facts:
    further columns of the manifest, the same for every image, such as its realm.
    Returns what was measured: images painted now, seconds, images_per_second. Raises UserError for prompts that the
    generator cannot paint, a folder that holds another plan's images, a full or read-only disk, workers that keep
    dying; Stopped when interrupted.
    """
    if executor not in EXECUTORS:
        raise UserError(f"executor {executor!r} is unknown{near_name(executor, EXECUTORS)}; take 'processes' or 'ray'")
    folder, painter = Path(folder), load_generator(generator)
    _check(plan, painter)
    start, total, job, images = time.perf_counter(), len(plan), None, 0
    try:
        job = Job.begin(plan, painter, folder, Path(scratch or folder / "scratch"), shard_size, facts)
        kept = job.kept()
        with closing(_painted(job, painter, workers, executor, address)) as painted:
            for batch in painted:
                images += batch
                if progress:
                    progress(min(kept + images, total), total)  # a dead worker's last batch may count twice
        job.close()
    except (KeyboardInterrupt, OSError) as error:
        so_far = f"{job.kept()} of {total} images are kept" if job else "what was painted is kept"
        if isinstance(error, KeyboardInterrupt):
            raise Stopped(f"painting was stopped; {so_far}, run it again to go on") from None
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"the disk of {folder} {UNWRITABLE[error.errno]}; {so_far}: mend that, or name another folder, and paint "
            "again"
        ) from None
    with suppress(OSError):  # other jobs may lie there
        (folder / "scratch").rmdir()
    seconds = time.perf_counter() - start
    return {"images": images, "seconds": seconds, "images_per_second": images / max(seconds, 1e-9)}


def _check(plan: "Plan | pd.DataFrame", painter: Generator) -> None:
    """Classes and prompts before anything is painted; those of a plan on the disk are checked shard by shard."""
    if isinstance(plan, Plan):
        return painter.check(plan.classes)
    demand_rows(plan)
    painter.check(plan["class_name"].unique().tolist(), plan["prompt"].unique().tolist())


def _painted(job: Job, painter: Generator, workers: int, executor: str, address: str) -> Iterator[int]:
    """The images of every batch, as it is painted."""
    workers = min(workers, len(job.unfinished()))
    if executor == "ray" and workers:
        from cilkit.synthesis.ray_crew import RayCrew

        return RayCrew(job, address).paint(workers)
    return Crew(job).paint(workers) if workers > 1 else work(job, painter)
