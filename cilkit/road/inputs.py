"""What a person may write for an input, and how it is found or made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError

_VERBS: dict[str, Callable] = {}  # notebook -> the verb that makes what its parameter files describe
_OPENERS: dict[str, Callable[[Artifact], Any]] = {}  # stage -> artifact to the object that notebooks handle


def verb_of(notebook: str) -> Callable[[Callable], Callable]:
    """Decorator: this verb makes what the parameter files of `notebook` describe."""
    return lambda verb: _VERBS.setdefault(notebook, verb)


def opener_of(stage: str) -> Callable[[Callable], Callable]:
    """Decorator: this function (or class) opens a finished artifact of `stage`."""
    return lambda opener: _OPENERS.setdefault(stage, opener)


def parameters_of(path: str | Path, **changes: Any) -> dict[str, Any]:
    """Every parameter of the file's notebook: its defaults, the file over them, `changes` over both; checked."""
    from cilkit.workbook import parameters

    path = _in_repository(path)
    declared = parameters.declared(artifacts.repository() / "notebooks" / f"{_notebook_of(path)}.ipynb")
    given, _ = parameters.check(declared, parameters.load_params(path) | changes)
    return {name: parameter.default for name, parameter in declared.items()} | given


def from_params(path: str | Path, **changes: Any) -> Any:
    """What a parameter file describes: its notebook's verb called with the parameters of `parameters_of`."""
    verb, values = _VERBS[_notebook_of(_in_repository(path))], parameters_of(path, **changes)
    wanted = inspect.signature(verb).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values())
    return verb(**{name: value for name, value in values.items() if takes_all or name in wanted})


def upstream(spec: Any, stage: str) -> Any:
    """The object of the verb before, for what a person wrote: itself, an artifact, its name or folder, a YAML file, or
    for a realm "classes:BENCHMARK"."""
    if getattr(spec, "artifact", None) is not None:
        artifact = spec.artifact
    elif hasattr(spec, "artifact"):
        raise UserError(f"{spec!r} is a part of an artifact, which is none itself; give the whole one, or curate it")
    elif isinstance(spec, Artifact):
        artifact = spec
    elif str(spec).endswith((".yaml", ".yml")):
        spec = from_params(spec)
        artifact = spec.artifact
    elif stage == "realm" and str(spec).startswith("classes:"):  # given, not foreseen: nothing to describe in a file
        from cilkit.road.foreseeing import foresee

        spec = foresee(spec)
        artifact = spec.artifact
    else:
        artifact = artifacts.open_artifact(spec)
    if artifact.stage != stage:
        raise UserError(
            f"{artifact.name} is of stage {artifact.stage!r}; an artifact of stage {stage!r} is wanted here"
        )
    return spec if hasattr(spec, "artifact") else _OPENERS[stage](artifact)


def input_of(artifact: Artifact, name: str) -> Any:
    """What `artifact` was made from under this name, opened."""
    made_from = artifact.inputs[name]
    found = artifacts.find(made_from["stage"], made_from["key"], made_from["digest"])
    if found is None:
        raise UserError(
            f"{artifact.name} was made from a {name} that is no longer under {artifacts.root()}; make it again"
        )
    return _OPENERS[found.stage](found)


def with_artifact(thing: Any, artifact: Artifact) -> Any:
    """Note on a (possibly frozen) object which artifact it was read from."""
    object.__setattr__(thing, "artifact", artifact)
    return thing


@contextmanager
def threads_set_to(count: int):
    """Compute with so many CPU threads: part of an identity, because the order of a sum depends on it."""
    import torch

    if count < 1:
        raise UserError(f"threads is {count}; expected 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(name: str):
    """The torch device of "auto" (a GPU where there is one), "cpu", "cuda" …; UserError for one that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} is unknown; take 'auto', 'cpu', 'cuda' or 'cuda:0'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs; take 'auto' or 'cpu'"
        )
    return device


def placed(spec: str) -> str:
    """The absolute path of what lies there from the working directory or the repository; any other text as it is."""
    home = artifacts.repository()
    for path in (Path(spec).expanduser(), *([home / spec] if home else [])) if "/" in spec else ():
        if path.exists():
            return str(path.absolute())
    return spec


def _notebook_of(path: Path) -> str:
    """The notebook whose parameters a file in `params/<notebook>/` or `params/<notebook>/small/` holds."""
    folder = path.parent.parent if path.parent.name == "small" else path.parent
    if folder.name not in _VERBS:
        raise UserError(f"{path} lies in {folder.name}/; an input is described in one of {', '.join(sorted(_VERBS))}")
    return folder.name


def _in_repository(path: str | Path) -> Path:
    """Parameter files are named from the repository's root, whatever the working directory is."""
    home = artifacts.repository()
    for candidate in (Path(path), *([home / path] if home else [])):
        if candidate.is_file():
            return candidate.absolute()
    raise UserError(f"parameter file {str(path)!r} does not exist, neither here nor in the repository; check its name")
