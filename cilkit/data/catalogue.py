"""What is known about each benchmark: entries and class names, read from cilkit/assets/benchmarks."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from cilkit.errors import UserError, near_name

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "benchmarks"


@dataclass(frozen=True)
class Download:
    """One file to fetch. gives: the file or folder that it leaves in the home folder."""

    url: str
    md5: str = ""
    gives: str = ""

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def leaves(self) -> str:
        return self.gives or self.file


@dataclass(frozen=True)
class Entry:
    """One benchmark: the fields are explained at the head of catalogue.yaml."""

    name: str
    title: str
    reader: str
    layout: str
    split: str = ""
    licence: str = "not known"
    citation: str = ""
    classes: int | None = None
    images: Sequence[int | None] | int | None = None
    download: tuple[Download, ...] = ()
    home: str = ""
    names: str = ""
    only: str = ""
    keep: str = "auto"
    absent: Sequence[str] = ()
    rename: dict[str, str] = field(default_factory=dict)
    version: int = 1

    def class_table(self) -> dict[str, str] | None:
        """Official key -> readable name, in label order; None where only the raw files know the classes."""
        return _imagenet(self.names, self.only) if self.names else _listed(self.name)

    def glosses(self) -> dict[str, str]:
        """Official key -> a few words that tell the class from others of its name; "" or no key where it has none."""
        return {key: gloss for key, (_, gloss) in _lines("imagenet" if self.names else self.name).items()}


@cache
def entries() -> dict[str, Entry]:
    """Every benchmark that is fetched or laid out by hand, by name."""
    import yaml

    rows = yaml.safe_load((ASSETS / "catalogue.yaml").read_text(encoding="utf-8"))
    return {
        name: Entry(name, **row | {"download": tuple(Download(**one) for one in row.get("download", ()))})
        for name, row in rows.items()
    }


def find(name: str, also: Sequence[str] = ()) -> Entry:
    """The entry of this name. UserError with the nearest name for an unknown one; `also`: names known elsewhere."""
    known = sorted([*entries(), *also])
    if name not in entries():
        raise UserError(
            f"benchmark {name!r} is unknown{near_name(name, known)}; "
            f"known are {', '.join(known)}, folder:PATH and hf:owner/name."
        )
    return entries()[name]


def tidy(key: str) -> str:
    """A folder's name as people would say it: 001.Black_footed_Albatross -> Black footed Albatross."""
    return " ".join(re.split(r"[_/\s]+", re.sub(r"^\d+[.\-_ ]+(?=\D)", "", key))).strip() or key


@cache
def _lines(name: str) -> dict[str, tuple[str, str]]:
    """Official key -> (readable name, gloss), each "" where a list's line has none; nothing without a list."""
    path = ASSETS / "classes" / f"{name}.txt"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [(*line.split("\t"), "", "") for line in text.splitlines() if not line.startswith("#")]
    return {key: (readable, gloss) for key, readable, gloss, *_ in rows}


def _listed(name: str) -> dict[str, str] | None:
    return {key: readable or key for key, (readable, _) in _lines(name).items()} or None


@cache
def _imagenet(table: str, choice: str) -> dict[str, str]:
    """wnid -> name from timm's tables, read as files (importing timm takes long); our own where that is ambiguous."""
    tables = Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    wnids = (tables / f"{table}_synsets.txt").read_text().split()
    if choice == "seed_1993":  # LUCIR's gen_imagenet_subset.py, whose ImageFolder sorts the chosen ones again
        wnids = sorted(np.random.RandomState(1993).choice(wnids, 100, replace=False).tolist())
    elif choice == "first_100":
        wnids = wnids[:100]
    lines = (tables / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    lemmas = {wnid: names.split(",")[0] for wnid, _, names in (line.partition("\t") for line in lines)}
    own = {wnid: readable for wnid, (readable, _) in _lines("imagenet").items()}
    return {wnid: own.get(wnid) or lemmas[wnid] for wnid in wnids}
