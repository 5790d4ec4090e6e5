"""A finished run is opened again: the learner as it was after any of its tasks, alive.

    opened = cilkit.open(run)                     a Run, its artifact's name or folder, or a row of cilkit.results()
    then = opened.after(task=4)                   counted from 1, or from the end: -1
    then.predict("my_pictures/")                  a table: what it answers, and how sure it is

No run keeps its learner. What identifies it is enough to learn the same tasks again, which gives the same bits on the
same machine; whether it did is checked on the test images whose outputs the run kept. The learner's state after a task
is then an artifact of its own, from which later tasks go on.
"""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit import artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError
from cilkit.progress import Progress
from cilkit.road.assembling import RUN_VERSION, Makings, source_digest
from cilkit.road.inputs import input_of, threads_set_to, with_artifact
from cilkit.road.weights import VLM, Weights
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

    from cilkit.data import Benchmark, ImageSet, Stream
    from cilkit.learners import Learner
    from cilkit.outputs import Outputs

STATE_VERSION = 1  # part of the key: raise it when the same task of the same run comes to mean another state
STATE, CARD = "state.safetensors", "state.json"
SCRATCH = "learnt.safetensors"  # the learner after the last task that was learnt again, while more are to come
TOLERANCE = 1e-3  # of the largest saved logit: how far another machine's logits may lie from the run's
TOP = 5


def open(run: Any) -> Opened:
    """A finished run, to go back in: `Opened`. Nothing is computed yet.

    run: a `Run`, an artifact or its name ("run/3f2a…"), its folder, or a row of `cilkit.results()`.
    """
    return Opened(run_of(run))


def run_of(spec: Any) -> Run:
    """The `Run`, with its artifact, of whatever a person may give for one. UserError where there is none."""
    if isinstance(spec, Run):
        return spec if spec.artifact is not None else Run(_artifact(spec.folder))
    if isinstance(spec, Artifact):
        return Run(_artifact(spec.path))
    if isinstance(spec, str | Path):
        return Run(_artifact(spec))
    try:
        name, digest = spec["artifact"], spec["digest"]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{type(spec).__name__} is no run; give a Run, an artifact's name such as run/3f2a91, a folder, or one row "
            "of cilkit.results(), such as table.iloc[0]"
        ) from error
    if not isinstance(name, str):
        raise UserError(f"{len(name)} rows of results were given; give one of them, such as table.iloc[0]")
    artifact = _artifact(name)
    if artifact.digest != digest:
        raise UserError(f"{name} is not the one of the results any more; run its notebook again")
    return Run(artifact)


def _artifact(name: str | Path) -> Artifact:
    if Path(name).is_dir() and not (Path(name) / "artifact.json").is_file():
        raise UserError(f"{name} is no artifact: it has no artifact.json, which says what the run was made from")
    artifact = artifacts.open_artifact(name)
    if artifact.stage != "run":
        raise UserError(f"{artifact.name} is of stage {artifact.stage!r}; an artifact of stage 'run' is wanted here")
    return artifact


def benchmark_of(run: Run) -> Benchmark:
    """The benchmark that a run was made on. UserError where it is not there any more."""
    from cilkit.data import benchmarks

    artifact, name = _input(run, "benchmark"), run.settings["stream"]["benchmark"]
    return benchmarks.opened(artifact, name)


