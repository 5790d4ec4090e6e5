"""Notebook 07: any set of saved runs, each under a short name that says what it is.

    chosen = choose(["params/04_slca/none.yaml", "run/3f2a91"], where="learner == 'icarl' and order_seed == 1993")
    chosen["slca, none"]                 a Run
    chosen.table.loc["slca, none"]       what tells it from the others

Nothing here needs torch, unless a run that a parameter file describes has to be made first.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilkit import artifacts, outcomes
from cilkit.errors import UserError, near_name, reason_of
from cilkit.road.inputs import from_params, input_of, parameters_of
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

PARAMS = "params"  # of a spec with changes of its own: {"params": "params/04_slca/none.yaml", "lr": 0.03}
YAML = (".yaml", ".yml")
LONGEST = 40  # signs of a part of a label
COLUMNS = ["name", "learner", "pre-training", "benchmark", "increments", "kind", "order", "initialisation"]
COLUMNS += ["data order", "tasks", "stream", "place"]
TITLES = {  # (name, head) -> what the literature calls it
    ("slca", "raw"): "slow learner",
    ("slca", "aligned"): "SLCA",
    ("finetune", "raw"): "sequential fine-tuning",
    ("nearest mean", "means"): "nearest class mean",
}


@dataclass
class _Found:
    run: Run
    name: str
    weights: str = ""  # what a person calls those that it began with
    file: str = ""


class Chosen(dict):
    """Label -> `Run`, in the order of choosing.

    table: a row a run, by label: name (as its file calls it, else its learner), learner, pre-training, benchmark,
           increments, kind ("tasks", "joint" …), order, initialisation and data order (their seeds), tasks, stream
           (a digest, equal where tasks and labels mean the same) and place.
    """

    def __init__(self, found: Sequence[_Found]):
        self._found, self.table = list(found), _table(found)
        super().__init__(zip(self.table.index, (one.run for one in found), strict=True))

    def where(self, **values: Any) -> Chosen:
        """Those whose columns have these values, under labels of their own: `chosen.where(kind="tasks", order=1993)`.

        A column with a hyphen is written with "_": pre_training="none".
        """
        columns = {name if name in self.table else name.replace("_", "-"): value for name, value in values.items()}
        rows = self.table.to_dict("records")
        kept = [all(row[name] == value for name, value in columns.items()) for row in rows]
        return Chosen([one for one, keep in zip(self._found, kept, strict=True) if keep])


def choose(specs: Iterable[Any] = (), where: str = "", limit: int = 0, **changes: Any) -> Chosen:
    """Any set of saved runs: `Chosen`, a dict from short, unique labels to runs.

    specs:   one text or many of: a parameter file of 04, 05 or 06 (all its runs, found or made; with parameters of your
             own as {"params": FILE, "lr": 0.03}), an artifact's name, a run's folder or one that holds such folders
             (of another machine too), or a `Run`.
    where:   a pandas query over `cilkit.results()`, whose rows' runs are added:
             "learner == 'slca' and `last accuracy` > 50".
    limit:   at most so many of `where`; 0: all.
    changes: laid over every parameter file, under the file's spec's own: order_seed=1996.
    A run reached twice stands once, as it was reached first.
    """
    specs = [specs] if isinstance(specs, str | Path | Run | Mapping) else list(specs)
    found = [one for spec in specs for one in _of_spec(spec, changes)]
    found += [_Found(run, run.learner) for run in _selected(where, limit)] if where else []
    found = list({one.run.folder.absolute(): one for one in reversed(found)}.values())[::-1]
    if not found:
        raise UserError("no run is chosen; name a parameter file, an artifact or a folder, or say `where`")
    known = {one.run.backbone_tag: one.weights for one in found if one.weights}  # of runs that no file describes too
    for one in found:
        tag = one.run.backbone_tag
        one.weights = one.weights or known.get(tag) or ("none" if tag.endswith(".random") else tag)
    return Chosen(found)


def arms(chosen: Chosen) -> dict[str, tuple[Run, str]]:
    """What tables stand side by side: name -> (run, head), the raw head of each run and its default one."""
    found = {}
    for label, run in chosen.items():
        name, *rest = label.split(", ")
        for head in dict.fromkeys([*(["raw"] if "raw" in run.heads else []), run.default_head]):
            plain = name if head == run.default_head else f"{name}, raw"
            if run.learner == "slow_learner" and name != "slow learner":  # "rate 0.1" of a 04 parameter file
                plain = f"slow learner at {plain}"
            title = ", ".join([TITLES.get((name, head), plain), *rest])
            found[title if title == label or title not in {*found, *chosen} else f"{label}, {head}"] = (run, head)
    return found


def one_stream(chosen: Chosen) -> None:
    """UserError, naming two of them, unless all learn the same classes in the same tasks and order."""
    streams = chosen.table["stream"]
    for label, stream in streams.items():
        if stream != streams.iloc[0]:
            raise UserError(
                f"{streams.index[0]!r} and {label!r} learn different streams, whose tasks cannot stand side by side; "
                "choose runs of one benchmark, class order and increment"
            )


def stream_of(run: Run):
    """The stream that a class-incremental run has learnt, from what it noted; the images are those of this machine."""
    from cilkit.data import benchmarks
    from cilkit.data.streams import Stream

    noted = run.settings.get("stream", {})
    if run.protocol != "class" or noted.get("kind", "tasks") != "tasks" or noted.get("split"):
        raise UserError(f"{run!r} did not learn a class-incremental stream of all training images; take one that did")
    benchmark = benchmarks.load(noted.get("benchmark", ""))
    if benchmark.digest != noted["benchmark_digest"]:
        raise UserError(f"benchmark {benchmark.name!r} is not what {run!r} learnt; get those images, or leave this out")
    return Stream(benchmark, None, run.increments, order_list=tuple(run.class_names), shots=noted.get("shots", 0))


def paintings_of(run: Run):
    """(paintings, class names) that the run's backbone was pre-trained on; None where none are known.

    Followed through its inputs: run, backbone, images. UserError where one of them is no longer there.
    """
    if "backbone" not in getattr(run.artifact, "inputs", {}):
        return None
    backbone = input_of(run.artifact, "backbone")
    if "images" not in backbone.artifact.inputs:
        return None
    return input_of(backbone.artifact, "images"), list(backbone.artifact.identity["classes"])


# ---------------------------------------------------------------- what a person may write


def _of_spec(spec: Any, changes: Mapping[str, Any]) -> list[_Found]:
    if isinstance(spec, Run):
        return [_Found(spec, spec.learner)]
    if isinstance(spec, Mapping):
        if not str(spec.get(PARAMS, "")).endswith(YAML):
            raise UserError(
                f"{dict(spec)!r} names no parameter file; write {{'params': 'params/04_slca/none.yaml', …}}"
            )
        own = {name: value for name, value in spec.items() if name != PARAMS}
        return _of_file(str(spec[PARAMS]), dict(changes) | own)
    if str(spec).endswith(YAML):
        return _of_file(str(spec), changes)
    if isinstance(spec, artifacts.Artifact):
        return [_opened(spec)]
    for path in (Path(spec).expanduser(), (artifacts.repository() or Path()) / spec):
        if (path / "run.json").is_file():
            return [_in_folder(path)]
        if inner := sorted(path.glob("*/run.json")):
            return [_in_folder(one.parent) for one in inner if one.parent.suffix != ".part"]
    return [_opened(artifacts.open_artifact(spec))]


def _of_file(file: str, changes: Mapping[str, Any]) -> list[_Found]:
    """The runs that a parameter file describes, found or made."""
    made = from_params(file, **changes)
    if not isinstance(made, dict) or not all(isinstance(run, Run) for run in made.values()):
        raise UserError(f"{file} describes no runs; take a parameter file of 04, 05 or 06")
    values = parameters_of(file, **changes)
    arms = values.get("arms") or {}
    weights = {name: arms.get(name, {}).get("backbone", values.get("backbone", "")) for name in made}
    return [_Found(run, name, _called(weights[name]), Path(file).stem) for name, run in made.items()]


def _called(weights: Any) -> str:
    """A parameter file's stem, any other text as it is."""
    return Path(weights).stem.replace("_", "-") if str(weights).endswith(YAML) else str(weights)


