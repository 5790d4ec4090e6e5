"""Headers of the experiments of notebooks 04 and 05: what others report, by tag, and what a run costs, counted.

    python scripts/presets.py            # write them
    python scripts/presets.py --check    # name those that are not up to date

An experiment's file has a line `# ---` behind its header. What stands from `# Expected` up to it is written here: rows
of params/published.yaml, and operations counted without computing (`cilkit.costs`) on classes of equal size. Hours
follow from a rate that is assumed, and are never a measurement.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cilkit import architectures, backbones, costs, learners, published
from cilkit.data import Benchmark, ImageSet, Stream, benchmarks, catalogue
from cilkit.data.streams import increments_of
from cilkit.road import learning
from cilkit.road.inputs import parameters_of

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "# Expected", "# ---"
RATE = 250e12  # operations a second: assumed, of one data-centre GPU in bfloat16
SPLIT = {"imagenet_r": (24_000, 6_000)}  # where the catalogue knows only the sum
ELSEWHERE = {
    "sddr_memory",
    "podnet_table",
    "icarl",
    "ranpac_backbones",
    "ranpac_time",
    "leaks",
}  # other networks, times
# Values that say how long or how fast, not what is computed for an image.
UNSEEN = {"epochs", "milestones", "batch_size", "lr", "slow_rate", "momentum", "weight_decay", "total", "temperature"}
UNSEEN |= {"align_epochs", "align_weight_decay", "align_also", "cross_entropy", "reverse_cross_entropy", "pull"}
BESIDE = {"slca": ["slow_learner"], "slow_learner": ["joint"]}  # rows that the same file gives as well


def experiments() -> list[Path]:
    """The files that have a header of ours."""
    found = [
        path for notebook in ("04_slca", "05_generative_replay") for path in (ROOT / "params" / notebook).glob("*.yaml")
    ]
    return [path for path in sorted(found) if f"\n{END}\n" in path.read_text()]


def hyper(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """What the notebook hands this learner of a file's values."""
    declared = learners.settings(name, {}).keys() - taken()
    return {key: values[key] for key in values if key in declared} | values.get("own", {}).get(name, {})


@functools.cache
def taken() -> set[str]:
    """The names that the road reads itself: of streams and of runs."""
    return {name for verb in (learning.stream, learning.run) for name in inspect.signature(verb).parameters}


# ---------------------------------------------------------------- expected


@functools.cache
def quoted() -> pd.DataFrame:
    return published.table()


def expected(values: dict[str, Any]) -> list[str]:
    """Lines with the published rows of a file's learners on its benchmark, each value once."""
    wanted = [name.partition("+")[0] for name in values.get("own", [values.get("learner")])]
    wanted += [more for name in wanted for more in BESIDE.get(name, [])]
    numbers = quoted()
    self_supervised = "mocov3" in values["backbone"]
    tables = (
        numbers["table"].eq("slca_mocov3") if self_supervised else ~numbers["table"].isin({"slca_mocov3", *ELSEWHERE})
    )
    fits = tables & numbers["benchmark"].eq(values["benchmark"])
    lines, seen = (
        [f"{BEGIN}, {published.HEADING} ({published.FILE.as_posix()}; in brackets the tag, then the table):"],
        set(),
    )
    for learner in wanted:
        for (table, row, tag), group in numbers[fits & numbers["learner"].eq(learner)].groupby(
            ["table", "row", "tag"], sort=False
        ):
            figures = [
                one
                for one in zip(group["figure"], group["value"], group["std"], strict=True)
                if (learner, one[:2]) not in seen
            ]
            seen |= {(learner, one[:2]) for one in figures}
            shown = ", ".join(_shown(*one) for one in figures)
            lines += [f"#   {row}: {shown} [{tag}] {table}"] if shown else []
    return lines if len(lines) > 1 else [f"{BEGIN}: no number is known to us."]


def _shown(figure: str, value: float, std: float) -> str:
    return f"{figure.replace('_', ' ')} {value:.2f}" + (f" ± {std:.2f}" if std == std else "")


# ---------------------------------------------------------------- cost


@functools.cache
def stand_in(benchmark: str) -> Benchmark:
    """As many images in as many classes, of one pixel each and spread evenly: enough to count passes."""
    if benchmark not in catalogue.entries():
        return benchmarks.load(benchmark)  # an embedded one: itself
    entry = catalogue.find(benchmark)
    sizes = SPLIT.get(benchmark) or entry.images
    names = [str(label) for label in range(entry.classes)]
    sets = (ImageSet.from_arrays(np.zeros((n, 1, 1, 3), np.uint8), np.arange(n) % len(names), names) for n in sizes)
    return Benchmark(benchmark, *sets)


