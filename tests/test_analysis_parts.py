"""Forgetting taken apart: closed forms on hand-made runs, equality with slow loops, and what must not change."""

import json
import os
import subprocess
import sys
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from fake_run import write_domain_run, write_run

from cilkit import analysis, metrics, outputs
from cilkit.errors import UserError
from cilkit.outputs import Keep
from cilkit.runs import Run

INCREMENTS = (2, 1, 3)


def hand_made(folder, increments, answers, features=None, names=None):
    """A run of which each stage's labels and predictions are given: [(labels, predicted), …]."""
    classes = sum(increments)
    for t, (labels, predicted) in enumerate(answers):
        seen = sum(increments[: t + 1])
        logits = np.zeros((len(labels), seen), np.float32)
        logits[np.arange(len(labels)), predicted] = 1
        seen_features = None if features is None else features[t]
        said = outputs.Outputs(np.arange(len(labels)), np.array(labels), {"raw": logits}, seen_features)
        outputs.write(folder / f"after_{t:02d}", said, np.repeat(np.arange(len(increments)), increments), Keep())
    settings = {"learner": "made", "heads": ["raw"], "default_head": "raw", "increments": list(increments)}
    settings["class_names"] = names or [f"class {c}" for c in range(classes)]
    (folder / "run.json").write_text(json.dumps(settings))
    return Run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(write_run(tmp_path_factory.mktemp("runs") / "run", increments=INCREMENTS, per_class=30, recency=3.0))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two classes of task 1, one of task 2, one of task 3; four images each, and every answer is known."""
    first = ([0] * 4 + [1] * 4, [0, 0, 0, 1, 1, 1, 1, 1])
    second = (first[0] + [2] * 4, [0, 0, 2, 2, 1, 1, 1, 2, 2, 2, 2, 0])
    third = (second[0] + [3] * 4, [0, 3, 3, 3, 1, 1, 1, 0, 2, 2, 3, 3, 3, 3, 3, 2])
    return hand_made(tmp_path_factory.mktemp("three") / "run", (2, 1, 1), [first, second, third])


# ---------------------------------------------------------------- learnt, kept, lost


def test_changes_of_tasks_and_classes_in_closed_form(three):
    tasks, classes = analysis.changes_by_task(three), analysis.changes_by_class(three)
    assert tasks["learned"].tolist() == [87.5, 75, 75] and tasks["last"].tolist() == [50, 50, 75]
    assert tasks["forgetting"].tolist()[:2] == [37.5, 25] and np.isnan(tasks["forgetting"].iloc[2])
    assert classes["learned"].tolist() == [75, 100, 75, 75] and classes["last"].tolist() == [25, 75, 50, 75]
    assert classes["forgetting"].tolist()[:3] == [50, 25, 25]
    assert tasks[["reference", "intransigence"]].isna().all(axis=None)


def test_intransigence_finds_the_joint_runs_classes_by_name(tmp_path, three):
    names = ["class 3", "class 0", "class 2", "class 1"]  # learnt jointly, in another order
    joint = hand_made(tmp_path / "joint", (4,), [([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 1, 2, 2, 0, 0])], names=names)
    classes = analysis.changes_by_class(three, reference=joint)
    assert classes["reference"].tolist() == [100, 0, 100, 50]
    assert classes["intransigence"].tolist() == [25, -100, 25, -25]
    assert analysis.changes_by_task(three, reference=joint)["reference"].tolist() == [50, 100, 50]
    other = hand_made(tmp_path / "other", (1,), [([0], [0])], names=["a bird"])
    with pytest.raises(UserError, match="'class 0' is not in the reference"):
        analysis.changes_by_class(three, reference=other)


def test_intransigence_against_a_cumulative_run_is_the_metric(run):
    matrix = run.accuracy_of("raw")
    expected = metrics.intransigence_by_task(matrix, run.accuracy_of("aligned"))  # the reference's default head
    np.testing.assert_allclose(analysis.changes_by_task(run, "raw", reference=run)["intransigence"], expected)


def test_the_shared_numbers_are_those_of_the_run(run):
    long = analysis.matrix_table(analysis.matrices({"a": (run, "raw"), "b": (run, None)}))
    for arm, head in (("a", "raw"), ("b", "aligned")):
        matrix = run.accuracy_of(head).to_numpy()
        rows = long[long["arm"] == arm]
        np.testing.assert_allclose(matrix[rows["after_task"] - 1, rows["task"] - 1], rows["accuracy"])
    np.testing.assert_allclose(analysis.accuracy_by_class(run, "raw"), run.class_accuracy("raw"))


def test_a_table_of_arms_is_its_runs_one_below_the_other(run):
    arms = {"a": (run, "raw"), "b": (run, None)}
    whole = analysis.of_arms(analysis.recency_bias, arms)
    for arm, head in (("a", "raw"), ("b", "aligned")):
        part = whole[whole["arm"] == arm].drop(columns="arm").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, analysis.recency_bias(run, head))
    assert len(analysis.of_arms(analysis.feature_drift, arms, k=2)) == 6  # a table of features takes no head
    with pytest.raises(UserError, match="no arms"):
        analysis.of_arms(analysis.recency_bias, {})


# ---------------------------------------------------------------- flow


def test_flow_in_closed_form_says_who_took_whose_images_and_when(three):
    flow = analysis.class_flow(three).set_index(["after_task", "from_class", "to_class"])
    assert flow.loc[(2, "class 0", "class 2"), ["share", "gained"]].tolist() == [50, 50]
    assert flow.loc[(3, "class 0", "class 3"), ["share", "gained"]].tolist() == [75, 75]
    assert flow.loc[(3, "class 0", "class 2"), ["share", "gained"]].tolist() == [0, -50]  # and lost them again
    assert np.isnan(flow.loc[(2, "class 2", "class 0"), "gained"])  # it is new: nothing was there before
    thefts = analysis.top_thefts(flow.reset_index(), k=2)
    assert thefts["from_class"].tolist() == ["class 0", "class 0"] and thefts["to_task"].tolist() == [3, 2]
    tasks = analysis.task_flow(three).set_index(["after_task", "from_task", "to_task"])
    assert tasks.loc[(2, 1, 2), "share"] == 37.5 and tasks.loc[(3, 1, 3), "gained"] == 37.5


def test_class_flow_equals_loops_over_images(run):
    shares = {}
    for t in range(run.n_tasks):
        labels, predicted = run.labels(t), run.predictions(t, "raw")
        for c in set(labels.tolist()):
            for taker in set(predicted[labels == c].tolist()):
                share = 100 * sum(predicted[labels == c] == taker) / sum(labels == c)
                shares[t + 1, run.class_names[c], run.class_names[taker]] = share
    flow = analysis.class_flow(run, "raw")
    kept = flow[flow["share"] > 0].set_index(["after_task", "from_class", "to_class"])["share"]
    assert kept.to_dict() == pytest.approx(shares)
    before = {(t + 1, *names): share for (t, *names), share in shares.items()}
    for row in flow[flow["from_task"] < flow["after_task"]].itertuples():
        key = (row.after_task, row.from_class, row.to_class)
        assert row.gained == pytest.approx(shares.get(key, 0) - before.get(key, 0))


def test_shares_add_up(run):
    for table, names in ((analysis.class_flow, "from_class"), (analysis.task_flow, "from_task")):
        sums = table(run, "raw").groupby(["after_task", names])[["share", "gained"]].sum(min_count=1)
        np.testing.assert_allclose(sums["share"], 100)
        np.testing.assert_allclose(sums["gained"].dropna(), 0, atol=1e-9)


def test_nothing_is_taken_where_all_answers_are_right(tmp_path):
    perfect = hand_made(tmp_path / "run", (1, 1), [([0, 0], [0, 0]), ([0, 0, 1], [0, 0, 1])])
    assert not len(analysis.top_thefts(analysis.class_flow(perfect)))
    assert analysis.takers(perfect)["taken_by"].tolist() == ["", ""]


# ---------------------------------------------------------------- weights


def linear_run(folder, keep, n=400, dim=6):
    """Linear heads with known weights; the newest class's are twice as long."""
    random = np.random.default_rng(0)
    weights, labels = random.normal(size=(3, dim)), np.arange(n) % 3
    weights *= np.array([[1.0], [1.0], [2.0]]) / np.linalg.norm(weights, axis=1, keepdims=True)
    for t, seen in enumerate((2, 3)):
        features = random.normal(size=(n, dim)).astype(np.float32)
        logits = features @ weights[:seen].T + np.arange(seen)
        heads = {"raw": logits, "squared": logits**2}
        said = outputs.Outputs(np.arange(n), labels % seen, heads, features)
        outputs.write(folder / f"after_{t:02d}", said, [0, 0, 1], keep)
    settings = {"learner": "made", "heads": ["raw", "squared"], "default_head": "raw", "increments": [2, 1]}
    (folder / "run.json").write_text(json.dumps(settings | {"class_names": ["a", "b", "c"]}))
    return Run(folder)


