"""Exports: the field's table from means of unrounded numbers, files that no text breaks, and the two trackers."""

import csv
import sys
import types

import numpy as np
import pandas as pd
import pytest

from cilkit import exporting
from cilkit.errors import UserError

LAST, AVERAGE = exporting.FIELD


def rows(learner="slca", benchmark="cub200", values=(60.0,), stream="tasks", increments="10 × 20", **more):
    base = {"learner": learner, "head": "raw", "benchmark": benchmark, "protocol": "class", "stream": stream}
    base |= {"backbone": "vit", "increments": increments, "digest": "ab" * 32}
    return [
        base | {"order_seed": 1993 + k, LAST: v, AVERAGE: v + 10, exporting.CURVE: [v + 20, v]} | more
        for k, v in enumerate(values)
    ]


def summary(*lists, by=(), **more):
    return exporting.summary(exporting.methods(pd.DataFrame(sum(lists, [])), by), **more)


def test_means_and_deviations_are_rounded_after_averaging():
    found = summary(rows(values=(60.04, 60.04, 60.07)), rows("ewc", values=(40.0,)), rows(benchmark="cars"))
    assert found.loc["slca", ("cub200", LAST, "mean")] == np.mean([60.04, 60.04, 60.07])
    assert found.loc["slca", ("cub200", LAST, "std")] == pytest.approx(np.std([60.04, 60.04, 60.07], ddof=1))
    assert found.loc["ewc", ("cub200", "runs", "")] == 1 and np.isnan(found.loc["ewc", ("cars", LAST, "mean")])
    text = exporting.to_text(found, digits=2)
    assert "60.05 ± 0.02" in text and "40.00" in text and "40.00 ±" not in text and "nan" not in text.lower()


def test_what_tells_runs_of_the_same_seeds_apart_names_the_method():
    twice = [*rows(values=(60.0, 61.0), slow_rate=0.1), *rows(values=(70.0, 71.0), slow_rate=1.0)]
    found = summary(twice, rows("ewc"))
    assert list(found.index) == ["slca / slow_rate 0.1", "slca / slow_rate 1", "ewc"]
    assert list(summary(twice, by=["slow_rate"]).index) == ["0.1", "1"]
    with pytest.raises(UserError, match="slca has several runs of the same seeds; they differ in slow_rate"):
        summary(twice, by=["learner"])
    with pytest.raises(UserError, match="slca has several runs of the same seeds: name more"):
        summary(rows(), rows())
    with pytest.raises(UserError, match=r"no column 'lerner' \(did you mean 'learner'"):
        summary(rows(), by=["lerner"])
    with pytest.raises(UserError, match="no figure 'accuracy'"):
        summary(rows(), values=["accuracy"])


def test_the_name_is_what_a_person_reads_and_seeds_that_were_not_noted_do_not_hide_it():
    files = [f"params/03_pretraining/{name}.yaml" for name in ("birds", "cars", "food")]
    told = [
        {"own": f'{{"slca": {k}}}', "half": k % 2, "order_seed": None, "images": name} for k, name in enumerate(files)
    ]
    found = summary(*(rows(**one) for one in told))
    assert list(found.index) == ["slca / images birds", "slca / images cars", "slca / images food"]


def test_ways_to_cut_a_benchmark_stand_apart_and_a_joint_run_beside_each():
    found = summary(rows(), rows(increments="100 + 10 × 10"), rows(stream="joint", increments="200", values=(80.0,)))
    assert list(dict.fromkeys(on for on, *_ in found)) == ["cub200, 10 × 20", "cub200, 100 + 10 × 10"]
    assert list(found.index) == ["slca", "slca (joint)"]
    assert found.loc[
        "slca (joint)", [(on, LAST, "mean") for on in ("cub200, 10 × 20", "cub200, 100 + 10 × 10")]
    ].tolist() == [80, 80]
    found = summary(rows(), rows(stream="tasks, validation"))
    assert [on for on, *_ in found][::5] == ["cub200", "cub200, validation"]


def test_csv_keeps_full_precision_and_no_formula(tmp_path):
    found = summary(rows("=cmd()", values=(60.04, 60.07)), rows("a,b", benchmark="@x"))
    path = exporting.to_csv(found, tmp_path / "out.csv")
    with open(path, newline="") as file:
        header, first, second = csv.reader(file)
    assert header[:6] == [
        "method",
        *(f"cub200, {LAST}, {s}" for s in ("mean", "std")),
        *(f"cub200, {AVERAGE}, {s}" for s in ("mean", "std")),
        "cub200, runs",
    ]
    assert header[6] == f"'@x, {LAST}, mean" and first[0] == "'=cmd()" and second[0] == "a,b"
    assert float(first[1]) == np.mean([60.04, 60.07]) and first[5:7] == ["2", ""] and second[5] == "0"


