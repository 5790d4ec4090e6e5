"""The loop over tasks, the same for every method, and the run that it leaves on disk (read back by `cilkit.runs`).

    for task in stream:
        for moment in learner.learn(task):
            on_moment(moment)
        outputs(task, learner.predict(stream.test_after(task)))

After every task its outputs and then a checkpoint are written: an interrupted run goes on with the next task and ends
in the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cilkit import artifacts, backbones, metrics
from cilkit.errors import Stopped, UserError

if TYPE_CHECKING:
    from cilkit.data import Stream, Task
    from cilkit.learners import Learner, Moment
    from cilkit.runs import Outputs

CHECKPOINT = "run.safetensors"


def run_stream(
    learner: Learner,
    stream: Stream,
    folder: Path | None,
    *,
    scratch: Path | None = None,
    keep_features: bool = True,
    on_moment: Callable[[Moment], None] | None = None,
) -> list[Outputs]:
    """Learn the stream, task by task; write the run into `folder` (None: nowhere) and return the outputs.

    scratch:       folder of the checkpoint; without it an interrupted run starts again.
    keep_features: also keep the test features, float32 (n, dim) a task.
    on_moment:     called after every epoch.
    Raises UserError for a loss that is not finite and Stopped when interrupted; what was finished is kept.
    """
    record = _Record(learner, stream, folder, scratch, keep_features)
    record.resume()
    for task in stream:
        if task.index < len(record.losses):
            continue
        try:
            losses = []
            for moment in learner.learn(task):
                losses.append(moment.losses)
                if on_moment is not None:
                    on_moment(moment)
            record.outputs(task, learner.predict(stream.test_after(task)), losses)
        except KeyboardInterrupt as stop:
            raise Stopped(
                f"interrupted in task {task.index + 1} of {len(stream)}; "
                f"{task.index if scratch else 'no'} finished tasks are kept, run again to go on"
            ) from stop
    record.finish()
    return record.kept


class _Record:
    """What a run has to show so far, in memory and on disk."""

    def __init__(self, learner, stream, folder, scratch, keep_features) -> None:
        self.learner, self.stream, self.keep_features = learner, stream, keep_features
        self.folder = None if folder is None else Path(folder)
        self.scratch = None if scratch is None else Path(scratch)
        self.losses: list[list[dict[str, float]]] = []  # task, epoch
        self.accuracy: dict[str, list[list[float]]] = {}  # head -> rows of the accuracy matrix, percent
        self.kept: list[Outputs] = []

    def outputs(self, task: Task, outputs: Outputs, losses: list[dict[str, float]]) -> None:
        for name, logits in outputs.heads.items():
            if logits.shape != (len(outputs), task.seen) or not np.isfinite(logits).all():
                raise UserError(
                    f"after task {task.index + 1} head {name!r} gives {logits.shape} logits, not all finite or not one "
                    f"for each of {task.seen} classes seen; lower lr and run again"
                )
            row = metrics.accuracy_row(logits.argmax(1), outputs.labels, self.stream.task_of_class, len(self.stream))
            self.accuracy.setdefault(name, []).append(row.tolist())
        self.kept.append(outputs)
        self.losses.append(losses)
        self._write_outputs(task.index, outputs)
        self._checkpoint()

    def _write_outputs(self, t: int, outputs: Outputs) -> None:
        if self.folder is None:
            return
        after = self.folder / f"after_{t:02d}"
        artifacts.save_npy(after / "index.npy", np.asarray(outputs.ids, np.int64))
        artifacts.save_npy(after / "labels.npy", np.asarray(outputs.labels, np.int64))
        for name, logits in outputs.heads.items():
            artifacts.save_npy(after / f"logits_{name}.npy", logits.astype(np.float32))
        if self.keep_features and outputs.features is not None:
            artifacts.save_npy(after / "features.npy", outputs.features.astype(np.float32))

    def _checkpoint(self) -> None:
        """The learner's whole state and the numbers so far, in one file that is replaced at once."""
        if self.scratch is None or self.folder is None:
            return
        from safetensors.torch import save

        facts = json.dumps({"losses": self.losses, "accuracy": self.accuracy})
        state = {name: value.detach().cpu().contiguous() for name, value in self.learner.state().items()}
        artifacts.atomic_write(self.scratch / CHECKPOINT, save(state, metadata={"facts": facts}))

    def resume(self) -> None:
        if self.scratch is None or not (self.scratch / CHECKPOINT).exists():
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.scratch / CHECKPOINT, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(
                f"the checkpoint {self.scratch / CHECKPOINT} is damaged ({error}); delete it and run again"
            ) from error
        self.learner.load(state)
        self.losses, self.accuracy = facts["losses"], facts["accuracy"]
        self.kept = [self._read(t) for t in range(len(self.losses))]

    def _read(self, t: int) -> Outputs:
        from cilkit.runs import Outputs

        after = self.folder / f"after_{t:02d}"
        heads = {name: np.load(after / f"logits_{name}.npy") for name in self.accuracy}
        features = np.load(after / "features.npy") if (after / "features.npy").exists() else None
        return Outputs(np.load(after / "index.npy"), np.load(after / "labels.npy"), heads, features)

    def finish(self) -> None:
        if self.folder is None:
            return
        for name, rows in self.accuracy.items():
            artifacts.atomic_write(self.folder / f"accuracy_{name}.csv", _csv(rows))
        learner, stream = self.learner, self.stream
        identity = learner.identity()
        backbones.save(learner.backbone, self.folder / "backbone")
        settings = {
            "learner": identity.pop("learner"),
            "hyper": identity,
            "seed_init": learner.seed_init,
            "seed_data": learner.seed_data,
            "stream": stream.identity(),
            "class_names": list(stream.class_names),
            "increments": list(stream.increments),
            "task_of_class": stream.task_of_class.tolist(),
            "heads": list(self.accuracy),
            "default_head": learner.default_head,
            "forwards": {"declared": learner.declared(stream), "spent": dict(learner.backbone.forwarded)},
            "stored_bytes": learner.stored_bytes(),
            "losses": self.losses,
        }
        artifacts.write_json(self.folder / "run.json", settings)


def _csv(rows: list[list[float]]) -> str:
    """The accuracy matrix in percent: a row after each task, a column a task, empty above the diagonal."""
    lines = ["," + ",".join(f"task {i + 1}" for i in range(len(rows)))]
    for t, row in enumerate(rows):
        lines.append(",".join([f"after task {t + 1}", *("" if np.isnan(value) else repr(value) for value in row)]))
    return "\n".join(lines) + "\n"
