import warnings

import numpy as np
import pytest
import tiny
import torch

from cilkit import backbones, incremental, learners
from cilkit.data import Stream
from cilkit.errors import UserError
from cilkit.learners import ridge
from cilkit.learners.base import derive

FROZEN = {"phase1": "none", "projection": 40}
pytestmark = pytest.mark.filterwarnings("ignore:.*last of the grid")  # a handful of images decides nothing


def create(**hyper):
    return learners.create("ranpac", tiny.backbone(), seed=0, **hyper)


def learnt(stream, **hyper):
    learner = create(**hyper)
    return learner, incremental.run_stream(learner, stream, None)


@pytest.fixture(scope="module")
def stream():
    return tiny.stream(per_class=20)


def features_of(images):
    return torch.from_numpy(backbones.extract(tiny.backbone(), images, "probe")).double()


def literal(stream, projection):
    """The published procedure, line by line: (logits after the last task, the lambda of every task)."""
    drawn = torch.randn(16, projection, generator=torch.Generator().manual_seed(derive(0, "projection"))).double()
    expand = (lambda f: torch.relu(f @ drawn)) if projection else (lambda f: f)
    width, chosen, classes = projection or 16, [], int(stream.train.labels.max()) + 1
    gram, cross = torch.zeros(width, width).double(), torch.zeros(width, classes).double()
    for task in stream:
        h = expand(features_of(task.train))
        y = torch.nn.functional.one_hot(torch.from_numpy(task.train.labels), classes).double()
        gram += h.T @ h
        cross += h.T @ y
        order = np.random.default_rng(derive(0, task.index, "ridge")).permutation(len(h))
        h, y, n, losses = h[order], y[order], int(len(h) * 0.8), []
        for value in 10.0 ** np.arange(-8, 9):
            fit = torch.linalg.solve(h[:n].T @ h[:n] + value * torch.eye(width), h[:n].T @ y[:n])
            losses.append(torch.nn.functional.mse_loss(h[n:] @ fit, y[n:]).item())
        chosen.append(10.0 ** (np.argmin(losses) - 8))
        weights = torch.linalg.solve(gram + chosen[-1] * torch.eye(width), cross)
    return (expand(features_of(stream.test)) @ weights).numpy(), chosen


@pytest.mark.parametrize("projection", [0, 10, 40])  # 32 of 40 images are fitted: both ways of the search
def test_it_is_the_published_procedure(stream, projection):
    learner, outputs = learnt(stream, phase1="none", projection=projection)
    expected, chosen = literal(stream, projection)
    np.testing.assert_allclose(learner.ridges, chosen)
    rows = np.searchsorted(np.sort(stream.test.index), outputs[-1].ids)
    expected = expected[np.argsort(stream.test.index)][rows]
    np.testing.assert_allclose(outputs[-1].heads["ridge"], expected, atol=1e-4)


def test_tasks_one_after_another_equal_joint_ridge_regression(stream):
    settings = FROZEN | {"ridge": 10.0}
    cuts = [Stream(stream.benchmark, order_seed=1993, increments=n) for n in (1, 2, [1, 3, 2])] + [stream.joint()]
    weights = []
    for cut in cuts:
        learner, _ = learnt(cut, **settings)
        weights.append(ridge.solve(learner.gram, learner.cross, 10.0))
    for other in weights[:-1]:
        assert (other - weights[-1]).norm() / weights[-1].norm() < 1e-10


def test_the_projection_is_normal_drawn_once_and_never_stored(stream):
    learner, _ = learnt(stream, phase1="none", projection=2000)
    assert learner.projection.shape == (16, 2000)
    assert abs(learner.projection.mean()) < 0.02 and abs(learner.projection.std() - 1) < 0.02
    assert torch.equal(learner.projection, create(phase1="none", projection=2000).projection)
    assert not any(value.numel() == learner.projection.numel() for value in learner.state().values())


def test_the_head_of_means_is_simplecil(stream):
    ours = learnt(stream, **FROZEN)[1][-1]
    theirs = incremental.run_stream(learners.create("simplecil", tiny.backbone()), stream, None)[-1]
    assert np.array_equal(ours.heads["means"], theirs.heads["means"])


