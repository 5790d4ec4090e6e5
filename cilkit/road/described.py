"""What the parameter files of notebooks 01 and 02 describe: the model's work, and what a person changed in it.

The notebooks show both; a later notebook that names such a file gets the corrected realm, the curated images.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cilkit.road.curating import curate
from cilkit.road.foreseeing import correct, foresee
from cilkit.road.inputs import verb_of
from cilkit.road.painting import paint


@verb_of("01_realm_prompting")
def realm_of(
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    describe: Mapping[str, str] | None = None,
    **asked: Any,
):
    """The realm that was foreseen, with the corrections of the file."""
    realm = _called(foresee, asked)
    return correct(realm, drop, rename, describe) if drop or rename or describe else realm


@verb_of("02_image_synthesis")
def images_of(
    rules: Mapping[str, Any] | None = None,
    decisions: str = "",
    features: str = "",
    text_image: str = "",
    benchmark: str = "",
    **painted: Any,
):
    """The painted images; where the file has rules or decisions, those that are kept."""
    images = _called(paint, painted)
    if not (rules or decisions):
        return images
    return curate(images, rules or {}, decisions, features, text_image, [benchmark] if benchmark else [])


def _called(verb: Callable, values: Mapping[str, Any]) -> Any:
    """The verb with those of a notebook's parameters that it takes; the others say what the notebook shows."""
    return verb(**{name: value for name, value in values.items() if name in inspect.signature(verb).parameters})
