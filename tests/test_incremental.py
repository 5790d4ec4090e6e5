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
    "icarl+synthetic_replay": {**SMALL, "per_class": 3, "ratio": 0.6, "a": 0.0},
}


def create(name, seed=0, **hyper):
    images = {"images": tiny.image_set(seed=7)} if "synthetic_replay" in name else {}
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
        with pytest.raises(Stopped, match=f"interrupted in task {after + 1} of 3; {after or 'no'} finished"):
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


def test_what_passes_the_cap_is_left_out_unless_it_is_asked_for(stream, tmp_path):
    small = tmp_path / "small"
    incremental.run_stream(create("slca"), stream, small, cap=0)
    whole = incremental.run_stream(create("slca"), stream, tmp_path / "whole")
    kept = [Run(tmp_path / name).settings["keep"] for name in ("whole", "small")]
    assert kept[0] == {"logits": True, "features": True, "backbone": True} and not all(kept[1].values())
    assert not list(small.rglob("features.npy")) and not (small / "backbone").exists()
    assert Run(small).summary() == Run(tmp_path / "whole").summary()  # every figure all the same
    incremental.run_stream(create("slca"), stream, tmp_path / "asked", cap=0, keep=("features", "logits"))
    assert np.array_equal(Run(tmp_path / "asked").outputs(1).features, whole[1].features)


@pytest.mark.parametrize("name", ["slca", "nearest_mean"])
def test_looking_ahead_is_counted_resumed_and_changes_nothing_else(stream, tmp_path, name):
    incremental.run_stream(create(name), stream, tmp_path / "plain")
    learner = create(name)
    incremental.run_stream(learner, stream, tmp_path / "ahead", look_ahead=True)
    ahead = Run(tmp_path / "ahead").settings
    assert Counter(ahead["forwards"]["declared"]) == learner.backbone.forwarded
    assert learner.backbone.forwarded["probe"] == 2 * 4 * (8 + 5)  # 4 classes after the first task, train and test
    assert [len(values) for values in ahead["look_ahead"].values()] == [2, 2]
    assert Run(tmp_path / "ahead").accuracy.equals(Run(tmp_path / "plain").accuracy)
    if name == "nearest_mean":  # a frozen backbone knows before what it knew in the beginning
        assert ahead["look_ahead"]["before"] == ahead["look_ahead"]["initial"]
    stopped = create(name)
    stopped.predict = lambda images: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(Stopped):
        incremental.run_stream(stopped, stream, tmp_path / "again", scratch=tmp_path / "scratch", look_ahead=True)
    again = create(name)
    incremental.run_stream(again, stream, tmp_path / "again", scratch=tmp_path / "scratch", look_ahead=True)
    assert payload(tmp_path / "again") == payload(tmp_path / "ahead")


def test_a_learner_is_not_let_into_a_stream_that_it_is_not_defined_for(tmp_path):
    with pytest.raises(UserError, match="'slca' is not defined for domain-incremental streams .only class."):
        incremental.run_stream(create("slca"), tiny.domain_stream(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["tasks", "joint", "cumulative"])
@pytest.mark.parametrize("name", ["nearest_mean", "finetune", "slow_learner"])
def test_domain_streams_are_learnt_and_tested_on_every_domain(name, kind, tmp_path):
    stream = tiny.domain_stream()
    stream = {"joint": stream.joint, "cumulative": stream.cumulative}.get(kind, lambda: stream)()
    learner = create(name)
    outputs = incremental.run_stream(learner, stream, tmp_path)
    assert Counter(learner.declared(stream)) == learner.backbone.forwarded
    for t, answers in enumerate(outputs):
        assert len(answers) == len(stream.test)  # of domains to come as well
        assert next(iter(answers.heads.values())).shape[1] == stream.n_classes
        if kind != "joint":
            np.testing.assert_array_equal(stream.domain_order[answers.tasks], stream.test.domains)
        correct = answers.predictions(learner.default_head) == answers.labels
        rows = [100 * correct[answers.tasks == i].mean() for i in range(len(stream))]
        np.testing.assert_allclose(Run(tmp_path).accuracy_of(learner.default_head, future=True).to_numpy()[t], rows)


def test_a_class_mean_is_taken_over_all_the_domains_seen():
    stream = tiny.domain_stream()
    learner = create("nearest_mean")
    incremental.run_stream(learner, stream, None)
    features = learner.features(stream.train, "probe")
    expected = np.stack([features[stream.train.labels == c].mean(0, dtype=float) for c in range(stream.n_classes)])
    np.testing.assert_allclose(learner.means, expected, rtol=1e-5, atol=1e-6)


def test_features_found_elsewhere_are_not_made_again(stream):
    whole, finder = create("nearest_mean"), create("nearest_mean")
    expected = incremental.run_stream(whole, stream, None)
    parts = (stream.benchmark.train, stream.benchmark.test)
    finder.find({part.source.key: backbones.extract(finder.backbone, part, "probe") for part in parts})
    finder.backbone.forwarded.clear()
    found = incremental.run_stream(finder, stream, None)
    assert finder.backbone.forwarded == {} and finder.found == {"statistics", "test", "probe"}
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.heads["means"], other.heads["means"], atol=1e-4)


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
    with pytest.raises(
        UserError,
        match=r"classification loss is nan in epoch 1 of task 1 \(first seen in batch 1 of 2\); lower lr \(now 0.05\)",
    ):
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
        self.features_seen.append(torch.from_numpy(self.features(task.train, "statistics")))
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


def test_a_run_that_diverges_names_batch_task_and_rate_and_keeps_the_last_good_state(stream, tmp_path):
    learner = tiny.case("slow_learner")
    plain, calls = learner.loss, []

    def explode(batch):
        calls.append(batch)
        factor = 1e9 if len(calls) == 8 else 1.0  # 16 images a task: batch 2 of epoch 2 of task 2, in batches of 8
        return {name: factor * term for name, term in plain(batch).items()}

    learner.loss = explode
    said = r"in epoch 2 of task 2 \(first seen in batch 2 of 2\); lower lr \(now 0.01\).*1 finished task and 1 epoch of"
    with pytest.raises(UserError, match=said):
        incremental.run_stream(learner, stream, tmp_path / "part", scratch=tmp_path / "scratch", every=0)
    incremental.run_stream(tiny.case("slow_learner"), stream, tmp_path / "part", scratch=tmp_path / "scratch")
    incremental.run_stream(tiny.case("slow_learner"), stream, tmp_path / "whole")
    assert payload(tmp_path / "part") == payload(tmp_path / "whole")


def test_heads_are_not_asked_for_classes_that_they_have_not_seen(stream):
    learner = tiny.case("finetune", epochs=1)
    for _ in learner.learn(stream[0]):
        pass
    with pytest.raises(UserError, match=r"heads for 2 classes, which have not seen it; learn its task first"):
        learner.predict(stream.test_after(stream[1]))


def test_looking_ahead_is_for_methods_that_read_an_image_in_one_pass(stream):
    with pytest.raises(UserError, match="in 2 passes; set look_ahead to false"):
        incremental.run_stream(tiny.case("l2p"), stream, None, look_ahead=True)


def test_ticks_are_a_minute_apart_by_default(stream, tmp_path):
    saved = []
    learner = tiny.case("finetune")
    learner.moment_state = lambda: saved.append(1)
    incremental.run_stream(learner, stream, tmp_path / "run", scratch=tmp_path / "scratch")
    assert not saved
