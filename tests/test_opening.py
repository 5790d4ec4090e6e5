"""A run opened again: what it answered after each task comes back bit for bit, and whatever has changed is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors import safe_open

import cilkit
from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.learners.nearest_mean import NearestMean
from cilkit.road import opening

NETWORK = {"backbone": "none", "arch": "small_resnet", "model_args": tiny.ARGS}
TINY = {"epochs": 1, "batch_size": 8, "recipe": "shift"}


class Mine(NearestMean):
    """Nearest mean by another name."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder of small images: train/<class>/ and test/<class>/, six classes."""
    home = tmp_path_factory.mktemp("opening")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(home / "artifacts"))
        for part, per_class, seed in (("train", 8, 0), ("test", 5, 1)):
            images = tiny.image_set(6, per_class, seed)
            for i, (pixels, label) in enumerate(zip(images.images(), images.labels, strict=True)):
                path = home / "raw" / part / f"class {label}" / f"{i:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
        yield home / "raw"


@pytest.fixture(scope="module")
def stream(folder):
    return cilkit.stream(f"folder:{folder}", increment=2)


@pytest.fixture(scope="module")
def means(stream):
    return cilkit.run("nearest_mean", stream, **NETWORK)


@pytest.fixture(scope="module")
def slca(stream):
    return cilkit.run("slca", stream, **NETWORK, **TINY, align_epochs=1, align_per_class=8)


def _answers_as_saved(run, task):
    then = cilkit.open(run).after(task)
    answers = then.outputs(then.opened.stream.test_after(then.opened.stream[task - 1]))
    for head in run.heads:
        np.testing.assert_array_equal(answers.heads[head], run.outputs(task - 1).logits(head))
    assert then.exact and then.difference == 0 and then.class_names == run.class_names[: 2 * task]


@pytest.mark.parametrize("task", [1, 2, 3])
def test_it_answers_after_each_task_what_the_run_saved_bit_for_bit(means, slca, task):
    _answers_as_saved(means, task)
    _answers_as_saved(slca, task)


def test_replayed_images_exemplars_and_plain_training_come_back_too(stream):
    painted = {"images": f"real:folder:{stream.benchmark.name.partition(':')[2]}", "a": 0.5, "b": 0.5}
    for name, more in (("finetune", {}), ("icarl+synthetic_replay", {"per_class": 2, **painted})):
        run = cilkit.run(name, stream[:2], **NETWORK, **TINY, milestones=[1], **more)
        _answers_as_saved(run, 2)
        assert ("images" in run.artifact.inputs) == (name != "finetune")


def test_parts_of_streams_come_back_as_they_were_cut(folder, stream):
    cuts = [
        stream[:2].validation(0.25),
        stream.joint(),
        stream.cumulative(),
        cilkit.stream(f"folder:{folder}", increment=2, order=[5, 3, 1, 0, 2, 4], tasks=2),
        cilkit.stream(f"folder:{folder}", base=2, increment=1, shots=3),
        tiny.domain_stream(),
        tiny.domain_stream()[:2],
    ]
    for cut in cuts:
        again = type(cut).of_identity(cut.identity(), cut.benchmark)
        for task, same in zip(cut, again, strict=True):
            np.testing.assert_array_equal(task.train.index, same.train.index)
            np.testing.assert_array_equal(cut.test_after(task).index, again.test_after(same).index)
            assert task.classes == same.classes and task.name == same.name
    with pytest.raises(UserError, match="cannot be cut as it was"):
        type(cut).of_identity(stream.identity(), tiny.stream().benchmark)


def test_a_state_is_learnt_once_and_later_tasks_go_on_from_it(slca, monkeypatch):
    learnt = []
    learn = opening.Makings.create

    def create(makings):
        made = learn(makings)
        plain = made.learn
        made.learn = lambda task: learnt.append(task.index) or plain(task)
        return made

    monkeypatch.setattr(opening.Makings, "create", create)
    for found in list(artifacts.all_artifacts("state")):
        if found.inputs["run"]["digest"] == slca.artifact.digest:
            found.path.rename(found.path.with_suffix(".part"))  # as if it never was made
    first = cilkit.open(slca).after(2)
    assert learnt == [0, 1] and first.artifact.stage == "state"
    assert cilkit.open(slca).after(2).artifact.path == first.artifact.path and learnt == [0, 1]
    cilkit.open(slca).after(-1)
    assert learnt == [0, 1, 2]
    with safe_open(first.artifact.file(opening.STATE), "np") as file:
        assert file.metadata() == {"task": "1"} and "sizes" in file.keys()  # noqa: SIM118


def test_an_interruption_costs_one_task(slca, tmp_path):
    opened = cilkit.open(slca)
    opened._nearest = lambda place: None
    learner = opened._makings(None, None, "", "", "cpu").create()
    plain, seen = learner.learn, []

    def stopping(task):
        seen.append(task.index)
        if task.index == 1:
            raise KeyboardInterrupt
        yield from plain(task)

    learner.learn = stopping
    with pytest.raises(KeyboardInterrupt):
        opened._learn_again(learner, 2, tmp_path)
    again = opened._makings(None, None, "", "", "cpu").create()
    plain_again = again.learn
    again.learn = lambda task: seen.append(task.index) or plain_again(task)
    answers = opened._learn_again(again, 2, tmp_path)
    assert seen == [0, 1, 1, 2]
    np.testing.assert_array_equal(answers.heads["raw"], slca.outputs(2).logits("raw"))


