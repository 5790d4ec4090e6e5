"""Real benchmarks by name: found in the artifacts, or built from raw files that are found, laid out or fetched.

    load("digits_photo")                      from installed packages, no download
    load("cub200")                            from data/cub200 (or $CILKIT_DATA/cub200), fetched if it is not there
    load("folder:PATH")                       any image folder: train/<class>/* and test/<class>/*, or <class>/*
    load("hf:owner/name")                     any Hugging Face image-classification dataset, or "hf:FOLDER" of Parquet

Raw files are never needed again once a benchmark is built: its pixels lie in the cache of `cilkit.data.cache`. The
artifact is identified by the raw files themselves (path and size of every image, content of every list), so it is the
same wherever they lie.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cilkit import artifacts
from cilkit.data import cache, catalogue, embedded, fetching, sources
from cilkit.data.catalogue import Entry
from cilkit.data.imagesets import ImageSet
from cilkit.data.sources import Listing
from cilkit.errors import UserError

PARTS = ("train", "test")
LARGE = 100_000  # images, above which unchanged folders are taken for unchanged files


@dataclass(frozen=True)
class Benchmark:
    """Real images in a fixed split. `chance` is the accuracy of guessing among all classes, 0 … 1.

    complete: nothing of the benchmark is missing; False for a part of it, loaded with partial=True or with bad images
    left out (`skipped`, by file).
    """

    name: str
    train: ImageSet = field(repr=False)
    test: ImageSet = field(repr=False)
    source: str = ""
    licence: str = ""
    citation: str = field(default="", repr=False)
    artifact: "artifacts.Artifact | None" = field(default=None, repr=False)
    title: str = ""
    complete: bool = True
    skipped: list[str] = field(default_factory=list, repr=False)

    def __post_init__(self):
        if self.train.class_names != self.test.class_names:
            raise UserError(f"benchmark {self.name!r}: train and test name different classes; give both the same list.")

    @property
    def class_names(self) -> list[str]:
        return self.train.class_names

    @property
    def domain_names(self) -> list[str]:
        """Names of the domains, by number; nothing for a benchmark without domains."""
        return self.train.domain_names

    @property
    def chance(self) -> float:
        return 1 / len(self.class_names)

    @property
    def digest(self) -> str:
        """What the images are: the artifact's digest or, for a benchmark from memory, a hash of pixels and labels."""
        if self.artifact is not None:
            return self.artifact.digest
        hashed = hashlib.sha256("\n".join(self.class_names).encode())
        for part in (self.train, self.test):
            hashed.update(part.images().tobytes())
            hashed.update(part.labels.tobytes())
        return hashed.hexdigest()


def names() -> list[str]:
    """All benchmarks with a name of their own; beside them there are folder:PATH and hf:owner/name."""
    return sorted([*embedded.RECIPES, *catalogue.entries()])


def class_names(name: str, root: str = "") -> list[str]:
    """The class names of a benchmark, without building it (a few need their raw files: then from `root`)."""
    if name in embedded.RECIPES:
        return list(embedded.NAMES)  # both embedded benchmarks show the ten digits
    entry, home = _find(name, root)
    table = entry.class_table()
    if table is None:
        listing = _listed(entry, home)
        return list(_readable(entry, listing.keys).values())
    return list(table.values())


def load(
    name: str,
    root: str = "",
    keep: str = "auto",
    partial: bool = False,
    bad_images: str = "error",
    workers: int = 0,
) -> Benchmark:
    """A benchmark by name, found among the artifacts or built.

    root:       folder of the raw files, relative to the repository; "": $CILKIT_DATA/<name>, else data/<name>.
    keep:       how pixels are kept, see `cilkit.data.cache`; "auto": the benchmark's own way, else by size.
    partial:    take what is there, if only a part of the classes and images is; the result says so (`complete`).
    bad_images: "error" stops at the first unreadable image, by name; "skip" leaves them out and lists them.
    workers:    threads that decode (0: one a core).
    UserError for an unknown name, missing or extra classes, missing images, names that are twice the same.
    """
    if name in embedded.RECIPES:
        return _embedded(name)
    entry, home = _find(name, root)
    identity = {
        "name": entry.name,
        "entry": entry.version,
        "keep": entry.keep if keep == "auto" else keep,
        "bad_images": bad_images,
    }
    memory = _memory_of(home, identity)
    raw = memory.recall() if memory else None
    artifact = raw and artifacts.find("benchmark", artifacts.key_of("benchmark", 1, identity | {"raw": raw}, {}))
    if not artifact:
        listing, facts = _checked(entry, home, partial)
        identity |= {"raw": _fingerprint(listing)}
        execution = {"workers": workers}
        artifact = artifacts.obtain(
            "benchmark", 1, identity, {}, lambda work: _build(work.path, listing, facts, identity, workers), execution
        )
        memory and memory.keep(listing, identity["raw"])
    facts = json.loads(artifact.file("benchmark.json").read_text())
    if not facts["complete"] and not partial:
        raise UserError(f"{home} holds only a part of {entry.title}; complete it, or load it with partial=True.")
    train, test = (cache.open(artifact.path / part, facts["class_names"]) for part in PARTS)
    source = ", ".join(filter(None, [entry.title, facts["split"]]))
    whole, skipped = facts["complete"] and not facts["skipped"], facts["skipped"]
    return Benchmark(name, train, test, source, entry.licence, entry.citation, artifact, entry.title, whole, skipped)


