"""A site of 1,000 runs from nothing, after one more run, and as each notebook would be converted by itself.

    python perf/site.py [--jobs 1000] [--sample 5] [--keep FOLDER]

The jobs are copies of the executed sample (reports/sample/04_slca.ipynb) in which every number that an output shows,
every picture and the parameters differ from job to job, with the book, status, log and figures that a run leaves. They
belong to a sweep of 5 learners, 2 benchmarks and as many seeds as it takes; a table of results with two heads a run
feeds the leaderboard. The straightforward way makes a converter and cleans the whole notebook for every page.
Seconds of processors say what a busy machine would need alone. The last line is JSON; its value is the seconds from
nothing.
"""

import argparse
import base64
import json
import random
import re
import resource
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import nbformat

from cilkit import artifacts
from cilkit.road.leaderboard import leaderboard
from cilkit.workbook import fragments
from cilkit.workbook.execute import Status
from cilkit.workbook.site import build_site

SAMPLE = Path(__file__).parent.parent / "reports" / "sample" / "04_slca.ipynb"
LEARNERS = ["nearest_mean", "finetune", "slow_learner", "slca", "ewc"]
BENCHMARKS = ["digits_photo", "cifar100"]
BOTH = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
NUMBER = re.compile(r"(?<![\w.#])\d+\.\d+(?!\w)")


def varied(text: str, chance: random.Random) -> str:
    return NUMBER.sub(lambda match: f"{float(match[0]) + chance.random():.{len(match[0].partition('.')[2])}f}", text)


