"""Finished jobs without a kernel: made-up runs as artifacts, and the books of the notebooks that used them."""

import json

import numpy as np
from fake_run import write_run

from cilkit import artifacts, outcomes
from cilkit.runs import Run


def run_artifact(learner="slca", order_seed=1993, recency=1.0, seed=0, benchmark="made up", **settings):
    """A run as `cilkit.run` leaves it, of 3 tasks, with heads raw and aligned."""

    def make(work):
        write_run(work.path, increments=(3, 2, 2), per_class=8, recency=recency, seed=seed)
        path = work.path / "run.json"
        stream = {"benchmark": benchmark, "order_seed": order_seed, "kind": "tasks"}
        own = {"learner": learner, "stream": stream, "seed_init": 0, "seed_data": 0, "stored_bytes": {"exemplars": 30}}
        artifacts.write_json(path, json.loads(path.read_text()) | own | settings)
        run = Run(work.path)
        for head in run.heads:
            rows = run.accuracy_of(head).to_numpy().tolist()
            lines = [",".join(["", *("" if np.isnan(value) else repr(value) for value in row)]) for row in rows]
            (work.path / f"accuracy_{head}.csv").write_text("\n".join([",task 1,task 2,task 3", *lines]) + "\n")
        outcomes.summarise(work.path)
        work.measure(
            phases={"train": {"seconds": 2.5, "peak_bytes": 1000}, "test": {"seconds": 0.5, "peak_bytes": 400}}
        )

    identity = {"learner": learner, "order_seed": order_seed, "recency": recency, "seed": seed, "benchmark": benchmark}
    return artifacts.obtain("run", 1, identity | settings, {}, make)


def job(folder, *used, notebook="04_slca.ipynb", **parameters):
    """The book folder of a job, whose notebook used these artifacts."""
    listed = [{"name": artifact.name, "stage": artifact.stage, "digest": artifact.digest} for artifact in used]
    book = {"notebook": notebook, "parameters": parameters, "records": {}, "artifacts": listed, "versions": {}}
    book |= {"commit": None, "figures": [], "tables": []}
    artifacts.write_json(folder / "book.json", book)
    return folder
