"""Outputs whole and compact: compact scores equal their definitions, and the cap decides what is kept."""

import numpy as np
import pytest

from cilkit import outputs
from cilkit.errors import UserError
from cilkit.outputs import Keep, Outputs, Scores

TASKS = np.repeat([0, 1, 2, 3], [10, 20, 4, 6])


def case(n=300, ties=True, seed=0):
    random = np.random.default_rng(seed)
    logits = (3 * random.normal(size=(n, len(TASKS)))).astype(np.float32)
    return (logits.round(0) if ties else logits), random.integers(0, len(TASKS), n)


@pytest.fixture
def answers():
    logits, labels = case()
    features = np.random.default_rng(1).normal(size=(len(labels), 5)).astype(np.float32)
    return Outputs(np.arange(len(labels))[::-1], labels, {"raw": logits, "aligned": logits * 2}, features)


@pytest.mark.parametrize("ties", [True, False])
def test_scores_equal_their_definitions_image_by_image(ties):
    logits, labels = case(ties=ties)
    scores = Scores.of(logits, labels, TASKS)
    for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))  # equal logits by class number
        p = np.exp(row.astype(float)) / np.exp(row.astype(float)).sum()
        assert scores.predictions[i] == row.argmax() == order[0]
        assert scores.rank[i] == order.index(label)
        assert scores.top[i].tolist() == order[:16] and scores.top_logits[i].tolist() == row[order[:16]].tolist()
        assert scores.true_probability[i] == pytest.approx(p[label], rel=1e-12)
        assert scores.confidence[i] == pytest.approx(p.max(), rel=1e-12)
        assert scores.square_sum[i] == pytest.approx((p**2).sum(), rel=1e-12)
        for task in range(4):
            columns = np.flatnonzero(task == TASKS)
            assert scores.block_max[i, task] == row[columns].max()
            assert scores.block_argmax[i, task] == columns[row[columns].argmax()]
    np.testing.assert_array_equal(scores.correct, logits.argmax(1) == labels)


def test_large_logits_neither_overflow_nor_lose_the_likelihood():
    scores = Scores.of(np.array([[1e4, 1e4 - 1], [-3e5, -3e5 - 20]], np.float32), np.array([1, 1]), [0, 0])
    np.testing.assert_allclose(scores.log_sum_exp - scores.true_logit, [1 + np.log1p(np.exp(-1)), 20], rtol=1e-8)


def test_scores_do_not_depend_on_the_pieces_they_are_made_in():
    classes = 40_000  # pieces of 105 images
    logits, labels = np.random.default_rng(0).normal(size=(110, classes)).astype(np.float32), np.arange(110)
    whole, end = (Scores.of(logits[at:], labels[at:], np.zeros(classes, int)) for at in (0, 100))
    for name in Scores.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(whole, name)[100:], getattr(end, name), err_msg=name)
    logits, labels = case()
    few = Scores.of(logits[:, :3], labels % 3, TASKS)  # fewer classes than the top 16
    assert few.top.shape == (300, 3) and few.block_max.shape == (300, 1)


def test_scores_come_back_from_their_file_unchanged(tmp_path):
    logits, labels = case()
    scores = Scores.of(logits, labels, TASKS)
    path = scores.save(tmp_path, "raw")
    found = Scores.load(tmp_path, "raw")
    for name in Scores.__dataclass_fields__:
        before, after = getattr(scores, name), getattr(found, name)
        assert before.dtype == after.dtype, name
        np.testing.assert_array_equal(before, after, err_msg=name)
    row = 2 + 2 + 4 + 8 + 8 + 16 * (2 + 4) + 4 * (2 + 4)  # bytes an image, classes in two each
    assert 0 <= path.stat().st_size - row * len(scores) < 1024  # numpy's header