class Opened:
    """A finished run and the way back into it. `run`: what it left on disk."""

    def __init__(self, run: Run) -> None:
        self.run, self.artifact = run, run.artifact

    def __repr__(self) -> str:
        return f"Opened({self.artifact.name}: {self.run.learner}, {self.run.n_tasks} tasks)"

    def __len__(self) -> int:
        return self.run.n_tasks

    @cached_property
    def stream(self) -> Stream:
        """The stream that the run learnt."""
        from cilkit.data.streams import Stream

        return Stream.of_identity(self.artifact.identity["stream"], benchmark_of(self.run))

    def after(
        self,
        task: int = -1,
        learner: type | None = None,
        backbone: Any = None,
        text_encoder: str = "",
        generator: str = "",
        device: str = "auto",
        tolerance: float = TOLERANCE,
    ) -> After:
        """The learner as it was after this task, counted from 1, or from the end where negative.

        The tasks up to it are learnt again unless that was done before, from the last one whose state is there.

        learner:      the class, where the run learnt with one of your own; its source text has to be the same.
        backbone, text_encoder, generator: where these lie, if the run took them from files or a folder of your own,
                      which its identity knows by content alone.
        device:       as in `cilkit.run`.
        tolerance:    largest difference of a logit from the run's own, as a share of the largest, that is put up with.
                      0 asks for the same bits.
        UserError where something that the run was made from is gone or has changed, or where what was learnt again
        answers differently.
        """
        place = self._place(task)
        makings = self._makings(learner, backbone, text_encoder, generator, device)
        with threads_set_to(makings.threads):
            state = self._state(place, makings)
            then = After(self, place, makings, state)
        then.demand(tolerance)
        return then

    def _place(self, task: int) -> int:
        """The task, from 0."""
        count = self.run.n_tasks
        if isinstance(task, bool) or not isinstance(task, int | np.integer) or not 1 <= abs(task) <= count:
            raise UserError(
                f"there is no task {task!r} in {self.artifact.name}; take 1 … {count}, or -1 … -{count} from the end"
            )
        return int(task) - 1 if task > 0 else count + int(task)

    # ------------------------------------------------------------ what it was made with

    def _makings(self, learner, backbone, text_encoder: str, generator: str, device: str) -> Makings:
        """Everything that the run was made with, found again and told apart from what has changed since."""
        was = self.artifact.identity
        weights = self._weights(backbone)
        numerics = {name: was[name] for name in ("threads", "precision", "compile")}
        chance = {name: was[name] for name in ("seed_init", "seed_data")}
        features = [name for name in self.artifact.inputs if name.startswith("features_")]
        makings = Makings(
            self._learner(learner), self.stream, weights, was["hyper"], self._images(), self._captioner(),
            text_encoder or self._text_encoder(), generator, **chance, **numerics, device=device,
            found={name.removeprefix("features_"): _input(self.run, name) for name in features},
        )  # fmt: skip
        self._demand_same(makings)
        return makings

    def _demand_same(self, makings: Makings) -> None:
        """The key of a run with these makings has to be this run's."""
        was = self.artifact.identity
        identity = makings.identity | {name: was[name] for name in ("keep", "look_ahead")}
        key = artifacts.key_of("run", RUN_VERSION, identity, makings.inputs)
        if key == self.artifact.key:
            return
        now = json.loads(artifacts.canonical(identity))
        changed = sorted(name for name in now.keys() | was.keys() if now.get(name) != was.get(name))
        digests = {name: made.digest for name, made in makings.inputs.items()}
        before = {name: made["digest"] for name, made in self.artifact.inputs.items()}
        changed += sorted(name for name in digests.keys() | before.keys() if digests.get(name) != before.get(name))
        raise UserError(
            f"{self.artifact.name} cannot be learnt again: its {', '.join(changed) or 'version'} would not be what it "
            "was; give what it was made with, or make the run again"
        )

    def _learner(self, given: type | None) -> str | type:
        was = self.artifact.identity
        if not was["source"]:
            if given is not None:
                raise UserError(f"{self.artifact.name} learnt with {was['learner']!r} of cilkit; leave `learner` out")
            return was["learner"]
        if given is None:
            raise UserError(
                f"{self.artifact.name} learnt with {was['learner']}, a class of your own; define it and give it: "
                f"after(…, learner={was['learner']})"
            )
        if given.__name__ != was["learner"] or source_digest(given) != was["source"]:
            raise UserError(
                f"{given.__name__} is not the class that {self.artifact.name} learnt with: its name or its source text "
                f"has changed; take {was['learner']} as it was, or make the run again"
            )
        return given

    def _weights(self, given: Any) -> Weights:
        was = self.artifact.identity
        kind, args, seed = was["backbone"], was.get("model_args"), was["seed_init"]
        if given is not None:
            return Weights(given, was.get("arch", ""), args, seed)
        if kind == "pretrained":
            _input(self.run, "backbone")  # named where it is gone
            return Weights(input_of(self.artifact, "backbone"))
        if kind == "none":
            return Weights("none", was["arch"], args, was["weights_seed"])
        if kind == "vlm" and "name" in was:
            return Weights(f"{VLM}{was['name']}", "", args, seed)
        if kind in ("file", "vlm"):
            raise UserError(
                f"{self.artifact.name} took its backbone from files of your own, known by their content alone; say "
                "where they lie: after(…, backbone='FILE')"
            )
        return Weights(kind, "", args, seed)

    def _images(self) -> ImageSet | None:
        """What the learner replayed: paintings, or the training images of a benchmark."""
        if "images" not in self.artifact.inputs:
            return None
        artifact = _input(self.run, "images")
        if artifact.stage != "benchmark":
            return input_of(self.artifact, "images")
        from cilkit.data import benchmarks

        name = artifact.identity["name"]
        name = f"{name}:{artifact.name}" if name in ("folder", "hf") else name  # whose own place it does not know
        return with_artifact(benchmarks.opened(artifact, name).train, artifact)

    def _captioner(self) -> Any:
        if "captioner" not in self.artifact.inputs:
            return None
        _input(self.run, "captioner")
        return input_of(self.artifact, "captioner")

    def _text_encoder(self) -> str:
        encoder = self.artifact.identity.get("text_encoder", "embedded")
        if isinstance(encoder, dict):
            raise UserError(
                f"{self.artifact.name} took its text encoder from a folder of your own; say where it lies: "
                "after(…, text_encoder='FOLDER')"
            )
        return encoder

    # ------------------------------------------------------------ learning again

    def _state(self, place: int, makings: Makings) -> Artifact:
        """The artifact of the learner's state after a task, found or made."""

        def make(work: artifacts.Work) -> None:
            learner = makings.create()
            answers = self._learn_again(learner, place, work.scratch)
            _save(learner.state(), work.path / STATE, place)
            card = {"task": place + 1, "learner": makings.name, "tested": len(answers)}
            artifacts.write_json(work.path / CARD, card | {"heads": compared(self.run, place, answers)})
            work.measure(device=str(learner.backbone.device))

        return artifacts.obtain("state", STATE_VERSION, *self._named(place), make)

    def _named(self, place: int) -> tuple[dict, dict]:
        return {"task": place + 1}, {"run": self.artifact}

    def _nearest(self, place: int) -> Path | None:
        """The file of the last state before this task that is there."""
        for earlier in range(place - 1, -1, -1):
            found = artifacts.find("state", artifacts.key_of("state", STATE_VERSION, *self._named(earlier)))
            if found is not None:
                return found.file(STATE)
        return None

    def _learn_again(self, learner: Learner, place: int, scratch: Path) -> Outputs:
        """Learn up to this task; what it answers to the test images then."""
        left_off = scratch / SCRATCH
        kept = [path for path in (self._nearest(place), left_off) if path is not None and path.exists()]
        done = max(map(_task_of, kept), default=-1)
        if kept:
            learner.load(_load(max(kept, key=_task_of)))
        progress = Progress(f"learning {self.artifact.name} again")
        for task in self.stream:
            if done < task.index <= place:
                for moment in learner.learn(task):
                    progress(moment)
                if task.index < place:
                    _save(learner.state(), left_off, task.index)
        return learner.predict(self.stream.test_after(self.stream[place]))


