"""Results: a row a run under unambiguous names, from outputs or from the summary, and arms compared in pairs."""

import json

import numpy as np
import pandas as pd
import pytest
from fake_run import write_domain_run, write_run

from cilkit import calibration, metrics, outcomes
from cilkit.errors import UserError
from cilkit.foreign import Foreign
from cilkit.outputs import Keep
from cilkit.runs import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(write_run(tmp_path_factory.mktemp("runs") / "run", increments=(3, 2, 2), recency=4.0))


def test_figures_are_those_of_the_metrics(run):
    found, matrix = outcomes.figures(run, "raw"), run.accuracy_of("raw")
    for name, value in run.summary("raw").items():
        assert found[name] == value
    assert found["forgetting (max)"] == metrics.forgetting_max(matrix)
    last = run.scores(-1, "raw")
    top = np.argsort(-run.outputs(-1).logits("raw"), axis=1)[:, :5]
    assert found["top-5 accuracy"] == pytest.approx(100 * np.mean((top == run.labels(-1)[:, None]).any(1)))
    assert found["calibration error (15 equal-width bins)"] == calibration.expected_calibration_error(last)
    known = run.predictions(-1, "raw", task_known=True)
    assert found["last accuracy, task known"] == pytest.approx(100 * np.mean(known == run.labels(-1)))
    assert "forward transfer (against chance)" not in found


@pytest.mark.parametrize("keep", [Keep(), Keep(logits=False, features=False)])
def test_the_summary_says_what_the_outputs_say(tmp_path, run, keep):
    copy = Run(write_run(tmp_path / "run", increments=(3, 2, 2), recency=4.0, keep=keep))
    expected = outcomes.row(run, "raw")
    outcomes.summarise(copy.folder)
    summary = json.loads((copy.folder / "summary.json").read_text())
    assert list(summary) == ["aligned", "raw"] and dict(summary["raw"]) == outcomes.figures(run, "raw")
    np.testing.assert_array_equal(np.load(copy.folder / "class_accuracy_raw.npy"), run.class_accuracy("raw"))
    for folder in copy.folder.glob("after_*"):  # the summary alone is enough
        for path in folder.iterdir():
            path.unlink()
    found = outcomes.row(copy, "raw")
    assert found | {"source": ""} == expected | {"source": ""} and list(found) == list(expected)
    np.testing.assert_array_equal(copy.class_accuracy("raw"), run.class_accuracy("raw"))


def test_a_row_names_the_run_its_seeds_and_its_costs(tmp_path):
    run = Run(write_domain_run(tmp_path / "run"))
    row = outcomes.row(run)
    assert (row["learner"], row["benchmark"], row["protocol"]) == ("fake", "made up", "domain")
    assert (row["order_seed"], row["seed_init"], row["seed_data"]) == (1993, 0, 1)
    assert (row["backbone"], row["backbone bytes"]) == ("vit_tiny.made_up", 400)
    assert (row["bytes stored"], row["bytes: exemplars"], row["images forwarded"]) == (42, 30, 12)
    assert (row["seconds: train"], row["peak bytes: train"]) == (2.5, 1000)
    run.settings["stream"]["split"] = [0.1, 0]
    assert (row["stream"], outcomes.row(run)["stream"]) == ("tasks", "tasks, validation")
    assert row["tasks"] == 3 and row["increments"] == "4 + 2 × 0"
    full = run.accuracy_of("softmax", future=True).to_numpy()
    assert row["forward transfer (against chance)"] == pytest.approx((full[0, 1] + full[1, 2]) / 2 - 25)
    assert row["last accuracy"] == pytest.approx(full[-1].mean()) and "last accuracy, task known" not in row


def test_what_was_asked_of_the_representation_is_a_figure(tmp_path, run):
    ahead = Run(write_run(tmp_path / "run", increments=(3, 2, 2)))
    ahead.settings["look_ahead"] = {"initial": [50.0, 60.0], "before": [55.0, 75.0]}
    assert outcomes.figures(ahead, "raw")["forward transfer (of the representation)"] == 10.0
    assert not [name for name in outcomes.figures(run, "raw") if name.startswith("forward")]


def test_groups_and_the_cumulative_run_add_their_figures(tmp_path, run):
    cumulative = Run(write_run(tmp_path / "run", increments=(3, 2, 2), seed=1))
    groups = {name: "foreseen" if c < 4 else "unforeseen" for c, name in enumerate(run.class_names)}
    row = outcomes.row(run, "raw", groups=groups, cumulative=cumulative)
    last = run.class_accuracy("raw")[-1]
    assert row["last accuracy, foreseen"] == pytest.approx(last[:4].mean())
    assert row["last accuracy, unforeseen"] == pytest.approx(last[4:].mean())
    expected = metrics.intransigence(run.accuracy_of("raw"), cumulative.accuracy_of("raw"))
    assert row["intransigence (against cumulative training)"] == expected
    cumulative.settings["heads"] = ["aligned"]
    expected = metrics.intransigence(run.accuracy_of("raw"), cumulative.accuracy_of("aligned"))
    assert outcomes.row(run, "raw", cumulative=cumulative)["intransigence (against cumulative training)"] == expected
    with pytest.raises(UserError, match="head 'softmax' is unknown"):
        outcomes.row(run, "softmax")


def test_collecting_takes_folders_runs_heads_and_other_toolboxes(run):
    foreign = Foreign("PILOT", "a.log", {"model_name": "slca", "seed": "1993"}, "CNN", np.array([[50.0]]))
    table = outcomes.collect([run, run.folder, foreign])
    assert table["learner"].tolist() == ["fake", "fake", "slca (PILOT)"]
    assert table["head"].tolist() == ["aligned", "aligned", "CNN"]
    assert table["last accuracy (task mean)"].iloc[2] == 50 and np.isnan(table["last accuracy"].iloc[2])
    assert outcomes.collect([run], heads="all")["head"].tolist() == ["raw", "aligned"]
    assert outcomes.collect([run], heads=["raw"])["head"].tolist() == ["raw"]


def table_of_arms():
    rows = [("a", k, 10.0 * k) for k in range(1, 4)] + [("b", k, 10.0 * k + 2) for k in range(1, 5)]
    return pd.DataFrame(rows, columns=["learner", "order_seed", "last accuracy"])


def test_arms_are_compared_in_pairs_over_what_they_share():
    compared = outcomes.compare(table_of_arms(), "last accuracy", baseline="a").set_index("learner")
    assert compared.loc["b", ["runs", "pairs", "mean"]].tolist() == [4, 3, 27]
    assert compared.loc["b", "difference"] == 2 and compared.loc["b", "difference_half_width"] == pytest.approx(0)
    assert compared.loc["a", "half_width"] == metrics.mean_interval([10, 20, 30]).half_width
    assert "difference" not in outcomes.compare(table_of_arms(), "last accuracy")


def test_arms_may_be_told_apart_by_several_columns_and_must_be():
    table = table_of_arms()
    doubled = pd.concat([table.assign(head="raw"), table.assign(head="aligned")])
    assert len(outcomes.compare(doubled, "last accuracy", by=["learner", "head"])) == 4
    with pytest.raises(UserError, match="learner 'a' has several runs of order_seed.* = 1"):
        outcomes.compare(doubled, "last accuracy")
    with pytest.raises(UserError, match="baseline 'c' is not among the arms a, b"):
        outcomes.compare(table, "last accuracy", baseline="c")
    with pytest.raises(UserError, match="none of the columns order_seed, seed_init, seed_data"):
        outcomes.compare(table.drop(columns="order_seed"), "last accuracy")
