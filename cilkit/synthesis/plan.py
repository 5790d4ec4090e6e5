"""The plan of a painted image set: every image's class, prompt, seed and batch, fixed before the first is painted."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cilkit.artifacts import canonical
from cilkit.errors import UserError
from cilkit.realms.realm import Realm
from cilkit.synthesis.generators import Generator

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("image_id", "class_id", "class_name", "prompt", "seed", "batch_id", "position")


def image_seed(seed: int, class_name: str, index: int) -> int:
    """The seed of image `index` of a class, 63 bits: the same in every plan of this seed, whatever else is in it."""
    text = canonical(["image seed", int(seed), class_name, int(index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_plan(
    realm: Realm,
    per_class: int | Mapping[str, int],
    seed: int,
    batch_size: int | None = None,
    generator: Generator | None = None,
) -> "pd.DataFrame":
    """One row an image (columns COLUMNS), class by class; `batch_size` rows after one another are painted together.

    per_class: images of every class, or of each by name. A batch may hold the end of one class and the beginning of the
    next, so all but the last are full. generator: checked for every prompt; its batch size is the default.
    """
    import pandas as pd

    if generator is not None:
        generator.check(realm.concept_names, [concept.prompt for concept in realm.concepts])
        batch_size = batch_size or generator.settings["batch_size"]
    batch_size = batch_size or 32
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is not a number of images; give 1 or more")
    folders, rows = realm.folders, []
    for class_id, concept in enumerate(realm.concepts):
        for index in range(_wanted(realm, concept.name, per_class)):
            batch_id, position = divmod(len(rows), batch_size)
            image_id, image = f"{folders[concept.name]}-{index:05d}", image_seed(seed, concept.name, index)
            rows.append((image_id, class_id, concept.name, concept.prompt, image, batch_id, position))
    if not rows:
        raise UserError(f"realm {realm.name!r} has no concepts, so there is nothing to paint; leave fewer of them out")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _wanted(realm: Realm, name: str, per_class: int | Mapping[str, int]) -> int:
    wanted = per_class.get(name, 0) if isinstance(per_class, Mapping) else per_class
    if not isinstance(wanted, int) or wanted < 1:
        raise UserError(
            f"class {name!r} of realm {realm.name!r} would have no images ({wanted!r} asked for); ask for 1 or more, "
            "or leave the class out with realm.without"
        )
    return wanted


def plan_hash(plan: "pd.DataFrame") -> str:
    """sha256 of the plan's rows: two plans with the same hash ask for the same images in the same batches."""
    rows = plan[list(COLUMNS)].to_numpy().tolist()
    return hashlib.sha256(canonical(rows).encode()).hexdigest()
