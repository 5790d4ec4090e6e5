"""The study behind the README's tables: every arm on ten class orders, compared in pairs.

    make study                       about 15 minutes on two cores from nothing; goes on where it was stopped
    python scripts/study.py --readme only rewrite the README's tables from reports/sample/study.csv

The arms and the class orders are fixed in ARMS and REPLAY below and in the parameter files that they name. The ten
orders are the papers' (1993, 1996, 1997) and the seven numbers after them; initialisation and data seeds stay at 0, so
what varies is the class order. Every run is an artifact: a second call finds them all.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pandas as pd
import readme

HOME = Path(__file__).resolve().parent.parent
OUT = HOME / "reports" / "sample"
ARMS = {  # parameter files of 04 -> how the table calls them
    "none": "no pre-training",
    "foreseen": "foreseen realm",
    "overlap_filtered": "foreseen, overlap-filtered",
    "unrelated": "unrelated realm",
    "shuffled": "shuffled labels",
    "renderings": "font renderings",
}
REPLAY = {"default": "softmax variant"}  # parameter files of 05
OTHER_MEMORIES = {  # arms of 05 that show no synthetic image -> row of the table
    "none": "iCaRL",
    "the same bytes of real images": "iCaRL, the same bytes of real images",
    "Gaussians of features": "SLCA, Gaussians of features",
    "nothing": "LwF, nothing",
}
METHODS = {  # (learner, head) -> row of the table
    ("nearest_mean", None): "nearest class mean",
    ("finetune", "raw"): "sequential fine-tuning",
    ("slca", "raw"): "slow learner",
    ("slca", "aligned"): "SLCA",
}
PROBED = "overlap_filtered"  # the arm whose final backbones are probed (nearest mean on its own final features)
PAIRS = [  # (question, a, b): a - b over the same class orders, each (arm, method)
    *[
        (f"{method}: overlap-filtered − none", ("overlap_filtered", method), ("none", method))
        for method in ("nearest class mean", "slow learner", "SLCA")
    ],
    ("SLCA − slow learner, overlap-filtered", ("overlap_filtered", "SLCA"), ("overlap_filtered", "slow learner")),
    (
        "SLCA − nearest mean on its own final features, overlap-filtered",
        ("overlap_filtered", "SLCA"),
        ("overlap_filtered", "nearest mean, final features"),
    ),
    *[
        (f"SLCA: overlap-filtered − {name}", ("overlap_filtered", "SLCA"), (arm, "SLCA"))
        for arm, name in ARMS.items()
        if arm not in ("overlap_filtered", "none")
    ],
    *[
        (f"iCaRL: synthetic {arm} − none", ("replay default", f"iCaRL, synthetic {arm}"), ("replay default", "iCaRL"))
        for arm in ("distillation", "replay", "both")
    ],
    (
        "iCaRL: synthetic both − the same bytes of real images",
        ("replay default", "iCaRL, synthetic both"),
        ("replay default", "iCaRL, the same bytes of real images"),
    ),
]


def rows_of(arm: str, method: str, order: int, run, head: str | None) -> dict:
    """One line of study.csv: a run's figures in percent and points, with its forwarded images and stored bytes."""
    return {
        "arm": arm,
        "method": method,
        "order_seed": order,
        **{name: round(value, 4) for name, value in run.summary(head).items()},
        "images forwarded": sum(run.settings["forwards"]["spent"].values()),
        "bytes stored": sum(run.settings["stored_bytes"].values()),
    }


def learn_arm(arm: str, order: int) -> list[dict]:
    """All learners of one parameter file of 04 on one class order; joint and cumulative training on the first only."""
    import cilkit

    first = order == 1993
    changes = {} if first else {"joint_epochs": 0}
    runs = cilkit.from_params(f"params/04_slca/{arm}.yaml", order_seed=order, **changes)
    rows = [rows_of(arm, name, order, runs[learner], head) for (learner, head), name in METHODS.items()]
    if first:
        rows.append(rows_of(arm, "joint training", order, runs["joint"], None))
        rows.append(rows_of(arm, "cumulative training", order, cumulative(arm, runs["finetune"]), None))
    if arm == PROBED:
        stream = cilkit.stream(order_seed=order)
        scores = cilkit.probe(runs["slca"], stream)["scores"]
        rows.append(
            {
                "arm": arm,
                "method": "nearest mean, final features",
                "order_seed": order,
                "last accuracy": round(scores["nearest class mean"], 4),
            }
        )
    return rows


