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
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cilkit import artifacts
from cilkit.data import cache, catalogue, embedded, fetching, sources
from cilkit.data.catalogue import Entry
from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import open_set
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
    return list(glosses(name, root))


def glosses(name: str, root: str = "") -> dict[str, str]:
    """Class name -> its gloss in the benchmark's class list, "" for none, in label order, as `class_names`."""
    if name in embedded.RECIPES:
        return dict.fromkeys(embedded.NAMES, "")  # both embedded benchmarks show the ten digits
    entry, home = _find(name, root)
    names = _readable(entry, [] if entry.class_table() else _listed(entry, home).keys)
    return {readable: entry.glosses().get(key, "") for key, readable in names.items()}


def load(
    name: str, root: str = "", keep: str = "auto", partial: bool = False, bad_images: str = "error", workers: int = 0
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
    keep = entry.keep if keep == "auto" else keep
    identity = {"name": entry.name, "entry": entry.version, "keep": keep, "bad_images": bad_images}
    memory = _Memory(home, identity)
    raw = memory.recall()
    artifact = raw and artifacts.find("benchmark", artifacts.key_of("benchmark", 1, identity | {"raw": raw}, {}))
    if not artifact:
        listing, facts = _checked(entry, home, partial)
        identity["raw"] = _fingerprint(listing)
        artifact = artifacts.obtain(
            "benchmark", 1, identity, {}, lambda work: _build(work.path, listing, facts, identity, workers)
        )
        memory.keep(listing, identity["raw"])
    facts = json.loads(artifact.file("benchmark.json").read_text())
    if not facts["complete"] and not partial:
        raise UserError(f"{home} held only a part of {entry.title}; complete it, or load it with partial=True.")
    return opened(artifact, name)


def opened(artifact: artifacts.Artifact, name: str) -> Benchmark:
    """The benchmark that an artifact holds, by the name it was loaded with. Its raw files are not looked for."""
    if name in embedded.RECIPES:
        train, test = (open_set(artifact.path / part, classes=embedded.NAMES) for part in PARTS)
        source = embedded.RECIPES[name][1]
        return Benchmark(name, train, test, source, embedded.LICENCE, embedded.CITATION, artifact, name)
    entry, facts = _find(name, "")[0], json.loads(artifact.file("benchmark.json").read_text())
    train, test = (cache.open(artifact.path / part, facts["class_names"]) for part in PARTS)
    source = ", ".join(filter(None, [entry.title, facts["split"]]))
    whole, skipped = facts["complete"] and not facts["skipped"], facts["skipped"]
    return Benchmark(name, train, test, source, entry.licence, entry.citation, artifact, entry.title, whole, skipped)


def _embedded(name: str) -> Benchmark:
    build, _, identity = embedded.RECIPES[name]
    made = artifacts.obtain("benchmark", 1, {"name": name, **identity}, {}, lambda work: build(work.path))
    return opened(made, name)


# ---------------------------------------------------------------- where the raw files are


def _find(name: str, root: str) -> tuple[Entry, Path]:
    """The entry and the home of its raw files; for a Hugging Face dataset its name on the hub, if that is no folder."""
    kind, _, place = name.partition(":")
    if kind == "folder" and place:
        layout = "train/<class>/* and test/<class>/* (or val/), or <class>/* alone"
        return Entry("folder", f"the image folder {Path(place).name}", "folders", layout), _absolute(root or place)
    if kind == "hf" and place:
        home = folder if (folder := _absolute(root or place)).is_dir() else Path(place)
        layout = "train-….parquet and test-….parquet, with an image and a label column"
        return Entry("hf" if home is folder else name, f"{home.name} (Hugging Face)", "huggingface", layout), home
    entry = catalogue.find(name, embedded.RECIPES)
    data = _absolute(os.environ.get("CILKIT_DATA") or "data") / (entry.home or name)
    return entry, _absolute(root) if root else data


def _absolute(path: str) -> Path:
    return (artifacts.repository() or Path.cwd()) / Path(path).expanduser()


def _listed(entry: Entry, home: Path, fetch: bool = False) -> Listing:
    """What the raw files hold, fetched if they are not there. UserError with the expected layout if that fails."""
    read, missing = getattr(sources, entry.reader), [one for one in entry.download if not (home / one.leaves).exists()]
    try:
        if fetch and 0 < len(missing) < len(entry.download):
            fetching.fetch(missing, home)
        try:
            return read(home)
        except FileNotFoundError:
            if not (fetch and missing):
                raise
        fetching.fetch(missing, home)
        return read(home)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{entry.title} is not in {home}: no {error.filename}. {_expected(entry)}") from error
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}. Expected in {home}: {entry.layout}.") from error


