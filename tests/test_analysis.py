"""Analysis: shares add up, tables agree with the metrics, and closed forms of drift, similarity and gap."""

import numpy as np
import pandas as pd
import pytest
from fake_run import write_domain_run, write_run

from cilkit import analysis, metrics, probes
from cilkit.errors import UserError
from cilkit.outputs import Keep
from cilkit.runs import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(write_run(tmp_path_factory.mktemp("runs") / "run", increments=(2, 2, 2), recency=4.0))


def test_forgetting_tables_agree_with_the_metrics(run):
    table = analysis.forgetting_by_task(run, "raw")
    matrix = run.accuracy_of("raw")
    assert table["forgetting_max_before_last"].mean() == pytest.approx(metrics.forgetting_max_before_last(matrix))
    assert table["forgetting_first"].mean() == pytest.approx(metrics.forgetting_first(matrix))
    np.testing.assert_allclose(table["learned"], np.diag(matrix)[:-1])


def test_class_accuracies_average_to_task_accuracies(run):
    by_class = analysis.accuracy_by_class(run, "raw")  # every class has equally many test images
    matrix = run.accuracy_of("raw").to_numpy()
    np.testing.assert_allclose(by_class.to_numpy()[:, [0, 1]].mean(1), matrix[:, 0])
    np.testing.assert_allclose(by_class.to_numpy()[:, [2, 3]].mean(1)[1:], matrix[1:, 1])
    table = analysis.forgetting_by_class(run, "raw")
    assert table["class"].tolist() == run.class_names and table["task"].tolist() == [1, 1, 2, 2, 3, 3]
    assert table["forgetting_max_before_last"].isna().tolist() == [False] * 4 + [True] * 2


def test_groups_are_means_over_their_classes(run):
    groups = {name: "foreseen" if c < 2 else "unforeseen" for c, name in enumerate(run.class_names)}
    table = analysis.accuracy_by_group(run, groups).set_index("group")
    last = analysis.accuracy_by_class(run).to_numpy()[-1]
    assert table.loc["foreseen", "last"] == pytest.approx(last[:2].mean())
    assert table.loc["unforeseen", "classes"] == 4
    with pytest.raises(UserError, match="'class 5' belongs to no group"):
        analysis.accuracy_by_group(run, dict.fromkeys(run.class_names[:-1], "x"))


def test_fates_add_up_and_the_correct_share_is_the_accuracy_on_old_tasks(run):
    flow = analysis.confusion_flow(run, "raw")
    np.testing.assert_allclose(flow[list(analysis.FATES)].sum(axis=1), 100)
    matrix = run.accuracy_of("raw").to_numpy()
    np.testing.assert_allclose(flow["correct"], [matrix[1, 0], matrix[2, :2].mean()])
    between = analysis.confusion_between_tasks(run, head="raw")
    np.testing.assert_allclose(between.sum(axis=1), 100)
    newest = between.loc[["task 1", "task 2"], "task 3"].mean()
    assert flow["a class of the newest task"].iloc[-1] == pytest.approx(newest)


def test_a_head_that_prefers_new_classes_is_found_out(run):
    raw, aligned = analysis.recency_bias(run, "raw"), analysis.recency_bias(run, "aligned")
    assert (raw["bias"] > aligned["bias"] + 5).all()
    # `write_run` lowers the raw logits of old classes by 4 points a task
    assert raw["logit_gap"].iloc[0] == pytest.approx(aligned["logit_gap"].iloc[0] + 4.0, abs=1e-3)


def test_takers_name_another_class(run):
    table = analysis.takers(run, "raw")
    assert (table["class"] != table["taken_by"]).all()
    assert ((table["share"] > 0) == (table["taken_by"] != "")).all()
    assert (table["last"] + table["share"] <= 100 + 1e-9).all()


def test_learning_curve_is_the_accuracy_on_all_images_seen(run):
    curve = analysis.accuracy_by_stage(run, "raw")
    outputs = run.outputs(1)
    assert curve["classes_seen"].tolist() == [2, 4, 6]
    assert curve["accuracy"][1] == pytest.approx(100 * np.mean(outputs.predictions("raw") == outputs.labels))


