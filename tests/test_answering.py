"""Notebook 06's verbs: a captioner aligned on paintings, and arms that write and arms that do not, on one stream."""

import json
import shutil

import pytest
import tiny_llm

import cilkit
from cilkit.captioning import aligning
from cilkit.errors import UserError

SMALL = {"arch": "resnet10t", "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""}}
ALIGNED = {"dim": 16, "depth": 1, "epochs": 2, "views": 1}
ON = {"benchmark": "digits", "tasks": 2}
HYPER = {"epochs": 1, "per_class": 2, "batch_size": 64}


@pytest.fixture(scope="module", autouse=True)
def own_root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        yield


@pytest.fixture(scope="module")
def images():
    realm = cilkit.foresee("handwritten characters")
    return cilkit.paint(realm, generator="font-renderings", per_class=2, workers=1)


@pytest.fixture(scope="module")
def aligned(images):
    return cilkit.prealign(images, **SMALL, **ALIGNED)


def test_a_captioner_is_found_again_and_belongs_to_its_parameters(images, aligned):
    assert cilkit.prealign(images.artifact.name, **SMALL, **ALIGNED).artifact.path == aligned.artifact.path
    report = aligned.report
    assert report["images"] == len(images) and len(report["losses"]) == 2 and report["losses"][1] < report["losses"][0]
    assert report["captions"][images.class_names.index("digit seven")] == "this is a photo of a digit seven."
    assert report["forwarded"]["student"] == len(images)
    other = cilkit.prealign(images, **SMALL, **ALIGNED | {"epochs": 1}, sentence="a {}.")
    assert other.artifact.key != aligned.artifact.key and other.report["captions"][0].startswith("a ")


def test_an_alignment_that_was_interrupted_ends_in_the_same_bytes(images, aligned, tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    keep, kept = aligning._keep, []

    def once(*arguments):
        keep(*arguments)
        kept.append(arguments)
        if len(kept) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(aligning, "_keep", once)
    for stage in ("realm", "images"):  # what it is made from lies in the other root
        shutil.copytree(images.artifact.path.parent.parent / stage, tmp_path / stage)
    with pytest.raises((KeyboardInterrupt, cilkit.Stopped)):
        cilkit.prealign(images, **SMALL, **ALIGNED)
    again = cilkit.prealign(images, **SMALL, **ALIGNED)
    assert len(kept) == 2 and again.artifact.digest == aligned.artifact.digest


def test_arms_that_write_share_the_captioner_and_the_others_are_spared_it(images, aligned):
    arms = {
        "GMM": {},
        "zero-shot": {"epochs": 0, "per_class": 0},
        "head": {"learner": "gmm_linear"},
        "means": {"learner": "nearest_mean"},
    }
    given = {"images": images, "alignment": ALIGNED, **SMALL, **ON, **HYPER}
    runs = cilkit.answer(arms, joint_epochs=1, joint_learner="gmm", **given)
    assert list(runs) == [*arms, "joint"] and runs["joint"].n_tasks == 1
    for arm in ("GMM", "zero-shot", "head", "joint"):
        assert runs[arm].artifact.inputs["captioner"]["digest"] == aligned.artifact.digest
    assert "captioner" not in runs["means"].artifact.inputs
    assert runs["GMM"].heads == ["written", "constrained"] and len(runs["GMM"].texts(1)) == len(runs["GMM"].labels(1))
    assert runs["zero-shot"].settings["stored_bytes"] == {}
    again = cilkit.answer({"GMM": {}}, **given)
    assert again["GMM"].artifact.path == runs["GMM"].artifact.path
    with pytest.raises(UserError, match=r"kept are mean tokens, .* cilkit\.reference"):
        cilkit.probe(runs["GMM"], cilkit.stream(**ON))
    with pytest.raises(UserError, match="writes no answers"):
        runs["means"].texts(0)


def test_what_does_not_fit_is_one_sentence(images, aligned):
    stream = cilkit.stream(**ON)
    with pytest.raises(UserError, match=r"needs a captioner: give cilkit\.prealign"):
        cilkit.run("gmm", stream, **SMALL)
    with pytest.raises(UserError, match="'icarl' writes nothing|icarl writes nothing"):
        cilkit.run("icarl", stream, captioner=aligned, **SMALL)
    with pytest.raises(UserError, match=r"an artifact of stage 'captioner' is wanted"):
        cilkit.run("gmm", stream, captioner=images, **SMALL)
    with pytest.raises(UserError, match=r"no setting 'epoch' \(did you mean 'epochs'\?\)"):
        cilkit.answer({"GMM": {}}, images=images, alignment={"epoch": 3}, **ON, **SMALL)
    with pytest.raises(UserError, match="images is empty"):
        cilkit.answer({"GMM": {}}, **ON, **SMALL)
    pretrained = cilkit.pretrain(images, **SMALL, epochs=1, batch_size=32)
    theirs = cilkit.prealign(images, pretrained, **ALIGNED)
    with pytest.raises(UserError, match="aligned to another backbone"):
        cilkit.run("gmm", stream, captioner=theirs, **SMALL)
    with pytest.raises(UserError, match="aligned to another backbone"):
        cilkit.run("gmm", stream, backbone=pretrained, captioner=aligned)


def test_a_language_model_or_text_encoder_in_a_folder_is_part_of_the_identity_by_its_content(images, tmp_path):
    one, two = (tiny_llm.write(tmp_path / name, seed=seed) for name, seed in (("one", 0), ("two", 1)))
    settings = SMALL | ALIGNED | {"longest": 60, "epochs": 1}
    first = cilkit.prealign(images, lm=str(one), **settings)
    shutil.copytree(one, tmp_path / "copy")
    assert cilkit.prealign(images, lm=str(tmp_path / "copy"), **settings).artifact.path == first.artifact.path
    assert cilkit.prealign(images, lm=str(two), **settings).artifact.key != first.artifact.key
    card = json.loads((first.artifact.path / "captioner.json").read_text())
    assert "/" not in card["tag"] and (first.artifact.path / "language_model" / "model.safetensors").is_file()