def _expected(entry: Entry) -> str:
    return f"Expected in the folder: {entry.layout}."


# ---------------------------------------------------------------- what they should hold


def _checked(entry: Entry, home: Path, partial: bool) -> tuple[Listing, dict]:
    """The listing with the benchmark's own labels, and what `benchmark.json` says of it."""
    listing = _listed(entry, home, fetch=not partial)
    names = _readable(entry, listing.keys)
    _demand_known(listing, names, entry)
    listing, missing = _existing(_relabelled(listing, list(names)), entry)
    counts = np.stack([np.bincount(listing.labels[listing.test == i], minlength=len(names)) for i in (False, True)])
    lost = _shortfall(entry, home, list(names.values()), counts, missing)
    if lost and not partial:
        raise UserError(f"{lost} Complete the folder, or take what is there with partial=True. {_expected(entry)}")
    keys = [key for key, least in zip(names, counts.min(axis=0), strict=True) if least]
    if not keys:
        raise UserError(f"no class of {entry.title} in {home} has both train and test images. {_expected(entry)}")
    facts = {"class_names": [names[key] for key in keys], "complete": not lost, "split": listing.note or entry.split}
    return _relabelled(listing, keys), facts


def _readable(entry: Entry, keys: list[str]) -> dict[str, str]:
    """Official key -> readable name, in label order. UserError for two classes of one name."""
    table = entry.class_table() or {key: entry.rename.get(key) or catalogue.tidy(key) for key in keys}
    seen: dict[str, str] = {}
    for key, name in table.items():
        if seen.setdefault(name.casefold(), key) != key:
            raise UserError(f"classes {seen[name.casefold()]!r} and {key!r} are both called {name!r}; rename one.")
    return table


def _demand_known(listing: Listing, names: dict[str, str], entry: Entry) -> None:
    used = {listing.keys[label] for label in np.unique(listing.labels)} | set(listing.folders)
    extra = sorted(used - set(names))
    if extra and not entry.only:
        raise UserError(
            f"{listing.home} holds the class {extra[0]!r}{_more(extra)}, which {entry.title} does not have; move it "
            "away, or load the folder as it is with folder:PATH."
        )


def _more(items) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def _relabelled(listing: Listing, keys: list[str]) -> Listing:
    """With labels that count in `keys`, without the images of other classes."""
    place = {key: label for label, key in enumerate(keys)}
    labels = np.array([place.get(key, -1) for key in listing.keys], np.int64)[listing.labels]
    listing = replace(listing, labels=labels, keys=keys)
    return listing if (labels >= 0).all() else listing.select(np.flatnonzero(labels >= 0))


def _existing(listing: Listing, entry: Entry) -> tuple[Listing, list[str]]:
    """Only the images whose file is there, with their sizes, and the others' names (but those known to be absent)."""
    if listing.read is not None:
        return listing, []
    listing.bytes = np.array([_bytes_of(f"{listing.home}/{image}") for image in listing.ids], np.int64)
    lost = [listing.ids[i] for i in np.flatnonzero(listing.bytes < 0)]
    missing = [image for image in lost if not image.endswith(tuple(entry.absent))]
    return listing.select(np.flatnonzero(listing.bytes >= 0)) if lost else listing, missing


def _bytes_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


