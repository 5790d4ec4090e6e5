"""Future-class replay: whose images are shown, what they are taught, and what of it is left."""

import numpy as np
import pytest
import tiny
import torch
from tiny import learn
from torch.nn.functional import cross_entropy

from cilkit import learners
from cilkit.data import ImageSet
from cilkit.errors import UserError

BASES = ["lwf", "icarl", "bic", "wa", "der", "lucir"]


def create(name="lwf", images=None, **changes):
    settings = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05} | changes
    images = tiny.image_set(classes=6, seed=7) if images is None else images
    return learners.create(f"{name}+future_replay", tiny.backbone(), images=images, **settings)


def start(stream, index, name="lwf", **changes):
    learner = learn(create(name, **changes), stream[:index] if index else [])
    learner.sizes.append(2)
    learner.begin_task(stream[index])
    return learner


@pytest.mark.parametrize("name", BASES)
def test_without_weight_it_is_the_learner_bit_for_bit(stream, name):
    plain, plugged = tiny.case(name), tiny.case(f"{name}+future_replay", future_weight=0.0)
    losses = [[moment.losses for task in stream for moment in one.learn(task)] for one in (plain, plugged)]
    assert losses[0] == losses[1]
    ours, theirs = plugged.state(), plain.state()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert plugged.declared(stream) == plain.declared(stream) and plugged.stored_bytes() == plain.stored_bytes()


def test_the_classes_shown_are_the_image_sets_without_those_seen(stream):
    """Image set and stream share three classes; of the stream's own others nothing is known."""
    names = [stream.class_names[place] for place in (5, 1, 2)] + ["a gnu", "a yak"]
    drawn = tiny.image_set(classes=5, seed=7)
    images = ImageSet(drawn.source, drawn.index, drawn.labels, names)
    expected = [[names[0], names[2], "a gnu", "a yak"], [names[0], "a gnu", "a yak"], ["a gnu", "a yak"]]
    for index, foreseen in enumerate(expected):
        learner = start(stream, index, images=images)
        assert learner.foreseen == foreseen
        pairs = zip(np.array(names)[images.labels], images.images(), strict=True)
        pixels = {image.tobytes(): name for name, image in pairs}
        asked, read = [], images.source.read

        def noted(rows, shortest=0, asked=asked, read=read):
            asked.extend(image.tobytes() for image in read(rows))
            return read(rows, shortest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images.source, "read", noted)
            batches = [batch.extra for epoch in range(20) for batch in learner.batches(stream[index], epoch)]
        labels = torch.cat([extra.labels for extra in batches])
        shown = [pixels[image] for image in asked]
        assert shown == [foreseen[label - learner.seen] for label in labels.tolist()]  # and labelled so
        counts = np.bincount(labels - learner.seen, minlength=len(foreseen))
        assert counts.min() > 0.7 * counts.mean()  # the class is uniform


@pytest.mark.parametrize("name", BASES)
def test_the_term_is_one_softmax_over_heads_and_foreseen_outputs(stream, name):
    learner = start(stream, 1, name, future_weight=1.7)
    learner.backbone.eval()
    batch = next(learner.batches(stream[1], 0))
    terms = learner.loss(batch)
    expected = []
    for one in (batch, batch.extra):
        features = learner.backbone(one.images, "student")
        logits = torch.cat([learner.raw(features), features @ learner.outputs.T], dim=1)
        assert logits.shape[1] == 4 + 2 and len(one.labels) == len(batch.images)
        expected.append(cross_entropy(logits, one.labels))
    torch.testing.assert_close(terms.pop("future"), 1.7 * sum(expected) / 2)
    own = learner.terms(learner.read(learner.trunk(batch.images)), batch)
    assert own.keys() == terms.keys()
    for name in own:
        torch.testing.assert_close(terms[name], own[name])


def test_foreseen_outputs_learn_are_kept_while_they_are_foreseen_and_never_answer(stream):
    before = start(stream, 0)
    learner = learn(create(), stream[:1])
    assert learner.foreseen == before.foreseen and not torch.allclose(learner.outputs, before.outputs)
    trained = dict(zip(learner.foreseen, learner.outputs.detach().clone(), strict=True))
    assert learner.predict(stream.test_after(stream[0])).heads["raw"].shape[1] == 2
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    assert len(learner.foreseen) == 2
    assert all(torch.equal(*pair) for pair in zip(learner.outputs, map(trained.get, learner.foreseen), strict=True))
    learner = learn(create(), stream)
    assert learner.predict(stream.test_after(stream[2])).heads["raw"].shape[1] == 6
    assert learner.foreseen == [] and learner.outputs.shape == (0, 16)


@pytest.mark.parametrize("inherit", [False, True])
def test_a_new_head_may_begin_as_its_foreseen_output(stream, inherit):
    learner = learn(create(inherit=inherit), stream[:1])
    foreseen = dict(zip(learner.foreseen, learner.outputs.detach().clone(), strict=True))
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    for row, label in enumerate(stream[1].classes):
        assert torch.equal(learner.raw.current.weight[row], foreseen[stream.class_names[label]]) == inherit


def test_in_the_first_task_alone_the_backbone_then_stands_still(stream):
    learner = create(only_first=True)
    weights = []
    for task in stream:
        learn(learner, [task])
        weights.append({name: value.clone() for name, value in learner.backbone.state_dict().items()})
    assert all(torch.equal(weights[0][name], value) for name, value in weights[2].items())
    assert learner.declared(stream)["student"] == 2 * (2 * 16 + 16 + 16) == learner.backbone.forwarded["student"]


def test_images_are_counted_where_there_were_most(stream):
    learner = learn(create(future_ratio=0.5), stream)
    assert learner.stored_bytes() == {"foreseen images": 4 * 8 * 768}
    assert learner.declared(stream)["student"] == 2 * (24 + 24 + 16) == learner.backbone.forwarded["student"]


def test_what_does_not_go_is_one_sentence(stream):
    for name, sentence in [
        ("ewc", "loss in two halves"),
        ("podnet", "PODNet has none"),
        ("lwf+synthetic_replay", "takes images already"),
    ]:
        with pytest.raises(UserError, match=sentence):
            learners.settings(f"{name}+future_replay", {})
    with pytest.raises(UserError, match="future_ratio -1; expected 0 or more"):
        learners.settings("lwf+future_replay", {"future_ratio": -1.0})
    with pytest.raises(UserError, match="needs an image set"):
        learners.create("lwf+future_replay", tiny.backbone())
