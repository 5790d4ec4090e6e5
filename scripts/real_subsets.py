"""Lay out subsets of real benchmarks, and ImageNet weights, as the workbook reads them.

    python scripts/real_subsets.py --data BUNDLES --out data/subsets

BUNDLES holds `cifar100_32.npz` and `pacs_64.npz` (arrays blob, offset, label, split, classes; PACS also domain and
domains: encoded images one behind the other), `fashion_mnist_28.npz` (arrays x_train, y_train, x_test, y_test) and
`mobilenet_v2_1.0_imagenet.fp16.safetensors`; what is missing is left out. What is written:

    OUT/cifar100/train/<class>/<number>.png, test/…        benchmark "folder:OUT/cifar100"
    OUT/cifar100_third/…                                   the same, the first 40 and 20 images of each class
    OUT/pacs/kfold/<domain>/<class>/<number>.png, pacs_label/<domain>_{train,crossval}_kfold.txt
                                                           benchmark "pacs" with root OUT/pacs; the bundle's own split
    OUT/fashion/train/<class>/<number>.png, test/…         benchmark "folder:OUT/fashion": the last 500 training images
                                                           of each class, and the test images
    OUT/fashion_for_generator/train/<class>/…              the first 500 of each class: what a generator is fitted on
                                                           (scripts/fit_generator.py), which the stream never sees
    OUT/mobilenetv2/config.json, model.safetensors         a backbone in timm's local layout

Pixels are kept exactly; Fashion-MNIST's 28 x 28 grey values are written as RGB and get a margin of 2 pixels in black,
which is their ground, so that small networks and the generator share one size, 32 x 32. The weights are those of an
8-bit quantised MobileNetV2 (1.0, 224 pixels, ImageNet-1k), turned back into numbers, in torchvision's names, with batch
normalisation folded into the biases.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from cilkit import backbones
from cilkit.artifacts import atomic_write
from cilkit.data import benchmarks
from cilkit.data.transforms import Input

MOBILENET = "mobilenet_v2_1.0_imagenet.fp16.safetensors"
HALF = (0.5, 0.5, 0.5)
# TensorFlow's padding, and pixels in -1 … 1; the filter and the share of the crop are timm's for this network.
ARGS, INPUT = {"pad_type": "same"}, Input(224, HALF, HALF, "bicubic", 0.875)


class Bundle:
    """Encoded images in one file of arrays; `image(i)` is a PIL image, `name(i)` its number."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.blob, self.offset = arrays["blob"], arrays["offset"]
            self.labels, self.test = arrays["label"].astype(int), arrays["split"] == 1
            self.classes = arrays["classes"].tolist()
            self.domains = arrays["domains"].tolist() if "domains" in arrays else []
            self.domain = arrays["domain"].astype(int) if "domain" in arrays else None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Image.Image:
        return Image.open(io.BytesIO(self.blob[self.offset[i] : self.offset[i + 1]].tobytes())).convert("RGB")


def lay_out_cifar(bundle: Bundle, folder: Path, train: int = 10**9, test: int = 10**9) -> None:
    """Not more than so many training and test images of each class."""
    written: Counter = Counter()
    for i in range(len(bundle)):
        part, most = ("test", test) if bundle.test[i] else ("train", train)
        written[part, bundle.labels[i]] += 1
        if written[part, bundle.labels[i]] > most:
            continue
        _write(bundle.image(i), folder / part / bundle.classes[bundle.labels[i]] / f"{i:05d}.png")


def lay_out_pacs(bundle: Bundle, folder: Path) -> None:
    """The images, and the lists that PACS has for each domain: a path below kfold/ and a label from 1 a line."""
    lists: dict[str, list[str]] = {}
    for i in range(len(bundle)):
        domain = bundle.domains[bundle.domain[i]]
        path = f"{domain}/{bundle.classes[bundle.labels[i]]}/{i:05d}.png"
        _write(bundle.image(i), folder / "kfold" / path)
        name = f"{domain}_{'crossval' if bundle.test[i] else 'train'}_kfold.txt"
        lists.setdefault(name, []).append(f"{path} {bundle.labels[i] + 1}\n")
    for name, lines in lists.items():
        atomic_write(folder / "pacs_label" / name, "".join(lines))


def lay_out_fashion(file: Path, folder: Path, half: int = 500) -> None:
    """The first `half` training images of each class for a generator, the others and the test images as a benchmark."""
    names = benchmarks.class_names("fashion_mnist")  # the archive's "T-shirt/top" is no folder's name
    with np.load(file) as arrays:
        parts = {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}
    for part, (images, labels) in parts.items():
        seen: Counter = Counter()
        for i, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            seen[label] += 1
            apart = part == "train" and seen[label] <= half
            home = folder / ("fashion_for_generator" if apart else "fashion") / part / names[label]
            _write(Image.fromarray(np.pad(pixels, 2)).convert("RGB"), home / f"{i:05d}.png")


def _write(image: Image.Image, path: Path) -> None:
    if path.exists():
        return
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())


def mobilenet_weights(file: Path) -> dict:
    """The file's weights, float32, under timm's names; `classifier.…` has 1,001 rows, the first for the background.

    Both projects define the same layers in the same order, so that their names correspond place by place.
    """
    import timm
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    weights = load_file(file)
    theirs = mobilenet_v2(weights=None, num_classes=1001).state_dict()
    ours = timm.create_model("mobilenetv2_100", num_classes=1001, **ARGS).state_dict()
    if weights.keys() != theirs.keys():
        raise SystemExit(f"{file} does not hold torchvision's mobilenet_v2")
    return {name: weights[other].to(ours[name].dtype) for name, other in zip(ours, theirs, strict=True)}


def convert_mobilenet(file: Path, folder: Path) -> None:
    backbone = backbones.create("mobilenetv2_100", model_args=ARGS)
    weights = {name: value for name, value in mobilenet_weights(file).items() if not name.startswith("classifier.")}
    backbone.model.load_state_dict(weights)
    backbone.mark_trained()
    backbone.input = INPUT
    backbones.save(backbone, folder, {"converted from": file.name}, tag="ptq_in1k")


def _both_cifar(file: Path, out: Path) -> None:
    lay_out_cifar(Bundle(file), out / "cifar100")
    lay_out_cifar(Bundle(file), out / "cifar100_third", 40, 20)


LAY_OUT = {
    "cifar100_32.npz": _both_cifar,
    "pacs_64.npz": lambda file, out: lay_out_pacs(Bundle(file), out / "pacs"),
    "fashion_mnist_28.npz": lay_out_fashion,
    MOBILENET: lambda file, out: convert_mobilenet(file, out / "mobilenetv2"),
}  # bundle -> how it is laid out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the bundles")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    for name, lay_out in LAY_OUT.items():
        file = arguments.data / name
        if file.exists():
            lay_out(file, arguments.out)
            print(f"{name} is laid out in {arguments.out}", flush=True)
        else:
            print(f"{arguments.data} holds no {name}; its subset is left out")


if __name__ == "__main__":
    main()
