"""A run is read from its files alone, and what cannot be read is named."""

import numpy as np
import pytest
from fake_run import write_run

from cilkit.errors import UserError
from cilkit.runs import Run


@pytest.fixture
def run(tmp_path):
    return Run(write_run(tmp_path / "run", increments=[2, 1]))


def test_settings_and_outputs(run):
    assert run.learner == "fake" and run.heads == ["raw", "aligned"] and run.n_tasks == 2
    assert run.task_of_class.tolist() == [0, 0, 1]
    first, last = run.all_outputs()
    assert first.seen == 2 and last.seen == 3
    assert set(first.labels) == {0, 1} and last.logits("raw").shape == (len(last), 3)
    assert last.features.shape == (len(last), 8)
    np.testing.assert_array_equal(run.outputs(-1).labels, last.labels)


def test_accuracy_is_that_of_the_outputs(run):
    matrix = run.accuracy_of("raw")
    last = run.outputs(1)
    right = last.predictions("raw") == last.labels
    assert matrix.loc["after task 2", "task 1"] == pytest.approx(100 * right[last.labels < 2].mean())
    assert np.isnan(matrix.loc["after task 1", "task 2"])
    assert run.accuracy.equals(run.accuracy_of("aligned"))
    assert run.summary("raw")["last accuracy"] == pytest.approx(100 * right.mean())
    assert run.counts.tolist() == [40, 20]


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