def _embedded(name: str) -> Benchmark:
    build, source, identity = embedded.RECIPES[name]
    artifact = artifacts.obtain("benchmark", 1, {"name": name, **identity}, {}, lambda work: build(work.path))
    train, test = (ImageSet.open(artifact.path / part, classes=embedded.NAMES) for part in PARTS)
    return Benchmark(name, train, test, source, embedded.LICENCE, embedded.CITATION, artifact, name)


# ---------------------------------------------------------------- where the raw files are


def _find(name: str, root: str) -> tuple[Entry, Path | str]:
    """The entry and the home of its raw files: a folder, or the hub name of a Hugging Face dataset."""
    kind, _, place = name.partition(":")
    if kind == "folder" and place:
        layout = "train/<class>/* and test/<class>/* (or val/), or <class>/* alone"
        return Entry("folder", f"the image folder {Path(place).name}", "folders", layout), _absolute(root or place)
    if kind == "hf" and place:
        folder = _absolute(root or place)
        layout = "Parquet files named train-… and test-…, with an image and a label column"
        entry = Entry("hf" if folder.is_dir() else name, f"{place} (Hugging Face)", "huggingface", layout)
        return entry, folder if folder.is_dir() else place
    entry = catalogue.find(name, embedded.RECIPES)
    if root:
        return entry, _absolute(root)
    data = os.environ.get("CILKIT_DATA")
    return entry, (Path(data).expanduser() if data else _absolute("data")) / (entry.home or name)


def _absolute(path: str) -> Path:
    return (artifacts.repository() or Path.cwd()) / Path(path).expanduser()


def _listed(entry: Entry, home: Path | str, fetch: bool = False) -> Listing:
    """What the raw files hold. UserError with the expected layout where something essential is missing."""
    missing = [one for one in entry.download if fetch and not (home / one.leaves).exists() and home.name != one.gives]
    if missing:
        try:
            fetching.fetch(missing, home)
        except UserError as error:
            raise UserError(f"{entry.title} is not in {home}: {str(error).rstrip('.')}. {_expected(entry)}") from error
    try:
        return getattr(sources, entry.reader)(home)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{entry.title} is not in {home}: {error.filename} is missing. {_expected(entry)}") from error


def _expected(entry: Entry) -> str:
    return f"Expected there: {entry.layout}."


# ---------------------------------------------------------------- what they should hold


def _checked(entry: Entry, home: Path | str, partial: bool) -> tuple[Listing, dict]:
    """The listing with the benchmark's own labels, and what `benchmark.json` says of it."""
    listing = _listed(entry, home, fetch=not partial)
    names = _readable(entry, listing.keys)
    listing = _only(listing, names, entry)
    listing, missing = _existing(listing, entry)
    listing = _relabelled(listing, list(names))
    counts = [np.bincount(listing.labels[listing.test == test], minlength=len(names)) for test in (False, True)]
    lost = _shortfall(entry, home, list(names.values()), counts, missing)
    if lost and not partial:
        raise UserError(f"{lost} Complete the folder, or take what is there with partial=True. {_expected(entry)}")
    kept = np.flatnonzero((counts[0] > 0) & (counts[1] > 0))
    if not len(kept):
        raise UserError(f"no class of {entry.title} in {home} has both train and test images. {_expected(entry)}")
    keys = list(names)
    listing = _relabelled(listing.select(np.flatnonzero(np.isin(listing.labels, kept))), [keys[i] for i in kept])
    return listing, {
        "class_names": [names[keys[i]] for i in kept],
        "domain_names": list(listing.domain_names),
        "complete": not lost,
        "split": listing.note or entry.split,
    }


def _readable(entry: Entry, keys: list[str]) -> dict[str, str]:
    """Official key -> readable name, in label order. UserError for two classes of one name."""
    table = entry.class_table() or {key: entry.rename.get(key) or catalogue.tidy(key) for key in keys}
    seen: dict[str, str] = {}
    for key, name in table.items():
        if name.casefold() in seen:
            raise UserError(f"classes {seen[name.casefold()]!r} and {key!r} are both called {name!r}; rename one.")
        seen[name.casefold()] = key
    return table


def _only(listing: Listing, names: dict[str, str], entry: Entry) -> Listing:
    """Without the classes that the benchmark chose to leave out. UserError for a class that it does not know."""
    used = {listing.keys[label] for label in np.unique(listing.labels)} | set(listing.folders)
    extra = sorted(used - set(names))
    if extra and not entry.only:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise UserError(
            f"{listing.home} holds the class {extra[0]!r}{more}, which {entry.title} does not have; move it away, or "
            f"load the folder as it is with folder:PATH."
        )
    chosen = np.array([key in names for key in listing.keys])
    return listing.select(np.flatnonzero(chosen[listing.labels])) if extra else listing


