"""Readers: one short function a kind of folder, from the raw files as their archives unpack to a `Listing`.

A reader only lists; no image is decoded here. It raises FileNotFoundError for a file that its format needs, and leaves
missing images, classes and counts to `benchmarks`, which knows what the benchmark should hold. Nothing is un-pickled:
CIFAR comes from the binary archives, CORe50's labels and sessions from its file names.
"""

import gzip
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cilkit.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_FOLDERS = ("test", "val", "valid", "validation")
OUR_SPLIT = "no split in the folder: a fifth of each class is for testing, drawn with seed 1993 (our decision)"
# CORe50 keeps sessions 3, 7 and 10 for testing (Lomonaco & Maltoni 2017; remembered, and so in every public loader).
CORE50_TEST = (3, 7, 10)
# Omniglot has no train/test split of the drawers: 15 to learn from, 5 to test on (our decision).
OMNIGLOT_TRAIN_DRAWERS = 15


@dataclass
class Listing:
    """The images of a benchmark, train and test together, as its files name them.

    ids:     one an image: its path below `home`, or part and number in a packed file.
    labels:  int64 (n,), indices into `keys`, the classes' official names (folders, numbers) in label order.
    test:    bool (n,).
    read:    position -> encoded bytes, uint8 array or PIL image; None: the file `home / id`.
    lists:   files that decide labels and split, or that pixels are packed in; their content identifies the benchmark.
    folders: the class folders found, where a class may be one too many.
    domains: int64 (n,), indices into domain_names, or None.
    note:    how images were split, where the files do not say.
    bytes:   int64 (n,), sizes of the files, once they were looked at.
    """

    home: Path
    ids: Sequence[str]
    labels: np.ndarray
    test: np.ndarray
    keys: list[str]
    lists: list[Path] = field(default_factory=list)
    read: Callable[[int], object] | None = None
    folders: list[str] = field(default_factory=list)
    domains: np.ndarray | None = None
    domain_names: list[str] = field(default_factory=list)
    note: str = ""
    bytes: np.ndarray | None = None

    def select(self, keep: np.ndarray) -> "Listing":
        """The images at the positions `keep`; classes stay."""
        whole = self.read
        return Listing(
            self.home,
            [self.ids[i] for i in keep],
            self.labels[keep],
            self.test[keep],
            self.keys,
            self.lists,
            None if whole is None else lambda i: whole(int(keep[i])),
            self.folders,
            None if self.domains is None else self.domains[keep],
            self.domain_names,
            self.note,
            None if self.bytes is None else self.bytes[keep],
        )


def hold_out(labels: np.ndarray, fraction: float = 0.2, seed: int = 1993) -> np.ndarray:
    """bool (n,): `fraction` of each class, at least one image of two or more, for testing."""
    random = np.random.RandomState(seed)  # numpy's legacy generator never changes
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        test[members[: max(round(fraction * len(members)), 1)] if len(members) > 1 else []] = True
    return test


def folders(home: Path) -> Listing:
    """`train/<class>/*` and `test/<class>/*` (or val, valid, validation), or `<class>/*` alone, split by us."""
    parts = [part for part in TEST_FOLDERS if (home / part).is_dir()]
    if (home / "train").is_dir() and parts:
        return _class_folders(home, ["train", parts[0]])
    if (home / "train").is_dir():
        return _class_folders(home, ["train"])
    return _class_folders(home, [""])


def imagenet_r(home: Path) -> Listing:
    """The archive's folder of 200 wnids, or one that holds `train` and `test` folders of them."""
    return folders(within(home, "imagenet-r"))


def imagenet(home: Path) -> Listing:
    """`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`."""
    for part in ("train", "val"):
        if not (home / part).is_dir():
            raise FileNotFoundError(home / part)
    return _class_folders(home, ["train", "val"])


