"""Headers of the experiments of notebooks 04 to 06: what others report, by tag, and what a run costs, counted.

    python scripts/presets.py            # write them
    python scripts/presets.py --check    # name those that are not up to date

An experiment's file has a line `# ---` behind its header. What stands from `# Expected` up to it is written here: rows
of params/published.yaml, and operations counted without computing (`cilkit.costs`; of vision-language models
`gmm_plan`) on classes of equal size. Hours follow from a rate that is assumed, and are never a measurement.
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

import gmm_plan
import numpy as np
import pandas as pd

from cilkit import architectures, backbones, costs, learners, published
from cilkit.captioning import assembled
from cilkit.captioning.captioner import Captioner
from cilkit.data import Benchmark, ImageSet, Stream, benchmarks, catalogue, embedded
from cilkit.data.streams import increments_of
from cilkit.road import learning
from cilkit.road.inputs import parameters_of
from cilkit.road.weights import VLM

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "# Expected", "# ---"
NOTEBOOKS = ("04_slca", "05_generative_replay", "06_generative_classifier")
# Operations a second, assumed, of one data-centre GPU: a large transformer in bfloat16; a residual network in single
# precision, whose small maps keep such a GPU waiting.
RATES = {True: 250e12, False: 25e12}
SPLIT = {"imagenet_r": (24_000, 6_000)}  # where the catalogue knows only the sum
SPLIT["imagenet100"] = (128_117, 5_000)  # a tenth of ImageNet-1k: the chosen classes' own sizes stand in their files
B50 = {"sddr_memory", "podnet_table"}  # half the classes first, on CIFAR-100; the row ends in the later tasks' number
ELSEWHERE = B50 | {"icarl", "ddgr_time", "ranpac_backbones", "ranpac_time", "leaks"}  # other networks, times
# Values that say how long or how fast, how much is kept or what a term weighs, not what is computed for an image.
UNSEEN = {"epochs", "milestones", "batch_size", "lr", "slow_rate", "momentum", "weight_decay", "total", "temperature"}
UNSEEN |= {"align_epochs", "align_weight_decay", "align_also", "cross_entropy", "reverse_cross_entropy", "pull"}
UNSEEN |= {"a", "b", "ratio", "source", "weighting", "per_class", "budget"}
BESIDE = {"slca": ["slow_learner"], "slow_learner": ["joint"]}  # rows that the same file gives as well


def experiments() -> list[Path]:
    """The files that have a header of ours."""
    found = [path for notebook in NOTEBOOKS for path in (ROOT / "params" / notebook).glob("*.yaml")]
    return [path for path in sorted(found) if f"\n{END}\n" in path.read_text()]


def hyper(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """What the notebook hands this learner of a file's values."""
    declared = learners.settings(name, {}).keys() - taken()
    own = values["settings"] if name == values.get("learner") else values.get("own", {}).get(name, {})
    return {key: values[key] for key in values if key in declared} | own


