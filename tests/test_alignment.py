import dataclasses

import numpy as np
import pytest
import tiny
import torch
from torch.distributions import MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

from cilkit import learners
from cilkit.errors import UserError
from cilkit.learners import alignment, sampling
from cilkit.learners.heads import TaskHeads
from cilkit.learners.sampling import GaussianSampler
from cilkit.learners.statistics import KINDS, ClassStatistics


def class_features(n=40, dim=6, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, dim)) @ random.normal(size=(dim, dim)) + random.normal(size=dim)).astype(np.float32)


def statistics_of(*seeds, dim=6, kind="full"):
    statistics = ClassStatistics(dim, kind, rank=2)
    for seed in seeds:
        statistics.add(class_features(seed=seed, dim=dim))
    return statistics


def heads_of(sizes, dim=6):
    heads = TaskHeads(dim)
    for size in sizes:
        heads.grow(size, seed=0, freeze_old=True)
    return heads


@pytest.mark.parametrize("sizes", [(2, 2, 2), (20,) * 9 + (16,), (5, 1, 3)])
def test_mean_scales_take_the_papers_values(sizes):
    scales = alignment.mean_scales(sizes)
    tasks = len(sizes)
    expected = [0.9 + 0.1 * (t + 1) / tasks for t, size in enumerate(sizes) for _ in range(size)]
    np.testing.assert_allclose(scales, expected, rtol=1e-15)
    assert scales[-1] == 1.0


def test_the_legacy_task_index_is_wrong_for_uneven_splits_as_the_released_code_is():
    cars = (20,) * 9 + (16,)
    legacy, right = (alignment.task_index_of_classes(cars, legacy) for legacy in (True, False))
    assert (legacy != right).sum() == 156
    assert round(alignment.mean_scales(cars, legacy=True).max(), 4) == 1.03
    equal = (20,) * 10
    assert np.array_equal(*(alignment.task_index_of_classes(equal, legacy) for legacy in (True, False)))


