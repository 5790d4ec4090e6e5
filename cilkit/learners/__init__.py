"""Learners by name. A method is one file here, or one `Learner` subclass in a notebook cell; nothing else changes."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilkit.errors import UserError, near_name
from cilkit.learners.base import Batch, Hyper, Learner, Moment

if TYPE_CHECKING:
    from cilkit.backbones import Backbone

__all__ = ["NAMES", "Batch", "Hyper", "Learner", "Moment", "create", "find", "settings"]

# A learner's name is its file's: every file here that says `LEARNER = …`. A new method is one new file.
NAMES = tuple(
    sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if "\nLEARNER = " in path.read_text(encoding="utf-8")
    )
)


def find(learner: str | type[Learner]) -> type[Learner]:
    """The class of a learner given by name, or the class itself. UserError with the nearest name for an unknown one."""
    if isinstance(learner, type):
        if not issubclass(learner, Learner):
            raise UserError(f"{learner.__name__} is no learner; derive it from cilkit.learners.Learner")
        return learner
    if learner not in NAMES:
        raise UserError(
            f"learner {learner!r} is unknown{near_name(learner, NAMES, cutoff=0.5)}; known are {', '.join(NAMES)}"
        )
    return importlib.import_module(f"cilkit.learners.{learner}").LEARNER


def settings(learner: str | type[Learner], hyper: dict[str, Any]) -> dict[str, Any]:
    """The learner's parameters, complete and checked, without importing torch. UserError for an unknown one."""
    return dataclasses.asdict(find(learner).Hyper(**_checked(learner, hyper)))


def create(
    learner: str | type[Learner],
    backbone: Backbone,
    *,
    seed: int = 0,
    seed_init: int | None = None,
    seed_data: int | None = None,
    **hyper: Any,
) -> Learner:
    """A learner on a backbone.

    seed_init, seed_data: initialisation of the heads and order of the data; `seed` stands for whichever is not given.
    hyper:                the learner's parameters; `images=` is the image set of learners that replay one.
    """
    images = {"images": hyper.pop("images")} if "images" in hyper else {}
    seeds = {
        "seed_init": seed if seed_init is None else seed_init,
        "seed_data": seed if seed_data is None else seed_data,
    }
    made = find(learner)
    if images and not getattr(made, "takes_images", False):
        raise UserError(f"{made.__name__} replays no synthetic images; leave `images` out")
    return made(backbone, **seeds, **images, **_checked(learner, hyper))


def _checked(learner: str | type[Learner], hyper: dict[str, Any]) -> dict[str, Any]:
    """The given parameters, each of the type of its default: whole numbers pass for floats, lists for tuples."""
    fields = {field.name: field for field in dataclasses.fields(find(learner).Hyper)}
    values = {}
    for name, value in hyper.items():
        if name not in fields:
            raise UserError(
                f"{learner if isinstance(learner, str) else learner.__name__} has no parameter {name!r}"
                f"{near_name(name, fields, cutoff=0.5)}; it has {', '.join(fields)}"
            )
        values[name] = _coerced(name, value, fields[name].default)
    return values


def _coerced(name: str, value: Any, default: Any) -> Any:
    wanted = type(default)
    if default is None or isinstance(default, type(dataclasses.MISSING)) or type(value) is wanted:
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    raise UserError(f"parameter {name!r} is {value!r}; expected {wanted.__name__}, such as {default!r}")