def test_knowing_the_task_never_hurts(run):
    table = analysis.task_known(run, "raw")
    assert (table["accuracy_task_known"] >= table["accuracy"]).all()
    assert table["accuracy_task_known"].iloc[0] == table["accuracy"].iloc[0]


def test_drift_is_the_shift_that_was_put_in(run):
    """`write_run` moves all features of stage t by one vector, so every class drifts by the same distance."""
    table = analysis.class_mean_drift(run)
    assert (table.loc[table["after_task"] == table["task"], "drift"] == 0).all()
    last = table[(table["task"] == 1) & (table["after_task"] == 3)]
    first, final = run.outputs(0), run.outputs(2)
    _, at_first, at_final = np.intersect1d(first.ids, final.ids, return_indices=True)
    shift = np.linalg.norm(final.features[at_final[0]] - first.features[at_first[0]])
    np.testing.assert_allclose(last["drift"], shift, rtol=1e-4)
    similarity = analysis.feature_similarity(run)
    np.testing.assert_allclose(similarity, 1.0, atol=1e-5)  # CKA does not see a shift


def test_linear_cka_ignores_rotation_and_scale_only():
    random = np.random.default_rng(0)
    x = random.normal(size=(50, 4))
    rotation, _ = np.linalg.qr(random.normal(size=(4, 4)))
    assert analysis.linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert analysis.linear_cka(x, random.normal(size=(50, 4))) < 0.5


def test_drift_without_features_says_so(tmp_path):
    run = Run(write_run(tmp_path / "run"))
    for path in run.folder.glob("*/features.npy"):
        path.unlink()
    with pytest.raises(UserError, match="kept no features"):
        analysis.class_mean_drift(run)


def test_arms_are_compared_on_the_orders_they_share():
    table = pd.DataFrame(
        {
            "arm": ["none"] * 3 + ["foreseen"] * 4,
            "order": [1993, 1996, 1997, 1993, 1996, 1997, 1998],
            "last": [10.0, 30.0, 50.0, 12.0, 32.0, 52.0, 99.0],
        }
    )
    compared = analysis.compare_arms(table, "last", baseline="none").set_index("arm")
    assert compared.loc["foreseen", "difference"] == 2.0
    assert compared.loc["foreseen", "difference_half_width"] == pytest.approx(0.0)
    assert compared.loc["foreseen", "orders"] == 4 and compared.loc["none", "difference"] == 0.0
    with pytest.raises(UserError, match="baseline 'nothing'"):
        analysis.compare_arms(table, "last", baseline="nothing")


# ---------------------------------------------------------------- compact outputs, how sure, what it cost