def _in_folder(folder: Path) -> _Found:
    if (folder / "artifact.json").is_file():
        return _opened(artifacts.open_artifact(folder))
    run = Run(folder)
    return _Found(run, run.learner)


def _opened(artifact: artifacts.Artifact) -> _Found:
    if artifact.stage != "run":
        raise UserError(f"{artifact.name} is of stage {artifact.stage!r}; a run is wanted here")
    run = Run(artifact)
    return _Found(run, run.learner)


def _selected(where: str, limit: int) -> list[Run]:
    """The runs of the rows of `cilkit.results()` that a query chooses, in their order."""
    import pandas as pd

    from cilkit.road.gathering import results

    table = results()
    if table.empty:
        raise UserError(f"where={where!r} has no results to choose from yet; run a notebook by `cilkit run` first")
    try:
        hits = table.eval(where, engine="python")
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1]
        raise UserError(f"where={where!r}: no column {name!r}{near_name(name, table)}; {_columns(table)}") from error
    except Exception as error:  # pandas passes on whatever the parts of an expression raise
        raise UserError(
            f"where={where!r} is no query over the results ({reason_of(error)}); {_columns(table)}"
        ) from error
    if str(getattr(hits, "dtype", "")) != "bool":
        raise UserError(f"where={where!r} is no condition that is true or false; write learner == 'slca'")
    pairs = list(dict.fromkeys(zip(table.loc[hits, "artifact"], table.loc[hits, "digest"], strict=True)))
    if not pairs:
        raise UserError(f"where={where!r} chooses none of the {table['artifact'].nunique()} runs; {_columns(table)}")
    found = []
    for name, digest in pairs[:limit] if limit else pairs:
        stage, _, key = name.partition("/")
        artifact = artifacts.find(stage, key.partition("~")[0], digest)
        if artifact is None:
            raise UserError(
                f"{name} is among the results, but no longer under {artifacts.root()}; run its notebook again"
            )
        found.append(Run(artifact))
    return found