def test_more_classes_than_two_bytes_can_name(tmp_path):
    logits = np.zeros((2, 70_000), np.float32)
    logits[:, 69_999] = 1
    Scores.of(logits, np.array([69_999, 0]), np.zeros(70_000, int)).save(tmp_path, "raw")
    found = Scores.load(tmp_path, "raw")
    assert found.predictions.tolist() == [69_999, 69_999] and found.rank.tolist() == [0, 1]


@pytest.mark.parametrize("logits_kept", [True, False])
def test_what_is_written_is_read_back(tmp_path, answers, logits_kept):
    outputs.write(tmp_path, answers, TASKS, Keep(logits=logits_kept, features=logits_kept))
    found = outputs.read(tmp_path, ["raw", "aligned"])
    np.testing.assert_array_equal(found.ids, answers.ids)
    np.testing.assert_array_equal(found.labels, answers.labels)
    assert found.tasks is None and (found.features is not None) == logits_kept
    assert list(found.heads) == (["raw", "aligned"] if logits_kept else [])
    names = {path.name for path in tmp_path.iterdir()}
    assert ("scores_raw.npy" in names) != ("logits_raw.npy" in names)
    if logits_kept:
        np.save(tmp_path / "plain.npy", answers.logits("raw"))  # the first layout, byte for byte
        assert (tmp_path / "plain.npy").read_bytes() == (tmp_path / "logits_raw.npy").read_bytes()


def test_tasks_are_written_where_they_do_not_follow_from_the_class(tmp_path, answers):
    domains = np.arange(len(answers)) % 3
    outputs.write(tmp_path, Outputs(answers.ids, answers.labels, answers.heads, None, domains), [0] * 40, Keep())
    np.testing.assert_array_equal(outputs.read(tmp_path, ["raw"]).tasks, domains)


def test_the_plan_counts_the_bytes_that_are_written(tmp_path, answers):
    for kept in ((), ("logits",), ("logits", "features")):
        folder = tmp_path / "-".join(("kept", *kept))
        keep = outputs.plan([len(answers)], [40], heads=2, dim=5, backbone_bytes=0, cap=0, keep=kept)
        one_task = np.zeros(40, int)
        outputs.write(folder, answers, one_task, keep)
        files = [path for path in folder.iterdir() if path.suffix == ".npy"]
        assert (keep.logits, keep.features) == ("logits" in kept, "features" in kept)
        assert 0 <= sum(path.stat().st_size for path in files) - keep.bytes < 1024 * len(files)


def test_the_plan_keeps_what_fits_and_what_is_asked_for():
    small = outputs.plan([100, 200], [2, 4], heads=2, dim=64, backbone_bytes=10**6)
    assert (small.logits, small.features, small.backbone) == (True, True, True)
    imagenet = [5000 * (t + 1) for t in range(10)], [100 * (t + 1) for t in range(10)]
    for heads in (1, 2, 3):
        keep = outputs.plan(*imagenet, heads, dim=768, backbone_bytes=343_000_000)
        assert not (keep.logits or keep.features or keep.backbone) and keep.bytes <= outputs.CAP
    asked = outputs.plan(*imagenet, 1, dim=768, backbone_bytes=343_000_000, keep=["features"])
    assert asked.features and not asked.logits and asked.bytes > outputs.CAP
    few = outputs.plan([10], [2], heads=1, dim=8, backbone_bytes=10**9, keep=["backbone", "backbone"])
    assert few.backbone and few.logits and few.features and few.bytes < 10**9 + 10**4  # what is asked for costs no cap
    late = outputs.plan([10], [2], heads=1, dim=10**9, backbone_bytes=10)  # features do not fit, the backbone does
    assert late.logits and not late.features and late.backbone
    with pytest.raises(UserError, match="'logit' cannot be kept; choose among logits, features, backbone"):
        outputs.plan([10], [2], 1, 8, 0, keep=["logit"])


def test_an_unknown_head_is_named(answers):
    with pytest.raises(UserError, match="head 'softmax' is unknown; these outputs have raw, aligned"):
        answers.predictions("softmax")