def _class_folders(home: Path, parts: list[str]) -> Listing:
    found = {part: sorted(e.name for e in os.scandir(home / part) if _is_class(e)) for part in parts}
    keys = sorted(set().union(*found.values()))
    place, ids, labels, test = {key: i for i, key in enumerate(keys)}, [], [], []
    for part, names in found.items():
        for name in names:
            files = _images_below(home / part / name, f"{part}/{name}" if part else name)
            ids += files
            labels += [place[name]] * len(files)
            test += [part in TEST_FOLDERS] * len(files)
    labels = np.array(labels, np.int64)
    if len(parts) == 1:
        return Listing(home, ids, labels, hold_out(labels), keys, folders=keys, note=OUR_SPLIT)
    return Listing(home, ids, labels, np.array(test, bool), keys, folders=keys)


def _is_class(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not entry.name.startswith((".", "__"))


def _images_below(folder: Path, prefix: str) -> list[str]:
    """Paths of the images below `folder`, at any depth, sorted, with the class folder in front."""
    found = []
    for here, _, files in os.walk(folder):
        inner = os.path.relpath(here, folder)
        at = prefix if inner == "." else f"{prefix}/{Path(inner).as_posix()}"
        found += [f"{at}/{file}" for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
    return sorted(found)


def idx(home: Path) -> Listing:
    """MNIST's four idx files, plain or .gz: a big-endian header, then one byte a pixel or label."""
    parts, lists = [], []
    for part in ("train", "t10k"):
        for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
            path = home / f"{part}-{kind}-ubyte"
            path = path if path.exists() else path.with_name(path.name + ".gz")
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            shape = tuple(int(size) for size in np.frombuffer(data, ">i4", dimensions, 4))
            start = 4 * (dimensions + 1)
            if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != start + int(np.prod(shape)):
                raise UserError(f"{path} is no whole idx file of {dimensions} dimensions; fetch it again.")
            parts.append(np.frombuffer(data, np.uint8, offset=start).reshape(shape))
            lists.append(path)
    return _packed(home, np.concatenate(parts[::2])[..., None].repeat(3, -1), parts[1::2], 10, lists)


def cifar10(home: Path) -> Listing:
    """The binary archive: records of one label byte and 3 x 32 x 32 pixels, one colour plane after the other."""
    return _cifar(within(home, "cifar-10-batches-bin"), [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch", 1)


def cifar100(home: Path) -> Listing:
    """The binary archive: a coarse and a fine label byte before the pixels; the fine one counts."""
    return _cifar(within(home, "cifar-100-binary"), ["train.bin"], "test", 2)


def _cifar(home: Path, train: list[str], test: str, label_bytes: int) -> Listing:
    paths = [home / name for name in (*train, f"{test}.bin")]
    records = []
    for path in paths:
        data = np.fromfile(path, np.uint8)
        if len(data) == 0 or len(data) % (label_bytes + 3072):
            raise UserError(f"{path} has {len(data)} bytes, no whole number of records; fetch it again.")
        records.append(data.reshape(-1, label_bytes + 3072))
    pixels = np.concatenate(records)[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = [np.concatenate([r[:, label_bytes - 1] for r in part]) for part in (records[:-1], records[-1:])]
    return _packed(home, np.ascontiguousarray(pixels), labels, 10 if label_bytes == 1 else 100, paths)


def _packed(home: Path, pixels: np.ndarray, labels: list[np.ndarray], classes: int, lists: list[Path]) -> Listing:
    """pixels: uint8 (n, h, w, 3), train before test; labels: of train and of test."""
    if sum(map(len, labels)) != len(pixels) or max(part.max(initial=0) for part in labels) >= classes:
        raise UserError(f"the files in {home} hold {len(pixels)} images and other labels; fetch them again.")
    ids = [f"{part}/{i:05d}" for part, own in zip(("train", "test"), labels, strict=True) for i in range(len(own))]
    test = np.arange(len(ids)) >= len(labels[0])
    keys = [str(label) for label in range(classes)]
    return Listing(home, ids, np.concatenate(labels).astype(np.int64), test, keys, lists, pixels.__getitem__)


def cub(home: Path) -> Listing:
    """CUB-200-2011: images.txt, image_class_labels.txt, train_test_split.txt (1 = train), classes.txt."""
    home = within(home, "CUB_200_2011")
    names = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    files, classes, train, keys = (dict(_rows(home / name)) for name in names)
    _demand_rows(home, files, classes, train)
    ids = [f"images/{file}" for file in files.values()]
    labels = np.array([int(classes[i]) - 1 for i in files], np.int64)
    test = np.array([train[i] == "0" for i in files], bool)
    present = sorted(e.name for e in os.scandir(home / "images") if _is_class(e))
    return Listing(home, ids, labels, test, list(keys.values()), [home / n for n in names], folders=present)


def _demand_rows(home: Path, files: dict, *others: dict) -> None:
    lost = [key for key in files if any(key not in other for other in others)]
    if lost:
        raise UserError(f"image {lost[0]} of the lists in {home} has no label or no split; fetch the archive again.")


def _rows(path: Path) -> list[tuple[str, str]]:
    """Lines of two words; the second may hold spaces."""
    return [tuple(line.split(maxsplit=1)) for line in path.read_text().splitlines() if line.strip()]


def cars(home: Path) -> Listing:
    """Stanford Cars: cars_train and cars_test, labels in the devkit's .mat files (1 … 196)."""
    home = within(home, "stanford_cars")
    tables = {"cars_train": home / "devkit/cars_train_annos.mat", "cars_test": home / "cars_test_annos_withlabels.mat"}
    if not tables["cars_test"].exists():  # some copies keep it in the devkit
        tables["cars_test"] = home / "devkit/cars_test_annos_withlabels.mat"
    ids, labels, test = [], [], []
    for part, path in tables.items():
        rows = np.atleast_1d(_matlab(path)["annotations"])
        ids += [f"{part}/{row['fname']}" for row in rows]
        labels += [int(row["class"]) - 1 for row in rows]
        test += [part == "cars_test"] * len(rows)
    meta = home / "devkit/cars_meta.mat"
    keys = [str(name) for name in np.atleast_1d(_matlab(meta)["class_names"])]
    return Listing(home, ids, np.array(labels, np.int64), np.array(test, bool), keys, [*tables.values(), meta])


def _matlab(path: Path) -> dict:
    from scipy.io import loadmat

    return loadmat(path, squeeze_me=True)


def food(home: Path) -> Listing:
    """Food-101: meta/train.txt and meta/test.txt name images/<class>/<number>.jpg."""
    home = within(home, "food-101")
    lists = [home / "meta" / f"{part}.txt" for part in ("train", "test")]
    lines = [path.read_text().split() for path in lists]
    keys = (home / "meta/classes.txt").read_text().split()
    place = {key: i for i, key in enumerate(keys)}
    labels = np.array([place[line.split("/")[0]] for part in lines for line in part], np.int64)
    ids = [f"images/{line}.jpg" for part in lines for line in part]
    present = sorted(e.name for e in os.scandir(home / "images") if _is_class(e))
    return Listing(home, ids, labels, np.arange(len(ids)) >= len(lines[0]), keys, lists, folders=present)


def flowers(home: Path) -> Listing:
    """Oxford Flowers: jpg/image_00001.jpg …, labels and the split in .mat files; train and valid are for training."""
    home = within(home, "flowers-102")
    lists = [home / "imagelabels.mat", home / "setid.mat"]
    classes, parts = np.atleast_1d(_matlab(lists[0])["labels"]), _matlab(lists[1])
    train = np.concatenate([np.atleast_1d(parts["trnid"]), np.atleast_1d(parts["valid"])])
    numbers = np.concatenate([train, np.atleast_1d(parts["tstid"])]).astype(np.int64)
    ids = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    labels = classes[numbers - 1].astype(np.int64) - 1
    return Listing(home, ids, labels, np.arange(len(ids)) >= len(train), [str(i + 1) for i in range(102)], lists)


def pets(home: Path) -> Listing:
    """Oxford-IIIT Pet: annotations/trainval.txt and test.txt, lines of image, class (1 … 37), species, breed."""
    home = within(home, "oxford-iiit-pet")
    lists = [home / "annotations" / f"{part}.txt" for part in ("trainval", "test")]
    lines = [[line.split() for line in path.read_text().splitlines() if line.strip()] for path in lists]
    rows = [row for part in lines for row in part]
    names = {int(row[1]): row[0].rsplit("_", 1)[0] for row in rows}
    keys = [names.get(number, str(number)) for number in range(1, 38)]
    labels = np.array([int(row[1]) - 1 for row in rows], np.int64)
    test = np.arange(len(rows)) >= len(lines[0])
    return Listing(home, [f"images/{row[0]}.jpg" for row in rows], labels, test, keys, lists)


def omniglot(home: Path) -> Listing:
    """<part>/<alphabet>/<character>/<number>_<drawer>.png for both parts; a class is one character of one alphabet."""
    ids = []
    for part in ("images_background", "images_evaluation"):
        ids += _images_below(home / part, part)
    keys = sorted({"/".join(i.split("/")[1:3]) for i in ids})
    place = {key: i for i, key in enumerate(keys)}
    labels = np.array([place["/".join(i.split("/")[1:3])] for i in ids], np.int64)
    drawers = np.array([int(Path(i).stem.split("_")[-1]) for i in ids], np.int64)
    return Listing(home, ids, labels, drawers > OMNIGLOT_TRAIN_DRAWERS, keys)


def inat_plants(home: Path) -> Listing:
    """iNaturalist 2018: the COCO-like train2018.json and val2018.json; names from the un-obfuscated categories.json."""
    lists = [home / name for name in ("categories.json", "train2018.json", "val2018.json")]
    categories, *parts = (json.loads(path.read_text()) for path in lists)
    plants = sorted((c for c in categories if c["supercategory"] == "Plantae"), key=lambda c: c["id"])
    place = {plant["id"]: i for i, plant in enumerate(plants)}
    ids, labels, test = [], [], []
    for part in parts:
        files = {image["id"]: image["file_name"] for image in part["images"]}
        own = [row for row in part["annotations"] if row["category_id"] in place]
        ids += [files[row["image_id"]] for row in own]
        labels += [place[row["category_id"]] for row in own]
        test += [part is parts[1]] * len(own)
    keys = [plant["name"] for plant in plants]
    return Listing(home, ids, np.array(labels, np.int64), np.array(test, bool), keys, lists)


def pacs(home: Path) -> Listing:
    """PACS: kfold/<domain>/<class>/*, lists <domain>_train_kfold.txt and _crossval_kfold.txt with labels 1 … 7."""
    lists = next((home / name for name in ("pacs_label", "splits", "") if
                  (home / name / "photo_train_kfold.txt").exists()), home / "pacs_label")  # fmt: skip
    images = next((name for name in ("kfold", "pacs_data", "images") if (home / name).is_dir()), "kfold")
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    return _listed_domains(home, domains, [lists / "{}_train_kfold.txt", lists / "{}_crossval_kfold.txt"], images, 1)


def domainnet(home: Path) -> Listing:
    """DomainNet: <domain>/<class>/*, lists <domain>_train.txt and <domain>_test.txt with labels 0 … 344."""
    domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    return _listed_domains(home, domains, [home / "{}_train.txt", home / "{}_test.txt"], "", 0)


def _listed_domains(home: Path, domains: list[str], lists: list[Path], images: str, first: int) -> Listing:
    rows, paths = [], []  # rows: (file below `images`, label, of the test part, domain)
    for place, domain in enumerate(domains):
        for test, pattern in enumerate(lists):
            paths.append(pattern.with_name(pattern.name.format(domain)))
            own = [line.rsplit(maxsplit=1) for line in paths[-1].read_text().splitlines() if line.strip()]
            rows += [(file, int(label) - first, test, place) for file, label in own]
    names = {label: file.split("/")[1] for file, label, _, _ in rows}
    keys = [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]
    _, labels, test, found = (np.array(column) for column in zip(*rows, strict=True))
    ids = [f"{images}/{row[0]}" if images else row[0] for row in rows]
    return Listing(home, ids, labels, test == 1, keys, paths, domains=found, domain_names=domains)


def core50(home: Path) -> Listing:
    """CORe50: s<session>/o<object>/C_<session>_<object>_<frame>.png; a class is an object, a domain a session."""
    home = within(home, "core50_128x128")
    found = [i for s in sorted(e.name for e in os.scandir(home) if _is_class(e)) for i in _images_below(home / s, s)]
    rows = [re.fullmatch(r"s(\d+)/o(\d+)/.*", i) for i in found]
    if not rows or None in rows:
        raise UserError(f"{home} holds {found[0] if found else 'no image'}; expected s1/o1/C_01_01_000.png and so on.")
    sessions, objects = (np.array([int(row[group]) for row in rows], np.int64) for group in (1, 2))
    order = [s for s in range(1, 12) if s not in CORE50_TEST] + list(CORE50_TEST)  # the domains to learn come first
    domains = np.array([order.index(session) for session in sessions], np.int64)
    keys = [f"o{number}" for number in range(1, 51)]
    names = [f"s{session}" for session in order]
    test = np.isin(sessions, CORE50_TEST)
    return Listing(home, found, objects - 1, test, keys, domains=domains, domain_names=names)


def huggingface(home: Path | str) -> Listing:
    """A dataset of the hub or a folder of Parquet: its image column, its label column and, if it has one, `domain`.

    The hub's own library fetches it, into its own cache. Encoded bytes are handed on as they are.
    """
    from datasets import Image, concatenate_datasets, load_dataset

    try:
        parts = load_dataset(str(home))
    except Exception as error:  # the library raises many classes, its own and those of the network
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"the Hugging Face dataset {home} cannot be loaded: {reason}") from error
    test = next((name for name in TEST_FOLDERS if name in parts), None)
    if "train" not in parts:
        raise UserError(
            f"the dataset {home} has the splits {', '.join(parts)}; expected train, and test or validation."
        )
    chosen = [parts["train"]] + ([parts[test]] if test else [])
    rows = concatenate_datasets(chosen)
    pictures = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
    if len(pictures) != 1:
        raise UserError(f"the dataset {home} has the image columns {pictures}; expected one, of the type Image.")
    rows = rows.cast_column(pictures[0], Image(decode=False))
    labels, keys = _column(rows, _label_column(rows, home))
    domains, domain_names = _column(rows, "domain") if "domain" in rows.features else (None, [])
    marks = np.arange(len(rows)) >= len(chosen[0]) if test else hold_out(labels)
    ids = [f"{name}/{i:07d}" for name, part in zip(("train", test), chosen, strict=False) for i in range(len(part))]
    found = Listing(Path("."), ids, labels, marks, keys, read=lambda i: _encoded(rows[i][pictures[0]]))
    found.domains, found.domain_names, found.note = domains, domain_names, "" if test else OUR_SPLIT
    found.bytes = np.concatenate([_lengths(chunk) for chunk in rows.data.column(pictures[0]).chunks])
    return found


def _label_column(rows, home) -> str:
    from datasets import ClassLabel

    known = [name for name, kind in rows.features.items() if isinstance(kind, ClassLabel) and name != "domain"]
    for name in ("label", "labels", "fine_label"):  # fine_label: CIFAR-100, which has coarse_label too
        if name in rows.features:
            return name
    if len(known) != 1:
        raise UserError(
            f"the dataset {home} has the columns {', '.join(rows.features)}; which is the label? Name it so."
        )
    return known[0]


def _column(rows, name: str) -> tuple[np.ndarray, list[str]]:
    """(int64 (n,) numbers, their names) of a column of classes, texts or numbers."""
    values = rows.with_format(None)[name][:]
    if hasattr(rows.features[name], "names"):
        return np.array(values, np.int64), list(rows.features[name].names)
    kinds, numbers = np.unique(np.array(values), return_inverse=True)
    return numbers.astype(np.int64), [str(kind) for kind in kinds]


def _encoded(cell: dict) -> bytes:
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _lengths(chunk) -> np.ndarray:
    import pyarrow.compute as compute

    return compute.fill_null(compute.binary_length(chunk.field("bytes")), 0).to_numpy(zero_copy_only=False).astype(int)


def within(home: Path, name: str) -> Path:
    """`home/name` where the archive was unpacked into `home`; `home` itself where that is what it unpacks to."""
    return home / name if (home / name).is_dir() else home
