"""Deep generative replay: what its painter learns from, who labels, what is kept."""

import numpy as np
import pytest
import tiny
import torch
from tiny import learn

from cilkit import incremental, learners
from cilkit.errors import Stopped, UserError
from cilkit.synthesis.classwise import Classwise

SMALL = {"steps": 3, "batch": 4, "lr": 1e-3, "width": 8, "size": 8, "sampling": 2, "ema": 0.5}


class Noting(tiny.Painter):
    """Notes what it is asked."""

    def __init__(self):
        super().__init__()
        self.fitted, self.painted = [], []

    def fit(self, sets, names, seed):
        self.fitted.append(([(one, one.labels.tolist()) for one in sets], list(names), seed))
        super().fit(sets, names, seed)

    def paint(self, names, per_class, seed):
        self.painted.append((list(names), per_class, seed))
        return super().paint(names, per_class, seed)


def create(painter, name="lwf", **changes):
    settings = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "painted_per_class": 5} | changes
    return learners.create(f"{name}+generative_replay", tiny.backbone(), images=painter, **settings)


def start_second_task(stream, name="lwf", **changes):
    learner = learn(create(tiny.Painter(), name, **changes), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    return learner


@pytest.mark.parametrize("name", ["lwf", "icarl"])
def test_without_weight_it_is_the_learner_bit_for_bit(stream, name):
    plain, plugged = tiny.case(name), tiny.case(f"{name}+generative_replay", a=0.0)
    losses = [[moment.losses for task in stream for moment in one.learn(task)] for one in (plain, plugged)]
    assert losses[0] == losses[1] and len(plugged.images.means) == 0
    ours, theirs = plugged.state(), plain.state()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert plugged.declared(stream) == plain.declared(stream) and plugged.stored_bytes() == plain.stored_bytes()


def test_the_painter_learns_each_task_and_its_own_samples_of_the_classes_before(stream):
    painter = Noting()
    learner = learn(create(painter), stream)
    real = {image.tobytes() for image in stream.train.images()}
    for task, (sets, names, _) in zip(stream, painter.fitted, strict=True):
        assert names == stream.class_names[: task.seen]  # and none of those to come
        new, *old = sets
        assert {image.tobytes() for image in new[0].images()} == {image.tobytes() for image in task.train.images()}
        assert len(old) == (1 if task.index else 0)
        for samples, labels in old:
            assert labels == np.repeat(np.arange(task.seen - 2), 5).tolist()
            assert not real & {image.tobytes() for image in samples.images()}
    assert [(names, each) for names, each, _ in painter.painted] == [
        (stream.class_names[:2], 5),
        (stream.class_names[:4], 5),
    ]
    assert len({seed for *_, seed in painter.painted + painter.fitted}) == 5  # never one chance for two things
    assert learner.stored_bytes() == {"generator": 6 * 16 * 16 * 3 * 4}


def test_labels_are_the_classes_asked_for_or_what_the_network_before_answers(stream):
    asked, answered = (start_second_task(stream, labels=labels) for labels in ("condition", "solver"))
    batches = [next(one.batches(stream[1], 0)) for one in (asked, answered)]
    assert torch.equal(batches[0].extra.images, batches[1].extra.images)
    with torch.no_grad():  # so that the solver does not say what was asked for
        for one in (asked, answered):
            one.teacher.heads.tasks[0].bias.copy_(torch.tensor([-100.0, 100.0]))
            one.raw.tasks[0].weight.normal_(generator=torch.Generator().manual_seed(0))
            one.backbone.eval()

    def replayed(one, batch, labels):
        logits = one.raw(one.embed(batch.extra.images, "student"))
        return torch.nn.functional.cross_entropy(logits, labels)

    own, ones = batches[0].extra.labels, torch.ones(8, dtype=torch.int64)
    assert own.tolist() != ones.tolist()
    for one, batch, labels in ((asked, batches[0], own), (answered, batches[1], ones)):
        torch.testing.assert_close(one.loss(batch)["replay"], replayed(one, batch, labels))


def test_the_solvers_passes_are_declared(stream):
    learner = learn(create(tiny.Painter(), labels="solver", b=1.0), stream)
    assert learner.declared(stream)["teacher"] == learner.backbone.forwarded["teacher"] == 2 * 2 * 16 * 3


def test_with_a_real_diffusion_model_a_killed_run_ends_in_the_same_bytes(stream, tmp_path):
    def made():
        return create(Classwise(**SMALL))

    def stop(moment):
        raise KeyboardInterrupt

    incremental.run_stream(made(), stream, tmp_path / "whole")
    for _ in range(20):
        try:
            folders = {"folder": tmp_path / "part", "scratch": tmp_path / "scratch"}
            last = made()
            incremental.run_stream(last, stream, **folders, on_moment=stop, every=0)
            break
        except Stopped:
            pass
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in files:
        assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    weights = sum(p.numel() for p in last.images.network.parameters())
    assert last.stored_bytes()["generator"] == 4 * weights + 3 * 8  # and its three sizes


def test_what_does_not_go_is_one_sentence():
    for wrong, sentence in [
        ({"labels": "teacher"}, "labels is 'teacher'"),
        ({"repaint": False}, "paints old classes itself"),
        ({"source": "unlabelled", "a": 0.0}, "unlabelled images serve"),
        ({"painter_steps": 0}, "painter_steps is 0"),
    ]:
        with pytest.raises(UserError, match=sentence):
            learners.settings("lwf+generative_replay", wrong)
    with pytest.raises(UserError, match="loss in two halves"):
        learners.settings("ewc+generative_replay", {})
    with pytest.raises(UserError, match="needs images"):
        create(None)
    with pytest.raises(UserError, match="a painter that learns"):
        create(type("Fixed", (), {"paint": None})())
    with pytest.raises(UserError, match="labels is 'solver'; set it to 'condition'"):
        tiny.case("mae_cil+generative_replay", labels="solver")
