"""SDDR's arms on real images, with a generator that never saw the stream's: reports/sample/replay_*.csv.

    python scripts/real_subsets.py --data BUNDLES --out data/subsets
    python scripts/fit_generator.py --images data/subsets/fashion_for_generator/train \\
                                    --out data/subsets/fashion_generator
    python scripts/replay_runs.py [--only gap|choice|arms] [--workers 2]

Fashion-MNIST, 500 training and 300 test images a class. The generator stands in for Stable Diffusion: it was fitted on
500 other training images of each class, so that its images are much closer to the benchmark than Stable Diffusion's
would be, and what it is worth here is an upper case of what painted images are worth.

gap:    how far painted images are from real ones: a classifier trained on either and tested on either.
choice: learning rates of the base learners, on a tenth of the training images held out, before any arm was run.
arms:   none, distillation, replay, both, on the same painted images; and the rival that the paper names, `external`:
        unlabelled real images for distillation alone, here the generator's own training images, its best case.
        Three class orders, 20 real exemplars a class, a small network from scratch. Runs are artifacts: a second call
        continues.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import readme
import real_runs
import torch
from fit_generator import read_images

import cilkit
from cilkit import artifacts, backbones, incremental, learners, outcomes, plots
from cilkit.data import Benchmark, ImageSet, ShardWriter, Stream, benchmarks
from cilkit.data.shards import open_set
from cilkit.data.streams import SEEDS
from cilkit.metrics import paired_interval
from cilkit.realms.realm import Concept, Realm
from cilkit.road.inputs import with_artifact
from cilkit.runs import Run

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "reports" / "sample"
SUBSETS = ROOT / "data" / "subsets"
BENCHMARK = "folder:data/subsets/fashion"
GENERATOR = "data/subsets/fashion_generator"
# Low guidance for diversity, as in the papers; the number was fixed before a classifier saw any painted image.
PAINTING = {"per_class": 500, "seed": 0, "style": "plain", "guidance": 1.5, "steps": 10, "workers": 1}
ORDERS = SEEDS[:3]
LEARNING = {"epochs": 6, "milestones": (4, 5), "batch_size": 64, "recipe": "shift"}
STREAM = {"benchmark": BENCHMARK, "increment": 2}
BASES = {
    "icarl": LEARNING | {"criterion": "ce", "per_class": 20},
    "lucir": LEARNING | {"per_class": 20},
}
RATES = (0.02, 0.05, 0.1)
ARMS = {
    "none": {"a": 0.0, "b": 0.0},
    "distillation": {"a": 0.0, "b": 1.0},
    "replay": {"a": 1.0, "b": 0.0},
    "both": {"a": 1.0, "b": 1.0},
    "external": {"a": 0.0, "b": 1.0, "source": "unlabelled"},
}
COLUMNS = [
    "learner", "head", "order_seed", "seed_init", "seed_data", "last accuracy", "average incremental accuracy",
    "forgetting (max before last)", "bytes stored", "bytes: synthetic images", "bytes: external images",
    "images forwarded", "seconds: train",
]  # fmt: skip


def painted() -> ImageSet:
    """The generator's images of the benchmark's classes, found among the artifacts or painted."""
    names = benchmarks.load(BENCHMARK).class_names
    concepts = tuple(Concept(name, "", f"a photo of a {name}", "") for name in names)
    Realm("Fashion-MNIST", "free", ("",), concepts).save(SUBSETS / "fashion_realm")
    return cilkit.paint(cilkit.foresee("data/subsets/fashion_realm"), GENERATOR, **PAINTING)


def external() -> ImageSet:
    """The images that the generator was fitted on, without their labels, as an artifact."""
    folder = SUBSETS / "fashion_for_generator" / "train"
    pixels = read_images(folder)[0]  # uint8 (n, 32, 32, 3)

    def make(work: artifacts.Work) -> None:
        writer = ShardWriter(work.path)
        for i, image in enumerate(pixels):
            writer.add(image, {"image_id": f"{i:05d}", "class_id": 0, "class_name": "anything"})
        writer.close()

    identity = {"external": folder.parent.name, "pixels": hashlib.sha256(pixels.tobytes()).hexdigest()}
    artifact = artifacts.obtain("images", 1, identity, {}, make)
    return with_artifact(open_set(artifact.path), artifact)


# ---------------------------------------------------------------- gap


def gap() -> pd.DataFrame:
    """Accuracies in percent of a classifier on real test images and on painted ones, by their prompted class."""
    real, images = benchmarks.load(BENCHMARK), painted()
    rows = []
    for seed in range(3):
        for name, train in {"real": real.train, "painted": images}.items():
            tests = {"real test": real.test} | ({"painted": images} if name == "real" else {})
            found = classified(train, tests, seed)
            rows += [{"trained on": name, "tested on": test, "seed": seed, "accuracy": found[test]} for test in found]
            print(rows[-len(found) :], flush=True)
    made = {f"painted, {key}": value for key, value in PAINTING.items() if key in ("per_class", "guidance", "steps")}
    return pd.DataFrame(rows).assign(**made, generator=images.artifact.name, machine=real_runs.machine())


def classified(train: ImageSet, tests: dict[str, ImageSet], seed: int) -> dict[str, float]:
    """One network from scratch on all classes at once; its accuracy on each of the tests."""
    pixels = np.concatenate([test.images() for test in tests.values()])
    labels = np.concatenate([test.labels for test in tests.values()])
    both = Benchmark("gap", train, ImageSet.from_arrays(pixels, labels, train.class_names))
    network = backbones.create("small_resnet", seed)
    settings = {name: value for name, value in LEARNING.items() if name != "milestones"}
    made = learners.create("finetune", network, seed=seed, lr=0.05, milestones=LEARNING["milestones"], **settings)
    outputs = incremental.run_stream(made, Stream(both, None, len(train.class_names)), None)[-1]
    assert np.array_equal(outputs.labels, labels)
    right = np.split(outputs.predictions(made.default_head) == labels, np.cumsum([len(t) for t in tests.values()])[:-1])
    return {name: 100 * float(part.mean()) for name, part in zip(tests, right, strict=True)}


# ---------------------------------------------------------------- arms


def run(learner: str, arm: str, order: int) -> Run:
    """One arm on one order; the seeds of initialisation and data are the order's number in the papers' list."""
    seed = ORDERS.index(order)
    seeds = {"seed_init": seed, "seed_data": seed}
    stream = cilkit.stream(**STREAM, order_seed=order)
    images = None if arm == "none" else external() if arm == "external" else painted()
    settings = BASES[learner] | {"lr": chosen(learner)} | ARMS[arm]
    return cilkit.run(f"{learner}+synthetic_replay", stream, images=images, **seeds, **settings)


def chosen(learner: str) -> float:
    """The learning rate with the best validation accuracy."""
    table = pd.read_csv(SAMPLE / "replay_choice.csv")
    rows = table[table["learner"] == learner]
    return float(rows.loc[rows["validation accuracy"].idxmax(), "lr"])


def rate(learner: str, lr: float) -> Run:
    """The base learner on its own, on the first order, tested on training images held out."""
    stream = cilkit.stream(**STREAM, order_seed=ORDERS[0], validation=0.1)
    return cilkit.run(learner, stream, **BASES[learner] | {"lr": lr})


def choice(workers: int) -> pd.DataFrame:
    jobs = [(learner, lr) for learner in BASES for lr in RATES]
    side_by_side(rate, jobs, workers)
    scores = [rate(*job).summary()["last accuracy"] for job in jobs]
    table = pd.DataFrame(jobs, columns=["learner", "lr"]).assign(**{"validation accuracy": scores})
    return table.assign(machine=real_runs.machine())


def arms(workers: int) -> pd.DataFrame:
    """A row a run and head."""
    painted(), external()  # once, before the processes ask for them
    jobs = [(learner, arm, order) for learner in BASES for order in ORDERS for arm in ARMS]
    side_by_side(run, jobs, workers)
    tables = []
    for learner, arm, order in jobs:
        table = outcomes.collect([run(learner, arm, order)], heads="all").reindex(columns=COLUMNS)
        tables.append(table.assign(learner=learner, arm=arm))
    return pd.concat(tables, ignore_index=True).assign(machine=real_runs.machine())


def side_by_side(verb, jobs: list[tuple], workers: int) -> None:
    """Run what is not yet among the artifacts, one thread a process."""
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        for _ in pool.imap(_told, [(verb, job) for job in jobs], 1):
            pass


def _told(job: tuple) -> None:
    verb, given = job
    print(verb.__name__, *given, flush=True)
    verb(*given)


# ---------------------------------------------------------------- tables


def readme_tables() -> dict[str, str]:
    """What stands between the README's markers."""
    runs, differences = pd.read_csv(SAMPLE / "replay_arms.csv"), pd.read_csv(SAMPLE / "replay_gap.csv")
    figures = {
        "last accuracy": "last accuracy (%)",
        "average incremental accuracy": "average incremental (%)",
        "forgetting (max before last)": "forgetting (points)",
    }
    groups = runs.groupby(["learner", "head", "arm"], sort=False)
    shown = groups[list(figures)].agg(real_runs.interval).rename(columns=figures)
    shown["to none (points)"] = [_to_none(runs, *arm) for arm in shown.index]
    for column, title in {"bytes stored": "stored (MiB)", "bytes: synthetic images": "of these synthetic"}.items():
        shown[title] = (groups[column].max().fillna(0) / 2**20).map("{:.2f}".format)
    of_pairs = differences.groupby(["trained on", "tested on"], sort=False)["accuracy"].agg(real_runs.interval)
    return {
        "replay_arms": readme.markdown(shown),
        "replay_gap": readme.markdown(of_pairs.rename("accuracy (%)").to_frame()),
    }


