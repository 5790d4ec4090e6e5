"""The loop over tasks, the same for every method, and the run that it leaves on disk (read back by `cilkit.runs`).

    for task in stream:
        for moment in learner.learn(task):
            record.tick(task, moment)
        record.outputs(task, learner.predict(stream.test_after(task)))

After every task its outputs and then a checkpoint are written, and another checkpoint after an epoch where the last one
is a minute old: a run that is killed goes on from there and ends in the same bytes. One that a person stops keeps every
finished epoch: it ends with the epoch in progress, or loses that one where it takes longer than `stopping.PATIENCE`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cilkit import artifacts, backbones, lookahead, metrics, outcomes, outputs, precision, stopping
from cilkit.errors import Stopped, UserError
from cilkit.outputs import Outputs
from cilkit.phases import Phases

if TYPE_CHECKING:
    from cilkit.data import Stream, Task
    from cilkit.learners import Learner, Moment

CHECKPOINT = "run.safetensors"  # at the end of the last finished task
WITHIN = "epoch.safetensors"  # at the end of an epoch of the task after that
EVERY = 60.0  # seconds of learning that an interruption may cost
PHASES = "phases.json"


def run_stream(
    learner: Learner,
    stream: Stream,
    folder: Path | None,
    *,
    scratch: Path | None = None,
    keep: Collection[str] = (),
    cap: int = outputs.CAP,
    look_ahead: bool = False,
    on_moment: Callable[[Moment], None] | None = None,
    on_task: Callable[[list, dict], None] | None = None,
    phases: Phases | None = None,
    every: float | None = None,
) -> Sequence[Outputs]:
    """Learn the stream, task by task; write the run into `folder` (None: nowhere) and return the outputs.

    scratch:   folder of the checkpoints; without it an interrupted run starts again.
    keep, cap: what of "logits", "features", "backbone" is kept in any case, and how many bytes may be kept without
               asking; see `cilkit.outputs.plan`.
    look_ahead: also measure what the features make of each task before it is learnt (see `cilkit.lookahead`), at the
               price of forward passes of the kind "probe".
    on_moment: called after every epoch.
    on_task:   called before the first task and after each, with what there is so far, of earlier attempts too: losses
               (task, epoch, by term) and the accuracy matrix in percent (head -> rows).
    phases:    measures the seconds and the peak memory of "train", "test", "write" and "look ahead".
    every:     seconds between two checkpoints within a task; EVERY where none are given.
    Raises UserError for a stream that the method is not defined for or a loss that is not finite, and Stopped when
    interrupted; what was finished is kept.
    """
    if stream.protocol not in learner.protocols:
        raise UserError(
            f"learner {learner.name!r} is not defined for {stream.protocol}-incremental streams "
            f"(only {', '.join(learner.protocols)}); choose another learner or another protocol"
        )
    if look_ahead and learner.passes > 1:
        raise UserError(
            f"look_ahead measures a backbone's features, and learner {learner.name!r} reads an image in "
            f"{learner.passes} passes; set look_ahead to false"
        )
    outputs.plan([0], [1], 1, 0, 0, cap, keep)  # a misspelt `keep` is refused before any work
    if folder is not None:
        learner.declared(stream)  # what the last task could not have (a budget too small) is said before the first
    precision.keep_freed_memory()
    record = _Record(learner, stream, folder, scratch, keep, cap, look_ahead, phases, EVERY if every is None else every)
    record.resume()
    with stopping.politely():
        _learn(record, on_moment, on_task)
    record.finish()
    return record.kept if record.folder is None else _OnDisk(record.folder, list(record.accuracy), len(stream))


def _learn(record: _Record, on_moment: Callable | None, on_task: Callable | None) -> None:
    """Every task that is not learnt yet."""
    learner, stream = record.learner, record.stream
    if on_task is not None:
        on_task(record.losses_so_far, record.accuracy)
    for task in stream:
        if task.index < len(record.losses):
            continue
        try:
            if record.ahead is not None and record.within is None:
                with record.phase("look ahead"):
                    record.look_ahead(task)
            with record.phase("train"):
                for moment in learner.learn(task, record.within):
                    stop = stopping.asked()
                    record.tick(moment, last=stop)
                    if on_moment is not None:
                        on_moment(moment)
                    if stop:
                        raise KeyboardInterrupt
            with record.phase("test"):
                answers = learner.predict(stream.test_after(task))
            with record.phase("write"):
                record.outputs(task, answers)
            if on_task is not None:
                on_task(record.losses_so_far, record.accuracy)
            stopping.check()
        except KeyboardInterrupt as stop:
            raise Stopped(f"interrupted in task {task.index + 1} of {len(stream)}; {record.kept_so_far}") from stop
        except UserError as error:
            if not record.written and not record.losses:
                raise
            raise UserError(f"{error}; {record.kept_so_far}") from error


class _OnDisk(Sequence):
    """A finished run's outputs after each task, read when asked for."""

    def __init__(self, folder: Path, heads: list[str], tasks: int) -> None:
        self.folder, self.heads, self.tasks = folder, heads, tasks

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, t: int) -> Outputs:
        return outputs.read(_after(self.folder, range(self.tasks)[t]), self.heads)


