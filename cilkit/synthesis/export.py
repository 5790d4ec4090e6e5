"""Image sets for other people's readers: torchvision's ImageFolder, Hugging Face datasets, WebDataset.

Encoded images are copied as they are, never encoded again. A class's folder begins with its label, so that readers that
number folders by name give every class the label that it has here, whatever it is called. What is written appears whole
or not at all.
"""

import hashlib
import itertools
import os
import re
import shutil
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cilkit import artifacts
from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import add_member, encode_png, sidecar
from cilkit.errors import UserError

LONGEST = 48  # characters of a name: with four bytes each they still make a file name
ROWS = 1000  # rows of the manifest that are turned into Python's numbers and texts at once
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # names that Windows keeps for itself
KINDS = {b"\xff\xd8": "jpg", b"\x89P": "png"}  # how the encoded images begin that every reader knows
PLACES = ("shard", "offset", "size", "sha256", "class_id")  # columns that mean nothing outside the image set


def safe_name(text: str) -> str:
    """A part of a file name: letters, digits, "-" and "_" of any script. A text that had to be changed, or that is
    longer, gets eight digits of its hash, so that different texts give different names."""
    name = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", text)).strip("-")
    if name == text and 0 < len(name) <= LONGEST and not RESERVED.fullmatch(name):
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}".lstrip("-")


def class_folders(class_names: list[str]) -> list[str]:
    """A folder name for every class: its label, with as many digits as the last one has, and its name made safe."""
    digits = len(str(max(len(class_names) - 1, 0)))
    return [f"{label:0{digits}d}-{safe_name(name)}" for label, name in enumerate(class_names)]


class Sample(NamedTuple):
    """One image on its way out. kind: "jpg" or "png"; facts: the rest of its manifest row, and its class name."""

    image_id: str
    label: int
    data: bytes
    kind: str
    facts: dict[str, Any]


def samples(images: ImageSet) -> Iterator[Sample]:
    """The images in order, encoded, one at a time; UserError for none, two of the same id, and an altered one."""
    ids, labels, manifest = images.ids.tolist(), images.labels.tolist(), images.manifest
    if not ids:
        raise UserError("there are no images to export; choose a set, or rules of curation, that leave some")
    if len(set(ids)) < len(ids):
        twice = next(image_id for image_id in ids if ids.count(image_id) > 1)
        raise UserError(f"two images are called {twice!r}, so one would hide the other; give each its own image_id")
    for at, (image_id, label) in enumerate(zip(ids, labels, strict=True)):
        if at % ROWS == 0:
            rows = [{}] * ROWS if manifest is None else manifest.iloc[at : at + ROWS].to_dict("records")
        row = rows[at % ROWS]
        data = _stored(images, row) if str(row.get("shard", "")).endswith(".tar") else b""
        if data[:2] not in KINDS:
            data = encode_png(images.read([at])[0])
        facts = {key: value for key, value in row.items() if key not in PLACES}
        facts |= {"image_id": image_id, "class_name": images.class_names[label]}
        yield Sample(image_id, label, data, KINDS[data[:2]], facts)


def _stored(images: ImageSet, row: dict[str, Any]) -> bytes:
    """The image as its tar holds it."""
    path = images.source.folder / row["shard"]
    with open(path, "rb") as file:
        file.seek(row["offset"])
        data = file.read(row["size"])
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise UserError(f"image {row['image_id']} in {path} is not the one that was painted; run `cilkit doctor` on it")
    return data


