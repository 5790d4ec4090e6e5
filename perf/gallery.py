"""A gallery of 10,000 and of 100,000 images: seconds a page, bytes of the saved notebook, decisions after a SIGKILL.

    python perf/gallery.py [--images 10000 100000] [--plain 1000]

The sets are JPEGs of 128 pixels (64 of smooth noise under many names) in shards of 1,000, with painted thumbnails, and
random scores. Pages are asked for as the view asks: sixty images that a sort by score has scattered over all shards.
The straightforward way decodes the sixty originals and puts them into the notebook as PNGs in `<img>`; its notebook
holds `--plain` images, and is scaled to the gallery's number. Notebooks are executed by nbclient and saved with the
widgets' state. The last line is JSON; its value is the slowest page of the largest set, in seconds. Half a minute on
two cores; the sets take 700 MB of a temporary folder.
"""

import argparse
import base64
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from nbclient import NotebookClient
from PIL import Image

from cilkit.data import shards
from cilkit.data.shards import open_set
from cilkit.synthesis import writer
from cilkit.widgets.browsing import Collection, Query
from cilkit.widgets.gallery import Gallery

CLASSES, SHARD, SIDE, PAGE, PAGES = 100, 1000, 128, 60, 20
DECIDED = 5000


def pictures(n: int = 64) -> list[tuple[bytes, bytes]]:
    """(original, thumbnail), JPEGs of smooth noise."""
    random, found = np.random.default_rng(0), []
    for _ in range(n):
        coarse = Image.fromarray(random.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8))
        image, buffer = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        found.append((buffer.getvalue(), writer.encode_thumb(np.asarray(image))))
    return found


def write_set(folder: Path, images: int) -> None:
    """A set as painting leaves it, and scores.parquet beside it."""
    made = pictures()
    for shard, start in enumerate(range(0, images, SHARD)):
        numbers = range(start, min(start + SHARD, images))
        sized = {"width": SIDE, "height": SIDE}
        members = []
        for k in numbers:
            label = k * CLASSES // images
            row = {"image_id": f"i{k:06d}", "class_id": label, "class_name": f"class {label}", **sized}
            members.append((made[k % len(made)][0], row | {"prompt": f"a photo of class {label}", "seed": k}))
        shards.write_shard(folder, shard, members)
        batch = folder / "batch.parquet"
        thumbs = [made[k % len(made)][1] for k in numbers]
        pd.DataFrame({"image_id": [f"i{k:06d}" for k in numbers], "thumb": thumbs}).to_parquet(batch)
        writer._write_thumbs(folder, shard, [batch])
        batch.unlink()
    shards.merge_manifest(folder)
    scores = np.random.default_rng(1).normal(size=(images, 2)) + 5
    table = pd.DataFrame({"image_id": [f"i{k:06d}" for k in range(images)], "blank": False, "cluster": -1})
    table[["sharpness", "contrast"]] = scores
    table.to_parquet(folder / "scores.parquet")


def looked_at(folder: Path) -> dict:
    """Seconds until the gallery is there, its pages, and the same pages from decoded originals."""
    begun = time.perf_counter()
    view = Gallery(Collection(open_set(folder), pd.read_parquet(folder / "scores.parquet")), page=PAGE)
    opened, query = time.perf_counter() - begun, {"sort": "sharpness"}
    begun = time.perf_counter()
    view.still()
    still = time.perf_counter() - begun
    random, seconds, sent, plain = np.random.default_rng(2), [], [], []
    for number in [0, *random.integers(0, -(-len(view.collection) // PAGE), PAGES - 1).tolist()]:
        begun = time.perf_counter()
        told, buffers = view.answer_page(query, number, anew=True)
        text = json.dumps(told)
        seconds.append(time.perf_counter() - begun)
        sent.append(len(text) + sum(map(len, buffers)))
    for number in range(5):
        begun = time.perf_counter()
        places = view.collection.select(Query("sharpness"))[number * PAGE : (number + 1) * PAGE]
        in_html(view.collection.images, places)
        plain.append(time.perf_counter() - begun)
    return {
        "images": len(view.collection),
        "opened": opened,
        "still": still,
        "page, median": float(np.median(seconds)),
        "page, slowest": max(seconds),
        "KB a page": float(np.mean(sent)) / 1e3,
        "plain page": float(np.median(plain)),
    }


def in_html(images, places) -> str:
    """The straightforward grid: originals decoded and put into the page one by one."""
    parts = []
    for place in places:
        buffer = io.BytesIO()
        Image.fromarray(writer.pixels(images, int(place))).save(buffer, "PNG")
        parts.append(f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">')
    return "".join(parts)


def saved(folder: Path, code: str) -> tuple[int, float]:
    """Bytes of a notebook of one cell after it was executed, and the seconds that took, the kernel's start included."""
    first = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfolder = {str(folder)!r}\n"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(first + code)])
    begun = time.perf_counter()
    NotebookClient(notebook, kernel_name="python3", store_widget_state=True, timeout=600).execute()
    return len(nbformat.writes(notebook).encode()), time.perf_counter() - begun


GALLERY = """import cilkit, pandas as pd
from cilkit.data.shards import open_set
scores = pd.read_parquet(folder + "/scores.parquet")
cilkit.gallery(open_set(folder), scores, decisions=folder + "/decisions.jsonl", sort="sharpness")"""
PLAIN = """from IPython.display import HTML
from cilkit.data.shards import open_set
import gallery
HTML(gallery.in_html(open_set(folder), range({plain})))"""
DECIDING = """import sys, time
from cilkit.synthesis.decisions import Decisions
decisions = Decisions(sys.argv[1])
begun = time.perf_counter()
decisions.add_many([f"i{k:06d}" for k in range(int(sys.argv[2]))], "reject", "A", "sharpness < 3")
print(time.perf_counter() - begun, flush=True)
sys.stdin.read()"""


def killed(folder: Path) -> tuple[float, float, int]:
    """Seconds for DECIDED decisions at once, the same one by one (from 200), and how many a SIGKILL leaves."""
    from cilkit.synthesis.decisions import Decisions

    command = [sys.executable, "-c", DECIDING, str(folder / "killed.jsonl"), str(DECIDED)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        seconds = float(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    one_by_one = Decisions(folder / "single.jsonl")
    begun = time.perf_counter()
    for k in range(200):
        one_by_one.add(f"i{k:06d}", "reject", "A", "sharpness < 3")
    single = (time.perf_counter() - begun) / 200 * DECIDED
    return seconds, single, len(Decisions(folder / "killed.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--plain", type=int, default=1000)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for images in given.images:
            folder = Path(home) / str(images)
            folder.mkdir()
            write_set(folder, images)
            row = looked_at(folder)
            size, seconds = saved(folder, GALLERY)
            rows.append(row | {"notebook MB": size / 1e6, "executed": seconds})
        folder = Path(home) / str(given.images[0])
        size, _ = saved(folder, PLAIN.format(plain=given.plain))
        for row in rows:
            row["plain notebook MB"] = size / 1e6 * row["images"] / given.plain
        together, single, left = killed(folder)
    print(pd.DataFrame(rows).set_index("images").T.to_string(float_format=lambda value: f"{value:.3f}"))
    print(f"{DECIDED:,} decisions: {together:.3f} s at once, {single:.1f} s one by one; {left:,} left after a SIGKILL")
    found = {"metric": "slowest page of thumbnails", "unit": "s", "value": rows[-1]["page, slowest"]}
    print(json.dumps(found | {"rows": rows, "decided": together, "one by one": single, "after SIGKILL": left}))


if __name__ == "__main__":
    main()