@pytest.mark.parametrize("kind", ["ssf", "finetune"])
def test_phase_1_changes_the_features_that_everything_after_it_reads(stream, kind):
    learner, outputs = learnt(stream, phase1=kind, projection=40, ridge=1.0, epochs=2)
    adapted = backbones.extract(learner.backbone, stream.train, "probe", learner.recipe)
    assert not np.allclose(adapted, features_of(stream.train).numpy(), atol=1e-3)
    h = learner.expand(torch.from_numpy(adapted))
    torch.testing.assert_close(learner.gram, h.T @ h, rtol=1e-9, atol=1e-9)
    assert set(outputs[-1].heads) == {"ridge", "means"} and learner.default_head == "ridge"


def test_domains_are_summed():
    stream = tiny.domain_stream()
    learner, outputs = learnt(stream, **FROZEN, ridge=1.0)
    h = learner.expand(torch.from_numpy(backbones.extract(tiny.backbone(), stream.train, "probe")))
    y = ridge.one_hot(torch.from_numpy(stream.train.labels), 3, torch.float64)
    torch.testing.assert_close(learner.gram, h.T @ h, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(learner.cross, h.T @ y, rtol=1e-9, atol=1e-9)
    assert outputs[-1].heads["ridge"].shape[1] == 3


def test_what_is_stored_does_not_depend_on_the_number_of_images():
    few, many = (learnt(tiny.stream(per_class=n), **FROZEN)[0] for n in (4, 16))
    assert few.stored_bytes() == many.stored_bytes()
    assert few.stored_bytes()["G and Q"] == 8 * (40 * 40 + 40 * 6)


def test_a_loaded_learner_goes_on_and_leaves_what_it_was_loaded_from_alone(stream):
    whole = create(**FROZEN)
    list(whole.learn(stream[0]))
    kept = {name: value.clone() for name, value in whole.state().items()}
    before = {name: value.clone() for name, value in kept.items()}
    resumed = create(**FROZEN)
    resumed.load(kept)
    for learner in (whole, resumed):
        list(learner.learn(stream[1]))
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    ours, theirs = whole.state(), resumed.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and whole.ridges == resumed.ridges


def test_features_made_before_are_not_made_again(stream):
    learner, parts = create(**FROZEN), (stream.benchmark.train, stream.benchmark.test)
    learner.find({part.source.key: features_of(part).float().numpy() for part in map(whole, parts)})
    outputs = incremental.run_stream(learner, stream, None)
    assert not learner.backbone.forwarded
    expected = learnt(stream, **FROZEN)[1][-1].heads["ridge"]
    np.testing.assert_allclose(outputs[-1].heads["ridge"], expected, atol=1e-4)


def whole(images):
    n = len(images.source.sizes)
    return images.at(np.arange(n), np.zeros(n, np.int64))


def test_the_edge_of_the_grid_is_said():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learner, _ = learnt(tiny.stream(), phase1="none", projection=0)
    edges = [value in (ridge.GRID[0], ridge.GRID[-1]) for value in learner.ridges]
    assert sum("last of the grid" in str(one.message) for one in said) == sum(edges) and any(edges)


def test_recipes_and_bad_settings():
    assert learners.settings("ranpac", {"recipe_of": "official_code"})["dtype"] == "float32"
    assert learners.settings("ranpac", {"recipe_of": "mammoth"})["phase1"] == "finetune"
    for wrong, said in (
        ({"dtype": "half"}, "'half'"),
        ({"projection": -1}, "negative"),
        ({"ridge": -1.0}, "negative"),
        ({"phase1": "lora"}, "'lora'"),
    ):
        with pytest.raises(UserError, match=said):
            learners.settings("ranpac", wrong)
    one = tiny.stream(per_class=1, increments=1)
    with pytest.raises(UserError, match="one image.*give `ridge`"):
        learnt(one, **FROZEN)
    assert len(learnt(one, **FROZEN, ridge=1.0)[1]) == 6


def test_float32_is_near_float64(stream):
    ours, theirs = (learnt(stream, **FROZEN, ridge=10.0, dtype=d)[1][-1].heads["ridge"] for d in ("float32", "float64"))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