def arms(values: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Arm -> its learner, and what of the arm that learner's parameters are."""
    named = {arm: changes.get("learner", values["learner"]) for arm, changes in values["arms"].items()}
    none = taken() | {"learner"}
    return {arm: (name, {k: v for k, v in values["arms"][arm].items() if k not in none}) for arm, name in named.items()}


@functools.cache
def taken() -> set[str]:
    """The names that the road reads itself: of streams and of runs."""
    return {name for verb in (learning.stream, learning.run) for name in inspect.signature(verb).parameters}


# ---------------------------------------------------------------- expected


@functools.cache
def quoted() -> pd.DataFrame:
    return published.table()


def expected(values: dict[str, Any]) -> list[str]:
    """Lines with the published rows of a file's learners on its benchmark, each value once; where half of CIFAR-100
    comes first, those of all methods for as many later tasks."""
    wanted = [name.partition("+")[0] for name in values.get("own", [values.get("learner")])]
    wanted += [more for name in wanted for more in BESIDE.get(name, [])]
    numbers = quoted()
    self_supervised = "mocov3" in values["backbone"]
    tables = (
        numbers["table"].eq("slca_mocov3") if self_supervised else ~numbers["table"].isin({"slca_mocov3", *ELSEWHERE})
    )
    fits = tables & numbers["benchmark"].eq(values["benchmark"])
    if values["base"] == 50:
        fits = numbers["table"].isin(B50) & numbers["row"].str.endswith(f", {50 // values['increment']} tasks")
        fits &= numbers["benchmark"].eq(values["benchmark"])
        wanted = numbers[fits]["learner"].unique()
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
    return Stream(benchmark, values["order_seed"], increments, shots=values.get("shots", 0))


def cost_of(name: str, values: dict[str, Any], stream: Stream, **changes: Any) -> costs.Cost:
    given = hyper(name, values) | changes
    images = create(name, small(), given).declared(stream)
    arch, model_args = network_of(values)
    if getattr(learners.find(name), "writes", False):
        return writing(name, values, stream, given)
    shape = {key: value for key, value in given.items() if key not in UNSEEN}
    flops = per_image(name, arch, values["benchmark"], json.dumps([model_args, shape], sort_keys=True))
    return costs.Cost({kind: n for kind, n in images.items() if n}, flops)


def network_of(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A file's network: its name and the arguments laid over it."""
    spec = values["backbone"].partition(":")[0]
    if spec == "none" or spec.endswith(".yaml"):
        return values["arch"], values["model_args"]
    return architectures.WEIGHTS[spec].arch if spec in architectures.WEIGHTS else spec, values["model_args"]


def create(name: str, backbone: backbones.Backbone, given: dict[str, Any]) -> learners.Learner:
    painted = {"images": stand_in("cifar100").train} if getattr(learners.find(name), "takes_images", False) else {}
    if getattr(learners.find(name), "writes", False):
        painted = {"captioner": captioner("small_resnet", "{}", ("",)), "text_encoder": list}
    return learners.create(name, backbone, **given, **painted)


def small() -> backbones.Backbone:
    """Declared passes depend on no backbone; one with as many blocks as a ViT-B/16 is quickly made."""
    return costs.meta("small_vit", {"depth": 12})


@functools.cache
def per_image(name: str, arch: str, benchmark: str, shape: str) -> dict[str, int]:
    """shape: JSON of the network's arguments and of what the learner's parameters say about an image."""
    task, size = Stream(stand_in(benchmark), increments=2)[0], stand_in(benchmark).train.sizes.max()
    model_args, given = json.loads(shape)
    try:
        return costs.per_image(create(name, costs.meta(arch, model_args), given), task, int(size))
    except (NotImplementedError, RuntimeError):  # it looks at numbers, which only a computed network has
        made = backbones.create(arch, model_args=model_args)
        return costs.per_image(create(name, made, given), task, int(size))


def trainings(values: dict[str, Any], stream: Stream) -> dict[str, costs.Cost]:
    if "arms" in values:
        each = {arm: cost_of(name, values, stream, **changes) for arm, (name, changes) in arms(values).items()}
        joint = values.get("joint_learner", "finetune") if values["joint_epochs"] else ""
    else:
        each = {name: cost_of(name, values, stream) for name in values["learners"]}
        joint = values["joint_learner"]
    if joint:
        each["joint"] = cost_of(joint, values, stream.joint(), epochs=values["joint_epochs"])
    return each


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e9 else f"{count / 1e9:.4f}"


def cost(values: dict[str, Any]) -> list[str]:
    """A line for each training of a file, and the hours of all of them."""
    if values["backbone"].startswith(VLM):
        return planned(values)
    each = trainings(values, stream_of(values))
    lines = ["# Counted, in FLOPs (images x those of one image, backward pass included):"]
    for name, one in each.items():
        parts = " + ".join(f"{kind} {n:,} x {_billions(one.flops[kind])} G" for kind, n in sorted(one.images.items()))
        lines += textwrap.wrap(
            f"{name} {one.total:.2e} = {parts}", 112, initial_indent="#   ", subsequent_indent="#     "
        )
    if values["benchmark"] in embedded.RECIPES:  # seconds on a laptop
        return lines
    rate = RATES["vit" in network_of(values)[0]]
    hours = sum(one.hours(rate) for one in each.values())
    when = f"{hours:.2f} hours" if hours >= 0.1 else f"{60 * hours:.1f} minutes"
    return [
        *lines,
        f"# Derived: {when} in all at an assumed {rate / 1e12:.0f} TFLOP/s. Never run with this workbook so far.",
    ]


# ---------------------------------------------------------------- models that write


@functools.cache
def captioner(arch: str, alignment: str, answers: tuple[str, ...]) -> Captioner:
    """The one that notebook 06 aligns for a backbone, without numbers."""
    shape = {key: value for key, value in json.loads(alignment).items() if key in ("lm", "dim", "depth", "grid")}
    return assembled.create(backbones.create(arch), answers, **shape).to("meta")


def writing(name: str, values: dict[str, Any], stream: Stream, given: dict[str, Any]) -> costs.Cost:
    """Passes through the frozen backbone, and of a learner that writes those through its language model: "tuned" with
    the backward pass, "answered" written and, where it is asked for, scored among the names seen."""
    arch, model_args = network_of(values)
    images = create(name, small(), given).declared(stream)
    look = per_image("simplecil", arch, values["benchmark"], json.dumps([model_args, {}]))["test"]
    flops = dict.fromkeys(images, look)
    if learners.find(name).matches:
        said = tuple(values["sentence"].format(known) for known in stream.class_names)
        model = captioner(arch, json.dumps(values["alignment"], sort_keys=True), said)
        model.train_only(given.get("train", "projection"))
        hyper_of = create(name, small(), given).hyper
        tests = {task.seen: len(stream.test_after(task)) for task in stream}
        width = model.connector.linear.in_features
        image = gmm_plan.torch.zeros(1, len(model.slots), width, device="meta")
        n = gmm_plan.spoken(model, image, said, list(tests) if hyper_of.constrained else [])
        scored = sum(count * n.get(f"score {seen}", 0) for seen, count in tests.items())
        images |= {"tuned": taught(name, stream, given), "answered": sum(tests.values())}
        flops |= {"tuned": n["forward"] + n["backward"], "answered": n["write"] + scored // images["answered"]}
    return costs.Cost({kind: count for kind, count in images.items() if count}, flops)


def taught(name: str, stream: Stream, given: dict[str, Any]) -> int:
    """Training images of all epochs, exemplars among them, as often as they are shown."""
    return create(name, small(), given | {"augment": True}).declared(stream)["student"]


def work_of(values: dict[str, Any]) -> gmm_plan.Work:
    """What a file's first arm asks of a vision-language model."""
    stream, (name, changes) = stream_of(values), next(iter(arms(values).values()))
    known, given = benchmarks.class_names(values["benchmark"]), hyper(name, values) | changes
    learner = create(name, small(), given)
    ways = {"anew": True, "cached": False}
    looks = {
        way: sum(create(name, small(), given | {"augment": augment}).declared(stream).values())
        for way, augment in ways.items()
    }
    old = learner.hyper.total or learner.hyper.per_class * stream.n_classes
    return gmm_plan.Work(
        names=[known[int(label)] for label in stream.class_names],
        sentence=values["sentence"],
        **{key: values["model_args"].get(key, other) for key, other in gmm_plan.PROMPT.items()},
        batch_size=learner.hyper.batch_size,
        constrained=learner.hyper.constrained,
        augment=learner.hyper.augment,
        seen=[task.seen for task in stream],
        tests=[len(stream.test_after(task)) for task in stream],
        taught=taught(name, stream, given),
        looks=looks,
        held={"tests": len(stream.test), "cached": max(len(task.train) for task in stream) + old},
    )


def planned(values: dict[str, Any]) -> list[str]:
    """What a file's first arm takes."""
    config, work = gmm_plan.config_of(values["backbone"]), work_of(values)
    if config is None:
        return ["# Not counted: the image part of this family looks at numbers, and only a loaded model has them."]
    lines = gmm_plan.shown(values["backbone"], gmm_plan.plan(config, work), work)
    lines[0] = f"Planned, not run (scripts/gmm_plan.py; operations counted on paper, in T = 1e12): {lines[0]}"
    return [one for line in lines for one in textwrap.wrap(line, 117, initial_indent="# ", subsequent_indent="#   ")]


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
