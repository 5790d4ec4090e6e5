"""What a model that writes is worth beside learners with a head: two tables and a figure under reports/sample.

    python scripts/writing_runs.py          # three class orders; a second call continues

writing.csv:      params/06_generative_classifier/controls.yaml, GMM and its controls from one frozen backbone.
four_methods.csv: params/06_generative_classifier/four_methods.yaml, iCaRL, LwM, MAE-CIL and GMM from one transformer
                  on the same stream in the same bytes of exemplars; four_methods.png shows them by classes seen.
The seeds of initialisation and data are the order's number in the papers' list.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pandas as pd
import readme
import real_runs

from cilkit import artifacts
from cilkit.answers import FIGURES as WRITTEN
from cilkit.data.streams import SEEDS

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "reports" / "sample"
FILES = {"writing": "controls", "four_methods": "four_methods"}  # table -> parameter file of 06
FIGURES = ("last accuracy", "average incremental accuracy", "forgetting (max before last)")
HEADS = {"mae_cil": ("nme",), "lwm": ("raw",), "icarl": ("nme",)}  # the methods' own; of others all are shown
JOINT = {"epochs": 12, "milestones": [10], "lr": 0.05, "slow_rate": 0.1}
ORDERS = 3


def rows_of(job: tuple[str, int]) -> list[dict]:
    """The arms of one file on one class order, a row a head; and, of the four methods, each stage's accuracy."""
    import cilkit
    from cilkit import analysis

    (table, k), rows = job, []
    path = f"params/06_generative_classifier/{FILES[table]}.yaml"
    runs = cilkit.from_params(path, order_seed=SEEDS[k], seed_init=k, seed_data=k)
    if table == "four_methods" and k == 0:  # the upper line: fine-tuning of all classes at once
        given = {"backbone": cilkit.parameters_of(path)["backbone"], **JOINT}
        runs["joint"] = cilkit.run("finetune", cilkit.stream(order_seed=SEEDS[k]).joint(), **given)
    for arm, run in runs.items():
        notes, kept = run.settings["notes"], run.settings["stored_bytes"]
        for head in HEADS.get(run.learner, run.heads):
            stored = dict(kept)
            row = {"arm": arm, "head": head, "order": SEEDS[k], "learner": run.learner, "backbone": run.backbone_tag}
            row |= {name: round(run.summary(head)[name], 4) for name in FIGURES}
            model = stored.pop("decoder", 0) + notes.get("captioner bytes", 0)
            row |= {"bytes stored": sum(stored.values()), "bytes of a further model": model}
            row |= {f"after task {t + 1}": value for t, value in enumerate(_stages(run, head))}
            if "names" in notes and head == "written":
                last = analysis.answers_by_stage(run).iloc[-1]
                row |= {name: round(last[name], 4) for name in WRITTEN}
            rows.append(row)
    return rows


def _stages(run, head: str) -> list[float]:
    """Accuracy over all classes seen after each task, in percent."""
    from cilkit import analysis

    return analysis.curves({"": (run, head)})["accuracy"].round(4).tolist()


def readme_tables() -> dict[str, str]:
    """What stands between the README's markers."""
    found = {}
    for name in FILES:
        table = pd.read_csv(SAMPLE / f"{name}.csv")
        table = table[table["arm"] != "joint"]
        groups = table.groupby(["arm", "head"], sort=False)
        shown = groups[list(FIGURES)].agg(real_runs.interval)
        if name == "writing":
            shown["out of vocabulary"] = groups["out of vocabulary"].agg(real_runs.interval)
        for column in ("bytes stored", "bytes of a further model"):
            shown[column] = groups[column].mean().map("{:,.0f}".format)
        found[name] = readme.markdown(shown)
    return found


def draw() -> None:
    from cilkit import plots

    table = pd.read_csv(SAMPLE / "four_methods.csv")
    stages = [column for column in table if column.startswith("after task")]
    joint = table.loc[table["arm"] == "joint", "last accuracy"].mean()
    methods = table[(table["arm"] != "joint") & (table["head"] != "constrained")]
    long = methods.melt(["arm", "order"], stages, "stage", "accuracy")
    long["classes_seen"] = 2 * long["stage"].str.rpartition(" ")[2].astype(int)
    chance = {2 * (t + 1): 50 / (t + 1) for t in range(len(stages))}
    title = "Four methods, one transformer, the same bytes (digits_photo, three class orders)"
    figure = plots.accuracy_curves(long, chance=chance, joint=joint, title=title)
    plots.save(figure, SAMPLE, "four_methods")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes of one thread each")
    parser.add_argument("--only", choices=list(FILES), help="one of the tables; the other stays as it is")
    parser.add_argument("--readme", action="store_true", help="only the README's tables and the figure again")
    given = parser.parse_args()
    for name in [] if given.readme else [name for name in FILES if given.only in (None, name)]:
        with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
            rows = [row for part in pool.map(rows_of, [(name, k) for k in range(ORDERS)]) for row in part]
        table = pd.DataFrame(rows).assign(machine=real_runs.machine())
        artifacts.atomic_write(SAMPLE / f"{name}.csv", table.to_csv(index=False))
    draw()
    readme.fill(readme_tables())


if __name__ == "__main__":
    main()