def cumulative(arm: str, finetune):
    """Fine-tuning on a stream whose tasks hold all classes seen so far; everything else as in the arm's own run."""
    import cilkit

    settings = finetune.settings
    backbone = "none" if arm == "none" else f"params/03_pretraining/{arm}.yaml"
    return cilkit.run("finetune", cilkit.stream().cumulative(), backbone=backbone, **settings["hyper"])


def learn_replay(name: str, order: int) -> list[dict]:
    """The four arms of one parameter file of 05 on one class order."""
    import cilkit

    runs = cilkit.from_params(f"params/05_generative_replay/{name}.yaml", order_seed=order, joint_epochs=0)
    return [
        rows_of(f"replay {name}", OTHER_MEMORIES.get(arm, f"iCaRL, synthetic {arm}"), order, run, None)
        for arm, run in runs.items()
    ]


def references() -> pd.DataFrame:
    """Nearest mean and LDA on raw pixels and on each arm's frozen features, all classes at once."""
    import cilkit

    stream = cilkit.stream()
    table = {"raw pixels": cilkit.reference(stream), "random weights": cilkit.reference(stream, "none")}
    for arm, name in ARMS.items():
        if arm != "none":
            table[name] = cilkit.reference(stream, f"params/03_pretraining/{arm}.yaml")
    return pd.DataFrame(table).T.rename_axis("features").round(4)


def prepare(arm: str) -> str:
    """Make one arm's images and backbone."""
    import cilkit

    if arm != "none":
        cilkit.from_params(f"params/03_pretraining/{arm}.yaml")
    return arm


def job(kind: str, name: str, order: int):
    return {
        "prepare": lambda: prepare(name),
        "arm": lambda: learn_arm(name, order),
        "replay": lambda: learn_replay(name, order),
    }[kind]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--orders", type=int, default=10, help="class orders, from the papers' list")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--readme", action="store_true", help="only rewrite the README's tables")
    parser.add_argument(
        "--only", choices=["arm", "replay"], help="04's arms or 05's; the others' rows stay as they are"
    )
    given = parser.parse_args()
    if not given.readme:
        run_study(given.orders, given.workers, given.only)
    draw()
    readme.fill(readme_tables())


