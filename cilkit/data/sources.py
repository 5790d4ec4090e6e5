"""Readers: one short function a kind of folder, from the raw files as their archives unpack to a `Listing`.

A reader only lists; no image is decoded here. It raises FileNotFoundError for a file that its format needs, and leaves
missing images, classes and counts to `benchmarks`, which knows what the benchmark should hold. Nothing is un-pickled:
CIFAR comes from the binary archives, CORe50's labels and sessions from its file names.
"""

import errno
import gzip
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cilkit.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_FOLDERS = ("test", "val", "valid", "validation")
OUR_SPLIT = "no split in the folder: a fifth of each class is for testing, drawn with seed 1993 (our decision)"
# CORe50 keeps sessions 3, 7 and 10 for testing (Lomonaco & Maltoni 2017; remembered, and so in every public loader).
# The domains to learn come first.
CORE50_SESSIONS, CORE50_TEST = [f"s{i}" for i in (1, 2, 4, 5, 6, 8, 9, 11, 3, 7, 10)], ("s3", "s7", "s10")
OMNIGLOT_TRAIN_DRAWERS = 15  # of 20; Omniglot has no train/test split of its drawers (our decision)
PACS_DOMAINS = ["art_painting", "cartoon", "photo", "sketch"]
DOMAINNET_DOMAINS = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]


@dataclass
class Listing:
    """The images of a benchmark, train and test together, as its files name them.

    ids:     one an image: its path below `home`, or part and number in a packed file.
    labels:  int64 (n,), indices into `keys`, the classes' official names (folders, numbers) in label order.
    test:    bool (n,).
    lists:   files that decide labels and split, or that pixels are packed in; their content identifies the benchmark.
    folders: the class folders found, where a class may be one too many.
    read:    position -> encoded bytes, uint8 array or PIL image; None: the file `home / id`.
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
    folders: list[str] = field(default_factory=list)
    read: Callable[[int], object] | None = None
    domains: np.ndarray | None = None
    domain_names: list[str] = field(default_factory=list)
    note: str = ""
    bytes: np.ndarray | None = None

    def select(self, keep: np.ndarray) -> "Listing":
        """The images at the positions `keep`; classes stay."""
        whole, arrays = self.read, ("labels", "test", "domains", "bytes")
        own = {name: getattr(self, name)[keep] for name in arrays if getattr(self, name) is not None}
        read = None if whole is None else lambda i: whole(int(keep[i]))
        return replace(self, ids=[self.ids[i] for i in keep], read=read, **own)


def listed(home: Path, rows: Iterable[tuple], keys: Sequence[str] = (), **more) -> Listing:
    """A listing of rows (id, class key, of the test part[, domain]); keys: in label order, else they are sorted."""
    ids, own, test, *domains = zip(*rows, strict=True) if (rows := list(rows)) else ((), (), ())
    keys = list(keys) or sorted(set(own))
    place = {key: label for label, key in enumerate(keys)}
    if domains:
        more["domains"] = np.array([more["domain_names"].index(domain) for domain in domains[0]], np.int64)
    return Listing(home, ids, np.array([place[key] for key in own], np.int64), np.array(test, bool), keys, **more)


def hold_out(labels: np.ndarray, fraction: float = 0.2, seed: int = 1993) -> np.ndarray:
    """bool (n,): `fraction` of each class, at least one image of two or more, for testing."""
    random = np.random.RandomState(seed)  # numpy's legacy generator never changes
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        test[members[: max(round(fraction * len(members)), 1)] if len(members) > 1 else []] = True
    return test


# ---------------------------------------------------------------- a folder a class


def folders(home: Path) -> Listing:
    """`train/<class>/*` and `test/<class>/*` (or val, valid, validation), or `<class>/*` alone, split by us."""
    # a folder of images called "train" may be a class (CIFAR-100 has one)
    parts = [part for part in ("train", *TEST_FOLDERS) if (home / part).is_dir() and _folders_in(home / part)][:2]
    return _class_folders(home, parts if parts[:1] == ["train"] else [""])


def imagenet_r(home: Path) -> Listing:
    """The archive's folder of 200 wnids, or one that holds `train` and `test` folders of them."""
    return folders(within(home, "imagenet-r"))


def imagenet(home: Path) -> Listing:
    """`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`."""
    return _class_folders(home, ["train", "val"])