def test_latex_is_balanced_escaped_and_bold_only_if_asked(tmp_path):
    evil = r"a_b & 50% \input{x} $y$ ~^#{"
    found = summary(
        rows(evil, values=(60.04, 60.1)), rows("ewc", values=(60.11,)), rows("ewc", benchmark="cars", values=(3.0,))
    )
    text = exporting.to_latex(found, tmp_path / "out.tex").read_text()
    assert (
        r"a\_b \& 50\% \textbackslash{}input\{x\} \$y\$ \textasciitilde{}\textasciicircum{}\#\{ & 60.1 $\pm$ 0.0 &"
        in text
    )
    assert "textbf" not in text and r"\bar{A}" in text and text.count(r"\\" + "\n") == 4
    assert r"\multicolumn{3}{c}{cub200} & \multicolumn{3}{c}{cars} \\" in text and r"\cmidrule(lr){5-7}" in text
    rules = [r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrrrr}", r"\end{tabular}"]
    assert all(text.count(rule) == 1 for rule in rules)
    bold = exporting.to_latex(found, tmp_path / "out.tex", bold=True).read_text()
    assert r"\textbf{60.1} $\pm$ 0.0" in bold and r"ewc & \textbf{60.1} &" in bold  # equal as printed: both
    lower = summary(rows("a", error=5.0), rows("b", error=4.0), values=["error"])
    assert r"b & \textbf{4.0} & 1" in exporting.to_latex(lower, tmp_path / "out.tex", bold=True).read_text()


# ---------------------------------------------------------------- trackers


class FakeWriter:
    def __init__(self, folder):
        self.file = open(f"{folder}/events", "w")  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def add_scalar(self, *scalar):
        print(*scalar, sep="|", file=self.file)


def module(monkeypatch, name, **members):
    made = types.ModuleType(name)
    made.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, made)


def test_tensorboard_gets_a_run_a_row_whole_and_once(tmp_path, monkeypatch):
    module(monkeypatch, "torch.utils.tensorboard", SummaryWriter=FakeWriter)
    table = pd.DataFrame([*rows(), *rows("../ewc", digest="cd" * 32)])
    (tmp_path / "board" / ".slca-abababababab-raw.part").mkdir(parents=True)  # left by a killed one
    assert exporting.to_tensorboard(table, tmp_path / "board") == 2
    assert sorted(p.name for p in (tmp_path / "board").iterdir()) == [
        ".._ewc-cdcdcdcdcdcd-raw",
        "slca-abababababab-raw",
    ]
    events = (tmp_path / "board" / "slca-abababababab-raw" / "events").read_text()
    assert events == f"{exporting.CURVE}|80.0|1\n{exporting.CURVE}|60.0|2\n"
    assert exporting.to_tensorboard(table, tmp_path / "board") == 0


def test_the_real_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    exporting.to_tensorboard(pd.DataFrame(rows()), tmp_path)
    read = EventAccumulator(str(tmp_path / "slca-abababababab-raw")).Reload()
    assert [(e.step, e.value) for e in read.Scalars(exporting.CURVE)] == [(1, 80), (2, 60)]


def test_wandb_gets_a_run_a_row_under_a_name_of_its_content(monkeypatch):
    runs = []

    class Run:
        def __init__(self, **given):
            self.given, self.logged, self.summary = given, [], {}
            runs.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def log(self, values, step):
            self.logged.append((step, values))

    module(monkeypatch, "wandb", init=Run)
    assert exporting.to_wandb(pd.DataFrame(rows(slow_rate=0.1)), "cil") == 1
    (run,) = runs
    assert (run.given["project"], run.given["id"], run.given["resume"]) == ("cil", "slca-abababababab-raw", "allow")
    assert run.given["config"] == {"learner": "slca", "head": "raw", "benchmark": "cub200", "slow_rate": 0.1}
    assert run.logged == [(1, {exporting.CURVE: 80.0}), (2, {exporting.CURVE: 60.0})]
    assert run.summary[LAST] == 60.0 and not [name for name in run.summary if "KEY" in name]


@pytest.mark.parametrize("name, call", [("torch.utils.tensorboard", "to_tensorboard"), ("wandb", "to_wandb")])
def test_a_tracker_that_is_not_installed_is_one_sentence(name, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"is not installed .*\[track\]"):
        getattr(exporting, call)(pd.DataFrame(rows()), str(tmp_path / "x"))