@pytest.mark.parametrize("logits", [True, False], ids=["whole", "compact"])
def test_weights_are_found_from_features_and_logits(tmp_path, logits):
    run = linear_run(tmp_path / "run", Keep(logits=logits))
    table = analysis.weight_norms(run)
    np.testing.assert_allclose(table["norm"], [1, 1, 1, 1, 2], rtol=1e-5)
    assert (table["residual"] < 1e-5).all() and (table["why"] == "").all()
    assert analysis.recency_over_time(run)["norm_ratio"].tolist() == pytest.approx([2])
    assert analysis.norms_by_task(table)["norm"].tolist() == pytest.approx([1, 1, 2])


def test_weights_of_a_head_that_is_not_linear_or_of_too_few_images_are_not_said(tmp_path):
    table = analysis.weight_norms(linear_run(tmp_path / "run", Keep()), "squared")
    assert table["norm"].isna().all() and (table["why"] == "the head is not linear in the kept features").all()
    table = analysis.weight_norms(linear_run(tmp_path / "few", Keep(), n=7))
    assert table["norm"].isna().all() and (table["why"] == "7 images are too few for weights of 6 numbers").all()


def test_known_weights_come_back_exactly():
    random = np.random.default_rng(1)
    features, weights = random.normal(size=(200, 10)), random.normal(size=(4, 10))
    found, residual, why = analysis.linear_head(features, features @ weights.T + 3)
    np.testing.assert_allclose(found, weights, atol=1e-12)
    assert residual < 1e-12 and why == ""
    assert analysis.linear_head(features, random.normal(size=(200, 4)))[2]  # noise is not linear


