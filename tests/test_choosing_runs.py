"""Any set of saved runs, each under a name of its own that says what it is."""

import shutil
import subprocess
import sys

import made_jobs
import numpy as np
import pytest
from fake_run import write_domain_run, write_run

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.road import choosing, gathering
from cilkit.runs import Run

FILE = "params/04_slca/none.yaml"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("CILKIT_ARTIFACTS", str(folder / "artifacts"))
        yield folder


@pytest.fixture(scope="module")
def made():
    """Six runs: two learners on two orders, a slower one, and one from random weights."""
    made = {(name, order): made_jobs.run_artifact(name, order) for name in ("slca", "nearest_mean") for order in (1, 2)}
    made["slow"] = made_jobs.run_artifact("slca", 1, hyper={"lr": 0.1, "slow_rate": 0.01})
    made["random"] = made_jobs.run_artifact("slca", 1, backbone={"tag": "resnet10t.random"})
    return made


@pytest.fixture
def table(made, tmp_path, monkeypatch):
    """Where `cilkit.results()` looks: a repository whose jobs have used all of them."""
    for place, artifact in enumerate(made.values()):
        gathering.write_result(made_jobs.job(tmp_path / "reports" / "cells" / f"04_slca-{place}", artifact))
    results = gathering.results
    monkeypatch.setattr(gathering, "results", lambda: results(tmp_path))
    return results(tmp_path)


def test_a_run_is_found_by_name_by_folder_of_another_machine_and_as_it_is(made, tmp_path):
    one, other = made["slca", 1], made["nearest_mean", 1]
    away = shutil.copytree(made["random"].path, tmp_path / "artifacts" / "run" / "copied")
    bare = write_run(tmp_path / "bare" / "one", increments=(3, 2, 2))
    chosen = choosing.choose([one.name[:12], Run(other), away, str(bare)])
    assert list(chosen) == ["slca", "nearest mean", "slca, none", "fake"]
    assert chosen["slca"].artifact.digest == one.digest and chosen["slca, none"].folder == away.absolute()
    assert chosen.table.loc["fake", "place"] == str(bare)
    assert chosen.table.loc["slca, none", ["kind", "order", "increments"]].tolist() == ["tasks", 1, "3 + 2 × 2"]
    many = choosing.choose(tmp_path / "bare")
    assert list(many) == ["fake"], "a folder of runs stands for all of them"


def test_labels_are_short_unique_and_say_what_differs_and_only_that(made):
    chosen = choosing.choose(made.values())
    slca = ["slca, order 1", "slca, order 2", "slca, order 1, lr 0.1", "slca, none"]
    assert sorted(chosen) == sorted([*slca, "nearest mean, order 1", "nearest mean, order 2"])
    assert all(chosen[label].artifact.digest == artifact.digest for label, artifact in zip(
        ["slca, order 1", "slca, order 2", "nearest mean, order 1"],
        [made["slca", 1], made["slca", 2], made["nearest_mean", 1]], strict=True))  # fmt: skip
    twin = made_jobs.run_artifact("slca", 1, seed=5, hyper={"names": ["long"] * 40})
    other = made_jobs.run_artifact("slca", 1, seed=6, hyper={"names": ["long"] * 41})
    labels = list(choosing.choose([twin, other]))
    assert labels == [
        f"slca, {artifact.path.name[:12]}" for artifact in (twin, other)
    ]  # a list that is cut tells nothing


def test_a_run_reached_twice_stands_once_and_labels_survive_what_they_are_made_of(made):
    chosen = choosing.choose([made["slca", 1], made["slca", 1].name, Run(made["slca", 1].path)])
    assert list(chosen) == ["slca"]
    nasty = made_jobs.run_artifact("<b>x</b>", 1, seed=7)
    assert list(choosing.choose([nasty])) == ["<b>x</b>"]


def test_a_parameter_file_brings_its_runs_by_its_own_names_and_changes_are_laid_over_it(made, monkeypatch):
    asked = []

    def from_params(file, **changes):
        asked.append((file, changes))
        return {"finetune": Run(made["slca", 1]), "rate 0.1": Run(made["slow"])}

    monkeypatch.setattr(choosing, "from_params", from_params)
    values = {"backbone": "params/03_pretraining/overlap_filtered.yaml", "arms": {"rate 0.1": {"backbone": "none"}}}
    monkeypatch.setattr(choosing, "parameters_of", lambda file, **changes: values)
    chosen = choosing.choose([FILE, {"params": FILE, "order_seed": 3, "lr": 1.0}], order_seed=2)
    assert asked == [(FILE, {"order_seed": 2}), (FILE, {"order_seed": 3, "lr": 1.0})]
    assert list(chosen) == ["finetune", "rate 0.1"]
    assert chosen.table["pre-training"].tolist() == ["overlap-filtered", "none"]
    monkeypatch.setattr(choosing, "from_params", lambda file, **changes: "a backbone")
    with pytest.raises(UserError, match="describes no runs; take a parameter file of 04, 05 or 06"):
        choosing.choose([FILE])


def test_a_query_over_the_results_chooses_runs_in_their_order(table, made):
    chosen = choosing.choose(where="learner == 'slca' and order_seed == 1")
    assert {run.artifact.digest for run in chosen.values()} == {made[k].digest for k in (("slca", 1), "slow", "random")}
    assert len(choosing.choose(where="learner == 'slca'", limit=2)) == 2
    last = float(table["last accuracy"].max())
    best = choosing.choose(where=f"`last accuracy` >= {last!r}")
    of_best = table.loc[table["last accuracy"] == last, "artifact"]
    assert {run.artifact.name for run in best.values()} == set(of_best)
    both = choosing.choose([made["nearest_mean", 2].name], where="learner == 'slca' and order_seed == 2")
    assert list(both) == ["nearest mean", "slca"]


