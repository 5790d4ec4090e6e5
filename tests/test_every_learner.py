"""What holds for every learner, whatever its method is. A new file in `cilkit/learners/` is tested here by itself."""

import gc
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from cilkit import incremental, learners, precision
from cilkit.errors import Stopped
from cilkit.features import FeatureBank
from cilkit.learners.distilling import Distilling

PLUGGED = [f"{name}+alignment" for name in learners.NAMES if learners.find(name).linear_heads and "slca" not in name]
PLUGGED += [f"{name}+synthetic_replay" for name in learners.NAMES if issubclass(learners.find(name), Distilling)]
PLUGGED += [f"{name}+gaussian_replay" for name in ("finetune", "lwf", "l2p")]
PLUGGED += [f"{name}+generative_replay" for name in ("lwf", "icarl")]
PLUGGED += [f"{name}+future_replay" for name in ("lwf", "icarl")]
ALL = [*learners.NAMES, *PLUGGED]
# Each plug-in goes with some learners in every run of the tests, and with all of them in the long one.
OFTEN = {f"{name}+synthetic_replay" for name in ("icarl", "der", "lwf", "podnet")}
OFTEN |= {f"{name}+alignment" for name in ("ewc", "lwf", "bic", "l2p")}
SELDOM = {name for name in ALL if name.endswith(("+synthetic_replay", "+alignment"))} - OFTEN
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in SELDOM else name for name in ALL]


@pytest.fixture(scope="module", params=EACH)
def whole(request, tmp_path_factory):
    """One undisturbed run of each learner, over tasks of different sizes, for all the tests that look at it."""
    stream, learner = tiny.stream(increments=[1, 3, 2]), tiny.case(request.param)
    folder = tmp_path_factory.mktemp("whole") / "run"
    incremental.run_stream(learner, stream, folder)
    forwarded = Counter(learner.backbone.forwarded)  # before anybody asks it for more
    return SimpleNamespace(name=request.param, stream=stream, learner=learner, folder=folder, forwarded=forwarded)


def once(name):
    """One epoch a task, where there are epochs."""
    return {"epochs": 1} if "epochs" in learners.settings(name, {}) else {}


def test_an_answer_does_not_depend_on_the_other_images_of_its_batch(whole):
    learner, images = whole.learner, whole.stream.test_after(whole.stream[2])
    wholes = learner.predict(images).heads
    shuffle = np.random.default_rng(0).permutation(len(images))
    for size, order in ((1, np.arange(len(images))), (7, np.arange(len(images))), (128, shuffle)):
        learner.test_batch, learner.bank = size, FeatureBank()
        for head, logits in learner.predict(images.select(order)).heads.items():
            top = np.sort(wholes[head][order], axis=1)
            clear = top[:, -1] - top[:, -2] > 1e-5
            assert (logits.argmax(1) == wholes[head][order].argmax(1))[clear].all() and clear.any()
            assert np.allclose(logits, wholes[head][order], rtol=1e-3, atol=1e-4)


def test_a_run_killed_after_every_epoch_ends_in_the_same_bytes(whole, tmp_path):
    def stop(moment):
        raise KeyboardInterrupt

    for _ in range(20):
        try:
            again, options = tiny.case(whole.name), {"scratch": tmp_path / "scratch", "on_moment": stop, "every": 0}
            incremental.run_stream(again, whole.stream, tmp_path / "part", **options)
            break
        except Stopped as stopped:
            assert "kept in" in str(stopped)
    else:
        raise AssertionError("an interrupted run does not go on where it was")
    assert payload(tmp_path / "part") == payload(whole.folder)


def payload(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_images_forwarded_are_those_declared(whole):
    assert Counter(whole.learner.declared(whole.stream)) == whole.forwarded


@pytest.mark.parametrize("name", EACH)
def test_nothing_in_a_step_waits_for_the_device(name, monkeypatch):
    learner, read = tiny.case(name, **once(name)), []

    def watched(step):
        def inner(*arguments):
            with monkeypatch.context() as patched, precision.no_waiting():
                for way in ("cpu", "numpy", "tolist"):
                    method = getattr(torch.Tensor, way)
                    note = lambda tensor, *a, way=way, method=method: (read.append(way), method(tensor, *a))[1]  # noqa: E731
                    patched.setattr(torch.Tensor, way, note)
                return step(*arguments)

        return inner

    for step in ("loss", "before_step", "after_step"):
        monkeypatch.setattr(learner, step, watched(getattr(learner, step)))
    incremental.run_stream(learner, tiny.stream()[:2], None)
    assert not read


@pytest.fixture(scope="module")
def only_new():
    """What is alive already is left out of counts: looking through all of it took seconds."""
    gc.collect()
    yield
    gc.unfreeze()


@pytest.fixture
def no_past(only_new):
    gc.freeze()


def live_bytes() -> int:
    """Of the tensors made since."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("name", EACH)
def test_memory_grows_by_what_a_method_stores_and_its_heads_alone(name, no_past):
    stream = tiny.stream(classes=6, increments=1)
    learner = tiny.case(name, **once(name))
    weights = sum(value.nbytes for value in learner.backbone.state_dict().values())
    grown = []
    for task in stream:
        for _ in learner.learn(task):
            pass
        learner.predict(stream.test_after(task))
        grown.append(live_bytes() - sum(learner.stored_bytes().values()))
    assert grown[-1] - grown[2] < weights / 2  # a network kept by mistake each task would be three of them


@pytest.mark.parametrize("name", [name for name in learners.NAMES if learners.find(name).needs == "transformer"])
def test_a_method_for_transformers_refuses_another_network(name):
    with pytest.raises(learners.UserError, match="attaches to transformer blocks"):
        learners.create(name, tiny.backbone())


def test_a_plug_in_says_what_it_needs():
    with pytest.raises(learners.UserError, match="linear heads"):
        learners.settings("nearest_mean+alignment", {})
    with pytest.raises(learners.UserError, match="did you mean 'alignment'"):
        learners.settings("finetune+alignmnt", {})
    with pytest.raises(learners.UserError, match="write 'icarl.synthetic_replay'"):
        learners.settings("synthetic_replay", {})
    with pytest.raises(learners.UserError, match="loss in two halves"):
        learners.settings("ewc+synthetic_replay", {})


def test_recipes_fill_in_what_is_not_said_and_leaks_are_known_by_name():
    with pytest.raises(learners.UserError, match="no recipe_of 'pilat'"):
        learners.settings("slca", {"recipe_of": "pilat"})
    with pytest.raises(learners.UserError, match="no leak 'vote'"):
        learners.settings("slca", {"leaks": ["vote"]})
    for name in ALL:
        for whose, values in learners.recipes_of(name).items():
            asked = learners.settings(name, {"recipe_of": whose})
            assert all(
                asked[key] == (tuple(value) if isinstance(value, list) else value) for key, value in values.items()
            )
            given = dict.fromkeys(list(values)[:1])
            for key in given:
                given[key] = learners.settings(name, {})[key]
            assert all(learners.settings(name, {"recipe_of": whose} | given)[key] == given[key] for key in given)
