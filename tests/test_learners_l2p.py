"""L2P: its acceptance tests (specs, section 13), and its formula against a slow and literal one."""

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from cilkit import backbones, learners


def begun(task=0, **hyper):
    """A learner in its task's first step, and the batch."""
    stream = tiny.stream()
    learner = tiny.case("l2p", **{"pool": 6, "length": 2, "chosen": 3, "head_start": "linear"} | hyper)
    for index in range(task + 1):
        learner.sizes.append(2)
        learner.begin_task(stream[index])
    return learner, next(learner.batches(stream[task], 0))


def wide(**hyper):
    """On ViT-B/16, whose weights nobody needs."""
    with torch.device("meta"):
        backbone = backbones.create("vit_base_patch16_224")
    return learners.create("l2p", backbone, **hyper)


@pytest.mark.parametrize(("classes", "count"), [(100, 122_980), (200, 199_880)])
def test_as_many_parameters_and_tokens_as_the_paper_s(classes, count):
    learner = wide(pool=10, length=5, chosen=5)
    for _ in range(10):
        learner.raw.grow(classes // 10, 0, False, "meta")
    assert sum(p.numel() for p in learner.trained) == count
    lengths = []
    learner.backbone.model.blocks[-1].register_forward_hook(lambda _, inputs, output: lengths.append(output.shape[1]))
    images = torch.zeros(2, 3, 224, 224, device="meta")
    learner.with_prompts(images, torch.zeros(2, 5, dtype=torch.int64, device="meta"), "student")
    assert lengths == [197 + 25]


def test_the_loss_is_masked_cross_entropy_less_the_pull():
    learner, batch = begun(task=1, pull=0.5)
    terms = learner.loss(batch)
    keys = learner.prompts["keys"]
    loss = pull = 0.0
    for image, label in zip(batch.images, batch.labels, strict=True):
        query = learner.query(image[None])[0]
        cosines = [F.cosine_similarity(query, key, dim=0) for key in keys]
        chosen = sorted(range(6), key=lambda m: -cosines[m].item())[:3]
        features = learner.with_prompts(image[None], torch.tensor([chosen]), "student")
        logits = learner.raw(features)[0].masked_fill(torch.arange(4) < 2, -torch.inf)
        loss += F.cross_entropy(logits, label) / len(batch.labels)
        pull += sum(cosines[m] for m in chosen) / len(batch.labels)
    torch.testing.assert_close(terms["classification"], loss)
    torch.testing.assert_close(terms["pull"], -0.5 * pull)


def test_prompts_that_were_not_chosen_get_no_gradient_and_keys_only_the_pull_s():
    learner, batch = begun()
    terms = learner.loss(batch)
    _, chosen = learner.choose(learner.query(batch.images), vote=False)
    terms["classification"].backward(retain_graph=True)
    assert learner.prompts["keys"].grad is None
    used = learner.prompts["prompts"].grad.abs().sum((1, 2)) > 0
    assert set(np.flatnonzero(used)) == set(chosen.unique().tolist()) and not used.all()
    terms["pull"].backward()
    assert learner.prompts["keys"].grad.abs().sum() > 0


def test_without_prompts_it_is_the_plain_transformer():
    learner, batch = begun(chosen=0)
    with torch.no_grad():
        assert torch.equal(learner.embed(batch.images, "test"), learner.query(batch.images))


def test_only_a_leak_makes_the_answer_depend_on_the_batch():
    stream = tiny.stream()
    answers = {}
    for leaks in ((), ("batch_vote",)):
        learner = tiny.case("l2p", pool=6, length=2, chosen=1, prompt_low=-1.0, prompt_high=1.0, leaks=leaks)
        list(learner.learn(stream[0]))
        images = torch.cat([batch.images for batch in learner.batches(stream[0], 0)])
        with torch.no_grad():
            learner.prompts["keys"].copy_(normal_keys(learner.query(images)))
            whole = learner.embed(images, "test")
            answers[leaks] = (whole - torch.cat([learner.embed(one[None], "test") for one in images])).abs().max()
        vote = learner.choose(learner.query(images), learner.leaking("batch_vote"))[1]
        assert (vote == vote[0]).all() == bool(leaks)
    assert answers[()] < 1e-4 < 1e-2 < answers[("batch_vote",)]


def normal_keys(queries):
    """Keys between which the queries are divided."""
    centred = queries - queries.mean(0)
    return centred[:6]


def test_training_may_vote_where_the_official_code_does():
    learner, batch = begun(training_vote=True, prompt_low=-1.0, prompt_high=1.0, chosen=1)
    with torch.no_grad():
        queries = learner.query(batch.images)
        learner.prompts["keys"].copy_(normal_keys(queries))
        free = learner.choose(queries, vote=False)[1]
    assert len(free.unique()) > 1
    learner.loss(batch)["classification"].backward()
    assert (learner.prompts["prompts"].grad.abs().sum((1, 2)) > 0).sum() == 1
    assert learners.settings("l2p", {"recipe_of": "official_code"})["training_vote"]


def test_ports_add_the_class_token_s_position():
    plain, _ = begun()
    ported, batch = begun(prompt_position=True)
    with torch.no_grad():
        place = ported.backbone.model.pos_embed[:, 0]
        plain.prompts["prompts"] += place
        chosen = torch.zeros(len(batch.images), 3, dtype=torch.int64)
        found = ported.with_prompts(batch.images, chosen, "test")
        assert torch.allclose(found, plain.with_prompts(batch.images, chosen, "test"), atol=1e-6)