class After:
    """The learner as it was after a task of a run.

    learner:     the live object; it may be changed at will, the artifact stays as it is.
    task:        which, from 1.
    class_names: of the classes seen by then, in the order of their logits.
    artifact:    its state, of stage "state".
    differences: head -> what the check against the run's own outputs gave, see `compared`.
    """

    def __init__(self, opened: Opened, place: int, makings: Makings, artifact: Artifact) -> None:
        self.opened, self.task, self.artifact, self._makings = opened, place + 1, artifact, makings
        self.class_names: list[str] = opened.stream.class_names[: opened.stream[place].seen]
        self.differences: dict[str, dict] = json.loads(artifact.file(CARD).read_text())["heads"]
        self.learner: Learner = makings.create()
        self.learner.load(_load(artifact.file(STATE)))

    def __repr__(self) -> str:
        same = "the same bits as the run's" if self.exact else f"{100 * self.difference:.2g} % from the run's logits"
        return f"After(task {self.task}, {self._makings.name}, {len(self.class_names)} classes seen, {same})"

    @property
    def exact(self) -> bool:
        """Whether it answers with the very bits that the run saved."""
        return all(head["exact"] for head in self.differences.values())

    @property
    def difference(self) -> float:
        """Largest difference of a logit from the run's, as a share of the largest logit."""
        return max(head["share"] for head in self.differences.values())

    def demand(self, tolerance: float) -> None:
        """UserError where what was learnt again lies further from the run's outputs."""
        if self.difference <= tolerance:
            return
        name, worst = max(self.differences.items(), key=lambda pair: pair[1]["share"])
        host, here = self.opened.artifact.measured.get("host", "unknown"), socket.gethostname()
        made = self.opened.artifact.measured.get("machine", "unknown")
        where = (
            f"the run was made on another machine ({host}, {made}; here {here}, {platform.machine()})"
            if (host, made) != (here, platform.machine())
            else "the code or a library has changed since the run was made here"
        )
        raise UserError(
            f"learnt again, task {self.task} of {self.opened.artifact.name} answers differently: head {name!r} by up "
            f"to {worst['largest']:.3g} in a logit, {worst['answers']} other answers to {worst['of']} test images; "
            f"{where}; make the run again, or put up with it: tolerance={_above(self.difference):g}"
        )

    def outputs(self, images: Any) -> Outputs:
        """Logits of all heads, features and, of a model that writes, texts. images: as in `predict`."""
        return self._answered(self._own(images))

    def features(self, images: Any) -> np.ndarray:
        """float32 (n, dim): what the backbone sees in one's own images, as in `predict`."""
        return self.outputs(images).features

    def predict(self, images: Any, head: str = "") -> pd.DataFrame:
        """What it answers to one's own images: a row an image and head, or only those of one head.

        images: uint8 arrays (h, w, 3) of any size, PIL images, files, a folder, or an `ImageSet`; one or many. They go
                through the run's own test transform; where that does not resize, they are brought to the benchmark's
                size first.
        Columns: image, head, answer, probability (softmax of the head's logits over the classes seen by then), "2nd",
        "2nd probability" … up to the 5th, and text where the learner writes.
        """
        import pandas as pd

        own = self._own(images)
        found = self._answered(own)
        if head:
            self.opened.run.check_head(head)
        rows = []
        for name_of_head in [head] if head else found.heads:
            logits = found.heads[name_of_head]
            for i, (name, best) in enumerate(zip(own.ids.tolist(), ranked(logits, self.class_names), strict=True)):
                row = {"image": name, "head": name_of_head, "answer": best[0][0], "probability": best[0][1]}
                for place, (answer, share) in zip(("2nd", "3rd", "4th", "5th"), best[1:], strict=False):
                    row |= {place: answer, f"{place} probability": share}
                rows.append(row | ({"text": found.texts[i]} if found.texts is not None else {}))
        return pd.DataFrame(rows)

    def _answered(self, own: ImageSet) -> Outputs:
        with threads_set_to(self._makings.threads):
            return self.learner.predict(own)

    def _own(self, images: Any) -> ImageSet:
        from cilkit.data.pictures import pictures

        test = self.opened.stream.benchmark.test
        size = tuple(test.sizes[0].tolist()) if not self.learner.recipe.size and test.source.uniform else None
        own = pictures(images, size)
        return type(own)(own.source, own.index, own.labels, self.class_names)  # names that a learner may write


