"""The sweeps that come with the workbook: each expands, and what its cells hold is what notebooks and learners take."""

import functools
import importlib
import json
import re
import time
from pathlib import Path

import pytest

from cilkit import architectures, learners
from cilkit.pretraining.settings import NAMES, Settings
from cilkit.workbook import chain
from cilkit.workbook import graph as graphs
from cilkit.workbook.estimates import Estimates, in_all
from cilkit.workbook.sweepfile import read_sweep

HOME = Path(__file__).resolve().parent.parent
FOLDER = HOME / "params" / "sweeps"
LARGE, SMALL = sorted(FOLDER.glob("*.yaml")), sorted(FOLDER.glob("small/*.yaml"))
each = pytest.mark.parametrize(
    "path", [*LARGE, *SMALL], ids=lambda path: path.relative_to(FOLDER).with_suffix("").as_posix()
)
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(HOME / "scripts")
    presets = importlib.import_module("presets")
MEMO = {}  # each notebook and file is read once


@functools.cache
def expanded(path):
    """(its cells, its graph, seconds of computing that both took)"""
    began, memo = time.process_time(), {}
    sweep = read_sweep(path, memo)
    graph = graphs.build(sweep)
    return sweep.cells, graph, time.process_time() - began


def values_of(cell):
    return chain.resolved(cell.notebook, cell.given, MEMO)


@functools.cache
def weights_are_known(spec):
    name = spec.partition(":")[0]
    if spec in ("", "none") or name in architectures.WEIGHTS or name == "vlm":
        return True
    import timm

    return spec in timm.list_pretrained(name.partition(".")[0] + ".*")


@each
def test_every_cell_is_what_its_notebook_and_learners_take(path):
    seen = set()
    for cell in expanded(path)[0]:
        values = values_of(cell)  # unknown names and wrong types are refused
        told = json.dumps(
            [cell.notebook.stem, {k: v for k, v in values.items() if k not in ("order_seed", "seed_init")}]
        )
        if told in seen:
            continue
        seen.add(told)
        if "arms" in values and "settings" in values:
            for name, changes in presets.arms(values).values():
                learners.settings(name, presets.hyper(name, values) | changes)
        elif "learners" in values:
            assert set(values["own"]) <= set(values["learners"]), "`own` sets what no learner of the cell reads"
            for name in values["learners"]:
                learners.settings(name, presets.hyper(name, values))
        elif "shuffle_labels" in values:
            Settings(**{name: values[name] for name in NAMES})
        for spec in (values.get("backbone", ""), values.get("init", "")):
            assert (HOME / spec).is_file() or weights_are_known(spec), spec


@each
def test_labels_tell_all_cells_apart_and_equal_cells_are_one_job(path):
    cells, graph, _ = expanded(path)
    told = [tuple(sorted(cell.labels.items())) for cell in cells if not cell.last]
    assert len(set(told)) == len(told) and all(told)
    assert sum(bool(job.labels) for job in graph.jobs) == len(told), "two cells are the same job"
    names = [job.name for job in graph.jobs]
    for job in graph.jobs:
        assert all(names.index(before) < names.index(job.name) for before in job.after)


@each
def test_its_header_says_how_many_jobs_and_what_they_will_cost(path):
    graph = expanded(path)[1]
    header = path.read_text().partition("\nnotebook:")[0].splitlines()
    assert all(line.startswith("#") and len(line) <= 128 for line in header)
    told = " ".join(line.removeprefix("#").strip() for line in header)
    assert re.search(r"(\d+) jobs", told)[1] == str(len(graph.jobs))
    if path in LARGE:
        known = Estimates([])  # of no earlier runs: by the headers of parameter files alone
        cost = in_all([known.of(job) for job in graph.jobs])
        assert float(re.search(r"derived ([\d.]+) GPU-hours", told)[1]) == pytest.approx(cost["hours"], abs=0.06)
        assert "assumed rates, not measured" in told and "Expected" in told
        assert "Never run with this workbook so far" in told


@each
def test_large_ones_ask_for_a_gpu_and_small_ones_for_nothing_that_is_not_here(path):
    cells, graph, seconds = expanded(path)
    for cell in cells:
        assert (cell.needs.gpus == 1) == (path in LARGE)
        assert path in LARGE or cell.last or values_of(cell)["benchmark"] == "digits_photo"
    assert seconds < 2, "a dry run that nobody waits for"
    if path in SMALL:
        assert graph.name == f"small-{path.stem}"


def test_a_small_sweep_ends_in_the_analysis_of_its_arms():
    cells, graph, _ = expanded(FOLDER / "small" / "premonition.yaml")
    last = graph.jobs[-1]
    analysed = [run["params"] for run in chain.resolved(last.notebook, last.given, MEMO)["runs"]]
    assert last.notebook.stem == "07_forgetting_analysis"
    assert len(last.after) == len(cells) - 1 + len(analysed), "all arms, and the runs that it takes with changes"
    assert {*analysed, "params/04_slca/half_foreseen.yaml"} <= {cell.params for cell in cells if not cell.last}


def test_paradigms_has_every_paradigm_once_on_each_benchmark():
    cells = expanded(FOLDER / "paradigms.yaml")[0]
    on = {}
    for cell in cells:
        on.setdefault((cell.given["benchmark"], cell.seed), []).append(values_of(cell)["backbone"].partition(":")[0])
    assert len(on) == 4 * 3
    for specs in on.values():
        assert [spec for spec in specs if spec in architectures.WEIGHTS] == [
            name for name, weights in architectures.WEIGHTS.items() if weights.paradigm
        ]
        assert any(spec.startswith("params/03_pretraining/") for spec in specs), "one foreseen backbone of our own"


def test_premonition_s_arms_differ_in_the_backbone_and_random_weights_in_their_rates():
    cells = [cell for cell in expanded(FOLDER / "premonition.yaml")[0] if cell.labels["params"] == "food"]
    nothing, *rest = [{**values_of(cell), "backbone": ""} for cell in cells[:7]]
    assert all(one == rest[0] for one in rest) and rest[0]["benchmark"] == "food101"
    assert {name for name in nothing if nothing[name] != rest[0][name]} == {"lr", "own"}
    made = {cell.labels["case"]: cell.given["backbone"] for cell in cells[:7]}
    painted = chain.loaded(HOME / made["painted"], MEMO)
    for case, changed in {
        "foreseen": {"without_classes_of": ""},
        "shuffled": {"shuffle_labels": True},
        "unrelated": {"images": "params/02_image_synthesis/cars.yaml"},
        "ImageNet then painted": {"init": "resnet50.a1_in1k", "lr": 0.01, "epochs": 30},
    }.items():
        assert chain.loaded(HOME / made[case], MEMO) == painted | changed, case