def test_a_bad_query_is_one_sentence_with_the_columns_and_the_nearest_name(table):
    with pytest.raises(
        UserError, match=r"no column 'lerner' \(did you mean 'learner'\?\); columns are .*benchmark.* in `back"
    ):
        choosing.choose(where="lerner == 'slca'")
    with pytest.raises(UserError, match=r"where='learner ==' is no query over the results .*columns are"):
        choosing.choose(where="learner ==")
    with pytest.raises(UserError, match="is no condition that is true or false"):
        choosing.choose(where="order_seed")
    with pytest.raises(UserError, match="chooses none of the 6 runs"):
        choosing.choose(where="learner == 'ewc'")


def test_what_is_no_run_is_said(made, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no run is chosen; name a parameter file"):
        choosing.choose([])
    with pytest.raises(UserError, match="names no parameter file; write {'params'"):
        choosing.choose([{"lr": 0.1}])
    with pytest.raises(UserError, match="no artifact 'run/nope'"):
        choosing.choose("run/nope")
    other = artifacts.obtain("probe", 1, {}, {}, lambda work: artifacts.write_json(work.path / "probe.json", {}))
    with pytest.raises(UserError, match="is of stage 'probe'; a run is wanted here"):
        choosing.choose([other.name])
    monkeypatch.setattr(gathering, "results", lambda: gathering.gather(tmp_path))
    with pytest.raises(UserError, match="has no results to choose from yet"):
        choosing.choose(where="learner == 'slca'")


def test_runs_of_one_stream_stand_side_by_side_and_others_are_named(made, tmp_path):
    same = choosing.choose([made["slca", 1], made["nearest_mean", 1]])
    choosing.one_stream(same)
    other = write_run(tmp_path / "other", increments=(2, 2, 3))
    with pytest.raises(UserError, match="'slca' and 'fake' learn different streams"):
        choosing.one_stream(choosing.choose([made["slca", 1], other]))
    mixed = choosing.choose([made["slca", 1], write_domain_run(tmp_path / "domains")])
    assert mixed.table["stream"].nunique() == 2
    part = mixed.where(name="slca")
    assert list(part) == ["slca"] and part.table.index.tolist() == ["slca"] and isinstance(part, choosing.Chosen)


def test_a_stream_is_laid_out_again_from_what_its_run_noted(monkeypatch, tmp_path):
    from cilkit.road.learning import stream

    learnt = stream("digits", order_seed=1996, increment=4)
    run = Run(write_run(tmp_path / "run", increments=(4, 4, 2)))
    run.settings |= {"class_names": learnt.class_names, "stream": learnt.identity()}
    again = choosing.stream_of(run)
    assert again.class_names == learnt.class_names and len(again) == 3
    for one, other in zip(again, learnt, strict=True):
        np.testing.assert_array_equal(one.train.ids, other.train.ids)
        np.testing.assert_array_equal(one.train.labels, other.train.labels)
    run.settings["stream"] |= {"benchmark_digest": "another"}
    with pytest.raises(UserError, match="benchmark 'digits' is not what Run"):
        choosing.stream_of(run)
    run.settings["stream"] |= {"kind": "joint"}
    with pytest.raises(UserError, match="did not learn a class-incremental stream"):
        choosing.stream_of(run)


def test_paintings_are_found_through_the_backbone_and_are_none_without_one(made):
    assert choosing.paintings_of(Run(made["random"])) is None
    assert choosing.paintings_of(Run(made["random"].path)) is None
    plain = artifacts.obtain(
        "backbone", 1, {"classes": []}, {}, lambda work: artifacts.save_npy(work.path / "w.npy", [1])
    )
    run = artifacts.obtain("run", 1, {"of": 2}, {"backbone": plain}, lambda work: write_run(work.path / "x"))
    shutil.copytree(run.path / "x", run.path, dirs_exist_ok=True)
    assert choosing.paintings_of(Run(run)) is None  # pre-trained on real images alone
    shutil.rmtree(plain.path)
    with pytest.raises(UserError, match="was made from a backbone that is no longer under"):
        choosing.paintings_of(Run(run))


def test_arms_are_each_runs_raw_and_default_heads_by_the_literatures_names_where_these_are_one_runs(made):
    chosen = choosing.choose([made["slca", 1], made["nearest_mean", 1]])
    assert {name: head for name, (_, head) in choosing.arms(chosen).items()} == {
        "slow learner": "raw", "SLCA": "aligned", "nearest mean, raw": "raw", "nearest mean": "aligned"}  # fmt: skip
    several = choosing.arms(choosing.choose([made["slca", 1], made["slca", 2]]))
    assert list(several) == ["slow learner, order 1", "SLCA, order 1", "slow learner, order 2", "SLCA, order 2"]
    assert several["SLCA, order 2"][0].settings["stream"]["order_seed"] == 2
    plain = made_jobs.run_artifact("slow_learner", 1, heads=["raw"], default_head="raw")
    both = choosing.arms(choosing.choose([made["slca", 1], plain]))
    assert list(both) == ["slca, raw", "SLCA", "slow learner"] and both["slow learner"][0].learner == "slow_learner"


def test_choosing_and_reading_need_no_torch(made):
    code = "import sys, cilkit; chosen = cilkit.choose(sys.argv[1:]); chosen['slca'].summary(); "
    code += "print('torch' in sys.modules, len(chosen))"
    command = [sys.executable, "-c", code, made["slca", 1].name, made["nearest_mean", 1].name]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["False", "2"]
