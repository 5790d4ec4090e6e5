"""Slow learner and nearest mean on subsets of real benchmarks, through notebook 04: reports/sample/real_subsets.csv.

    python scripts/real_subsets.py --data BUNDLES --out data/subsets
    python scripts/real_runs.py

Two streams, three orders each, from ImageNet weights of MobileNetV2: CIFAR-100 (120 training and 50 test images a
class) class-incremental, PACS (64 pixels) domain-incremental. A row a run and head, with what it was run on. What the
same weights reach with everything at once: real_upper_lines.csv. And, at reduced scale, what a cache at short side 256
costs in accuracy: short_side.csv.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import readme
import torch

import cilkit
from cilkit import artifacts, backbones, incremental, learners, outcomes
from cilkit.data import Benchmark, ImageSet, Stream, benchmarks, decoding
from cilkit.data.streams import SEEDS
from cilkit.metrics import mean_interval, paired_interval
from cilkit.road.inputs import parameters_of
from cilkit.workbook.execute import run_notebook
from cilkit.workbook.parameters import load_params

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "reports" / "sample"
NOTEBOOK = ROOT / "notebooks" / "04_slca.ipynb"
TITLES = {
    "cifar100_subset": "CIFAR-100 subset, 10 tasks of 10 classes",
    "pacs_subset": "PACS subset, 4 domains of 7 classes",
}  # parameter file -> title
COLUMNS = [
    "learner", "head", "benchmark", "protocol", "backbone", "order_seed", "tasks", "classes", "increments",
    "last accuracy", "average incremental accuracy", "forgetting (max before last)", "backward transfer (final)",
    "learning accuracy", "last accuracy, task known", "forward transfer (against chance)", "top-5 accuracy",
    "calibration error (15 equal-width bins)", "bytes stored", "images forwarded", "images found as features",
    "seconds: train", "seconds: test",
    "peak bytes: train",
]  # fmt: skip
# What stands for a 500 x 375 photograph, a cache at short side 256 and a network at 224: the same ratios at 64 pixels.
ORIGINAL, SHORT, SIZE = 64, 44, 38


def machine() -> str:
    """What the runs were run on, as people would say it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {os.cpu_count()} cores, one thread a run, torch {torch.__version__.partition('+')[0]}"


def real_streams() -> pd.DataFrame:
    """The notebook for each stream and order, then its runs, found by their parameters."""
    tables = []
    for name in TITLES:
        path = ROOT / "params" / "04_slca" / f"{name}.yaml"
        for seed in SEEDS[:3]:
            output = ROOT / "reports" / "runs" / f"04_slca-{name}-{seed}.ipynb"
            status = run_notebook(NOTEBOOK, load_params(path) | {"order_seed": seed}, output, log=print)
            if not status.ok:
                raise SystemExit(f"{output.name}: {status.state} in code cell {status.cell}: {status.sentence}")
            runs = cilkit.from_params(path, order_seed=seed)
            rows = outcomes.collect([run for key, run in runs.items() if key != "joint"], heads="all")
            tables.append(rows.reindex(columns=COLUMNS))
            for column in ("image_size", "epochs"):
                tables[-1][column] = parameters_of(path)[column]
            tables[-1]["benchmark"] = name
    table = pd.concat(tables, ignore_index=True)
    table["machine"] = machine()
    return table


def upper_lines() -> pd.DataFrame:
    """What the same weights reach with all classes or domains at once: joint training and classifiers on features."""
    rows = []
    for name in TITLES:
        given = parameters_of(ROOT / "params" / "04_slca" / f"{name}.yaml")
        on = {key: given[key] for key in ("benchmark", "benchmark_options", "increment", "protocol")}
        stream, shared = cilkit.stream(**on), {key: given[key] for key in ("backbone", "recipe", "image_size")}
        scores = cilkit.reference(stream, **shared)
        learning = {key: given[key] for key in ("epochs", "milestones", "batch_size", "lr")} | given["own"][
            "slow_learner"
        ]
        joint = cilkit.run("slow_learner", stream.joint(), **shared, **learning)
        lines = scores | {
            "joint training, slow learner": joint.summary()["last accuracy"],
            "chance": 100 / stream.n_classes,
        }
        rows += [{"benchmark": name, "classifier": line, "accuracy": value} for line, value in lines.items()]
    return pd.DataFrame(rows)


