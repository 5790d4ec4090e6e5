"""Learners by name. A method is one file here, or one `Learner` subclass in a notebook cell; nothing else changes.

A plug-in is one file as well, and goes with every learner that has what it needs: "ewc+alignment".
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilkit.errors import UserError, near_name
from cilkit.learners.base import Batch, Hyper, Learner, Moment

if TYPE_CHECKING:
    from cilkit.backbones import Backbone

__all__ = [
    "NAMES",
    "PLUGINS",
    "Batch",
    "Hyper",
    "Learner",
    "Moment",
    "create",
    "find",
    "leaks_of",
    "paints_itself",
    "recipes_of",
    "settings",
    "takes_images",
    "writes",
]


def _files_that_say(word: str) -> tuple[str, ...]:
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(path.stem for path in files if f"\n{word} = " in path.read_text(encoding="utf-8")))


# A name is its file's: every file here that says `LEARNER = …`, or `PLUGIN = …`. A new method is one new file.
NAMES = _files_that_say("LEARNER")
PLUGINS = _files_that_say("PLUGIN")


def find(learner: str | type[Learner]) -> type[Learner]:
    """The class of a learner given by name, or the class itself. UserError with the nearest name for an unknown one.

    "ewc+alignment" is the class of `ewc.py` with the plug-in of `alignment.py` before it.
    """
    if isinstance(learner, type):
        if not issubclass(learner, Learner):
            raise UserError(f"{learner.__name__} is no learner; derive it from cilkit.learners.Learner")
        return learner
    name, *plugins = str(learner).split("+")
    if name in PLUGINS:
        raise UserError(f"{name!r} is a plug-in, which needs a learner before it: write 'icarl+{name}'")
    if name not in NAMES:
        raise UserError(
            f"learner {name!r} is unknown{near_name(name, NAMES, cutoff=0.5)}; known are {', '.join(NAMES)}"
        )
    found = importlib.import_module(f"cilkit.learners.{name}").LEARNER
    for plugin in plugins:
        if plugin not in PLUGINS:
            raise UserError(
                f"plug-in {plugin!r} of {learner!r} is unknown{near_name(plugin, PLUGINS, cutoff=0.5)}; known are "
                f"{', '.join(PLUGINS)}"
            )
        found = _composed(importlib.import_module(f"cilkit.learners.{plugin}").PLUGIN, found, f"{name}+{plugin}")
    return found


@functools.cache
def _composed(plugin: type, base: type[Learner], name: str) -> type[Learner]:
    """`class name(plugin, base)`, with the parameters of both."""
    getattr(plugin, "check_base", lambda _: None)(base)

    def check(self) -> None:
        for part in (base.Hyper, plugin.Hyper):
            getattr(part, "__post_init__", lambda _: None)(self)

    both = type(f"{name}Hyper", (plugin.Hyper, base.Hyper), {"__post_init__": check, "__module__": plugin.__module__})
    namespace = {"Hyper": dataclasses.dataclass(frozen=True)(both), "name": name, "__module__": plugin.__module__}
    return type(f"{plugin.__name__}{base.__name__}", (plugin, base), namespace)


def leaks_of(learner: str | type[Learner]) -> dict[str, str]:
    """The leaks that a learner names, with those of everything it is made of; `leaks = {}` says that a class has none
    of those it would inherit."""
    known: dict[str, str] = {}
    for part in reversed(find(learner).__mro__):
        own = vars(part).get("leaks")
        known = known if own is None else known | own if own else {}
    return known


def recipes_of(learner: str | type[Learner]) -> dict[str, dict[str, Any]]:
    """Whose recipe -> the parameters that it sets, by the learner and everything it is made of."""
    recipes: dict[str, dict[str, Any]] = {"paper": {}}
    for part in reversed(find(learner).__mro__):
        for whose, values in vars(part).get("RECIPES", {}).items():
            recipes[whose] = recipes.get(whose, {}) | values
    return recipes


def words() -> set[str]:
    """The names of all parameters of all learners and plug-ins."""
    plugins = (importlib.import_module(f"cilkit.learners.{name}").PLUGIN for name in PLUGINS)
    return {field.name for made in (*map(find, NAMES), *plugins) for field in dataclasses.fields(made.Hyper)}


def takes_images(learner: str | type[Learner]) -> bool:
    """Whether the learner, or a plug-in of it, shows images of the caller's beside the stream's."""
    return getattr(find(learner), "takes_images", False) and not paints_itself(learner)


def paints_itself(learner: str | type[Learner]) -> bool:
    """Whether it trains a painter, which the caller makes from its parameters and gives as `images`."""
    return getattr(find(learner), "paints_itself", False)


def writes(learner: str | type[Learner]) -> bool:
    """Whether the learner writes its answers, for which the caller gives a captioner and a text encoder."""
    return getattr(find(learner), "writes", False)


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
    hyper:                the learner's parameters; `images=` is the image set of learners that replay one,
                          `captioner=` and `text_encoder=` those of learners that write.
    """
    given = {name: hyper.pop(name) for name in ("images", "captioner", "text_encoder") if name in hyper}
    seeds = {
        "seed_init": seed if seed_init is None else seed_init,
        "seed_data": seed if seed_data is None else seed_data,
    }
    made = find(learner)
    if "images" in given and not getattr(made, "takes_images", False):
        raise UserError(f"{made.__name__} replays no synthetic images; leave `images` out")
    if given.keys() & {"captioner", "text_encoder"} and not writes(made):
        raise UserError(f"{made.__name__} writes nothing; leave `captioner` and `text_encoder` out")
    return made(backbone, **seeds, **given, **_checked(learner, hyper))


def _checked(learner: str | type[Learner], hyper: dict[str, Any]) -> dict[str, Any]:
    """The given parameters over those of the recipe that they name, each of the type of its default: whole numbers pass
    for floats, lists for tuples."""
    fields = {field.name: field for field in dataclasses.fields(find(learner).Hyper)}
    title = learner if isinstance(learner, str) else learner.__name__
    whose, recipes = hyper.get("recipe_of", "paper"), recipes_of(learner)
    if whose not in recipes:
        raise UserError(f"{title} has no recipe_of {whose!r}; take one of {', '.join(map(repr, recipes))}")
    values = {}
    for name, value in (recipes[whose] | hyper).items():
        if name not in fields:
            raise UserError(
                f"{title} has no parameter {name!r}{near_name(name, fields, cutoff=0.5)}; it has {', '.join(fields)}"
            )
        values[name] = _coerced(name, value, fields[name].default)
    known = leaks_of(learner)
    for leak in values.get("leaks", ()):
        if leak not in known:
            raise UserError(f"{title} has no leak {leak!r} to switch on; it has {', '.join(known) or 'none'}")
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