def write_job(reports: Path, number: int, sample: dict) -> dict:
    """One job's files, as `run_notebook` leaves them; returns its line of sweep.json and its rows of results."""
    chance = random.Random(number)
    name = f"04_slca-{number:012x}"
    learner, benchmark = LEARNERS[number % 5], BENCHMARKS[number // 5 % 2]
    seed = 1990 + number // 10
    notebook, figures = json.loads(json.dumps(sample)), []
    folder = reports / "cells" / name
    folder.mkdir(parents=True)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            for kind in ("text/html", "text/plain"):
                if kind in output.get("data", {}):
                    output["data"][kind] = varied("".join(output["data"][kind]), chance)
            if "text" in output:
                output["text"] = varied("".join(output["text"]), chance)
            if picture := output.get("data", {}).get("image/png"):
                content = base64.b64decode("".join(picture)) + f"\n{name}".encode()
                output["data"]["image/png"] = base64.b64encode(content).decode()
                stem = output["metadata"]["cilkit"]
                (folder / f"{stem}.png").write_bytes(content)
                figures.append({"name": stem, "file": f"{stem}.png", "caption": f"Figure {stem}", "headline": False})
    (reports / "cells" / f"{name}.ipynb").write_text(json.dumps(notebook))
    given = {"learners": [learner], "benchmark": benchmark, "order_seed": seed}
    state = "failed" if number % 97 == 96 else "ok"
    status = Status(state, "notebooks/04_slca.ipynb", f"{name}.ipynb", given, seconds=chance.random() * 900)
    (reports / "cells" / f"{name}.status.json").write_text(json.dumps(asdict(status)))
    (reports / "cells" / f"{name}.log").write_text("epoch 1\n" * 200)
    book = {
        "figures": figures,
        "tables": [],
        "records": {"last accuracy": chance.random()},
        "versions": {"cilkit": "0"},
    }
    book["artifacts"] = [{"name": f"run/{number:016x}", "stage": "run", "digest": f"{number:064x}"}]
    (folder / "book.json").write_text(json.dumps(book))
    labels = {"benchmark": benchmark, "learner": learner, "order_seed": str(seed)}
    line = {"name": name, "notebook": status.notebook, "params": None, "labels": labels, "given": given, "after": []}
    row = {"learner": learner, "benchmark": benchmark, "protocol": "class", "stream": "tasks", "increments": "5 × 2"}
    row |= {"backbone": "vit", "order_seed": seed, "classes": 10, "cell": name, "artifact": f"run/{number:016x}"}
    row |= {"bytes stored": 10**6 * (number % 5), "seconds: train": 100 * (1 + number % 5) + chance.random()}
    row |= {"average incremental accuracy": 80 + chance.random(), "forgetting (max before last)": 9 + chance.random()}
    accuracy = 60 + 5 * (number % 5) + chance.random()
    rows = [
        row | {"head": "raw", "last accuracy": accuracy, "default head": False},
        row | {"head": "aligned", "last accuracy": accuracy + 2 + chance.random(), "default head": True},
    ]
    return {"line": line, "rows": rows if state == "ok" else []}


def build(reports: Path, jobs: list[dict]) -> tuple[float, float]:
    """Seconds, and those of processors, of which two are used."""
    import pandas as pd

    artifacts.write_json(
        reports / "sweeps" / "many" / "sweep.json", {"sweep": "many", "jobs": [j["line"] for j in jobs]}
    )
    begun, used = time.perf_counter(), cpu()
    table = pd.DataFrame([row for job in jobs for row in job["rows"]])
    build_site([], reports / "site", leaderboard(table, {job["line"]["name"]: job["line"]["labels"] for job in jobs}))
    return time.perf_counter() - begun, cpu() - used


def one_by_one(folder: Path, paths: list[Path]) -> float:
    """Seconds a notebook when each is validated, converted and cleaned for itself and as a whole."""
    from bs4 import BeautifulSoup
    from nbconvert.exporters import HTMLExporter

    spent = []
    for path in paths:
        begun = cpu()
        notebook = nbformat.read(path, as_version=4)
        text = HTMLExporter(template_name="basic").from_notebook_node(notebook)[0]
        soup = BeautifulSoup(text, "html.parser")
        files = {}
        fragments.clean(soup, {}, files)
        for name, content in files.items():
            artifacts.atomic_write(folder / path.stem / name, content)
        soup.decode(formatter="minimal")
        spent.append(cpu() - begun)
    return sum(spent) / len(spent)


def cpu() -> float:
    """Seconds of processors that this process and its ended children have used."""
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in BOTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=5, help="notebooks that are converted one by one")
    parser.add_argument("--keep", type=Path, help="a new folder for jobs and site (default: removed at the end)")
    options = parser.parse_args()
    home = options.keep or Path(tempfile.mkdtemp())
    reports = home / "reports"
    sample = json.loads(SAMPLE.read_text())
    (home / "notebooks").mkdir(parents=True)
    (home / "notebooks" / SAMPLE.name).write_bytes(SAMPLE.read_bytes())
    jobs = [write_job(reports, number, sample) for number in range(options.jobs)]
    found = dict(zip(("value", "cpu"), build(reports, jobs), strict=True))
    jobs.append(write_job(reports, options.jobs, sample))
    found |= dict(zip(("after_one_more", "after_one_more_cpu"), build(reports, jobs), strict=True))
    paths = sorted((reports / "cells").glob("*.ipynb"))[1 : 1 + options.sample]
    found["one_by_one"] = one_by_one(home / "one_by_one", paths) * options.jobs
    files = [path for path in (reports / "site").rglob("*") if path.is_file()]
    print(f"{'a site of':30} {options.jobs} runs, {len(files)} files")
    rows = {"from nothing": ("value", "cpu"), "after one more run": ("after_one_more", "after_one_more_cpu")}
    for words, (wall, used) in rows.items():
        print(f"{words:30} {found[wall]:8.1f} s, {found[used]:.1f} s of processors")
    print(f"{'one by one':30} {found['one_by_one']:8.1f} s of processors, by {options.sample} of them")
    if not options.keep:
        shutil.rmtree(home)
    print(json.dumps(found | {"unit": "s", "jobs": options.jobs, "files": len(files)}))


if __name__ == "__main__":
    main()