def draw() -> None:
    """replay_arms.png: each base learner's own head. replay_paintings.png, where the paintings are: none picked."""
    own = {"icarl": "nme", "lucir": "raw"}
    table = pd.read_csv(SAMPLE / "replay_arms.csv")
    table = table[table["head"] == table["learner"].map(own)].rename(columns={"order_seed": "order"})
    name = table["learner"].map({"icarl": "iCaRL", "lucir": "LUCIR"})
    table["arm"], table["order"] = name + ", " + table["arm"], name + table["order"].astype(str)
    all_at_once = pd.read_csv(SAMPLE / "replay_gap.csv").query("`trained on` == 'real' and `tested on` == 'real test'")
    joint = all_at_once["accuracy"].mean()
    title = "Fashion-MNIST, 5 tasks of 2 classes: 20 real images a class, and synthetic ones beside them"
    plots.save(plots.arms_comparison(table, chance=10, joint=joint, title=title), SAMPLE, "replay_arms")
    if (ROOT / GENERATOR).is_dir():
        images = painted()
        rows = [np.flatnonzero(images.labels == label)[:10] for label in range(len(images.class_names))]
        pixels = images.images(np.concatenate(rows))
        sheet = plots.contact_sheet(pixels, columns=10, rows=images.class_names, inches=0.45)
        plots.save(sheet, SAMPLE, "replay_paintings")


def _to_none(runs: pd.DataFrame, learner: str, head: str, arm: str) -> str:
    """The arm's last accuracy less that of "none" on the same orders."""
    if arm == "none":
        return ""
    rows = runs[(runs["learner"] == learner) & (runs["head"] == head)]
    by_arm = rows.pivot(index="order_seed", columns="arm", values="last accuracy")
    return str(paired_interval(by_arm[arm].tolist(), by_arm["none"].tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["gap", "choice", "arms"], default="", help="of the three tables")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    given = parser.parse_args()
    for path in (SUBSETS / "fashion", ROOT / GENERATOR):
        if not path.is_dir():
            raise SystemExit(f"{path} is missing; lay it out first, as the head of this script says")
    torch.set_num_threads(1)
    make = {"gap": gap, "choice": lambda: choice(given.workers), "arms": lambda: arms(given.workers)}
    for name in [given.only] if given.only else make:
        artifacts.atomic_write(SAMPLE / f"replay_{name}.csv", make[name]().round(4).to_csv(index=False))
    draw()
    readme.fill(readme_tables())


if __name__ == "__main__":
    main()