def short_side() -> pd.DataFrame:
    """PACS from originals and from copies reduced as a cache would, everything else equal: ten domain orders."""
    whole = benchmarks.load("pacs", root="data/subsets/pacs", partial=True)
    kept = Benchmark("pacs, reduced", _reduced(whole.train), _reduced(whole.test))
    rows = []
    for name, benchmark in ((f"original ({ORIGINAL} px)", whole), (f"short side {SHORT} px", kept)):
        for seed in SEEDS:
            for learner, settings in (("nearest_mean", {}), ("slow_learner", {"epochs": 2, "milestones": (1,)})):
                network = backbones.load(ROOT / "data" / "subsets" / "mobilenetv2")
                made = learners.create(learner, network, recipe="timm", image_size=SIZE, **settings)
                outputs = incremental.run_stream(made, Stream(benchmark, seed, protocol="domain"), None)[-1]
                accuracy = 100 * float(np.mean(outputs.predictions(made.default_head) == outputs.labels))
                rows.append({"cache": name, "learner": learner, "order_seed": seed, "last accuracy": accuracy})
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def _reduced(images: ImageSet) -> ImageSet:
    pixels = np.stack([decoding.shrunk(image, short=SHORT) for image in images.read()])
    return ImageSet.from_arrays(
        pixels, images.labels, images.class_names, domains=images.domains, domain_names=images.domain_names
    )


def readme_tables() -> dict[str, str]:
    """What stands between the README's markers."""
    runs, upper, sides = (pd.read_csv(SAMPLE / f"{name}.csv") for name in CSV)
    figures = {
        "last accuracy": "last accuracy (%)",
        "average incremental accuracy": "average incremental (%)",
        "forgetting (max before last)": "forgetting (points)",
        "last accuracy, task known": "task known (%)",
        "forward transfer (against chance)": "forward transfer (points)",
    }
    runs["stream"] = runs["benchmark"].map(TITLES)
    shown = runs.groupby(["stream", "learner"], sort=False)[list(figures)].agg(interval).rename(columns=figures)
    effect = sides.pivot_table(index="learner", columns="cache", values="last accuracy", aggfunc=list)
    pairs = [str(paired_interval(*(row[cache] for cache in reversed(effect.columns)))) for _, row in effect.iterrows()]
    effect = effect.map(interval).assign(**{"difference (points)": pairs})
    upper["stream"] = upper["benchmark"].map(TITLES)
    lines = upper.pivot(index="stream", columns="classifier", values="accuracy")[
        list(dict.fromkeys(upper["classifier"]))
    ]
    tables = {"real": readme.markdown(shown), "short_side": readme.markdown(effect)}
    return tables | {"upper": readme.markdown(lines.rename_axis("all at once (%)").map("{:.1f}".format))}


def interval(values) -> str:
    """Mean ± half width of the 95 % interval; nothing where there is no value."""
    values = [value for value in values if not np.isnan(value)]
    return str(mean_interval(values)) if values else ""


CSV = {"real_subsets": real_streams, "real_upper_lines": upper_lines, "short_side": short_side}


def main() -> None:
    if not (ROOT / "data" / "subsets").is_dir():
        raise SystemExit("data/subsets is missing; lay it out first: python scripts/real_subsets.py --help")
    torch.set_num_threads(1)
    for name, make in CSV.items():
        artifacts.atomic_write(SAMPLE / f"{name}.csv", make().round(4).to_csv(index=False))
    readme.fill(readme_tables())


if __name__ == "__main__":
    main()
