"""An image set of ImageNet-1k's size: seconds to open it and to cut it into tasks, memory of a loop over its batches.

    python perf/large_set.py [--images 1281167] [--batches 100] [--kinds flat jpeg]

The set is a stand-in: a manifest of full length over decoded shards that are holes on the disk (`flat`), or over tar
shards that are one file of 16 real JPEGs under many names (`jpeg`). Each is measured in a process of its own: the best
of three openings, and what is held beyond the imports while batches of 128 random images of 500 x 375 pixels are read
ahead and cut, resized and normalised to 224. The last line is JSON. About a minute on two cores.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cilkit import artifacts
from cilkit.data import loading, shards
from cilkit.data.recipes import Input
from cilkit.data.transforms import recipe

CLASSES, BATCH, SIDE = 1000, 128, 224
SIZES = ((375, 500), (500, 375))  # height, width
KINDS = ("flat", "jpeg")


def photographs(n: int = 16, quality: int = 92) -> list[bytes]:
    """JPEGs of smooth noise, of SIZES in turn."""
    from PIL import Image

    random, found = np.random.default_rng(0), []
    for k in range(n):
        height, width = SIZES[k % 2]
        coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
        found.append(buffer.getvalue())
    return found


def stand_in(folder: Path, images: int, kind: str) -> Path:
    """A finished image set of this many images that takes next to no disk."""
    import pandas as pd

    folder.mkdir(parents=True)
    row, labels = np.arange(images), np.sort(np.arange(images) % CLASSES)
    height, width = np.array(SIZES).T[:, row % 2]
    if kind == "flat":
        shard, place = row // max(1000, -(-images // 200)), row % max(1000, -(-images // 200))
        size = height * width * 3
        offset, suffix = place * size, "rgb"  # both sizes hold the same number of bytes
    else:
        rest = {"class_id": 0, "class_name": "", "width": 0, "height": 0}
        members = [(data, {"image_id": str(k), **rest}) for k, data in enumerate(photographs())]
        shards.write_shard(folder, 0, members)
        there = pd.read_parquet(folder / "00000.rows.parquet")
        (folder / "00000.rows.parquet").unlink()
        shard, suffix = row // 1000, "tar"
        offset, size = (there[column].to_numpy()[row % len(there)] for column in ("offset", "size"))
    names = np.array([f"{number:05d}.{suffix}" for number in range(shard.max() + 1)])
    for number, name in enumerate(names):
        if kind == "flat":
            with open(folder / name, "wb") as file:
                file.truncate(int((offset + size)[shard == number].max()))
        elif number:
            os.link(folder / names[0], folder / name)
    columns = {
        "image_id": np.char.add("n0144_", row.astype(str)),
        "shard": names[shard],
        "offset": offset,
        "size": size,
        "sha256": [f"{k:064x}" for k in row.tolist()],
        "width": width,
        "height": height,
        "class_name": np.array([f"class {c}" for c in range(CLASSES)])[labels],
        "class_id": labels,
    }
    artifacts.write_parquet(folder / shards.MANIFEST, pd.DataFrame(columns))
    return folder


def resident(peak: bool = False) -> int:
    """Bytes of memory this process holds, or has held at most (Linux)."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(folder: Path, batches: int) -> dict:
    import pyarrow.parquet  # noqa: F401  (an import, not part of the set)
    import torch

    train = recipe("slca_imagenet_r", Input(SIDE)).train  # random resized crops and flips, as float32
    train([np.zeros((375, 500, 3), np.uint8)] * 2, torch.Generator())  # the first call loads what torch needs
    before, opened = resident(), []
    for _ in range(3):
        start = time.perf_counter()
        images = shards.open_set(folder)
        opened.append(time.perf_counter() - start)
    random, start = np.random.default_rng(0), time.perf_counter()
    shown, _ = images.split_by_seed(0.02, 0)
    shown = shown.keep_classes([shown.class_names[c] for c in random.permutation(CLASSES)])
    tasks = [shown.of_classes(range(first, first + CLASSES // 10)) for first in range(0, CLASSES, CLASSES // 10)]
    cut = time.perf_counter() - start
    assert sum(map(len, tasks)) == len(shown)
    rows, generator = random.integers(0, len(shown), (batches, BATCH)), torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for batch in loading.prefetched(shown, rows, lambda pixels, labels: train(pixels, generator), ahead=2):
        assert batch.shape == (BATCH, 3, SIDE, SIDE)
    return {
        "images": len(images),
        "open_seconds": round(min(opened), 3),
        "tasks_seconds": round(cut, 3),
        "images_per_second": round(rows.size / (time.perf_counter() - start)),
        "peak_gib": round((resident(peak=True) - before) / 2**30, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.batches)))
        return
    results = {}
    print("| shards | open, s | ten tasks, s | images/s | memory, GiB |\n|---|---|---|---|---|")
    for kind in given.kinds:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--batches", str(given.batches)]
            command += ["--measure", str(stand_in(Path(folder) / "set", given.images, kind))]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[kind] = one = json.loads(done.stdout)
        print("| " + " | ".join(str(value) for value in [kind, *list(one.values())[1:]]) + " |")
    worst = {name: max(one[name] for one in results.values()) for name in ("open_seconds", "peak_gib")}
    named = {"name": "large_set", "value": worst["open_seconds"], "unit": "s", "peak_gib": worst["peak_gib"]}
    print(json.dumps({**named, "images": given.images, "kinds": results}))


if __name__ == "__main__":
    main()