def _columns(table: pd.DataFrame) -> str:
    """The columns that people choose by, and that there are more."""
    plain = [name for name in table if name.isidentifier() and name not in ("cell", "page", "digest")]
    rest = len(table.columns) - len(plain[:20])
    return f"columns are {', '.join(plain[:20])} and {rest} more, in `backticks` where they hold spaces"


# ---------------------------------------------------------------- what they are called


def _table(found: Sequence[_Found]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for one in found:
        run, stream = one.run, one.run.settings.get("stream", {})
        row = {"name": one.name.replace("_", " "), "learner": run.learner, "pre-training": one.weights}
        row |= {"benchmark": stream.get("benchmark", ""), "increments": outcomes.increments(run.increments)}
        row |= {"kind": stream.get("kind", "tasks"), "order": stream.get("order_seed")}
        row |= {"initialisation": run.settings.get("seed_init"), "data order": run.settings.get("seed_data")}
        rows.append(row | {"tasks": run.n_tasks, "stream": _stream(run), "place": _place(run)})
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    return table.set_axis(pd.Index(_labels(table, found), name="run"))


def _stream(run: Run) -> str:
    """What makes labels, tasks and test images of two runs mean the same."""
    noted = run.settings.get("stream", {})
    what = [run.protocol, run.class_names, run.increments, run.task_names if run.protocol == "domain" else None]
    what += [noted.get("benchmark_digest", noted.get("benchmark")), noted.get("split")]
    return hashlib.sha256(artifacts.canonical(what).encode()).hexdigest()[:12]


def _place(run: Run) -> str:
    return run.artifact.name if run.artifact is not None else str(run.folder.absolute())


def _labels(table: pd.DataFrame, found: Sequence[_Found]) -> list[str]:
    """The name and, of those that share it, the first things that they differ in, until each label is one run's."""
    words = [[name] for name in table["name"]]
    for texts in _told_apart_by(table, found):
        for rows in _same(words):
            if len({texts[row] for row in rows}) > 1:
                for row in rows:
                    words[row] += [texts[row]] if texts[row] else []
    return [", ".join(parts) for parts in words]


def _told_apart_by(table: pd.DataFrame, found: Sequence[_Found]) -> Iterable[list[str]]:
    """One text a run, for each thing that may tell runs apart; the last is different for each."""
    for name in ("pre-training", "benchmark"):
        yield [str(value) for value in table[name]]
    yield ["" if kind == "tasks" else kind for kind in table["kind"]]
    yield [f"{increments} classes" for increments in table["increments"]]
    for name in ("order", "initialisation", "data order"):
        yield ["" if value is None else f"{name} {value}" for value in table[name]]
    hyper = [one.run.settings.get("hyper", {}) for one in found]
    for name in dict.fromkeys(key for each in hyper for key in each):
        yield [
            textwrap.shorten(f"{name} {each[name]}", LONGEST, placeholder="…") if name in each else "" for each in hyper
        ]
    yield [one.file for one in found]
    yield [Path(place).name[:12] for place in table["place"]]
    yield [f"no. {row + 1}" for row in range(len(found))]


def _same(words: Sequence[Sequence[str]]) -> list[list[int]]:
    """Rows that are still called the same, where several are."""
    groups: dict[tuple, list[int]] = {}
    for row, parts in enumerate(words):
        groups.setdefault(tuple(parts), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]