def ranked(logits: np.ndarray, names: Sequence[str], count: int = TOP) -> list[list[tuple[str, float]]]:
    """The `count` likeliest classes of each row of logits (n, seen), with their softmax probabilities, 0 … 1."""
    shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [[(names[label], float(row[label])) for label in best] for row, best in zip(shares, order, strict=True)]


def compared(run: Run, place: int, answers: Outputs) -> dict[str, dict]:
    """What was learnt again beside what the run saved after task `place` (from 0), by head.

    exact:   every number is the same, bit for bit. largest: difference of a logit (of the 16 largest where the run kept
    no others). share: that over the largest saved logit. answers, of: images answered otherwise, and all.
    """
    from cilkit.outputs import Scores

    if not np.array_equal(answers.ids, run.ids(place)) or not np.array_equal(answers.labels, run.labels(place)):
        raise UserError(f"{run.artifact.name} was tested on other images after task {place + 1}; make the run again")
    found = {}
    for head, logits in answers.heads.items():
        kept = (run.artifact.path / f"after_{place:02d}" / f"logits_{head}.npy").exists()
        was, now = (run.outputs(place).logits(head), logits) if kept else (run.scores(place, head).top_logits, None)
        if now is None:
            again = Scores.of(logits, answers.labels, run.task_of_class)
            now = again.top_logits
        largest = float(np.abs(now.astype(np.float64) - was).max(initial=0))
        others = int((logits.argmax(1) != run.predictions(place, head)).sum())
        found[head] = {
            "exact": largest == 0,
            "largest": largest,
            "share": largest / (float(np.abs(was).max(initial=0)) or 1.0),
            "answers": others,
            "of": len(answers),
        }
    return found


def _above(share: float) -> float:
    """The share, rounded up to one digit: 0.0123 gives 0.02."""
    step = 10.0 ** np.floor(np.log10(share))
    return float(np.ceil(share / step) * step)


def _input(run: Run, name: str) -> Artifact:
    """An artifact that the run was made from. UserError where it is gone."""
    made_from = run.artifact.inputs[name]
    found = artifacts.find(made_from["stage"], made_from["key"], made_from["digest"])
    if found is None:
        raise UserError(
            f"{run.artifact.name} was made from {made_from['stage']}/{made_from['key'][: artifacts.KEY_LENGTH]} (its "
            f"{name.replace('_', ' ')}), which is no longer under {artifacts.root()}; make it again, or the run"
        )
    return found


# ---------------------------------------------------------------- states on disk


def _save(state: dict, path: Path, place: int) -> None:
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    artifacts.atomic_write(path, save(plain, metadata={"task": str(place)}))


def _task_of(path: Path) -> int:
    """The task, from 0, after which a state was saved."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return int(file.metadata()["task"])


def _load(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); delete its folder and ask again") from error
