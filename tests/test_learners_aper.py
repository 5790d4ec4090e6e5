import numpy as np
import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy, normalize

from cilkit import backbones, incremental, learners
from cilkit.errors import UserError

KINDS = ("adapter", "ssf", "prompts", "finetune")
SMALL = {"epochs": 2, "batch_size": 8, "recipe": "none", "lr": 0.1}


def create(name="aper", **hyper):
    return learners.create(name, tiny.transformer(), seed=0, **{**SMALL, **hyper})


def learnt(stream, **hyper):
    learner = create(**hyper)
    return learner, incremental.run_stream(learner, stream, None)


def weights(learner):
    return {name: value.clone() for name, value in learner.backbone.state_dict().items()}


def test_without_adaptation_it_is_simplecil(stream):
    ours = learnt(stream, phase1="none")[1][-1]
    theirs = learners.create("simplecil", tiny.transformer())
    expected = incremental.run_stream(theirs, stream, None)[-1]
    assert np.array_equal(ours.heads["means"], expected.heads["means"])


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_backbone_as_it_came_and_of_the_adapted_one(stream, kind):
    learner = create(phase1=kind)
    images = stream.test_after(stream[0])
    before = backbones.extract(tiny.transformer(), images, "probe")
    assert np.array_equal(learner.features(images, "probe"), before)  # nothing is attached yet that counts
    list(learner.learn(stream[0]))
    found = learner.features(images, "probe")
    adapted = backbones.extract(learner.backbone, images, "probe")
    assert found.shape == (len(images), learner.dim) == (len(images), 64)
    assert np.array_equal(found, np.hstack([before, adapted])) and not np.allclose(before, adapted, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_should_learns_and_only_in_the_first_task(stream, kind):
    learner = create(phase1=kind)
    start = weights(learner)
    list(learner.learn(stream[0]))
    first = weights(learner)
    moved = {name for name in start if not torch.equal(start[name], first[name])}
    if kind == "finetune":
        assert moved == set(start)
    else:
        assert moved == {name for name in start if name.startswith("attached.phase1")}
    assert not any(p.requires_grad for p in learner.backbone.parameters()) and learner.frozen
    list(learner.learn(stream[1]))
    assert all(torch.equal(first[name], value) for name, value in weights(learner).items())


def test_phase_1_is_plain_sgd_on_a_cosine_head(stream):
    """Against a literal loop over the same batches."""
    learner, task = create(phase1="finetune", epochs=3, weight_decay=0.01), stream[0]
    twin = create(phase1="finetune", epochs=3, weight_decay=0.01)
    network = twin.backbone
    twin.sizes.append(len(task.classes))
    twin.begin_task(task)
    weight, sigma = (p.detach().clone().requires_grad_() for p in (twin.head.weight, twin.head.sigma))
    assert sigma.item() == 1 and weight.abs().max() < 1 / 32**0.5
    parameters = [weight, sigma, *network.parameters()]
    memory = [torch.zeros_like(p) for p in parameters]
    for epoch in range(3):
        lr = 0.1 * (1 + np.cos(np.pi * epoch / 3)) / 2
        network.train()
        for batch in twin.batches(task, epoch):
            logits = sigma * normalize(network(batch.images, "student")) @ normalize(weight).T
            gradients = torch.autograd.grad(cross_entropy(logits, batch.labels), parameters)
            with torch.no_grad():
                for p, g, m in zip(parameters, gradients, memory, strict=True):
                    m.mul_(0.9).add_(g + 0.01 * p)
                    p.sub_(lr * m)
    list(learner.learn(task))
    for ours, literal in zip(learner.backbone.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, literal, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_the_middle_of_phase_1(stream, kind):
    whole, moments = create(phase1=kind), None
    for moment in whole.learn(stream[0]):
        if moment.epoch == 0:
            moments = {name: value.clone() for name, value in whole.moment_state().items()}
    resumed = create(phase1=kind)
    assert len(list(resumed.learn(stream[0], moments))) == 1
    for learner in (whole, resumed):
        list(learner.learn(stream[1]))
    ours, theirs = whole.state(), resumed.state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = create(phase1=kind)
    again.load(ours)
    images = stream.test_after(stream[1])
    assert np.array_equal(again.predict(images).heads["means"], whole.predict(images).heads["means"])


@pytest.mark.parametrize("kind", KINDS)
def test_attachments_share_the_backbone_and_a_finetuned_one_is_counted(stream, kind):
    learner, _ = learnt(stream, phase1=kind)
    storages = {p.data_ptr() for p in learner.backbone.parameters()}
    shared = [p.data_ptr() in storages for p in learner.plain.parameters()]
    assert all(shared) if kind != "finetune" else not any(shared)
    size = sum(value.nbytes for value in learner.plain.state_dict().values())
    assert learner.stored_bytes().get("backbone as it came", 0) == (size if kind == "finetune" else 0)


@pytest.mark.parametrize("name", ["aper", "ranpac"])
@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_passes_are_declared_before_and_after(stream, name, kind):
    learner = create(name, phase1=kind)
    before = learner.declared(stream)
    incremental.run_stream(learner, stream, None)
    assert before == learner.declared(stream) == dict(learner.backbone.forwarded)
    networks = 2 if name == "aper" and kind != "none" else 1
    assert before["test"] == networks * len(stream.test) and before["statistics"] == networks * len(stream.train)


def test_a_domain_stream_adapts_to_its_first_domain():
    learner, outputs = learnt(tiny.domain_stream(), phase1="ssf")
    assert outputs[-1].heads["means"].shape[1] == 3 and learner.counts.tolist() == [18, 18, 18]


def test_bad_settings_are_one_sentence(stream):
    for kind in ("adapter", "prompts"):
        with pytest.raises(UserError, match="no transformer blocks"):
            learners.create("aper", tiny.backbone(), phase1=kind)
    with pytest.raises(UserError, match="'vpt'.*adapter, ssf, prompts, finetune"):
        learners.settings("aper", {"phase1": "vpt"})
    with pytest.raises(UserError, match="lower lr"):
        list(create(phase1="finetune", lr=1e9).learn(stream[0]))


def test_features_may_be_made_ahead_only_where_nothing_learns():
    for name in ("aper", "ranpac"):
        always = [learners.find(name).always_frozen(learners.settings(name, {"phase1": k})) for k in ("none", "ssf")]
        assert always == [True, False]
    assert learners.find("simplecil").always_frozen({}) and learners.find("nearest_mean").always_frozen({})
