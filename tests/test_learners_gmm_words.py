"""GMM's words: by which names classes are called, what an answer decides, and how answers are kept
(gmm_icarl_lwm_mae.md, part A)."""

import json

import numpy as np
import pytest
import tiny
import torch
from tiny_gmm import NAMES, create, named, start

from cilkit import incremental, outputs
from cilkit.errors import UserError
from cilkit.runs import Run


@pytest.fixture(scope="module")
def stream():
    return named(NAMES)


# ------------------------------------------------------------ names


def decoded(learner):
    """The answers that the table of targets holds."""
    return [
        learner.captioner.tokenizer.decode([token for token in row if token >= 0], skip_special_tokens=True)
        for row in learner.table.tolist()
    ]


def test_underscores_are_read_as_spaces_or_stay(stream, monkeypatch):
    for how, change in (("spaced", lambda name: name.replace("_", " ")), ("plain", str)):
        learner = create(names=how)
        for task in stream:
            start(learner, task)
            names = [change(name) for name in stream.class_names[: task.seen]]
            assert decoded(learner) == [f"this is a photo of a {name}." for name in names]
    assert any("_" in answer for answer in decoded(learner))
    asked = []
    learner.text_encoder = lambda texts: asked.extend(texts) or tiny.letters(texts)
    monkeypatch.setattr(learner.captioner, "write", lambda tokens: ["a photo of a Zebu_cow."] * len(tokens))
    learner.predict(stream.test.select([0]))
    assert asked[:6] == NAMES and "Zebu_cow" in asked[6]  # embedded as they stand, too


def test_shuffled_every_class_answers_to_another_s_name_always_the_same(stream):
    spaced = [name.replace("_", " ") for name in stream.class_names]
    learner = create(names="shuffled", epochs=1)
    called = []
    for task in stream:
        tiny.learn(learner, [task])
        assert decoded(learner) == [f"this is a photo of a {name}." for name in learner.called[: task.seen]]
        called.append(learner.called)
    assert sorted(called[0]) == sorted(spaced) and called[0] == called[1] == called[2]
    assert all(one != other for one, other in zip(called[0], spaced, strict=True))
    again = create(names="shuffled", epochs=1)
    again.load(learner.state())
    assert again.predict(stream.test).texts == learner.predict(stream.test).texts and again.called == called[0]
    others = {tuple(named_by(seed)) for seed in range(8)}
    assert len(others) > 4 and all(sorted(other) == list("abcdef") for other in others)
    assert not any(one == other for names in others for one, other in zip(names, "abcdef", strict=True))


def named_by(seed):
    learner = create(names="shuffled", seed=seed)
    learner.call(list("abcdef"))
    return learner.called


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["ox", "cat", "bee", "Cat"], "read the same"),
        (["ox", "sea_lion", "bee", "sea lion"], "'sea_lion'.*'sea lion'|'sea lion'.*'sea_lion'"),
        (["ox", "cat", "bee", " "], "leaves nothing to write"),
    ],
)
def test_names_that_no_answer_could_tell_apart_are_refused_before_the_first_epoch(names, sentence, tmp_path):
    stream, learner = named(names), create()
    for folder in (None, tmp_path):
        with pytest.raises(UserError, match=sentence):
            incremental.run_stream(learner, stream, folder)
        assert not learner.backbone.forwarded


def test_a_name_too_long_is_refused_before_the_first_epoch(tmp_path):
    learner = create()
    with pytest.raises(UserError, match="writes 40 at most"):
        incremental.run_stream(learner, named(["ox", "cat", "bee", "x" * 60]), tmp_path)
    assert not learner.backbone.forwarded


# ------------------------------------------------------------ answers


def test_a_written_name_decides_and_the_constrained_head_is_the_answers_log_probability(stream, monkeypatch):
    learner = tiny.learn(create(), stream[:2])
    images = stream.test_after(stream[1])
    answer = f"this is a photo of a {stream.class_names[3]}."
    monkeypatch.setattr(learner.captioner, "write", lambda tokens: [answer] * len(tokens))
    found = learner.predict(images)
    assert (found.predictions("written") == 3).all() and found.texts == [answer] * 12
    tokens = torch.from_numpy(learner.features(images, "test")).unflatten(1, learner.tokens_shape)
    with torch.no_grad():
        for label in range(4):
            costs = learner.captioner.nll(tokens, learner.table[[label] * 12])
            np.testing.assert_allclose(found.heads["constrained"][:, label], -costs, atol=1e-4)
    np.testing.assert_allclose(found.features, tokens.mean(1), atol=1e-6)
    plain = tiny.learn(create(constrained=False, epochs=1), stream[:1])
    assert set(plain.predict(stream.test_after(stream[0])).heads) == {"written"}


def test_what_was_written_is_kept_and_read_back(tmp_path):
    stream, learner = tiny.stream()[:2], tiny.case("gmm")
    found = incremental.run_stream(learner, stream, tmp_path)
    run = Run(tmp_path)
    for t, images in enumerate((10, 20)):
        texts = json.loads((tmp_path / f"after_0{t}" / "texts.json").read_text(encoding="utf-8"))
        assert texts == found[t].texts == run.texts(t) and len(texts) == images and all(texts)
    assert texts == learner.predict(stream.test).texts and texts[0].startswith("this is a")
    assert run.settings["notes"]["names"] == stream.class_names


def test_an_answer_of_a_megabyte_is_cut_and_any_character_kept(tmp_path):
    texts = ['ß🦆\n"\\' * 200_000, "", "\u2028 a"]
    heads = {"written": np.zeros((3, 2), np.float32)}
    given = outputs.Outputs(np.arange(3), np.zeros(3, np.int64), heads, texts=texts)
    outputs.write(tmp_path, given, [0, 0], outputs.Keep())
    assert outputs.read(tmp_path, ["written"]).texts == [texts[0][:2000], *texts[1:]]
    assert (tmp_path / "texts.json").stat().st_size < 30_000
    (tmp_path / "texts.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        outputs.read(tmp_path, ["written"])


def test_a_learner_that_writes_nothing_says_so(stream, tmp_path):
    incremental.run_stream(create("gmm_linear"), stream[:1], tmp_path)
    assert not (tmp_path / "after_00" / "texts.json").exists()
    with pytest.raises(UserError, match="'gmm_linear' writes no answers"):
        Run(tmp_path).texts(0)