class _Record:
    """What a run has to show so far, in memory and on disk."""

    def __init__(self, learner, stream, folder, scratch, keep, cap, look_ahead, phases, every) -> None:
        self.learner, self.stream, self.every = learner, stream, every
        self.folder = None if folder is None else Path(folder)
        self.scratch = None if scratch is None else Path(scratch)
        self.asked, self.cap, self.phases = keep, cap, phases
        self.losses: list[list[dict[str, float]]] = []  # task, epoch
        self.present: list[dict[str, float]] = []  # epochs of the task that is being learnt
        self.within: dict | None = None  # the learner in the middle of the next task, as an interrupted run left it
        self.written, self.since = 0, time.monotonic()  # epochs of the present task in a checkpoint, and when it was
        self.accuracy: dict[str, list[list[float]]] = {}  # head -> rows of the accuracy matrix, percent
        self.ahead: dict[str, list[float]] | None = {"initial": [], "before": []} if look_ahead else None
        self.kept: list[Outputs] = []  # of a run that is written nowhere

    def phase(self, name: str):
        return nullcontext() if self.phases is None else self.phases(name)

    def look_ahead(self, task: Task) -> None:
        """Of every task but the first: before anything is learnt, and right before it is learnt itself."""
        if task.index == 0:
            self.ahead["initial"] = [
                lookahead.knowable(self.learner, self.stream, i) for i in range(1, len(self.stream))
            ]
        else:
            self.ahead["before"].append(lookahead.knowable(self.learner, self.stream, task.index))

    def tick(self, moment: Moment, last: bool) -> None:
        """An epoch is over. It is kept where the last checkpoint is old, or where this attempt ends here."""
        self.present.append(moment.losses)
        if self.scratch is not None and (last or time.monotonic() - self.since >= self.every):
            self._save(WITHIN, self.learner.moment_state())
            self.written = len(self.present)

    @property
    def losses_so_far(self) -> list[list[dict[str, float]]]:
        """Of every finished epoch, by task; the last one may be in progress."""
        return [*self.losses, self.present] if self.present else self.losses

    @property
    def kept_so_far(self) -> str:
        """What an interruption leaves, as people say it."""
        tasks, epochs = (len(self.losses), self.written) if self.scratch else (0, 0)
        if not tasks and not epochs:
            return "no finished tasks kept, run again to start over"
        more = f" and {epochs} {'epoch' if epochs == 1 else 'epochs'} of the next" if epochs else ""
        finished = f"{tasks or 'no'} finished {'task' if tasks == 1 else 'tasks'}{more}"
        return f"{finished} kept in {self.scratch}, run again to go on"

    def outputs(self, task: Task, answers: Outputs) -> None:
        stream = self.stream
        if stream.domain:
            answers = replace(answers, tasks=self._tasks_of(task))
        tasks = stream.task_of_class[answers.labels] if answers.tasks is None else answers.tasks
        for name, logits in answers.heads.items():
            if logits.shape != (len(answers), task.seen) or not np.isfinite(logits).all():
                raise UserError(
                    f"after task {task.index + 1} head {name!r} gives {logits.shape} logits, not all finite or not one "
                    f"for each of {task.seen} classes seen; lower lr and run again"
                )
            row = metrics.accuracy_by_task(logits.argmax(1), answers.labels, tasks, len(stream))
            self.accuracy.setdefault(name, []).append(row.tolist())
        self.losses.append(self.present)
        self.present, self.within, self.written = [], None, 0
        if self.folder is None:
            self.kept.append(answers)
            return
        outputs.write(_after(self.folder, task.index), answers, stream.task_of_class, self.keep)
        self._checkpoint()

    def _tasks_of(self, task: Task) -> np.ndarray:
        return self.stream.task_of(self.stream.test_after(task))

    @cached_property
    def keep(self) -> outputs.Keep:
        """What is kept of this run, asked for once the first task has shown the heads; decided by its shape alone, so
        that a resumed run decides the same."""
        images = [len(self.stream.test_after(task)) for task in self.stream]
        seen = [task.seen for task in self.stream]
        backbone, heads = self.learner.backbone, len(self.accuracy)
        weights = 0 if backbone.elsewhere else sum(value.nbytes for value in backbone.state_dict().values())
        kept = outputs.plan(images, seen, heads, backbone.dim, weights, self.cap, self.asked)
        return replace(kept, backbone=kept.backbone and not backbone.elsewhere)

    def _checkpoint(self) -> None:
        """The learner's whole state and the numbers so far, in one file that is replaced at once."""
        if self.scratch is None:
            return
        self._save(CHECKPOINT, self.learner.state())
        (self.scratch / WITHIN).unlink(missing_ok=True)
        if self.phases is not None:
            artifacts.write_json(self.scratch / PHASES, self.phases.table())

    def _save(self, name: str, state: dict) -> None:
        from safetensors.torch import save

        facts = {part: getattr(self, part) for part in ("losses", "present", "accuracy", "ahead")}
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        artifacts.atomic_write(self.scratch / name, save(state, metadata={"facts": json.dumps(facts)}))
        self.since = time.monotonic()

    def _read(self, name: str) -> tuple[dict, dict]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.scratch / name, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return state, json.loads(file.metadata()["facts"])
        except SafetensorError as error:
            raise UserError(
                f"the checkpoint {self.scratch / name} is damaged ({error}); delete it and run again"
            ) from error

    def resume(self) -> None:
        if self.scratch is None:
            return
        if (self.scratch / CHECKPOINT).exists():
            state, facts = self._read(CHECKPOINT)
            self.learner.load(state)
            self.losses, self.accuracy, self.ahead = facts["losses"], facts["accuracy"], facts["ahead"]
            if self.phases is not None and (self.scratch / PHASES).exists():
                self.phases.add(json.loads((self.scratch / PHASES).read_text()))
        if (self.scratch / WITHIN).exists():
            state, facts = self._read(WITHIN)
            if len(facts["losses"]) == len(self.losses):  # else its task was finished after all
                self.within, self.present, self.ahead = state, facts["present"], facts["ahead"]
                self.written = len(self.present)

    def finish(self) -> None:
        if self.folder is None:
            return
        learner, stream, keep = self.learner, self.stream, self.keep
        for name, rows in self.accuracy.items():
            artifacts.atomic_write(self.folder / f"accuracy_{name}.csv", _csv(rows))
        if keep.backbone:
            backbones.save(learner.backbone, self.folder / "backbone")
        identity = learner.identity()
        weights = learner.backbone.state_dict().values()
        settings = {
            "learner": identity.pop("learner"),
            "hyper": identity,
            "seed_init": learner.seed_init,
            "seed_data": learner.seed_data,
            "protocol": stream.protocol,
            "stream": stream.identity(),
            "class_names": list(stream.class_names),
            "increments": list(stream.sizes),
            "task_of_class": stream.task_of_class.tolist(),
            "task_names": stream.task_names,
            "heads": list(self.accuracy),
            "default_head": learner.default_head,
            "backbone": {
                "tag": learner.backbone.tag,
                "parameters": sum(p.numel() for p in learner.backbone.parameters()),
                "bytes": sum(value.nbytes for value in weights),
            },
            "forwards": {
                "declared": learner.declared(stream)
                | ({lookahead.KIND: lookahead.declared(stream)} if self.ahead else {}),
                "spent": dict(learner.backbone.forwarded),
                "found": sorted(learner.found),
            },
            "stored_bytes": learner.stored_bytes(),
            "notes": learner.notes(),
            "keep": {"logits": keep.logits, "features": keep.features, "backbone": keep.backbone},
            "losses": self.losses,
        } | ({"look_ahead": self.ahead} if self.ahead else {})
        artifacts.write_json(self.folder / "run.json", settings)
        outcomes.summarise(self.folder)


def _after(folder: Path, t: int) -> Path:
    return folder / f"after_{t:02d}"


def _csv(rows: list[list[float]]) -> str:
    """The accuracy matrix in percent: a row after each task, a column a task, empty where nothing was tested."""
    lines = ["," + ",".join(f"task {i + 1}" for i in range(len(rows)))]
    for t, row in enumerate(rows):
        lines.append(",".join([f"after task {t + 1}", *("" if np.isnan(value) else repr(value) for value in row)]))
    return "\n".join(lines) + "\n"
