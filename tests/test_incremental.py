import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import tiny
import torch

from cilkit import backbones, incremental, learners
from cilkit.errors import Stopped, UserError
from cilkit.runs import Run

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05}
LEARNERS = {
    "finetune": SMALL,
    "slow_learner": {**SMALL, "slow_rate": 0.0},
    "slca": SMALL,
    "nearest_mean": {},
    "icarl": {**SMALL, "total": 10},
    "synthetic_replay": {**SMALL, "per_class": 3, "ratio": 0.6, "a": 0.0},
}


def create(name, seed=0, **hyper):
    images = {"images": tiny.image_set(seed=7)} if name == "synthetic_replay" else {}
    return learners.create(name, tiny.backbone(seed), seed=seed, **images, **{**LEARNERS[name], **hyper})


def payload(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stream():
    return tiny.stream()


@pytest.mark.parametrize("name", LEARNERS)
def test_an_interrupted_run_ends_in_the_same_bytes(stream, tmp_path, name):
    incremental.run_stream(create(name), stream, tmp_path / "whole")
    for after in range(3):  # interrupted in every task, and at once after the last
        learner = create(name)
        predict, calls = learner.predict, []

        def stop(images, predict=predict, calls=calls, after=after):
            calls.append(images)
            if len(calls) == min(after, 1) + 1:
                raise KeyboardInterrupt
            return predict(images)

        learner.predict = stop
        with pytest.raises(Stopped, match=f"interrupted in task {after + 1} of 3; {after} finished"):
            incremental.run_stream(learner, stream, tmp_path / "part", scratch=tmp_path / "scratch")
    outputs = incremental.run_stream(create(name), stream, tmp_path / "part", scratch=tmp_path / "scratch")
    assert payload(tmp_path / "part") == payload(tmp_path / "whole")
    assert [len(after) for after in outputs] == [10, 20, 30]


@pytest.mark.parametrize("kind", ["tasks", "joint", "cumulative", "uneven", "part"])
@pytest.mark.parametrize("name", LEARNERS)
def test_the_images_forwarded_are_those_declared(name, kind):
    stream = tiny.stream(increments=[1, 3, 2]) if kind == "uneven" else tiny.stream()
    stream = {"joint": stream.joint, "cumulative": stream.cumulative}.get(kind, lambda: stream)()
    stream = stream[:2] if kind == "part" else stream
    learner = create(name)
    incremental.run_stream(learner, stream, None)
    assert Counter(learner.declared(stream)) == learner.backbone.forwarded


def test_the_run_on_disk_is_what_the_outputs_say(stream, tmp_path):
    learner = create("slca")
    outputs = incremental.run_stream(learner, stream, tmp_path)
    run = Run(tmp_path)
    assert (run.learner, run.heads, run.default_head) == ("slca", ["raw", "aligned"], "aligned")
    assert run.class_names == stream.class_names and run.increments == [2, 2, 2]
    for t, expected in enumerate(outputs):
        found = run.outputs(t)
        assert np.array_equal(found.features, expected.features) and np.array_equal(found.labels, expected.labels)
        assert np.array_equal(stream.benchmark.test.images(found.ids), stream.test_after(stream[t]).images())
        assert all(np.array_equal(found.heads[head], expected.heads[head]) for head in run.heads)
    for head in run.heads:
        lines = (tmp_path / f"accuracy_{head}.csv").read_text().splitlines()[1:]
        table = np.array([[float(cell or "nan") for cell in line.split(",")[1:]] for line in lines])
        np.testing.assert_array_equal(table, run.accuracy_of(head).to_numpy())
    final = backbones.load(tmp_path / "backbone")
    assert np.array_equal(learner.features(stream.test.images(), "probe"), _features(final, stream))
    settings = json.loads((tmp_path / "run.json").read_text())
    assert settings["forwards"]["declared"] == settings["forwards"]["spent"]
    assert [len(task) for task in settings["losses"]] == [2, 2, 2]
    assert settings["stored_bytes"] == learner.stored_bytes()


def _features(backbone, stream):
    return backbones.extract(backbone, stream.test.images(), "probe")


def test_features_are_left_out_on_request(stream, tmp_path):
    incremental.run_stream(create("nearest_mean"), stream, tmp_path, keep_features=False)
    assert Run(tmp_path).outputs(0).features is None


def test_moments_come_after_every_epoch(stream):
    moments = []
    incremental.run_stream(create("icarl"), stream, None, on_moment=moments.append)
    assert [(moment.task.index, moment.epoch) for moment in moments] == [(t, e) for t in range(3) for e in range(2)]
    assert set(moments[0].losses) == {"classification"}
    assert set(moments[-1].losses) == {"classification", "distillation"}


def test_a_loss_that_is_not_finite_is_one_sentence(stream, tmp_path):
    learner = create("icarl")
    with torch.no_grad():
        learner.backbone.model.conv1[0].weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"classification loss is nan in epoch 1 of task 1; lower lr \(now 0.05\)"):
        incremental.run_stream(learner, stream, tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_logits_that_do_not_fit_the_classes_seen_are_refused(stream):
    learner = create("nearest_mean")
    learner.heads = lambda: {"means": lambda features: features[:, :1]}
    with pytest.raises(UserError, match="not one for each of 2 classes seen"):
        incremental.run_stream(learner, stream, None)


def test_a_damaged_checkpoint_is_one_sentence(stream, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / incremental.CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged"):
        incremental.run_stream(create("slca"), stream, tmp_path / "run", scratch=tmp_path / "scratch")


def test_the_three_seeds_are_apart(stream):
    def outputs(**seeds):
        learner = learners.create("slca", tiny.backbone(), **SMALL, **seeds)
        return incremental.run_stream(learner, stream[:2], None)[-1].heads["aligned"]

    reference = outputs(seed_init=0, seed_data=0)
    assert np.array_equal(reference, outputs(seed=0))
    assert not np.allclose(reference, outputs(seed_init=1, seed_data=0))
    assert not np.allclose(reference, outputs(seed_init=0, seed_data=1))


class Linear(learners.Learner):
    """A method of one's own, as in a notebook cell: a ridge classifier on frozen features."""

    Hyper = dataclasses.make_dataclass("Hyper", [("ridge", float, 1.0)], frozen=True)
    frozen = True

    def build(self):
        self.features_seen, self.labels_seen = [], []

    def end_task(self, task):
        self.features_seen.append(torch.from_numpy(self.features(task.train.images(), "statistics")))
        self.labels_seen.append(torch.from_numpy(task.train.labels))

    def heads(self):
        x, y = torch.cat(self.features_seen), torch.cat(self.labels_seen)
        targets = torch.nn.functional.one_hot(y, self.seen).float()
        weight = torch.linalg.solve(x.T @ x + self.hyper.ridge * torch.eye(x.shape[1]), x.T @ targets)
        return {"raw": lambda features: features @ weight}

    def declared(self, stream):
        return {"statistics": sum(len(task.train) for task in stream), "test": self.declared_tests(stream)}


def test_a_learner_of_one_s_own_needs_nothing_but_its_seams(stream, tmp_path):
    learner = learners.create(Linear, tiny.backbone())
    incremental.run_stream(learner, stream, tmp_path)
    run = Run(tmp_path)
    assert run.learner == "Linear" and run.accuracy.to_numpy()[0, 0] >= 50
    assert run.settings["forwards"]["declared"] == run.settings["forwards"]["spent"]
