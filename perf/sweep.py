"""What a sweep costs beside its notebooks: seconds a cell above plain papermill, a dry run and a finished sweep.

    python perf/sweep.py [--cells 8] [--finished 500] [--repeats 3]

Small but real cells (`cilkit.start`, an artifact, a table) are executed one at a time by plain papermill in one
process, as one would write it and with its kernels killed at once at the end (which `cilkit` does, too: the fair
comparison), and by `cilkit sweep --workers 1`. Then a sweep of 500 cells, half of them and all of them finished, each
with books that list three artifacts of 40 files. Every time is that of a fresh process, the best of the repeats.
Limits: 1 s a cell, 2 s a dry run, 5 s a finished sweep. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from houses import BOOK, notebook  # noqa: E402

FILES = 40  # of each artifact
CELL = """import pandas as pd
from cilkit import artifacts

made = artifacts.obtain("score", 1, {"arm": arm}, {}, lambda work: artifacts.atomic_write(work.path / "a", str(arm)))
book.uses(made)
book.table(pd.DataFrame({"arm": [arm]}), "arms")
book.record(arm=arm)"""
PLAIN = """import json, sys
import papermill

given = json.loads(sys.argv[1])
for arm in range(given.pop("cells")):
    papermill.execute_notebook("05_cell.ipynb", f"plain_{arm}.ipynb", {"arm": arm}, progress_bar=False, **given)"""
BIG = """notebook: notebooks/04_run.ipynb
axes: {learner: %s, backbone: %s}
seeds: {order_seed: %s}
"""


def house(folder: Path, cells: int, finished: int) -> None:
    """A repository with a notebook that is executed, and the notebooks and files of a large sweep."""
    (folder / "cilkit").mkdir(parents=True)
    (folder / "cilkit" / "artifacts.py").touch()  # by which a repository is known
    notebook(folder, "05_cell", "arm: int = 0", BOOK, CELL)
    images, backbones = "params/02_images/letters.yaml", [f"params/03_backbone/{n}.yaml" for n in range(5)]
    notebook(folder, "02_images", "per_class: int = 5", BOOK)
    notebook(folder, "03_backbone", f'images: str = "{images}"\nepochs: int = 2', BOOK)
    run = "\n".join(f"option_{n}: float = {n}.5" for n in range(40))  # notebooks have many parameters
    notebook(folder, "04_run", f'learner: str = ""\norder_seed: int = 0\nbackbone: str = "none"\n{run}', BOOK)
    files = {images: "per_class: 7\n"} | {name: f"epochs: {n + 3}\n" for n, name in enumerate(backbones)}
    files["params/sweeps/few.yaml"] = f"notebook: notebooks/05_cell.ipynb\naxes: {{arm: {list(range(cells))}}}\n"
    learners, seeds = [f"learner {n}" for n in range(10)], list(range(max(1, finished // 50)))
    files["params/sweeps/big.yaml"] = BIG % (json.dumps(learners), json.dumps(backbones), seeds)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def artifact(stage: str, number: int) -> dict:
    """A finished artifact of small files; what a book says of it."""
    from cilkit import artifacts

    name = f"{number:016x}"
    folder = artifacts.root() / stage / name
    folder.mkdir(parents=True)
    files = [{"path": f"part_{n:02d}.npy", "sha256": "0" * 64, "bytes": 3} for n in range(FILES)]
    for file in files:
        (folder / file["path"]).write_text("abc")
    card = {"stage": stage, "version": 1, "key": name * 4, "digest": name * 4, "identity": {}, "inputs": {}}
    artifacts.write_json(folder / "artifact.json", card | {"files": files})
    return {"name": f"{stage}/{name}", "stage": stage, "digest": name * 4}


def finish(jobs: list, begin: int) -> None:
    """Leave what executed cells leave, without executing them; `begin` are finished already."""
    from cilkit.workbook.execute import Status, book_folder, log_path, write_status
    from cilkit.workbook.graph import Ledger

    ledger, shared = Ledger(), [artifact("images", begin), artifact("backbone", begin)]
    for number, job in enumerate(jobs, begin):
        folder = book_folder(job.output)
        folder.mkdir(parents=True)
        book = {"artifacts": [*shared, artifact("score", number)], "records": {}, "parameters": job.given}
        for kind, names in {"figures": ("accuracy.png", "matrix.png"), "tables": ("figures.csv",)}.items():
            book[kind] = [{"name": Path(name).stem, "file": name} for name in names]
            for name in names:
                (folder / name).write_text("a figure")
        (folder / "book.json").write_text(json.dumps(book))
        job.output.write_text("{}")
        log_path(job.output).write_text("a log")
        status = Status("ok", f"notebooks/{job.notebook.name}", job.output.name, job.given, seconds=60.0 + number)
        status.fingerprint, status.cell_seconds = ledger.expected(job, {}), [0.5] * 12
        write_status(job.output, status)


def seconds(command: list[str], folder: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    taken = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=8, help="that are executed")
    parser.add_argument("--finished", type=int, default=500, help="cells of the large sweep")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "JUPYTER_PREFER_ENV_PATH": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve() / "house"
        os.environ["CILKIT_ARTIFACTS"] = str(folder / "artifacts")
        house(folder, arguments.cells, arguments.finished)
        os.chdir(folder)
        sweep = [sys.executable, "-P", "-m", "cilkit.cli", "sweep"]
        few, big = [*sweep, "params/sweeps/few.yaml", "--workers", "1", "--again"], [*sweep, "params/sweeps/big.yaml"]
        cells, plain = {"cells": arguments.cells}, [sys.executable, "-c", PLAIN]
        executed = {
            "plain papermill": ([*plain, json.dumps(cells)], folder / "notebooks"),
            "plain papermill, kernels killed": ([*plain, json.dumps(cells | {"shutdown_kernel": "immediate"})],
                                                folder / "notebooks"),
            "cilkit sweep": (few, folder),
        }  # fmt: skip
        found = {name: [] for name in executed}
        for _ in range(arguments.repeats):  # in turns: a busy machine is busy for all of them
            for name, how in executed.items():
                found[name].append(seconds(*how))
        best = {name: min(taken) for name, taken in found.items()}

        from cilkit.workbook.graph import build

        jobs = build("params/sweeps/big.yaml").jobs
        dry = [*big, "--dry-run"]
        half = len(jobs) // 2
        for what, (start, end) in {"none": (0, 0), "half": (0, half), "all": (half, len(jobs))}.items():
            finish(jobs[start:end], start) if end else None
            best[f"dry run of {len(jobs)}, {what} finished"] = min(
                seconds(dry, folder) for _ in range(arguments.repeats)
            )
        if "0 to do" not in subprocess.run(dry, capture_output=True, text=True).stdout:
            raise SystemExit("the finished cells do not count as finished: did the package change meanwhile?")
        best[f"sweep of {len(jobs)}, all finished"] = min(seconds(big, folder) for _ in range(arguments.repeats))
    for name, taken in best.items():
        each = f"{taken / arguments.cells:10.2f} s a cell" if name in executed else ""
        print(f"{name:40s}{taken:10.2f} s{each}")
    fair = (best["cilkit sweep"] - best["plain papermill, kernels killed"]) / arguments.cells
    print(json.dumps({
        "name": "overhead_of_a_cell", "value": round(fair, 3), "unit": "s", "cells": arguments.cells,
        "above_default_papermill": round((best["cilkit sweep"] - best["plain papermill"]) / arguments.cells, 3),
        "dry_run": round(max(taken for name, taken in best.items() if name.startswith("dry run")), 2),
        "all_finished": round(best[f"sweep of {len(jobs)}, all finished"], 2), "jobs": len(jobs),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