def run_study(n_orders: int, workers: int, only: str | None = None) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import cilkit
    from cilkit.data.streams import order_seed

    began = time.time()
    painted = ("characters", "ornaments", "renderings")[: 1 if only == "replay" else 3]
    for images in painted:  # each paints with all cores itself
        cilkit.from_params(f"params/02_image_synthesis/{images}.yaml")
    orders = [order_seed(k) for k in range(n_orders)]
    jobs = [("arm", arm, order) for order in orders for arm in ARMS] + [
        ("replay", n, o) for o in orders for n in REPLAY
    ]
    jobs = [one for one in jobs if only in (None, one[0])]
    jobs.sort(key=lambda one: orders.index(one[2]))  # all arms of one order first: a partial study is informative
    rows = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        prepared = ARMS if only != "replay" else [PROBED]
        list(pool.map(job, *zip(*[("prepare", arm, 0) for arm in prepared], strict=True)))
        for number, done in enumerate(pool.map(job, *zip(*jobs, strict=True)), 1):
            rows += done
            print(f"{number}/{len(jobs)} {jobs[number - 1]} {time.time() - began:.0f} s", flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    from cilkit.artifacts import atomic_write

    study = pd.DataFrame(rows)
    if only:
        before = pd.read_csv(OUT / "study.csv")
        kept = before[before["arm"].str.startswith("replay") != (only == "replay")]
        study = pd.concat([kept, study] if only == "replay" else [study, kept])
    atomic_write(OUT / "study.csv", study.to_csv(index=False))
    if only != "replay":
        atomic_write(OUT / "reference.csv", references().to_csv())
    print(f"study of {n_orders} orders: {(time.time() - began) / 60:.1f} minutes", file=sys.stderr)


# ---------------------------------------------------------------- tables


def table_of(study: pd.DataFrame, column: str = "last accuracy") -> pd.DataFrame:
    """Rows are methods, columns are arms; each cell is mean ± half width of the 95 % interval over class orders."""
    from cilkit.metrics import mean_interval

    cells = (
        study[study["arm"].isin(ARMS)].groupby(["method", "arm"])[column].apply(lambda v: str(mean_interval(list(v))))
    )
    rows = [*METHODS.values(), "cumulative training", "joint training"]
    return cells.unstack("arm").reindex(index=rows, columns=list(ARMS)).rename(columns=ARMS)


def replay_table(study: pd.DataFrame) -> pd.DataFrame:
    from cilkit.metrics import mean_interval

    chosen = study[study["arm"].str.startswith("replay")]
    columns = ["last accuracy", "average incremental accuracy", "forgetting (max before last)"]
    table = chosen.groupby("method", sort=False)[columns].agg(lambda v: str(mean_interval(list(v))))
    table["bytes stored"] = chosen.groupby("method")["bytes stored"].max().map("{:,.0f}".format)
    return table


def pairs_table(study: pd.DataFrame) -> pd.DataFrame:
    """Paired differences in last accuracy over the same class orders, with 95 % intervals."""
    from cilkit.metrics import paired_interval

    values = study.pivot_table(index="order_seed", columns=["arm", "method"], values="last accuracy")
    rows = []
    for question, a, b in PAIRS:
        both = values[[a, b]].dropna() if a in values and b in values else values.iloc[:0]
        if len(both) > 1:
            found = paired_interval(list(both[a]), list(both[b]))
            rows.append({"difference in last accuracy (points)": question, "mean": f"{found.mean:+.1f}",
                         "95 % interval": f"{found.low:+.1f} … {found.high:+.1f}", "orders": found.n})  # fmt: skip
    return pd.DataFrame(rows).set_index("difference in last accuracy (points)")


def readme_tables() -> dict[str, str]:
    """What stands between the README's markers `<!-- name -->` and `<!-- /name -->`."""
    study = pd.read_csv(OUT / "study.csv")
    reference = pd.read_csv(OUT / "reference.csv", index_col=0)
    return {
        "study": readme.markdown(table_of(study).rename_axis("last accuracy (%)")),
        "pairs": readme.markdown(pairs_table(study)),
        "replay": readme.markdown(replay_table(study).rename_axis("learner")),
        "reference": readme.markdown(reference.map("{:.1f}".format, na_action="ignore")),
    }


def draw() -> None:
    """reports/sample/study.png, with the hash of study.csv in its metadata so that a test can hold them together."""
    from cilkit import artifacts, plots
    from cilkit.metrics import mean_interval

    study = pd.read_csv(OUT / "study.csv")
    rows = []
    for method in METHODS.values():
        row = {"method": method}
        for arm, name in ARMS.items():
            found = mean_interval(list(study[(study["arm"] == arm) & (study["method"] == method)]["last accuracy"]))
            row |= {name: found.mean, f"{name} ±": found.half_width}
        rows.append(row)
    names = list(ARMS.values())
    figure = plots.group_bars(
        pd.DataFrame(rows),
        "method",
        {name: name for name in names},
        errors={name: f"{name} ±" for name in names},
        chance=10,
        joint=float(study[(study["arm"] == PROBED) & (study["method"] == "joint training")]["last accuracy"].iloc[0]),
        ylabel="last accuracy (%)",
        title="digits_photo, 5 tasks of 2 classes: last accuracy, mean and 95 % interval over orders",
    )
    plots.save(figure, OUT, "study", note=f"study.csv sha256 {artifacts.sha256_of(OUT / 'study.csv')}")


if __name__ == "__main__":
    main()
