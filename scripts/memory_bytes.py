"""What a learner keeps, in bytes, and what that is worth: reports/sample/memory_bytes.csv and .png.

    python scripts/memory_bytes.py          # three class orders; a second call continues

The arms of params/05_generative_replay/bytes.yaml on `digits_photo`: real exemplars, stored and repainted synthetic
images, Gaussians of features, nothing; and of bytes_masked.yaml, one order: exemplars as visible patches. The seeds of
initialisation and data are the order's number in the papers' list. Convnets and transformers start from weights of
their own, so compare arms of one network.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pandas as pd
import readme
import real_runs

from cilkit import artifacts
from cilkit.data.streams import SEEDS

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "reports" / "sample"
ORDERS = {"bytes": 3, "bytes_masked": 1}  # parameter file of 05 -> class orders, from the papers' list
HEADS = {"mae_cil": "nme"}  # its own head, without the paper's balanced fine-tuning, answers the newest classes
FIGURES = ("last accuracy", "average incremental accuracy", "forgetting (max before last)")


def rows_of(job: tuple[str, int]) -> list[dict]:
    """The arms of one file on one class order."""
    import cilkit

    (name, k), rows = job, []
    path = f"params/05_generative_replay/{name}.yaml"
    for arm, run in cilkit.from_params(path, order_seed=SEEDS[k], seed_init=k, seed_data=k).items():
        stored = run.settings["stored_bytes"]
        row = {"arm": arm, "order": SEEDS[k], "learner": run.learner, "head": HEADS.get(run.learner, run.default_head)}
        row["backbone"] = run.backbone_tag
        row |= {name: round(run.summary(row["head"])[name], 4) for name in FIGURES}
        data = {name: size for name, size in stored.items() if size and name != "decoder"}
        row |= {"kind": max(data, key=data.get) if data else "nothing"}
        rows.append(
            row | {"bytes": sum(stored.values()), "stored": ", ".join(f"{n}: {v:,}" for n, v in stored.items())}
        )
    return rows


def readme_tables() -> dict[str, str]:
    """What stands between the README's markers."""
    table = pd.read_csv(SAMPLE / "memory_bytes.csv")
    groups = table[table["arm"] != "joint"].groupby("arm", sort=False)
    shown = groups[list(FIGURES)].agg(real_runs.interval)
    shown.insert(0, "learner", groups["learner"].first())
    shown.insert(1, "bytes stored", groups["bytes"].mean().map("{:,.0f}".format))
    return {"memory_bytes": readme.markdown(shown.rename_axis("what is kept"))}


def draw() -> None:
    from cilkit import plots

    table = pd.read_csv(SAMPLE / "memory_bytes.csv")
    joint = table.loc[table["arm"] == "joint", "last accuracy"].mean()
    arms = table[table["arm"] != "joint"]
    title = "What is kept from task to task, and what it is worth (digits_photo, three class orders)"
    plots.save(plots.accuracy_against_bytes(arms, chance=10, joint=joint, title=title), SAMPLE, "memory_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes of one thread each")
    parser.add_argument("--readme", action="store_true", help="only the README's table and the figure again")
    arguments = parser.parse_args()
    if not arguments.readme:
        jobs = [(name, k) for name, orders in ORDERS.items() for k in range(orders)]
        with ProcessPoolExecutor(arguments.workers) as pool:
            rows = [row for part in pool.map(rows_of, jobs) for row in part]
        table = pd.DataFrame(rows).assign(machine=real_runs.machine())
        artifacts.atomic_write(SAMPLE / "memory_bytes.csv", table.to_csv(index=False))
    draw()
    readme.fill(readme_tables())


if __name__ == "__main__":
    main()
