"""An image set painted again whenever it is wanted, from other seeds: what is kept is the generator, not the pixels."""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any
from weakref import finalize

from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import open_set
from cilkit.errors import UserError
from cilkit.realms.realm import Realm
from cilkit.synthesis import pipelines
from cilkit.synthesis.generators import Generator
from cilkit.synthesis.paint import paint_plan
from cilkit.synthesis.plan import make_plan
from cilkit.synthesis.styles import style_of

WEIGHTS = (".safetensors", ".bin")


class Repainter:
    """Paints classes of a realm as `cilkit.paint` does: the same plan, for the same seed the same images.

    how: batch_size, style and long_prompts of the plan.
    """

    def __init__(self, realm: Realm, generator: Generator, **how: Any):
        if not hasattr(generator, "folder"):
            raise UserError(f"{generator.id} has no weights to keep; paint again with a generator in a folder")
        self.realm, self.generator, self.how = realm, generator, how

    @property
    def bytes(self) -> int:
        """The generator's files of weights, its LoRAs, and the prompts that all images of a class begin with."""
        files = [file for file in self.generator.folder.rglob("*") if file.suffix in WEIGHTS]
        files += [pipelines.lora_file(lora)[0] for lora in self.generator.options["loras"]]
        prompts = [style_of(self.how["style"]).beginning(concept) for concept in self.realm.concepts]
        return sum(file.stat().st_size for file in files) + sum(len(prompt.encode()) for prompt in prompts)

    def paint(self, names: Sequence[str], per_class: int, seed: int) -> ImageSet:
        """So many images of each class, labelled by place in `names`; they lie on the disk until nobody holds them.
        UserError for a class that the realm lacks."""
        missing = [name for name in names if name not in self.realm.concept_names]
        if missing:
            raise UserError(f"realm {self.realm.name!r} has no class {missing[0]!r}, so it cannot be painted again")
        realm = self.realm.without(sorted(set(self.realm.concept_names) - set(names)))
        plan = make_plan(realm, per_class, seed, generator=self.generator, **self.how)
        folder = TemporaryDirectory(prefix="cilkit-repainted-")
        paint_plan(plan, self.generator, folder.name)
        images = open_set(folder.name, classes=names)
        finalize(images.source, folder.cleanup)
        return images