def _existing(listing: Listing, entry: Entry) -> tuple[Listing, list[str]]:
    """Only the images whose file is there, with their sizes, and the others' names (but those known to be absent)."""
    if listing.read is not None:
        return listing, []
    home, known = f"{listing.home}/", set(entry.absent)
    listing.bytes = np.array([_bytes_of(home + image) for image in listing.ids], np.int64)
    there = listing.bytes >= 0
    if there.all():
        return listing, []
    missing = [listing.ids[i] for i in np.flatnonzero(~there) if listing.ids[i] not in known]
    return listing.select(np.flatnonzero(there)), missing


def _bytes_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


def _relabelled(listing: Listing, keys: list[str]) -> Listing:
    """With labels that count in `keys`, which hold every class in use."""
    place = {key: label for label, key in enumerate(keys)}
    table = np.array([place.get(key, -1) for key in listing.keys], np.int64)
    listing.labels, listing.keys = table[listing.labels], keys
    return listing


def _shortfall(entry: Entry, home, names: list[str], counts: list[np.ndarray], missing: list[str]) -> str:
    """One sentence about what the complete benchmark has and this folder has not, or nothing."""
    if missing:
        return f"{len(missing)} images that the lists of {entry.title} name are not in {home}, first {missing[0]}."
    for part, own in zip(PARTS, counts, strict=True):
        empty = np.flatnonzero(own == 0)
        if len(empty):
            more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            return f"class {names[empty[0]]!r}{more} of {entry.title} has no {part} images in {home}."
    if entry.classes not in (None, len(names)):
        return f"{entry.title} has {entry.classes} classes, {home} holds {len(names)}."
    found = [int(own.sum()) for own in counts]
    wanted = [entry.images] if isinstance(entry.images, int) else entry.images or []
    for want, have in zip(wanted, [sum(found)] if len(wanted) == 1 else found, strict=False):
        if want not in (None, have):
            return f"{entry.title} has {wanted} images, {home} holds {found}."
    return ""


# ---------------------------------------------------------------- building, and finding again


def _build(folder: Path, listing: Listing, facts: dict, identity: dict, workers: int) -> None:
    skipped, home = [], f"{listing.home}/"
    for part, test in zip(PARTS, (False, True), strict=True):
        own = np.flatnonzero(listing.test == test)
        rows = listing.select(own)
        read = rows.read or (lambda i, ids=rows.ids: Path(home + ids[i]).read_bytes())
        raw = cache.Raw(
            rows.ids,
            rows.labels,
            facts["class_names"],
            read,
            lambda i, ids=rows.ids: home + ids[i],
            rows.domains,
            rows.domain_names,
        )
        report = cache.build(raw, folder / part, identity["keep"], identity["bad_images"], workers)
        skipped += [place.removeprefix(home) for place in report["skipped"]]
    artifacts.write_json(folder / "benchmark.json", facts | {"skipped": skipped})


def _fingerprint(listing: Listing) -> str:
    """What identifies the raw files wherever they lie: path and bytes of every image, content of every list."""
    hashed = hashlib.sha256()
    for path in listing.lists:
        hashed.update(f"{path.name} {artifacts.sha256_of(path)}\n".encode())
    if listing.bytes is not None:
        for image, size, test in zip(listing.ids, listing.bytes.tolist(), listing.test.tolist(), strict=True):
            hashed.update(f"{image} {size} {test:d}\n".encode())
    hashed.update(listing.labels.tobytes() + listing.test.tobytes())
    return hashed.hexdigest()


def _memory_of(home: Path | str, identity: dict) -> "_Memory | None":
    return _Memory(home, identity) if isinstance(home, Path) else None


class _Memory:
    """The fingerprint of a folder, kept beside the artifacts: for folders that are gone or too large to look at anew.

    A large folder counts as unchanged while its own and its subfolders' times and its lists are; an image that is
    overwritten in place is not noticed (touch its folder then).
    """

    def __init__(self, home: Path, identity: dict):
        named = hashlib.sha256(artifacts.canonical([str(home.resolve()), identity]).encode()).hexdigest()
        self.home, self.path = home, artifacts.root() / "fingerprints" / f"{named[:16]}.json"

    def recall(self) -> str | None:
        try:
            noted = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        if self.home.exists() and (noted["images"] < LARGE or noted["times"] != self._times(noted["times"])):
            return None
        return noted["raw"]

    def keep(self, listing: Listing, raw: str) -> None:
        folders = {os.path.dirname(image) for image in listing.ids} if listing.bytes is not None else set()
        above = {str(Path(folder).parent) for folder in folders}
        lists = {os.path.relpath(path, listing.home) for path in listing.lists}
        base = os.path.relpath(listing.home, self.home)
        paths = {os.path.normpath(os.path.join(base, path)) for path in folders | above | lists}
        artifacts.write_json(self.path, {"raw": raw, "images": len(listing.ids), "times": self._times(paths)})

    def _times(self, paths) -> dict[str, int]:
        return {
            path: (self.home / path).stat().st_mtime_ns if (self.home / path).exists() else 0 for path in sorted(paths)
        }