# ---------------------------------------------------------------- head or representation


def test_cross_fitted_predictions_equal_fitting_each_fold_anew():
    from sklearn.covariance import oas

    random = np.random.default_rng(0)
    labels = np.sort(np.arange(90) % 3) * 5
    features = random.normal(size=(90, 4)) + np.eye(3, 4)[labels // 5] * 1.5 + 7
    found = analysis.cross_fitted(features, labels, folds=3, seed=1)
    from cilkit.analysis.knowing import _folds

    fold_of = _folds(labels // 5, 3, 1)
    assert all(np.bincount(fold_of[labels == c]).tolist() == [10, 10, 10] for c in (0, 5, 10))
    for f in range(3):
        held, x, y = fold_of == f, features[fold_of != f], labels[fold_of != f]
        means = np.stack([x[y == c].mean(0) for c in (0, 5, 10)])
        near = np.array([np.argmin([np.sum((one - mean) ** 2) for mean in means]) * 5 for one in features[held]])
        np.testing.assert_array_equal(found["nearest_mean"][held], near)
        # the covariance with its shrinkage by scikit-learn; the degrees of freedom only scale it
        covariance, _ = oas(x - means[y // 5], assume_centered=True)
        weights = np.linalg.solve(covariance, means.T)
        scores = features[held] @ weights - 0.5 * (means.T * weights).sum(0)
        assert np.mean(found["linear"][held] == scores.argmax(1) * 5) > 0.95


def test_cross_fitted_probes_are_at_chance_on_noise_though_it_could_be_learnt_by_heart():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(400, 100)), np.arange(400) % 4
    for predicted in analysis.cross_fitted(features, labels).values():
        assert 15 < 100 * np.mean(predicted == labels) < 35
    with pytest.raises(UserError, match="1 folds"):
        analysis.cross_fitted(features, labels, folds=1)


def test_a_head_that_forgot_stands_beside_features_that_did_not(run):
    table = analysis.head_and_representation(run, "raw")
    assert table["own_head"].tolist() == pytest.approx(analysis.accuracy_by_stage(run, "raw")["accuracy"].tolist())
    assert table["images"].tolist() == [60, 90, 180]
    assert table["crossfit_linear"].iloc[-1] > table["own_head"].iloc[-1] + 5
    beside = analysis.heads_beside_probes({"a": (run, "raw"), "b": (run, None)}, {"a": {"linear probe": 81.0}})
    assert beside.loc["a", "aligned head"] == beside.loc["b", "own head"] and beside.loc["a", "linear probe"] == 81
    assert beside.loc["b", ["aligned head", "linear probe"]].isna().all()


# ---------------------------------------------------------------- drift


def test_drift_of_stages_equals_the_pairwise_definitions(run):
    drift = analysis.feature_drift(run, k=2)
    for row in drift.itertuples():
        ids = [run.ids(row.earlier - 1), run.ids(row.later - 1)]
        shared, at_s, at_t = np.intersect1d(*ids, return_indices=True)
        x, y = run.features(row.earlier - 1)[at_s], run.features(row.later - 1)[at_t]
        assert row.images == len(shared) and row.cka == pytest.approx(analysis.linear_cka(x, y))
        angles = analysis.leading_angles(x, y, 2)
        assert [row.angle_mean, row.angle_largest] == pytest.approx([angles.mean(), angles.max()], abs=1e-4)
    matrix = analysis.drift_matrix(drift, "angle_mean")
    assert np.diag(matrix).tolist() == [0, 0, 0] and matrix.iloc[0, 2] == drift["angle_mean"][1]


def test_angles_do_not_see_shift_or_scale_and_see_a_rotation_by_its_angle():
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 4)) * [10, 5, 0.1, 0.1]
    assert analysis.leading_angles(x, 3 * x + 1, 2).max() < 1e-4
    turn = np.eye(4)
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn[[0, 0, 3, 3], [0, 3, 0, 3]] = cos, sin, -sin, cos  # the first direction leaves the plane by 30 degrees
    np.testing.assert_allclose(analysis.leading_angles(x, x @ turn, 2), [30, 0], atol=0.2)
    basis, _ = np.linalg.qr(random.normal(size=(4, 4)))  # both in another basis: nothing changes
    y = x @ turn
    np.testing.assert_allclose(analysis.leading_angles(x @ basis, y @ basis, 2), analysis.leading_angles(x, y, 2))


def test_class_means_equal_a_loop_over_classes(run):
    table = analysis.class_mean_drift(run).set_index(["class", "after_task"])
    for c, name in enumerate(run.class_names):
        first = run.task_of_class[c]
        start = run.features(first)[run.labels(first) == c].astype(float)
        now = run.features(2)[run.labels(2) == c].mean(0, dtype=float)
        moved = np.linalg.norm(now - start.mean(0))
        spread = np.sqrt(((start - start.mean(0)) ** 2).sum(1).mean())
        assert table.loc[(name, 3), ["drift", "relative"]].tolist() == pytest.approx([moved, moved / spread])


# ---------------------------------------------------------------- alignment, front, gaps, significance


def test_alignment_gains_are_the_differences_of_the_two_heads(run):
    by_task = analysis.alignment_by_task(run)
    gained = run.accuracy_of("aligned").iloc[-1].to_numpy() - run.accuracy_of("raw").iloc[-1].to_numpy()
    np.testing.assert_allclose(by_task["gained"], gained)
    by_stage = analysis.of_arms(analysis.alignment_by_stage, {"a": (run, None)})
    assert by_stage["after"].iloc[-1] == pytest.approx(run.summary("aligned")["last accuracy"])
    with pytest.raises(UserError, match="head 'smooth' is unknown"):
        analysis.alignment_by_task(run, after="smooth")


def test_stability_and_plasticity_are_the_metrics_and_the_front_is_not_beaten(run, three):
    table = analysis.stability_plasticity({"a": (run, "raw"), "b": (run, None)}, {"a": "lr 0.1"}).set_index("arm")
    matrix = run.accuracy_of("raw")
    assert table.loc["a", "plasticity"] == pytest.approx(metrics.learning_accuracy(matrix))
    assert table.loc["a", "stability"] == pytest.approx(100 - metrics.forgetting_max_before_last(matrix))
    assert table["label"].tolist() == ["lr 0.1", "b"] and table["on_front"].any()
    one = analysis.stability_plasticity({"x": (three, None)})
    assert one["last_on_old"].tolist() == [50] and one["on_front"].tolist() == [True]


def test_rank_correlations_say_when_there_are_too_few_arms():
    table = pd.DataFrame({"arm": list("abcdef"), "gap": [1, 2, 3, 4, 5, 6.0], "last accuracy": [9, 8, 7, 6, 5, 4.0]})
    table["flat"] = 1.0
    found = analysis.rank_correlations(table).set_index("figure")
    assert found.loc["gap", "spearman"] == -1 and found.loc["gap", "p"] == pytest.approx(2 / 720)
    assert found.loc["gap", "says"] == "n = 6: lower accuracy where it is larger"
    assert found.loc["flat", "says"] == "n = 6: one of the two does not vary"
    few = analysis.rank_correlations(table.head(3), ["gap"])
    assert few["says"].tolist() == ["n = 3: no conclusion"] and few["p"].isna().all()
    with pytest.raises(UserError, match="no column 'accuracy'"):
        analysis.rank_correlations(table, value="accuracy")


def test_exact_and_approximate_rank_correlation_agree_with_their_definitions():
    from scipy.stats import spearmanr

    random = np.random.default_rng(0)
    x, y = random.normal(size=5), random.normal(size=5)
    rank = spearmanr(x, y).statistic
    others = [abs(spearmanr(x, other).statistic) for other in permutations(y)]
    assert metrics.spearman(x, y) == pytest.approx((rank, np.mean(np.array(others) >= abs(rank) - 1e-9)))
    x, y = random.normal(size=12), random.normal(size=12)
    assert metrics.spearman(x, y) == pytest.approx((spearmanr(x, y).statistic, spearmanr(x, y).pvalue))


def test_signed_ranks_and_signs_by_hand():
    assert metrics.wilcoxon_p([1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 2**6)  # all ranks on one side
    assert metrics.wilcoxon_p([-1, 2, 3, 4, 5, 6]) == pytest.approx(4 / 2**6)  # rank sums 0 and 1, on two sides
    assert metrics.sign_test_p([1, 2, 3, 0.0]) == pytest.approx(2 / 2**3)  # a tie is left out
    assert np.isnan(metrics.wilcoxon_p([0, 0])) and np.isnan(metrics.sign_test_p([]))


def test_holm_by_hand():
    np.testing.assert_allclose(metrics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(metrics.holm([0.9, np.nan, 0.8]), [1.0, np.nan, 1.0])


def test_significance_pairs_class_orders_and_corrects_for_several_arms():
    random = np.random.default_rng(0)
    base = 50 + 10 * random.normal(size=8)  # orders matter more than arms
    better, same = base + 5 + 0.1 * np.arange(8), base + np.array([1, -1.1, 1.2, -1.3, 1.4, -1.5, 1.6, -1.7])
    rows = [(arm, order, value) for arm, values in (("base", base), ("better", better), ("same", same))
            for order, value in enumerate(values)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["arm", "order", "last accuracy"])
    found = analysis.significance(table.sample(frac=1, random_state=0), baseline="base").set_index("arm")
    interval = metrics.paired_interval(better, base)
    assert found.loc["better", ["low", "high"]].tolist() == pytest.approx([interval.low, interval.high])
    assert found.loc["better", "p_wilcoxon"] == pytest.approx(2 / 2**8)
    assert found.loc["better", "p_holm"] == pytest.approx(2 * 2 / 2**8)
    assert found.loc["better", "says"].startswith("better than base over 8 pairs (p = 0.016 after Holm")
    assert found.loc["same", "says"].startswith("no difference from base shown over 8 pairs")
    few = analysis.significance(table[table["order"] < 3], baseline="base").set_index("arm")
    assert few.loc["better", "says"].endswith("too few pairs for any other answer")
    with pytest.raises(UserError, match="baseline"):
        analysis.significance(table)


# ---------------------------------------------------------------- compact outputs, domains, no torch


NEW = [analysis.changes_by_task, analysis.changes_by_class, analysis.class_flow, analysis.task_flow]
NEW += [analysis.recency_over_time, analysis.weight_norms, analysis.head_and_representation]


@pytest.mark.parametrize("table", NEW, ids=lambda table: table.__name__)
def test_new_tables_come_out_of_compact_outputs_as_well(tmp_path, run, table):
    made = {"increments": INCREMENTS, "per_class": 30, "recency": 3.0, "keep": Keep(logits=False)}
    compact = Run(write_run(tmp_path / "compact", **made))
    pd.testing.assert_frame_equal(table(compact, head="raw"), table(run, head="raw"))


def test_a_domain_stream_has_no_flow_between_tasks(tmp_path):
    domains = Run(write_domain_run(tmp_path / "run"))
    assert analysis.changes_by_class(domains)["task"].tolist() == [1] * 4
    for table in (analysis.class_flow, analysis.task_flow, analysis.recency_over_time):
        with pytest.raises(UserError, match="share their classes|kept no features"):
            table(domains)


LIGHT = """
import sys
from cilkit import analysis, plots
from cilkit.runs import Run
run, folder = Run(sys.argv[1]), sys.argv[2]
arms, of = {"raw": (run, "raw"), "aligned": (run, None)}, analysis.of_arms
plots.save(plots.accuracy_heat_maps(analysis.matrices(arms)), folder, "maps")
plots.changes(of(analysis.changes_by_class, arms, reference=run), "class")
plots.theft_bars(analysis.top_thefts(analysis.class_flow(run, "raw")))
plots.flow_maps(analysis.task_flow(run, "raw"))
plots.recency_curves(of(analysis.recency_over_time, arms))
plots.weight_norms(analysis.norms_by_task(of(analysis.weight_norms, arms)))
plots.head_and_representation(of(analysis.head_and_representation, arms))
plots.feature_drift(of(analysis.feature_drift, arms))
plots.class_drift(of(analysis.class_mean_drift, arms))
plots.alignment(analysis.alignment_by_stage(run), analysis.alignment_by_task(run))
plots.calibration_curves(of(analysis.calibration_by_stage, arms))
front = analysis.stability_plasticity(arms)
plots.stability_plasticity(front)
analysis.rank_correlations(front, ["plasticity"], "last")
rows = analysis.curves(arms).rename(columns={"after_task": "order", "order": "none"})
plots.paired_differences(analysis.significance(rows, "accuracy", baseline="raw"), "accuracy")
heavy = [name for name in ("torch", "torchvision", "timm", "diffusers", "transformers") if name in sys.modules]
assert not heavy, heavy
"""


def test_all_of_it_needs_no_torch(run, tmp_path):
    command = [sys.executable, "-c", LIGHT, str(run.folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "Agg"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "maps.png").exists()