TABLES = [
    analysis.forgetting_by_task,
    analysis.accuracy_by_class,
    analysis.forgetting_by_class,
    analysis.accuracy_by_stage,
    analysis.confusion_flow,
    analysis.confusion_between_classes,
    analysis.recency_bias,
    analysis.takers,
    analysis.task_known,
    analysis.reliability,
    analysis.calibration_by_stage,
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_table_comes_out_of_compact_outputs_as_well(tmp_path, run, table):
    kept = {"increments": (2, 2, 2), "recency": 4.0, "keep": Keep(logits=False)}
    compact = Run(write_run(tmp_path / "compact", **kept))
    pd.testing.assert_frame_equal(table(compact, head="raw"), table(run, head="raw"))


def test_drift_and_confusion_between_tasks_of_compact_outputs(tmp_path, run):
    compact = Run(write_run(tmp_path / "compact", increments=(2, 2, 2), recency=4.0, keep=Keep(logits=False)))
    pd.testing.assert_frame_equal(analysis.class_mean_drift(compact), analysis.class_mean_drift(run))
    pd.testing.assert_frame_equal(analysis.feature_similarity(compact), analysis.feature_similarity(run))
    pd.testing.assert_frame_equal(analysis.confusion_between_tasks(compact), analysis.confusion_between_tasks(run))


def test_confusion_between_classes_has_the_accuracies_on_its_diagonal(run):
    for t in range(3):
        table = analysis.confusion_between_classes(run, t, "raw")
        np.testing.assert_allclose(table.sum(axis=1), 100)
        np.testing.assert_allclose(np.diag(table), analysis.accuracy_by_class(run, "raw").iloc[t, : len(table)])


def test_calibration_over_time_agrees_with_the_reliability_table(run):
    table, bins = analysis.calibration_by_stage(run, "raw"), analysis.reliability(run, 1, "raw")
    gaps = bins["images"] * (bins["accuracy"] - bins["confidence"]).abs()
    assert table["calibration_error"][1] == pytest.approx(gaps.sum() / len(run.labels(1)))
    assert table["top_5_accuracy"].iloc[:2].tolist() == [100, 100]  # two and four classes


def test_a_domain_stream_has_tables_of_classes_but_none_of_the_predictions_task(tmp_path):
    run = Run(write_domain_run(tmp_path / "run"))
    assert analysis.curves({"a": (run, None)}, 1993)["after_task"].tolist() == [1, 2, 3]
    assert analysis.forgetting_by_task(run)["learned"].tolist() == np.diag(run.accuracy)[:-1].tolist()
    assert analysis.accuracy_by_class(run).notna().all().all()
    for table in (analysis.confusion_flow, analysis.confusion_between_tasks, analysis.recency_bias):
        with pytest.raises(UserError, match="share their classes"):
            table(run)
    assert analysis.phases({"a": run}).to_dict("records") == [
        {"arm": "a", "phase": "train", "seconds": 2.5, "peak_bytes": 1000, "calls": 3}
    ]


# ---------------------------------------------------------------- probes


def blobs(n=200, dim=6, shift=0.0, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return random.normal(size=(n, dim)) + 3 * np.eye(3, dim)[labels] + shift, labels


def test_nearest_class_mean_and_lda_equal_the_slow_forms():
    (train, labels), (test, _) = blobs(), blobs(seed=1)
    means = np.stack([train[labels == c].mean(0) for c in range(3)])
    slow = [np.argmin([np.sum((x - mean) ** 2) for mean in means]) for x in test]
    np.testing.assert_array_equal(probes.nearest_class_mean(train, labels, test), slow)

    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(3, 1 / 3)).fit(train, labels)
    assert np.mean(probes.shrinkage_lda(train, labels, test) == theirs.predict(test)) > 0.98


def test_probes_see_through_a_rotation_that_hides_classes_from_the_nearest_mean():
    train, labels = blobs(600)
    test, test_labels = blobs(600, seed=1)
    stretch = np.diag([1, 1, 1, 30, 30, 30])  # noise that dwarfs the classes
    scores = probes.probe_scores(train @ stretch, labels, test @ stretch, test_labels)
    assert scores["nearest class mean"] < 80 < 90 < min(scores["shrinkage LDA"], scores["linear probe"])
    assert list(probes.probe_scores(train, labels, test, test_labels, linear=False)) == [
        "nearest class mean",
        "shrinkage LDA",
    ]


def test_labels_keep_their_numbers():
    train, labels = blobs()
    assert set(probes.shrinkage_lda(train, labels * 10 + 5, train)) == {5, 15, 25}


def test_domain_gap_of_equal_and_shifted_sets():
    same, _ = blobs(400, seed=0)
    gap = analysis.domain_gap(same, same.copy())
    assert gap["frechet"] == pytest.approx(0, abs=1e-6) and gap["mean_shift"] == 0 and gap["variance_ratio"] == 1
    shifted = analysis.domain_gap(same, same + 2.0)
    assert shifted["frechet"] == pytest.approx(6 * 4.0)  # a pure shift: |m1 - m2|^2
    assert shifted["telling_them_apart"] > 95
    other, _ = blobs(400, seed=3)
    assert 35 < analysis.domain_gap(same, other)["telling_them_apart"] < 65
    with pytest.raises(UserError, match="6 and 5 numbers"):
        analysis.domain_gap(same, same[:, :5])


def test_projection_keeps_the_sets_apart():
    same, _ = blobs()
    points = analysis.projection(same, same + 10)
    middle = points.groupby("set")[["x", "y"]].mean()
    np.testing.assert_allclose(middle.loc["real"], 0, atol=1e-9)
    assert len(points) == 400 and np.abs(middle.loc["synthetic"]).max() > 1


def test_image_statistics_of_known_images():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1, :, ::2] = 255  # white and black columns
    table = analysis.image_statistics(images)
    assert table.loc[0].tolist() == [0, 0, 0, 0]
    assert table.loc[1].tolist() == pytest.approx([0.5, 0.5, 0.0, 0.5])
