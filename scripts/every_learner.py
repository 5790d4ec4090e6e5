"""Every learner on the same streams, weights and class orders: reports/sample/every_learner.csv and drift.csv.

    python scripts/real_subsets.py --data BUNDLES --out data/subsets
    python scripts/every_learner.py [--only conv|transformer|drift]

Three class orders each; the seeds of initialisation and data are the order's number in the papers' list.

conv:        MobileNetV2 with ImageNet weights, a third of the CIFAR-100 subset (40 training and 20 test images a class)
             at 64 pixels, five tasks of 20 classes: the learners that any network will do for.
transformer: the small transformer pre-trained on foreseen paintings without the benchmark's classes, `digits_photo` in
             five tasks of two classes: the prompt learners, SLCA++, and others beside them.
drift:       on the transformer's stream, what each port's recipe and each known leak is worth in points. The legacy
             task index shows in uneven splits alone: there 4, 2, 2 and 2 classes.

One recipe for all (epochs, batches, rates: of the slow learner, from a validation split of `make real`); what a learner
has of its own stands in OWN and was not searched for, so small differences mean little. Runs are artifacts: a second
call continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import readme
import real_runs
import torch

import cilkit
from cilkit import artifacts, learners, outcomes
from cilkit.data.streams import SEEDS
from cilkit.metrics import mean_interval, paired_interval
from cilkit.runs import Run

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "reports" / "sample"
ORDERS = SEEDS[:3]

CONV_STREAM = {"benchmark": "folder:data/subsets/cifar100_third", "increment": 20}
CONV = {
    "backbone": "data/subsets/mobilenetv2",
    "recipe": "timm",
    "image_size": 64,
    "epochs": 2,
    "milestones": (1,),
    "batch_size": 32,
    "lr": 0.01,
    "align_epochs": 5,
}
SLOW = {"slow_rate": 0.003}  # of MobileNetV2, see params/04_slca/cifar100_subset.yaml
KEPT = {"total": 500}  # exemplars in all: five a class at the end
CONV_ARMS = {
    "nearest_mean": {},
    "simplecil": {},
    "ranpac": {"phase1": "none", "projection": 2000},
    "finetune": {"lr": 0.001},  # ten times that, and it answers one class for ever
    "slow_learner": SLOW,
    "slca": SLOW | {"align_also": ("unscaled_plain", "diagonal")},
    "ewc+alignment": SLOW,
    "lwf+alignment": SLOW,
    "icarl": SLOW | KEPT | {"criterion": "ce", "norm_statistics": "frozen"},  # its weights came folded
    "bic": SLOW | KEPT,
    "der": SLOW | KEPT | {"minibatch_size": 16},
    "gdumb": SLOW | KEPT | {"epochs": 8, "batch_size": 16},
    "aper": {"phase1": "ssf", "epochs": 6},
}
TRANSFORMER_STREAM = {"benchmark": "digits_photo", "increment": 2}
TRANSFORMER = {"backbone": "params/03_pretraining/overlap_filtered_vit.yaml", "recipe": "digits"}
TRANSFORMER_ARMS = {
    "simplecil": {"recipe": "none"},
    "aper": {},
    "ranpac": {"projection": 2000},
    "finetune": {},
    "slow_learner": {},
    "slca": {},
    "slca_pp": {},
    "l2p+alignment": {},
    "dualprompt+alignment": {},
    "coda_prompt+alignment": {},
}
UNEVEN = {"increment": (4, 2, 2, 2)}
DRIFT_ARMS = {  # title -> (learner, what is changed, of the stream)
    "slca": ("slca", {"align_epochs": 5}, {}),
    "slca, official_code": ("slca", {"recipe_of": "official_code", "align_epochs": 5}, {}),
    "slca, pilot": ("slca", {"recipe_of": "pilot", "recipe": "digits"}, {}),
    "slca, mammoth": ("slca", {"recipe_of": "mammoth", "align_epochs": 5}, {}),
    "slca, softmax_over_all": ("slca", {"align_epochs": 5, "leaks": ("softmax_over_all",)}, {}),
    "slca, uneven": ("slca", {"align_epochs": 5}, UNEVEN),
    "slca, uneven, legacy_task_index": ("slca", {"align_epochs": 5, "leaks": ("legacy_task_index",)}, UNEVEN),
    "l2p": ("l2p", {}, {}),
    "l2p, batch_vote": ("l2p", {"leaks": ("batch_vote",)}, {}),
    "l2p, pilot": ("l2p", {"recipe_of": "pilot"}, {}),
    "l2p, mammoth": ("l2p", {"recipe_of": "mammoth"}, {}),
    "dualprompt": ("dualprompt", {}, {}),
    "dualprompt, batch_vote": ("dualprompt", {"leaks": ("batch_vote",)}, {}),
    "dualprompt, kv_reshape": ("dualprompt", {"leaks": ("kv_reshape",)}, {}),
    "dualprompt, pilot": ("dualprompt", {"recipe_of": "pilot"}, {}),
}
COLUMNS = [
    "learner", "head", "backbone", "order_seed", "tasks", "classes", "last accuracy", "average incremental accuracy",
    "forgetting (max before last)", "bytes stored", "images forwarded", "seconds: train", "seconds: test",
]  # fmt: skip


def run(learner: str, order: int, on: dict, settings: dict) -> Run:
    """One learner on one order; what it does not declare is left out."""
    known = learners.settings(learner, {}).keys() | {"backbone"}
    seed = ORDERS.index(order)
    print(f"{learner}, order {order}", flush=True)
    stream = cilkit.stream(**on, order_seed=order)
    settings = {name: value for name, value in settings.items() if name in known}
    return cilkit.run(learner, stream, seed_init=seed, seed_data=seed, **settings)


def rows_of(arms: dict, on: dict, shared: dict) -> pd.DataFrame:
    tables = []
    for order in ORDERS:
        for learner, own in arms.items():
            made = run(learner, order, on, shared | own)
            tables.append(outcomes.collect([made], heads="all").reindex(columns=COLUMNS))
    return pd.concat(tables, ignore_index=True).assign(machine=real_runs.machine())


def every_learner(only: str) -> pd.DataFrame:
    """A row a run and head; of the streams that were not asked for, the rows that were made before."""
    path = SAMPLE / "every_learner.csv"
    before = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*COLUMNS, "stream", "machine"])
    parts = []
    asked = {
        "conv": (CONV_ARMS, CONV_STREAM, CONV),
        "transformer": (TRANSFORMER_ARMS, TRANSFORMER_STREAM, TRANSFORMER),
    }
    for stream, what in asked.items():
        new = only in ("", stream)
        parts.append(rows_of(*what).assign(stream=stream) if new else before[before["stream"] == stream])
    return pd.concat(parts, ignore_index=True)


def drift() -> pd.DataFrame:
    rows = []
    for order in ORDERS:
        for title, (learner, changes, of_stream) in DRIFT_ARMS.items():
            made = run(learner, order, TRANSFORMER_STREAM | of_stream, TRANSFORMER | changes)
            summary = {name: made.summary()[name] for name in ("last accuracy", "average incremental accuracy")}
            rows.append({"arm": title, "order_seed": order, "backbone": made.settings["backbone"]["tag"], **summary})
    return pd.DataFrame(rows).assign(machine=real_runs.machine())


def readme_tables() -> dict[str, str]:
    """What stands between the README's markers."""
    table = pd.read_csv(SAMPLE / "every_learner.csv")
    figures = {
        "last accuracy": "last accuracy (%)",
        "average incremental accuracy": "average incremental (%)",
        "forgetting (max before last)": "forgetting (points)",
    }
    shown = {}
    for stream, rows in table.groupby("stream"):
        groups = rows.groupby(["learner", "head"], sort=False)
        stored = {"stored by the run (MiB)": (groups["bytes stored"].max() / 2**20).map("{:.2f}".format)}
        summary = groups[list(figures)].agg(real_runs.interval).rename(columns=figures)
        shown[f"every_{stream}"] = readme.markdown(summary.assign(**stored))
    return shown | {"drift": readme.markdown(_drift_table(pd.read_csv(SAMPLE / "drift.csv")))}


def _drift_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each arm, and its difference to the method itself on the same orders."""
    by_arm = {arm: rows.sort_values("order_seed")["last accuracy"].tolist() for arm, rows in table.groupby("arm")}
    rows = []
    for arm in dict.fromkeys(table["arm"]):
        base = arm.rpartition(", ")[0] if arm.rpartition(", ")[0] in by_arm else arm.partition(",")[0]
        itself = arm == base or arm == "slca, uneven"
        difference = "" if itself else str(paired_interval(by_arm[arm], by_arm[base]))
        rows.append({"arm": arm, "last accuracy (%)": str(mean_interval(by_arm[arm])), "points": difference})
    return pd.DataFrame(rows).set_index("arm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["conv", "transformer", "drift"], default="", help="of the three tables")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    if only != "drift":
        text = every_learner(only).round(4).to_csv(index=False)
        artifacts.atomic_write(SAMPLE / "every_learner.csv", text)
    if only in ("", "drift"):
        artifacts.atomic_write(SAMPLE / "drift.csv", drift().round(4).to_csv(index=False))
    readme.fill(readme_tables())


if __name__ == "__main__":
    main()