def test_samples_are_the_scaled_mean_plus_the_factor_times_the_noise():
    statistics, scales = statistics_of(0, 1, 2), np.array([0.95, 0.95, 1.0])
    samples, labels = GaussianSampler(statistics, scales).draw(5, torch.Generator().manual_seed(3))
    noise = torch.randn((3, 5, 6), generator=torch.Generator().manual_seed(3)).double().numpy()
    for c in range(3):  # the slow reference: one class, one sample at a time
        factor = np.linalg.cholesky(statistics.covariance(c))
        expected = [statistics.means[c] * scales[c] + factor @ z for z in noise[c]]
        np.testing.assert_allclose(samples[labels == c], expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_multivariate_normal(kind):
    statistics, scales = statistics_of(3, 0, kind=kind), np.array([1.0, 0.9])
    samples, labels = GaussianSampler(statistics, scales).draw(60_000, torch.Generator().manual_seed(0))
    for label, scale in enumerate(scales):
        own = samples[labels == label].double()
        mean = torch.from_numpy(statistics.means[label] * scale)
        reference = MultivariateNormal(mean, torch.from_numpy(statistics.covariance(label)))
        spread = reference.stddev
        assert ((own.mean(0) - reference.mean).abs() / spread).max() < 0.02
        correlation = (torch.cov(own.T) - reference.covariance_matrix) / (spread[:, None] * spread[None])
        assert correlation.abs().max() < 0.03


@pytest.mark.parametrize("kind", ["full", "shared"])
def test_factors_in_parts_give_the_same_samples(kind, monkeypatch):
    statistics, scales = statistics_of(0, 1, 2, 3, 4, kind=kind), np.ones(5)

    def drawn():
        return GaussianSampler(statistics, scales).draw(7, torch.Generator().manual_seed(3))[0]

    whole = drawn()
    monkeypatch.setattr(sampling, "CLASSES", 2)
    assert torch.equal(drawn(), whole)
    monkeypatch.setattr(sampling, "COLUMNS", 4)
    torch.testing.assert_close(drawn(), whole, rtol=1e-5, atol=1e-5)


def test_no_more_factors_stand_unpacked_than_a_few_classes_have():
    dim, classes = 32, 5 * sampling.CLASSES
    statistics = ClassStatistics(dim)
    for seed in range(classes):
        statistics.add(class_features(n=4, dim=dim, seed=seed))
    sampler, sizes = GaussianSampler(statistics, np.ones(classes)), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.append(found.untyped_storage().size() if isinstance(found, torch.Tensor) else 0)
            return found

    with Watch():
        samples, _ = sampler.draw(2, torch.Generator().manual_seed(0))
    assert max(sizes) == max(samples.nbytes, sampling.CLASSES * dim * dim * 4) < classes * dim * (dim + 1) * 2


def test_normalised_logits_divide_by_the_mean_of_the_task_norms_and_keep_its_gradient():
    logits = torch.tensor([[3.0, 4.0, 1.0], [0.0, 2.0, 0.0]], requires_grad=True)
    out = alignment.normalised_logits(logits, (2, 1), 0.1)
    torch.testing.assert_close(out, logits / torch.tensor([[3.0], [1.0]]) / 0.1)
    (gradient,) = torch.autograd.grad(out[0, 2], logits)
    assert gradient[0, 0] != 0  # through the norm of the other task's block


def align_slowly(raw, statistics, epochs, per_class, lr, temperature, seed):
    """The released code's loop, class by class and step by step, on the same noise."""
    heads = raw.trainable_copy()
    sizes, seen = raw.sizes, sum(raw.sizes)
    optimiser = torch.optim.SGD(heads.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 + np.cos(np.pi * epoch / epochs)) / 2
        generator = torch.Generator().manual_seed(alignment.derive(seed, len(sizes), epoch, "alignment"))
        noise = torch.randn((seen, per_class, raw.dim), generator=generator)
        features, labels = [], []
        for c in range(seen):
            scale = 0.9 + 0.1 * (alignment.task_index_of_classes(sizes)[c] + 1) / len(sizes)
            normal = MultivariateNormal(
                torch.from_numpy(statistics.means[c] * scale).float(),
                torch.from_numpy(statistics.covariance(c)).float(),
            )
            features.append(normal.loc + noise[c] @ normal.scale_tril.T)
            labels += [c] * per_class
        order = torch.randperm(seen * per_class, generator=generator)
        features, labels = torch.cat(features)[order], torch.tensor(labels)[order]
        for step in range(seen):
            rows = slice(step * per_class, (step + 1) * per_class)
            logits, norms, first = heads(features[rows]), [], 0
            for size in sizes:
                norms.append(logits[:, first : first + size].pow(2).sum(1, keepdim=True).sqrt() + 1e-7)
                first += size
            scale = sum(norms) / len(norms) * temperature if temperature else 1.0
            loss = torch.nn.functional.cross_entropy(logits / scale, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return heads


@pytest.mark.parametrize("few", [16, 0])  # autograd, or the closed form
@pytest.mark.parametrize("temperature", [0.1, 0.0])
def test_alignment_equals_the_slow_reference_and_leaves_the_raw_heads_alone(few, temperature, monkeypatch):
    monkeypatch.setattr(alignment, "FEW", few)
    raw, statistics = heads_of((2, 1)), statistics_of(0, 1, 2)
    before = {name: value.clone() for name, value in raw.state_dict().items()}
    settings = {"epochs": 3, "per_class": 16, "lr": 0.01, "temperature": temperature, "seed": 4}
    fast, slow = alignment.align(raw, statistics, **settings), align_slowly(raw, statistics, **settings)
    for name, value in slow.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(raw.state_dict()[name], before[name])
        assert not torch.equal(value, before[name])


def test_shrunk_samples_and_stretched_heads():
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(1))
    ages, shrunk = torch.arange(4000) % 3, x.clone()
    alignment.shrink(shrunk, ages, 0.02, torch.Generator().manual_seed(2))
    m = (x / shrunk)[:, 0] - 1  # = m * age
    assert m[ages == 0].abs().max() < 1e-6 and torch.allclose(shrunk * (1 + m)[:, None], x, rtol=1e-4)
    for age in (1, 2):
        drawn = m[ages == age] / age
        assert 0.01 - 1e-5 < drawn.min() < 0.0105 and 0.0295 < drawn.max() < 0.03 + 1e-5
    raw, statistics, still = heads_of((1, 1, 1)), statistics_of(0, 1, 2), {"epochs": 1, "lr": 0.0}
    scaled = alignment.align(raw, statistics, mean_scaling=False, feature_scale=0.02, **still)
    for t, head in enumerate(raw.tasks):
        torch.testing.assert_close(scaled.tasks[t](x), head(x * (1 + 0.02 * (2 - t))))


def test_after_the_first_task_there_is_nothing_to_align():
    raw = heads_of((2,))
    aligned = alignment.align(raw, statistics_of(0, 1))
    assert all(torch.equal(value, raw.state_dict()[name]) for name, value in aligned.state_dict().items())


def test_alignment_separates_classes_that_the_raw_heads_confuse():
    statistics = statistics_of(0, 1, 2, 3)
    raw = heads_of((2, 2))
    samples, labels = GaussianSampler(statistics, np.ones(4)).draw(200, torch.Generator().manual_seed(9))
    accuracy = lambda heads: (heads(samples).argmax(1) == labels).float().mean()  # noqa: E731
    assert accuracy(alignment.align(raw, statistics, epochs=20)) > accuracy(raw) + 0.2


def test_an_alignment_that_explodes_is_one_sentence():
    with pytest.raises(UserError, match=r"alignment loss is nan .* lower align_lr"):
        alignment.align(heads_of((1, 1)), statistics_of(0, 1), lr=float("nan"))


# ------------------------------------------------------------ the plug-in

SMALL = {"epochs": 1, "milestones": (), "batch_size": 8, "recipe": "shift", "lr": 0.05}
SMALL |= {"align_epochs": 2, "align_per_class": 16}


@pytest.fixture(scope="module")
def stream():
    return tiny.stream(increments=(3, 2, 1))


def learnt(name, stream, **hyper):
    learner = learners.create(name, tiny.backbone(), seed=0, **{**SMALL, **hyper})
    for task in stream:
        list(learner.learn(task))
    return learner


def test_slca_is_the_slow_learner_with_the_plug_in(stream):
    """To the bit, and whatever the parts are called."""
    test = stream.test_after(stream[2])
    outputs = [learnt(name, stream).predict(test) for name in ("slca", "slow_learner+alignment")]
    assert list(outputs[0].heads) == list(outputs[1].heads) == ["raw", "aligned"]
    assert all(np.array_equal(outputs[0].heads[head], outputs[1].heads[head]) for head in outputs[0].heads)


def test_further_heads_are_those_of_other_runs_from_one_training_and_no_more_passes(stream):
    test = stream.test_after(stream[2])
    many = learnt("slca", stream, align_also=tuple(alignment.VARIANTS), rank=3)
    heads = many.predict(test).heads
    one = learnt("slca", stream)
    assert list(heads) == ["raw", "aligned", *alignment.VARIANTS]
    for name, switches in alignment.VARIANTS.items():
        alone = learnt("slca", stream, rank=3, **switches)
        assert np.array_equal(heads[name], alone.predict(test).heads["aligned"]), name
        assert alone.backbone.forwarded == many.backbone.forwarded
        if name != "full":
            assert not np.array_equal(heads[name], heads["aligned"])
    assert np.array_equal(heads["aligned"], one.predict(test).heads["aligned"])


def test_stored_bytes_are_those_of_every_kind_kept(stream):
    learner = learnt("slca", stream, align_also=("diagonal", "shared", "low_rank", "unscaled"), rank=3)
    means, dim = 6 * 16 * 8, 16
    assert learner.stored_bytes() == {
        "class means and full covariances": means + 6 * 4 * dim * (dim + 1) // 2,
        "class means and diagonal covariances": means + 6 * 4 * dim,
        "class means and shared covariances": means + 4 * dim * (dim + 1) // 2 + 8,
        "class means and low-rank covariances": means + 6 * 4 * dim * (3 + 1),
    }


def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(stream):
    settings = {**SMALL, "align_also": ("low_rank", "shared")}
    whole, first = learnt("slca", stream, **settings), learnt("slca", stream[:2], **settings)
    again = learners.create("slca", tiny.backbone(seed=5), seed=0, **settings)
    for _ in range(2):
        again.load(first.state())
    list(again.learn(stream[2]))
    test = stream.test_after(stream[2])
    expected = whole.predict(test).heads
    assert all(np.array_equal(expected[name], logits) for name, logits in again.predict(test).heads.items())


def test_switched_off_it_makes_no_statistics_and_costs_no_pass(stream):
    off = learnt("slca", stream, align_epochs=0)
    assert "statistics" not in off.backbone.forwarded and "statistics" not in off.declared(stream)
    assert len(off.statistics) == 0
    heads = off.predict(stream.test_after(stream[2])).heads
    assert np.array_equal(heads["aligned"], heads["raw"])


def test_the_legacy_index_is_a_leak_that_shows_in_uneven_splits_only(stream):
    """(h) of the specs' acceptance tests."""
    even = tiny.stream()
    for tasks, same in ((even, True), (stream, False)):
        plain, legacy = (learnt("slca", tasks, leaks=leaks) for leaks in ((), ("legacy_task_index",)))
        test = tasks.test_after(tasks[2])
        found = [learner.predict(test).heads["aligned"] for learner in (plain, legacy)]
        assert np.array_equal(*found) is same


def test_the_plug_in_says_what_it_cannot_be_plugged_into():
    with pytest.raises(UserError, match="NearestMean has none"):
        learners.find("nearest_mean+alignment")
    with pytest.raises(UserError, match="SLCA aligns already"):
        learners.find("slca+alignment")

    class Odd(learners.find("finetune")):
        Hyper = dataclasses.make_dataclass("Odd", [("rank", int, 2)], frozen=True)

    with pytest.raises(UserError, match="both have a parameter 'rank'"):
        alignment.Alignment.check_base(Odd)


def test_wrong_switches_are_one_sentence():
    with pytest.raises(UserError, match="'unscale' .did you mean 'unscaled'"):
        learners.settings("slca", {"align_also": ["unscale"]})
    with pytest.raises(UserError, match="statistics is 'whole'"):
        learners.settings("slca", {"statistics": "whole"})
    with pytest.raises(UserError, match="temperature -1 do not make an alignment"):
        learners.settings("slca", {"temperature": -1.0})
    with pytest.raises(UserError, match="rank 17 does not fit statistics of 16 features"):
        learners.create("slca", tiny.backbone(), statistics="low_rank", rank=17)


def test_a_class_that_has_diverged_is_named(stream):
    learner = learners.create("slca", tiny.backbone(), seed=0, **SMALL)
    learner.sizes.append(3)
    learner.begin_task(stream[0])
    learner.features = lambda images, kind: np.full((len(images), 16), np.inf, np.float32)
    with pytest.raises(UserError, match="class 'class .' has features that are not finite"):
        learner.end_task(stream[0])