def test_a_run_may_be_named_in_many_ways(means):
    artifact = means.artifact
    row = {"artifact": artifact.name, "digest": artifact.digest}
    for spec in (means, artifact, artifact.name, artifact.path, cilkit.Run(artifact.path), row):
        assert cilkit.open(spec).artifact.digest == artifact.digest
    for spec, said in (
        (3, "int is no run"),
        (means.artifact.path.parent, "has no artifact.json"),
        (row | {"digest": "0" * 64}, "not the one of the results"),
        (next(artifacts.all_artifacts("benchmark")).name, "of stage 'benchmark'"),
    ):
        with pytest.raises(UserError, match=said):
            cilkit.open(spec)


@pytest.mark.parametrize("task", [0, 4, -4, 1.0, True, "2"])
def test_a_task_that_is_none_of_the_runs_is_one_sentence(means, task):
    with pytest.raises(UserError, match=r"there is no task .* take 1 … 3, or -1 … -3 from the end"):
        cilkit.open(means).after(task)


def test_ones_own_images_of_any_kind_are_answered(slca, folder, tmp_path):
    then = cilkit.open(slca).after(2)
    some = then.opened.stream.test.select(slice(0, 3))
    by_set = then.predict(some, "raw")
    logits = then.outputs(some).heads["raw"].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert by_set["answer"].tolist() == [then.class_names[c] for c in logits.argmax(1)]
    np.testing.assert_allclose(by_set["probability"], shares.max(1))
    columns = ["probability", "2nd probability", "3rd probability", "4th probability"]
    np.testing.assert_allclose(by_set[columns].sum(axis=1), 1)  # four classes are known

    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, pixels in zip(paths, some.images(), strict=True):
        Image.fromarray(pixels).save(path)
    for spec in (some.images(), [Image.open(path) for path in paths], paths, tmp_path):
        np.testing.assert_array_equal(then.predict(spec, "raw")["probability"], by_set["probability"])
    assert then.predict(tmp_path, "raw")["image"].tolist() == ["a.png", "b.png", "c.png"]
    large = Image.fromarray(some.images()[0]).resize((160, 240))
    table = then.predict([large, np.zeros((9, 30), np.uint8)])
    assert len(table) == 2 * len(slca.heads) and set(table["answer"]) <= set(then.class_names)
    assert then.features(large).shape == (1, 16)
    empty = tmp_path / "empty"
    empty.mkdir()
    for spec, said in (
        (empty, "there is no picture in"),
        ("no/such/place", "no picture or folder at"),
        (np.zeros((4, 4), np.float32), "expected uint8"),
        (5, "is no picture"),
    ):
        with pytest.raises(UserError, match=said):
            then.predict(spec)
    with pytest.raises(UserError, match="head 'rwa' is unknown"):
        then.predict(some, "rwa")


def test_a_class_of_ones_own_is_given_again_and_its_source_checked(stream):
    run = cilkit.run(Mine, stream[:1], **NETWORK)
    with pytest.raises(UserError, match=r"a class of your own; define it and give it: after\(…, learner=Mine\)"):
        cilkit.open(run).after(1)
    assert cilkit.open(run).after(1, learner=Mine).exact

    def changed():
        class Mine(NearestMean):
            """Nearest mean, edited since."""

        return Mine

    with pytest.raises(UserError, match="its name or its source text has changed"):
        cilkit.open(run).after(1, learner=changed())


def test_what_does_not_belong_or_is_gone_is_named(slca, means):
    with pytest.raises(UserError, match="leave `learner` out"):
        cilkit.open(slca).after(1, learner=Mine)
    benchmark = next(artifacts.all_artifacts("benchmark")).path
    away = benchmark.with_suffix(".part")
    benchmark.rename(away)
    try:
        with pytest.raises(UserError, match=r"made from benchmark/.* \(its benchmark\), which is no longer under"):
            cilkit.open(means).after(1)
    finally:
        away.rename(benchmark)


def _write(path, seed):
    from safetensors.torch import save_file

    state = tiny.backbone(seed).model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def test_files_of_ones_own_have_to_be_named_again(stream, tmp_path):
    weights = tmp_path / "w.safetensors"
    _write(weights, 3)
    network = NETWORK | {"backbone": str(weights)}
    run = cilkit.run("nearest_mean", stream[:1], **network)
    with pytest.raises(
        UserError, match=r"known by their content alone; say where they lie: after\(…, backbone='FILE'\)"
    ):
        cilkit.open(run).after(1)
    assert cilkit.open(run).after(1, backbone=str(weights)).exact
    _write(weights, 4)
    with pytest.raises(UserError, match="cannot be learnt again: its sha256"):
        cilkit.open(run).after(1, backbone=str(weights))


def test_outputs_of_another_machine_are_refused_with_their_distance_or_put_up_with(means, tmp_path):
    """A copy of the run whose logits differ a little, measured on another host."""

    def nudge(folder: Path) -> None:
        path = folder / "after_00" / "logits_means.npy"
        logits = np.load(path)
        artifacts.save_npy(path, logits + 0.01 * np.abs(logits).max())

    other = artifacts.correct(means.artifact, nudge)
    (other.path / "measured.json").write_text(json.dumps({"host": "elsewhere", "machine": "riscv64"}))
    opened = cilkit.open(other.path)
    with pytest.raises(UserError, match=r"answers differently: head 'means' .* another machine \(elsewhere, riscv64;"):
        opened.after(1)
    assert 0.005 < opened.after(1, tolerance=0.02).difference < 0.02
    assert cilkit.open(other.path).after(2).exact