def stream_of(values: dict[str, Any]) -> Stream:
    benchmark = stand_in(values["benchmark"])
    increments = increments_of(len(benchmark.class_names), values["increment"], values["base"])
    return Stream(benchmark, values["order_seed"], increments)


def cost_of(name: str, values: dict[str, Any], stream: Stream, **changes: Any) -> costs.Cost:
    given = hyper(name, values) | changes
    images = create(name, small(), given).declared(stream)
    spec = values["backbone"].partition(":")[0]
    spec = values["arch"] if spec.endswith(".yaml") else spec
    arch = architectures.WEIGHTS[spec].arch if spec in architectures.WEIGHTS else spec
    shape = {key: value for key, value in given.items() if key not in UNSEEN}
    flops = per_image(name, arch, values["benchmark"], json.dumps(shape, sort_keys=True))
    return costs.Cost({kind: n for kind, n in images.items() if n}, flops)


def create(name: str, backbone: backbones.Backbone, given: dict[str, Any]) -> learners.Learner:
    painted = {"images": stand_in("cifar100").train} if getattr(learners.find(name), "takes_images", False) else {}
    return learners.create(name, backbone, **given, **painted)


def small() -> backbones.Backbone:
    """Declared passes depend on no backbone; one with as many blocks as a ViT-B/16 is quickly made."""
    return costs.meta("small_vit", {"depth": 12})


@functools.cache
def per_image(name: str, arch: str, benchmark: str, shape: str) -> dict[str, int]:
    task, size = Stream(stand_in(benchmark), increments=2)[0], stand_in(benchmark).train.sizes.max()
    try:
        return costs.per_image(create(name, costs.meta(arch), json.loads(shape)), task, int(size))
    except (NotImplementedError, RuntimeError):  # it looks at numbers, which only a computed network has
        return costs.per_image(create(name, backbones.create(arch), json.loads(shape)), task, int(size))


def trainings(values: dict[str, Any], stream: Stream) -> dict[str, costs.Cost]:
    if "arms" in values:
        return {arm: cost_of(values["learner"], values, stream, **changes) for arm, changes in values["arms"].items()}
    each = {name: cost_of(name, values, stream) for name in values["learners"]}
    if values["joint_learner"]:
        each["joint"] = cost_of(values["joint_learner"], values, stream.joint(), epochs=values["joint_epochs"])
    return each


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e9 else f"{count / 1e9:.4f}"


def cost(values: dict[str, Any]) -> list[str]:
    """A line for each training of a file, and the hours of all of them."""
    each = trainings(values, stream_of(values))
    lines = ["# Counted, in FLOPs (images x those of one image, backward pass included):"]
    for name, one in each.items():
        parts = " + ".join(f"{kind} {n:,} x {_billions(one.flops[kind])} G" for kind, n in sorted(one.images.items()))
        lines += textwrap.wrap(
            f"{name} {one.total:.2e} = {parts}", 112, initial_indent="#   ", subsequent_indent="#     "
        )
    if "arms" in values:  # seconds on a laptop
        return lines
    hours = sum(one.hours(RATE) for one in each.values())
    when = f"{hours:.2f} hours" if hours >= 0.1 else f"{60 * hours:.1f} minutes"
    return [
        *lines,
        f"# Derived: {when} in all at an assumed {RATE / 1e12:.0f} TFLOP/s. Never run with this workbook so far.",
    ]


# ---------------------------------------------------------------- header


def renewed(path: Path) -> str:
    """The file's text with its header up to date."""
    text = path.read_text()
    header, rest = text.split(f"{END}\n", 1)
    kept = header.partition(BEGIN)[0]
    values = parameters_of(path)
    return kept + "\n".join([*expected(values), *cost(values)]) + f"\n{END}\n{rest}"


def outdated() -> Iterator[tuple[Path, str]]:
    """Files whose header is not up to date, and what they should be."""
    for path in experiments():
        text = renewed(path)
        if text != path.read_text():
            yield path, text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 where a header is not up to date"
    )
    check, found = parser.parse_args().check, False
    for path, text in outdated():
        found = True
        print(f"{path.relative_to(ROOT)} {'is not up to date' if check else 'renewed'}", flush=True)
        if not check:
            path.write_text(text)
    return int(check and found)


if __name__ == "__main__":
    sys.exit(main())
