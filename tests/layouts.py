"""Tiny folders in the real formats: one function a benchmark lays out what its archives unpack to, with few images.

    python -m tests.layouts FOLDER cub200 pacs …      writes FOLDER/cub200, FOLDER/pacs … (no name: all of them)

Each class has TRAIN and TEST images of a colour of its own, so that something can be learnt from them.
"""

import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cilkit.data import catalogue

TRAIN, TEST, CLASSES = 6, 3, 4


def write(name: str, root) -> Path:
    """Lay out the benchmark `name` in the folder `root`, which it returns."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    LAYOUTS[name](root)
    return root


def pixels(label: int, number: int, height: int = 44, width: int = 56) -> np.ndarray:
    """uint8 (height, width, 3): the class's colour with a little noise, always the same."""
    random = np.random.RandomState(1000 * label + number)
    colour = np.random.RandomState(label).randint(40, 216, 3)
    return (colour + random.randint(-30, 31, (height, width, 3))).clip(0, 255).astype(np.uint8)


def picture(path: Path, label: int, number: int, height: int = 44, width: int = 56) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(label, number, height, width)).save(path)


def encoded(label: int, number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(label, number)).save(buffer, "JPEG")
    return buffer.getvalue()


def keys(name: str, count: int = CLASSES) -> list[str]:
    """The official names of the first classes."""
    return list(catalogue.entries()[name].class_table())[:count]


def folder(root: Path) -> None:
    for label, key in enumerate(("001.red_fox", "002.grey_wolf", "003.brown_bear", "004.european_badger")):
        for number in range(TRAIN + TEST):
            part = "train" if number < TRAIN else "test"
            picture(root / part / key / f"{number:03d}.jpg", label, number, 40 + 4 * number, 60)


def fashion_mnist(root: Path) -> None:
    for part, first, count in (("train", 0, TRAIN), ("t10k", TRAIN, TEST)):
        labels = np.repeat(np.arange(CLASSES, dtype=np.uint8), count)
        images = np.stack([pixels(c, first + i, 28, 28)[..., 0] for c in range(CLASSES) for i in range(count)])
        _idx(root / f"{part}-images-idx3-ubyte.gz", images)
        _idx(root / f"{part}-labels-idx1-ubyte.gz", labels)


def _idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(head + array.tobytes(), mtime=0))


def omniglot(root: Path) -> None:
    characters = [("background", "Balinese", 1), ("background", "Balinese", 2), ("evaluation", "Atlantean", 1)]
    for label, (part, alphabet, character) in enumerate(characters):
        at = root / f"images_{part}" / alphabet / f"character{character:02d}"
        at.mkdir(parents=True, exist_ok=True)
        for drawer in range(1, 21):  # strokes are black on white, one bit a pixel
            ink = np.random.RandomState(100 * label + drawer).rand(105, 105) < 0.1 * (label + 1)
            Image.fromarray(~ink).save(at / f"{label + 100:04d}_{drawer:02d}.png")


def cifar10(root: Path) -> None:
    at = root / "cifar-10-batches-bin"
    at.mkdir(exist_ok=True)
    for batch in range(5):
        (at / f"data_batch_{batch + 1}.bin").write_bytes(_records(2 * batch, 2, 1))
    (at / "test_batch.bin").write_bytes(_records(10, TEST, 1))
    (at / "batches.meta.txt").write_text("\n".join(catalogue.entries()["cifar10"].class_table().values()))


def cifar100(root: Path) -> None:
    at = root / "cifar-100-binary"
    at.mkdir(exist_ok=True)
    (at / "train.bin").write_bytes(_records(0, TRAIN, 2))
    (at / "test.bin").write_bytes(_records(TRAIN, TEST, 2))


def _records(first: int, count: int, label_bytes: int) -> bytes:
    """Records of the binary CIFAR archives: [coarse label,] label, then the planes of red, green and blue."""
    rows = []
    for label in range(CLASSES):
        for number in range(first, first + count):
            planes = pixels(label, number, 32, 32).transpose(2, 0, 1)
            rows.append(bytes([19] * (label_bytes - 1) + [label]) + planes.tobytes())
    return b"".join(rows)


