"""Memory of a plan of 10 million images from its first row to the opened set; nothing is really painted.

    python perf/plan.py [--rows 10000000] [--style diversified]

Each phase is a process of its own, whose peak (all of it, imports too) is read at its end: `make` writes the plan,
`claim` works it off as a painter does, shard by shard under a claim, but writes only the rows, over shards that are
holes on the disk; `merge` makes the manifest; `open` opens the set (beside them, not in the value). The last line is
JSON; "value" is the largest peak of the first three, in GiB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cilkit.data import shards
from cilkit.locks import claim
from cilkit.realms.realm import Concept, Realm
from cilkit.synthesis.plan import open_plan, write_plan

CLASSES, BYTES = 1000, 100_000  # classes of the realm, bytes of an image
SETTINGS = json.dumps({f"setting_{number}": number for number in range(20)})  # as long as those of a real generator
PHASES = ("make", "claim", "merge", "open")


def realm(classes: int) -> Realm:
    names = [f"kind {number}" for number in range(classes)]
    text = "A photograph of {}: a round body, two long legs, a short tail, grey and brown above, white below."
    concepts = (Concept(name, "", text.format(name), "kinds") for name in names)
    return Realm("kinds", "object", ("kinds",), tuple(concepts))


def make(folder: Path, rows: int, style: str) -> None:
    classes = min(CLASSES, rows)
    per_class = {f"kind {k}": rows // classes + (k < rows % classes) for k in range(classes)}
    write_plan(folder / "plan.parquet", realm(classes), per_class, seed=0, batch_size=50, style=style)


def work(folder: Path) -> None:
    """What a painter writes of each shard, without the images."""
    plan = open_plan(folder / "plan.parquet")
    (folder / "claims").mkdir()
    for shard in range(plan.n_shards):
        with claim(folder / "claims" / f"{shard:05d}") as held:
            rows, name = plan.rows(shard), f"{shard:05d}.tar"
            with open(folder / name, "wb") as file:
                file.truncate(BYTES * len(rows))
            places = {"shard": name, "offset": rows.index * BYTES, "size": BYTES, "width": 512, "height": 512}
            hashes = {"sha256": [f"{seed:064x}" for seed in rows["seed"]]}
            origin = {"generator_id": "none", "generator_digest": "0" * 64, "scheduler": "none", "steps": 40}
            origin |= {"guidance": 2.0, "plan_hash": plan.hash, "batch_size": plan.batch_size, "settings": SETTINGS}
            origin |= {"negative_prompt": "", "licence": "none", "realm": "kinds", "realm_digest": "0" * 64}
            assert held.still_ours()
            shards.write_rows(folder, shard, rows.assign(**places, **hashes, **origin))


def merge(folder: Path) -> None:
    shards.merge_manifest(folder)


def opened(folder: Path, rows: int) -> None:
    images = shards.open_set(folder)
    assert len(images) == rows and images.select([rows - 1]).ids[0].startswith("kind-"), images


def peak_gib() -> float:
    """The most memory that this process has held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--style", default="paper")
    parser.add_argument("--phase", nargs=2, help=argparse.SUPPRESS)  # in a process of its own: name, folder
    given = parser.parse_args()
    if given.phase:
        folder, start = Path(given.phase[1]), time.perf_counter()
        arguments = {"make": (given.rows, given.style), "open": (given.rows,)}.get(given.phase[0], ())
        {"make": make, "claim": work, "merge": merge, "open": opened}[given.phase[0]](folder, *arguments)
        seconds = time.perf_counter() - start
        print(json.dumps({"gib": round(peak_gib(), 3), "seconds": round(seconds, 1)}))
        return
    results = {}
    print("| phase | peak, GiB | seconds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for phase in PHASES:
            command = [sys.executable, __file__, "--rows", str(given.rows), "--style", given.style]
            done = subprocess.run([*command, "--phase", phase, folder], check=True, stdout=subprocess.PIPE, text=True)
            results[phase] = one = json.loads(done.stdout)
            print(f"| {phase} | {one['gib']} | {one['seconds']} |", flush=True)
        size = sum((Path(folder) / name).stat().st_size for name in ("plan.parquet", shards.MANIFEST))
    value = max(results[phase]["gib"] for phase in PHASES[:3])
    named = {"name": "plan", "value": value, "unit": "GiB", "rows": given.rows, "tables_gb": round(size / 1e9, 2)}
    print(json.dumps({**named, "phases": results}))


if __name__ == "__main__":
    main()