@contextmanager
def _appearing(folder: str | Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name when all went well and vanishes when not."""
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty; export to a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        beside.chmod(0o755)
        yield beside
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def to_imagefolder(images: ImageSet, folder: str | Path) -> Path:
    """`folder/<label>-<class>/<image_id>.png`, read by torchvision's ImageFolder.

    Beside the classes lie classes.json, {folder: class name}, and metadata.jsonl with a line an image (file_name,
    label, class_name, prompt, seed …), which `datasets.load_dataset("imagefolder", data_dir=folder)` gives as columns.
    A class without images gets no folder; where all have some, ImageFolder's labels are those of `images`.
    UserError for a folder that is not empty.
    """
    folders = class_folders(images.class_names)
    with _appearing(folder) as place, open(place / "metadata.jsonl", "wb") as rows:
        for sample in samples(images):
            file_name = f"{folders[sample.label]}/{safe_name(sample.image_id)}.{sample.kind}"
            (place / file_name).parent.mkdir(exist_ok=True)
            (place / file_name).write_bytes(sample.data)
            rows.write(sidecar(sample.facts | {"file_name": file_name, "label": sample.label}) + b"\n")
        named = {name: images.class_names[label] for label, name in enumerate(folders) if images.counts[label]}
        artifacts.write_json(place / "classes.json", named)
    return Path(folder)


def to_huggingface(images: ImageSet, folder: str | Path, form: str = "disk") -> Path:
    """A Hugging Face dataset with the columns image, label (its names are the classes) and those of the manifest.

    form: "disk", for `datasets.load_from_disk(folder)`; "parquet", a file for `datasets.load_dataset("parquet",
    data_files=...)` or for the hub. UserError for a folder that is not empty.
    """
    import datasets

    if form not in ("disk", "parquet"):
        raise UserError(f"form {form!r} is unknown; take 'disk' or 'parquet'")

    def rows() -> Iterator[dict[str, Any]]:
        for sample in samples(images):
            yield sample.facts | {"image": {"bytes": sample.data, "path": None}, "label": sample.label}

    types = {bool: "bool", int: "int64", float: "float64"}
    found = {name: datasets.Value(types.get(type(value), "string")) for name, value in next(rows()).items()}
    features = datasets.Features(
        found | {"image": datasets.Image(), "label": datasets.ClassLabel(names=images.class_names)}
    )
    with _appearing(folder) as place, tempfile.TemporaryDirectory(dir=place.parent, prefix=".cache-") as cache:
        try:
            table = datasets.Dataset.from_generator(rows, features, cache, fingerprint=_fingerprint(images))
        except Exception as error:  # the library wraps what our generator raises
            raise (error.__cause__ if isinstance(error.__cause__, UserError) else error) from None
        if form == "disk":
            table.save_to_disk(place)
        else:
            table.to_parquet(place / "train-00000-of-00001.parquet")
    return Path(folder)


def _fingerprint(images: ImageSet) -> str:
    """Names these images in this order with these labels; the library would hash every pixel instead."""
    which = [images.source.key, images.index.tolist(), images.labels.tolist(), images.class_names]
    return hashlib.sha256(artifacts.canonical(which).encode()).hexdigest()[:16]


def to_webdataset(images: ImageSet, pattern: str | Path, per_shard: int = 1000) -> list[Path]:
    """Tars for WebDataset: of each image the members KEY.png (or .jpg), KEY.cls (its label), KEY.json (what is known).

    pattern: a path with one place for the shard's number, e.g. "out/train-%06d.tar". per_shard: images a tar.
    Returns the tars. UserError for a pattern without such a place, and for a tar that is there already.
    """
    pattern = Path(pattern).absolute()
    if not re.fullmatch(r"[^%]*%0?\d*d[^%]*\.tar", pattern.name) or per_shard < 1:
        raise UserError(
            f"{pattern.name!r} with {per_shard} images a tar; expected a name such as 'train-%06d.tar', and 1 or more"
        )
    wanted = [pattern.with_name(pattern.name % n) for n in range(-(-len(images) // per_shard) or 1)]
    for path in wanted:
        if path.exists():
            raise UserError(f"{path} is there already; export to another name")
    pattern.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=pattern.parent, prefix=".export-") as place:
        found = samples(images)
        for path in wanted:
            with tarfile.open(Path(place) / path.name, "w", format=tarfile.GNU_FORMAT) as tar:
                for sample in itertools.islice(found, per_shard):
                    key = safe_name(sample.image_id)
                    add_member(tar, f"{key}.{sample.kind}", sample.data)
                    add_member(tar, f"{key}.cls", str(sample.label).encode())
                    add_member(tar, f"{key}.json", sidecar(sample.facts))
        for path in wanted:
            os.replace(Path(place) / path.name, path)
    return wanted
