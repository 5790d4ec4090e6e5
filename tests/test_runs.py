"""A run is read from its files alone, and what cannot be read is named."""

import numpy as np
import pytest
from fake_run import write_domain_run, write_run

from cilkit.errors import UserError
from cilkit.outputs import Keep
from cilkit.runs import Run


@pytest.fixture
def run(tmp_path):
    return Run(write_run(tmp_path / "run", increments=[2, 1]))


@pytest.fixture
def compact(tmp_path):
    return Run(write_run(tmp_path / "compact", increments=[2, 1], keep=Keep(logits=False, features=False)))


def test_settings_and_outputs(run):
    assert run.learner == "fake" and run.heads == ["raw", "aligned"] and run.n_tasks == 2
    assert run.task_of_class.tolist() == [0, 0, 1]
    first, last = run.all_outputs()
    assert first.seen == 2 and last.seen == 3
    assert set(first.labels) == {0, 1} and last.logits("raw").shape == (len(last), 3)
    assert last.features.shape == (len(last), 8)
    np.testing.assert_array_equal(run.outputs(-1).labels, last.labels)


def test_the_first_layout_has_its_defaults(run):
    """run.json without protocol, task names or backbone; no tasks.npy, no measured.json."""
    assert run.protocol == "class" and run.backbone_tag == "" and run.measured == {}
    assert run.task_names == ["task 1", "task 2"]
    np.testing.assert_array_equal(run.tasks_of(-1), run.task_of_class[run.labels(-1)])


def test_accuracy_is_that_of_the_outputs(run):
    matrix = run.accuracy_of("raw")
    last = run.outputs(1)
    right = last.predictions("raw") == last.labels
    assert matrix.loc["after task 2", "task 1"] == pytest.approx(100 * right[last.labels < 2].mean())
    assert np.isnan(matrix.loc["after task 1", "task 2"])
    assert run.accuracy.equals(run.accuracy_of("aligned"))
    assert run.summary("raw")["last accuracy"] == pytest.approx(100 * right.mean())
    assert run.counts.tolist() == [40, 20]
    np.testing.assert_allclose(run.class_accuracy("raw")[1, :2].mean(), matrix.iloc[1, 0])


def test_compact_outputs_tell_the_same(run, compact):
    for head in run.heads:
        assert compact.accuracy_of(head).equals(run.accuracy_of(head))
        assert compact.accuracy_of(head, task_known=True).equals(run.accuracy_of(head, task_known=True))
        assert compact.summary(head) == run.summary(head)
        for t in range(2):
            whole, kept = run.scores(t, head), compact.scores(t, head)
            for name in whole.__dataclass_fields__:
                np.testing.assert_array_equal(getattr(kept, name), getattr(whole, name), err_msg=name)
            np.testing.assert_array_equal(compact.predictions(t, head), run.outputs(t).predictions(head))


def test_what_a_compact_run_did_not_keep_is_said(compact):
    with pytest.raises(UserError, match=r"kept compact scores instead of logits after task 2; take scores\(1, head\)"):
        compact.outputs(-1)
    with pytest.raises(UserError, match="kept no features"):
        compact.features(0)


def test_the_task_incremental_score_chooses_among_the_own_tasks_classes(run):
    last, known = run.outputs(-1), run.predictions(-1, "raw", task_known=True)
    assert (run.task_of_class[known] == run.task_of_class[last.labels]).all()
    assert (known[last.labels == 2] == 2).all()  # a task of one class
    assert run.accuracy_of("raw", task_known=True).loc["after task 2", "task 2"] == 100


@pytest.mark.parametrize("compact", [False, True])
def test_a_domain_incremental_run_is_scored_by_the_images_domains(tmp_path, compact):
    run = Run(write_domain_run(tmp_path / "run", compact=compact))
    full, shown = run.accuracy_of("softmax", future=True), run.accuracy
    assert not full.isna().any().any() and np.isnan(shown.to_numpy()[np.triu_indices(3, 1)]).all()
    predicted, labels = run.predictions(1, "softmax"), run.labels(1)
    of_third = run.tasks_of(1) == 2
    assert full.iloc[1, 2] == pytest.approx(100 * np.mean(predicted[of_third] == labels[of_third]))
    learnt = ~of_third
    accuracy = run.class_accuracy("softmax")[1]
    assert accuracy.mean() == pytest.approx(100 * np.mean(predicted[learnt] == labels[learnt]))
    assert run.counts.tolist() == [24] * 3 and run.protocol == "domain" and run.backbone_tag == "vit_tiny.made_up"
    assert run.task_names[1] == "task 2: domain 1" and run.measured["phases"]["train"]["calls"] == 3
    with pytest.raises(UserError, match="share their classes"):
        run.accuracy_of("softmax", task_known=True)


def test_features_are_optional(run):
    (run.folder / "after_00" / "features.npy").unlink()
    assert run.outputs(0).features is None and run.outputs(1).features is not None


def test_what_is_unreadable_is_named(run):
    with pytest.raises(UserError, match="head 'softmax' is unknown; this run has raw, aligned"):
        run.accuracy_of("softmax")
    with pytest.raises(UserError, match="head 'softmax' is unknown; these outputs have raw, aligned"):
        run.outputs(0).predictions("softmax")
    path = run.folder / "after_01" / "logits_raw.npy"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"logits_raw\.npy cannot be read"):
        run.outputs(1)
    with pytest.raises(UserError, match="not a finished run"):
        Run(run.folder / "after_01")