def cub200(root: Path) -> None:
    at = root / "CUB_200_2011"
    images = [(key, n) for key in keys("cub200") for n in range(TRAIN + TEST)]
    rows = [f"{key}/{key.split('.')[1]}_{n:04d}_{i + 1}.jpg" for i, (key, n) in enumerate(images)]
    place = {key: label for label, key in enumerate(keys("cub200"))}
    for row, (key, number) in zip(rows, images, strict=True):
        picture(at / "images" / row, place[key], number, 40 + number, 60)
    _numbered(at / "images.txt", rows)
    _numbered(at / "image_class_labels.txt", [place[key] + 1 for key, _ in images])
    _numbered(at / "train_test_split.txt", [int(number < TRAIN) for _, number in images])
    _numbered(at / "classes.txt", keys("cub200", 200))


def _numbered(path: Path, rows: list) -> None:
    path.write_text("".join(f"{i + 1} {row}\n" for i, row in enumerate(rows)))


def cars196(root: Path) -> None:
    from scipy.io import savemat

    (root / "devkit").mkdir(exist_ok=True)
    box = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O"), ("class", "O"), ("fname", "O")]
    lists = {"cars_train": "devkit/cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}
    for part, first, count in (("cars_train", 0, TRAIN), ("cars_test", TRAIN, TEST)):
        rows = np.zeros(CLASSES * count, box)
        for i in range(CLASSES * count):
            name = f"{i + 1:05d}.jpg"
            rows[i] = (1, 1, 40, 30, i // count + 1, name)
            picture(root / part / name, i // count, first + i % count)
        savemat(root / lists[part], {"annotations": rows})
    names = np.array(list(catalogue.entries()["cars196"].class_table().values()), dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})


def imagenet_r(root: Path) -> None:
    for label, wnid in enumerate(keys("imagenet_r")):
        for number in range(TRAIN + TEST):
            picture(root / "imagenet-r" / wnid / f"art_{number}.jpg", label, number)


def food101(root: Path) -> None:
    at, names = root / "food-101", keys("food101")
    (at / "meta").mkdir(parents=True, exist_ok=True)
    for part, numbers in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
        (at / "meta" / f"{part}.txt").write_text("\n".join(f"{key}/{1000 + n}" for key in names for n in numbers))
    (at / "meta" / "classes.txt").write_text("\n".join(keys("food101", 101)))
    for label, key in enumerate(names):
        for number in range(TRAIN + TEST):
            picture(at / "images" / key / f"{1000 + number}.jpg", label, number)


def flowers102(root: Path) -> None:
    from scipy.io import savemat

    labels = np.repeat(np.arange(CLASSES), TRAIN + TEST)
    parts = {"trnid": [], "valid": [], "tstid": []}
    for i, label in enumerate(labels):
        number = i % (TRAIN + TEST)
        part = "trnid" if number < TRAIN // 2 else "valid" if number < TRAIN else "tstid"
        parts[part].append(i + 1)
        picture(root / "jpg" / f"image_{i + 1:05d}.jpg", int(label), number)
    savemat(root / "imagelabels.mat", {"labels": labels[None] + 1})
    savemat(root / "setid.mat", {part: np.array([numbers]) for part, numbers in parts.items()})


def pets(root: Path) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    for part, numbers in (("trainval", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
        rows = [f"{key}_{n + 1} {label + 1} 1 1" for label, key in enumerate(keys("pets")) for n in numbers]
        (root / "annotations" / f"{part}.txt").write_text("\n".join(rows) + "\n")
    for label, key in enumerate(keys("pets")):
        for number in range(TRAIN + TEST):
            picture(root / "images" / f"{key}_{number + 1}.jpg", label, number)


def imagenet1k(root: Path) -> None:
    _imagenet(root, keys("imagenet1k"))


def imagenet100(root: Path) -> None:
    _imagenet(root, [*keys("imagenet100"), keys("imagenet1k")[0]])  # which is not among the hundred


def imagenet100_first(root: Path) -> None:
    _imagenet(root, [*keys("imagenet100_first"), keys("imagenet1k", 1000)[-1]])


def _imagenet(root: Path, wnids: list[str]) -> None:
    for label, wnid in enumerate(wnids):
        for number in range(TRAIN + TEST):
            file = f"train/{wnid}/{wnid}_{number}" if number < TRAIN else f"val/{wnid}/ILSVRC2012_val_{number:08d}"
            picture(root / f"{file}.JPEG", label, number)


def inat_plants(root: Path) -> None:
    kinds = [*((f"Planta species{i}", "Plantae") for i in range(CLASSES)), ("Avis species", "Aves")]
    categories = [{"id": i, "name": name, "supercategory": kind} for i, (name, kind) in enumerate(kinds)]
    (root / "categories.json").write_text(json.dumps(categories))
    for part, numbers in (("train", range(TRAIN)), ("val", range(TRAIN, TRAIN + TEST))):
        images, annotations = [], []
        for label, (_, kind) in enumerate(kinds):
            for number in numbers:
                file = f"train_val2018/{kind}/{label}/{number:032x}.jpg"
                picture(root / file, label, number)
                images.append({"id": len(images), "file_name": file})
                annotations.append({"id": len(images), "image_id": len(images) - 1, "category_id": label})
        text = json.dumps({"images": images, "annotations": annotations})
        (root / f"{part}2018.json").write_text(text)


def pacs(root: Path) -> None:
    for place, domain in enumerate(("art_painting", "cartoon", "photo", "sketch")):
        for label, key in enumerate(keys("pacs", 7)):
            for number in range(TRAIN + TEST):
                picture(root / "kfold" / domain / key / f"pic_{number:03d}.png", label, 10 * place + number, 57, 57)
        for part, numbers in (("train", range(TRAIN)), ("crossval", range(TRAIN, TRAIN + TEST))):
            rows = [f"{domain}/{k}/pic_{n:03d}.png {c + 1}" for c, k in enumerate(keys("pacs", 7)) for n in numbers]
            if (domain, part) == ("sketch", "train"):  # an error of the official list
                rows.append("sketch/dog/n02103406_4068-1.png 1")
            (root / "pacs_label").mkdir(exist_ok=True)
            (root / "pacs_label" / f"{domain}_{part}_kfold.txt").write_text("\n".join(rows) + "\n")


def domainnet(root: Path) -> None:
    names = ("aircraft_carrier", "bat", "The_Eiffel_Tower")
    for place, domain in enumerate(("clipart", "infograph", "painting", "quickdraw", "real", "sketch")):
        for part, numbers in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
            rows = []
            for label, key in enumerate(names):
                for number in numbers:
                    rows.append(f"{domain}/{key}/{domain}_{label + 1:03d}_{number:06d}.jpg {label}")
                    picture(root / rows[-1].split()[0], label, 10 * place + number)
            (root / f"{domain}_{part}.txt").write_text("\n".join(rows) + "\n")


def core50(root: Path) -> None:
    for session in range(1, 12):
        for thing in range(1, CLASSES + 1):
            for frame in range(2):
                file = f"C_{session:02d}_{thing:02d}_{frame:03d}.png"
                at = root / "core50_128x128" / f"s{session}" / f"o{thing}" / file
                picture(at, thing - 1, 10 * session + frame, 32, 32)


def parquet(root: Path) -> None:
    """A Hugging Face dataset as a folder of Parquet."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Picture

    kinds = Features({"image": Picture(), "label": ClassLabel(names=["red_fox", "grey_wolf"]), "note": Value("string")})
    for part, numbers in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
        rows = [(label, number) for label in range(2) for number in numbers]
        cells = [{"bytes": encoded(*row), "path": None} for row in rows]
        columns = {"image": cells, "label": [row[0] for row in rows], "note": [str(row[1]) for row in rows]}
        Dataset.from_dict(columns, features=kinds).to_parquet(str(root / f"{part}-00000-of-00001.parquet"))


# An entry that is read as plain folders needs no function of its own.
LAYOUTS = {name: folder if one.reader == "folders" else globals()[name] for name, one in catalogue.entries().items()}
LAYOUTS |= {"folder": folder, "parquet": parquet}


if __name__ == "__main__":
    for wanted in sys.argv[2:] or LAYOUTS:
        print(write(wanted, Path(sys.argv[1]) / wanted))