def _shortfall(entry: Entry, home: Path, names: list[str], counts: np.ndarray, missing: list[str]) -> str:
    """One sentence about what the complete benchmark has and this folder has not, or nothing."""
    if missing:
        return f"{len(missing)} images that the lists of {entry.title} name are not in {home}, first {missing[0]}."
    for part, own in zip(PARTS, counts, strict=True):
        empty = np.flatnonzero(own == 0)
        if len(empty):
            return f"class {names[empty[0]]!r}{_more(empty)} of {entry.title} has no {part} images in {home}."
    if entry.classes not in (None, len(names)):
        return f"{entry.title} has {entry.classes} classes, {home} holds {len(names)}."
    found = counts.sum(axis=1).tolist()
    have, want = ([sum(found)], [entry.images]) if isinstance(entry.images, int) else (found, entry.images or found)
    if any(wanted not in (None, there) for wanted, there in zip(want, have, strict=True)):
        return f"{entry.title} has {entry.images} images, {home} holds {found} (train, test)."
    return ""


# ---------------------------------------------------------------- building, and finding again


def _build(folder: Path, listing: Listing, facts: dict, identity: dict, workers: int) -> None:
    skipped = []
    for part, test in zip(PARTS, (False, True), strict=True):
        raw = _raw(listing.select(np.flatnonzero(listing.test == test)), facts["class_names"])
        report = cache.build(raw, folder / part, identity["keep"], identity["bad_images"], workers)
        skipped += [os.path.relpath(place, listing.home) for place in report["skipped"]]
    artifacts.write_json(folder / "benchmark.json", facts | {"skipped": skipped})


def _raw(rows: Listing, class_names: list[str]) -> cache.Raw:
    def where(i: int) -> str:
        return f"{rows.home}/{rows.ids[i]}"

    read = rows.read or (lambda i: Path(where(i)).read_bytes())
    return cache.Raw(rows.ids, rows.labels, class_names, read, where, rows.domains, rows.domain_names)


def _fingerprint(listing: Listing) -> str:
    """What identifies the raw files wherever they lie: path and bytes of every image, content of every list."""
    hashed = hashlib.sha256(listing.labels.tobytes() + listing.test.tobytes())
    for path in listing.lists:
        hashed.update(f"{path.name} {artifacts.sha256_of(path)}\n".encode())
    for image, size in zip(listing.ids, [] if listing.bytes is None else listing.bytes.tolist(), strict=False):
        hashed.update(f"{image} {size}\n".encode())
    return hashed.hexdigest()


class _Memory:
    """The fingerprint of a folder, noted beside the artifacts: for one that is gone or too large to look at anew.

    A large folder counts as unchanged while its own and its subfolders' times and its lists' are; an image that is
    overwritten in place is not noticed (touch its folder then). A dataset of the hub stays the one first built.
    """

    def __init__(self, home: Path, identity: dict):
        named = hashlib.sha256(artifacts.canonical([str(home), identity]).encode()).hexdigest()
        self.home, self.path = home, artifacts.root() / "fingerprints" / f"{named[:16]}.json"

    def recall(self) -> str | None:
        noted = json.loads(self.path.read_text()) if self.path.exists() else None
        if noted and self.home.exists() and (noted["images"] < LARGE or noted["times"] != self._times(noted["times"])):
            return None
        return noted and noted["raw"]

    def keep(self, listing: Listing, raw: str) -> None:
        inner = os.path.relpath(listing.home, self.home)
        folders = set(map(os.path.dirname, listing.ids)) if listing.read is None else set()
        lists = {path.relative_to(listing.home) for path in listing.lists}
        places = folders | set(map(os.path.dirname, folders)) | lists
        times = self._times({os.path.normpath(os.path.join(inner, place)) for place in places} | {"."})
        artifacts.write_json(self.path, {"raw": raw, "images": len(listing.ids), "times": times})

    def _times(self, places) -> dict[str, int]:
        paths = {place: self.home / place for place in sorted(places)}
        return {place: path.stat().st_mtime_ns if path.exists() else 0 for place, path in paths.items()}
