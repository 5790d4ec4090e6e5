"""What the kept realms foresee of real benchmarks, and what more painted classes and images are worth.

    python scripts/foresight.py [--sweep]

Writes reports/sample/kept_realms.csv, with --sweep also reports/sample/class_sweep.csv (nine pre-trainings of the
embedded default, about three minutes on one thread), and the README's tables.
"""

import argparse
from pathlib import Path

import pandas as pd
from readme import fill, markdown

import cilkit
from cilkit import artifacts, realms
from cilkit.data import benchmarks
from cilkit.road import parameters_of

SAMPLE = Path(__file__).resolve().parent.parent / "reports" / "sample"
SWEEP = "params/03_pretraining/class_sweep.yaml"
PAIRS = {  # realm -> the benchmark that its name announces
    "birds": "cub200",
    "food": "food101",
    "cars": "cars196",
    "plants": "flowers102",
    "common objects": "cifar100",
    "handwritten characters": "digits_photo",
}


def kept_realms() -> pd.DataFrame:
    """A row a realm: its size, and how many classes of its benchmark are among its concepts."""
    rows = []
    for name, benchmark in PAIRS.items():
        realm, names = realms.foresee(name)[0], benchmarks.class_names(benchmark)
        matches = realms.audit(realm, names)["match"]
        rows.append(
            {
                "realm": name,
                "kind": realm.kind,
                "subtypes": len(realm.subtypes),
                "concepts": len(realm),
                "benchmark": benchmark,
                "classes": len(names),
                "foreseen": int(matches.isin(realms.SAME).sum()),
                "contained": int((matches == "containment").sum()),
            }
        )
    return pd.DataFrame(rows)


def class_sweep() -> pd.DataFrame:
    """A row a pair of class count and images a class: accuracy (%) on real test images, features frozen."""
    values, rows = parameters_of(SWEEP), []
    stream = cilkit.stream(values["benchmark"])
    for classes in values["class_counts"]:
        for images in values["image_counts"]:
            backbone = cilkit.from_params(SWEEP, n_classes=classes, per_class=images)
            rows.append({"classes": classes, "images a class": images, **cilkit.reference(stream, backbone)})
    return pd.DataFrame(rows)


def readme_tables() -> dict[str, str]:
    found = pd.read_csv(SAMPLE / "kept_realms.csv")
    share = found["foreseen"].map(str) + " of " + found["classes"].map(str)
    shown = pd.DataFrame(
        {
            "realm": found["realm"],
            "concepts (subtypes)": found["concepts"].map(str) + " (" + found["subtypes"].map(str) + ")",
            "benchmark": found["benchmark"],
            "its classes foreseen": share,
            "one name within the other": found["contained"],
        }
    ).set_index("realm")
    sweep = pd.read_csv(SAMPLE / "class_sweep.csv")
    grid = sweep.pivot(index="classes", columns="images a class", values="nearest class mean")
    grid.columns = [f"{images} images a class" for images in grid.columns]
    grid.index.name = "nearest class mean (%), painted classes"
    return {"kept_realms": markdown(shown), "class_sweep": markdown(grid.map("{:.1f}".format))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="train the nine backbones of the sweep too")
    tables = {"kept_realms.csv": kept_realms} | ({"class_sweep.csv": class_sweep} if parser.parse_args().sweep else {})
    for name, make in tables.items():
        artifacts.atomic_write(SAMPLE / name, make().to_csv(index=False))
    fill(readme_tables())


if __name__ == "__main__":
    main()