def _class_folders(home: Path, parts: list[str]) -> Listing:
    found = {part: _folders_in(home / part) for part in parts}
    keys = sorted(set().union(*found.values())) or _nothing(home / "<class>")
    rows = [
        (image, name, part in TEST_FOLDERS)
        for part, names in found.items()
        for name in names
        for image in _images_below(home, f"{part}/{name}" if part else name)
    ]
    listing = listed(home, rows, keys, folders=keys)
    if len(parts) == 1:
        listing.test, listing.note = hold_out(listing.labels), OUR_SPLIT
    return listing


def _folders_in(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith((".", "__")))


def _nothing(path: Path):
    raise FileNotFoundError(errno.ENOENT, "nothing there", str(path))


def _images_below(home: Path, folder: str) -> list[str]:
    """Paths below `home` of the images in `folder`, at any depth, sorted."""
    found = []
    for here, _, files in os.walk(home / folder):
        at = os.path.relpath(here, home).replace(os.sep, "/")
        found += [f"{at}/{file}" for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
    return sorted(found)


def within(home: Path, name: str) -> Path:
    """`home/name` where the archive was unpacked into `home`; `home` itself where that is what it unpacks to."""
    return home / name if (home / name).is_dir() else home


# ---------------------------------------------------------------- packed pixels


def idx(home: Path) -> Listing:
    """MNIST's four idx files, plain or .gz: a big-endian header, then one byte a pixel or label."""
    images, labels, lists = [], [], []
    for part in ("train", "t10k"):
        for kind, dimensions, found in (("images-idx3", 3, images), ("labels-idx1", 1, labels)):
            path = home / f"{part}-{kind}-ubyte"
            path = path if path.exists() else path.with_name(path.name + ".gz")
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            shape, start = np.frombuffer(data[4:], ">i4", dimensions).astype(int), 4 * (dimensions + 1)
            if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != start + shape.prod():
                raise UserError(f"{path} is no whole idx file of {dimensions} dimensions; fetch it again.")
            found.append(np.frombuffer(data, np.uint8, offset=start).reshape(shape))
            lists.append(path)
    return _packed(home, np.concatenate(images)[..., None].repeat(3, -1), labels, lists)


def cifar10(home: Path) -> Listing:
    """The binary archive: records of one label byte and 3 x 32 x 32 pixels, one colour plane after the other."""
    home = within(home, "cifar-10-batches-bin")
    return _cifar(home, [*(home / f"data_batch_{i}.bin" for i in range(1, 6)), home / "test_batch.bin"], 1)


def cifar100(home: Path) -> Listing:
    """The binary archive: a coarse and a fine label byte before the pixels; the fine one counts."""
    home = within(home, "cifar-100-binary")
    return _cifar(home, [home / "train.bin", home / "test.bin"], 2)


def _cifar(home: Path, paths: list[Path], head: int) -> Listing:
    """paths: the test file last; head: label bytes a record."""
    files = [np.fromfile(path, np.uint8) for path in paths]
    for path, data in zip(paths, files, strict=True):
        if not len(data) or len(data) % (head + 3072):
            raise UserError(f"{path} has {len(data)} bytes, no whole number of records; fetch it again.")
    train, test = (data.reshape(-1, head + 3072) for data in (np.concatenate(files[:-1]), files[-1]))
    pixels = np.concatenate([train, test])[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _packed(home, np.ascontiguousarray(pixels), [train[:, head - 1], test[:, head - 1]], paths)


def _packed(home: Path, pixels: np.ndarray, labels: list[np.ndarray], lists: list[Path]) -> Listing:
    """pixels: uint8 (n, h, w, 3), train before test; labels: of train and of test."""
    if sum(map(len, labels)) != len(pixels):
        raise UserError(f"the files in {home} hold {len(pixels)} images and {sum(map(len, labels))} labels.")
    parts = zip(("train", "test"), labels, strict=True)
    rows = [(f"{part}/{i:05d}", str(label), part == "test") for part, own in parts for i, label in enumerate(own)]
    return listed(home, rows, lists=lists, read=pixels.__getitem__)


# ---------------------------------------------------------------- lists of files


def cub(home: Path) -> Listing:
    """CUB-200-2011: images.txt and train_test_split.txt (1 = train); the class is the image's folder."""
    home = within(home, "CUB_200_2011")
    lists = [home / "images.txt", home / "train_test_split.txt"]
    files, train = (dict(line.split() for line in _lines(path)) for path in lists)
    rows = [(f"images/{file}", file.split("/")[0], train.get(number) == "0") for number, file in files.items()]
    return listed(home, rows, lists=lists, folders=_folders_in(home / "images"))


def cars(home: Path) -> Listing:
    """Stanford Cars: cars_train and cars_test, labels (1 … 196) in .mat files."""
    home = within(home, "stanford_cars")
    lists = [home / "devkit/cars_train_annos.mat", home / "cars_test_annos_withlabels.mat"]
    if not lists[1].exists():  # some copies keep it in the devkit
        lists[1] = home / "devkit" / lists[1].name
    parts = zip(("cars_train", "cars_test"), (_matlab(path)["annotations"] for path in lists), strict=True)
    rows = [(f"{part}/{row['fname']}", str(row["class"]), part == "cars_test") for part, own in parts for row in own]
    return listed(home, rows, lists=lists)


def food(home: Path) -> Listing:
    """Food-101: meta/train.txt and meta/test.txt name images/<class>/<number>.jpg."""
    home = within(home, "food-101")
    lists = [home / "meta" / f"{part}.txt" for part in ("train", "test")]
    rows = [(f"images/{line}.jpg", line.split("/")[0], path is lists[1]) for path in lists for line in _lines(path)]
    return listed(home, rows, lists=lists, folders=_folders_in(home / "images"))


def flowers(home: Path) -> Listing:
    """Oxford Flowers: jpg/image_00001.jpg …, labels and split in .mat files; train and valid are for training."""
    home = within(home, "flowers-102")
    lists = [home / "imagelabels.mat", home / "setid.mat"]
    labels, parts = _matlab(lists[0])["labels"], _matlab(lists[1])
    numbers = [(int(number), part == "tstid") for part in ("trnid", "valid", "tstid") for number in parts[part]]
    return listed(home, [(f"jpg/image_{n:05d}.jpg", str(labels[n - 1]), test) for n, test in numbers], lists=lists)


def pets(home: Path) -> Listing:
    """Oxford-IIIT Pet: annotations/trainval.txt and test.txt, lines that begin with <breed>_<number>."""
    home = within(home, "oxford-iiit-pet")
    lists = [home / "annotations" / f"{part}.txt" for part in ("trainval", "test")]
    names = [(line.split()[0], path is lists[1]) for path in lists for line in _lines(path)]
    return listed(home, [(f"images/{n}.jpg", n.rsplit("_", 1)[0], test) for n, test in names], lists=lists)


def inat_plants(home: Path) -> Listing:
    """iNaturalist 2018: the COCO-like train2018.json and val2018.json; names from the un-obfuscated categories.json."""
    lists = [home / name for name in ("categories.json", "train2018.json", "val2018.json")]
    categories, *parts = (json.loads(path.read_text()) for path in lists)
    plants = {c["id"]: c["name"] for c in categories if c["supercategory"] == "Plantae"}
    rows = []
    for part in parts:
        files = {image["id"]: image["file_name"] for image in part["images"]}
        own = [(files[a["image_id"]], a["category_id"]) for a in part["annotations"] if a["category_id"] in plants]
        rows += [(file, plants[number], part is parts[1]) for file, number in own]
    return listed(home, rows, [plants[number] for number in sorted(plants)], lists=lists)


def omniglot(home: Path) -> Listing:
    """<part>/<alphabet>/<character>/<number>_<drawer>.png in both parts; a class is a character of an alphabet."""
    parts = [part for part in ("images_background", "images_evaluation") if (home / part).is_dir()]
    images = [image for part in parts or _nothing(home / "images_background") for image in _images_below(home, part)]
    drawers = [int(image.rsplit("_", 1)[1].split(".")[0]) for image in images]
    rows = zip(images, ("/".join(image.split("/")[1:3]) for image in images), drawers, strict=True)
    return listed(home, [(image, key, drawer > OMNIGLOT_TRAIN_DRAWERS) for image, key, drawer in rows])


# ---------------------------------------------------------------- with domains


def pacs(home: Path) -> Listing:
    """PACS: kfold/<domain>/<class>/*, lists <domain>_train_kfold.txt and <domain>_crossval_kfold.txt."""
    lists = next((name for name in ("pacs_label", "splits") if (home / name).is_dir()), "pacs_label")
    images = next((name for name in ("kfold", "pacs_data", "images") if (home / name).is_dir()), "kfold")
    parts = [f"{lists}/{{}}_train_kfold.txt", f"{lists}/{{}}_crossval_kfold.txt"]
    return _listed_domains(home, PACS_DOMAINS, parts, f"{images}/")


def domainnet(home: Path) -> Listing:
    """DomainNet: <domain>/<class>/*, lists <domain>_train.txt and <domain>_test.txt."""
    return _listed_domains(home, DOMAINNET_DOMAINS, ["{}_train.txt", "{}_test.txt"], "")


def _listed_domains(home: Path, domains: list[str], patterns: list[str], images: str) -> Listing:
    """Lists of lines `<domain>/<class>/<file> <number>`, the numbers in label order."""
    lists = {home / pattern.format(domain): pattern == patterns[1] for domain in domains for pattern in patterns}
    lines = [(*line.rsplit(maxsplit=1), test) for path, test in lists.items() for line in _lines(path)]
    numbers = {file.split("/")[1]: int(number) for file, number, _ in lines}
    rows = [(images + file, file.split("/")[1], test, file.split("/")[0]) for file, _, test in lines]
    return listed(home, rows, sorted(numbers, key=numbers.get), lists=list(lists), domain_names=domains)


def core50(home: Path) -> Listing:
    """CORe50: s<session>/o<object>/C_<session>_<object>_<frame>.png; a class is an object, a domain a session."""
    home = within(home, "core50_128x128")
    sessions = [name for name in CORE50_SESSIONS if (home / name).is_dir()] or _nothing(home / "s1")
    found = [(image, session) for session in sessions for image in _images_below(home, session)]
    rows = [(image, image.split("/")[1], session in CORE50_TEST, session) for image, session in found]
    return listed(home, rows, domain_names=CORE50_SESSIONS)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip()]


def _matlab(path: Path) -> dict:
    from scipy.io import loadmat

    with open(path, "rb") as file:
        return {key: np.atleast_1d(value) for key, value in loadmat(file, squeeze_me=True).items()}


# ---------------------------------------------------------------- Hugging Face


def huggingface(home: Path | str) -> Listing:
    """A dataset of the hub or a folder of Parquet: its image column, its label column and, if it has one, `domain`.

    The hub's own library fetches it, into its own cache. Encoded bytes are handed on as they are.
    """
    import pyarrow.compute as compute
    from datasets import Image, concatenate_datasets, load_dataset

    try:
        parts = load_dataset(str(home))
    except Exception as error:  # the library raises many classes, its own and those of the network
        raise UserError(f"the Hugging Face dataset {home} cannot be loaded: {str(error).strip():.200}") from error
    if "train" not in parts:
        raise UserError(f"the dataset {home} has the splits {', '.join(parts)}; expected train and test or validation.")
    picture = _column(parts["train"], home, lambda name, kind: isinstance(kind, Image), "image")
    label = _column(parts["train"], home, lambda name, kind: name in ("label", "labels", "fine_label"), "label")
    tests = [name for name in TEST_FOLDERS if name in parts and parts[name][label][0] != -1]  # ImageNet's has none
    chosen = {name: parts[name].cast_column(picture, Image(decode=False)) for name in ("train", *tests[:1])}
    rows = concatenate_datasets(list(chosen.values()))
    labels, keys = _numbers(rows, label)
    domains, names = _numbers(rows, "domain") if "domain" in rows.features else (None, [])
    ids = [f"{name}/{i:07d}" for name, part in chosen.items() for i in range(len(part))]
    kinds = labels if domains is None else labels * len(names) + domains
    split = np.arange(len(rows)) >= len(parts["train"]) if tests else hold_out(kinds)
    listing = Listing(Path(), ids, labels, split, keys, domains=domains, domain_names=names)
    listing.note = "" if tests else OUR_SPLIT
    listing.read = lambda i: (cell := rows[i][picture])["bytes"] or Path(cell["path"]).read_bytes()
    sizes = compute.binary_length(compute.struct_field(rows.data.column(picture), "bytes"))
    listing.bytes = compute.fill_null(sizes, 0).to_numpy()
    return listing


def _column(rows, home, fits: Callable, what: str) -> str:
    found = [name for name, kind in rows.features.items() if fits(name, kind)]
    if len(found) != 1:
        raise UserError(f"{home} has the columns {', '.join(rows.features)}; expected one of type or name {what!r}.")
    return found[0]


def _numbers(rows, name: str) -> tuple[np.ndarray, list[str]]:
    """(int64 (n,) numbers, their names) of a column of classes, texts or numbers."""
    values = np.array(rows[name][:])
    if hasattr(rows.features[name], "names"):
        return values.astype(np.int64), list(rows.features[name].names)
    kinds, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64), [str(kind) for kind in kinds]
