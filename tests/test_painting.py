"""The verb of notebook 02: what names an image set, what only says how fast, what lies beside the images."""

import json

import pytest

import cilkit
from cilkit import artifacts
from cilkit.data.shards import open_set
from cilkit.errors import UserError
from cilkit.road import inputs, painting
from cilkit.synthesis import paint as painter_module
from cilkit.synthesis.plan import open_plan


@pytest.fixture(scope="module", autouse=True)
def own_root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        yield


@pytest.fixture(scope="module")
def realm():
    return cilkit.foresee("ornaments and shapes", classes=6)


@pytest.fixture(scope="module")
def images(realm):
    return cilkit.paint(realm, generator="font-renderings", per_class=3, style="diversified", workers=1)


def test_the_artifact_holds_images_plan_and_card_and_nothing_else(images):
    artifact = images.artifact
    names = sorted(file["path"] for file in artifact.files)
    assert [name for name in names if not name.endswith(".tar")] == [
        *("README.md", "card.json", "manifest.parquet", "plan.parquet")
    ]
    assert artifact.identity["style"] == "diversified" and "workers" not in artifact.identity
    plan = open_plan(artifact.file("plan.parquet"))
    assert len(plan) == 18 and images.manifest["plan_hash"].unique().tolist() == [plan.hash]
    assert images.manifest["prompt"].nunique() == 18
    assert images.manifest["realm"].unique().tolist() == ["ornaments and shapes"]
    assert images.manifest["realm_digest"].unique().tolist() == [artifact.inputs["realm"]["digest"]]
    card = json.loads(artifact.file("card.json").read_text())
    assert card["images"] == 18 and card["style"] == "diversified" and card["realm"]["name"] == "ornaments and shapes"


def test_what_is_painted_names_it_and_how_fast_does_not(realm, images):
    same = {"generator": "font-renderings", "per_class": 3}
    for execution in ({"workers": 3}, {"device": "cpu"}, {"executor": "ray"}):
        again = cilkit.paint(realm, **same, style="diversified", **execution)
        assert again.artifact.path == images.artifact.path  # found, not painted
    assert cilkit.paint(realm, **same, style=["seen from above"], workers=1).artifact.key != images.artifact.key
    assert inputs.upstream(images.artifact.name, "images").artifact.digest == images.artifact.digest


def test_shortened_prompts_are_told_and_recorded(realm, capsys):
    ending = ["on " + "very " * 50 + "white paper"]  # no limit of tokens is known: 300 characters
    given = {"generator": "font-renderings", "per_class": 1, "style": ending, "workers": 1}
    rows = cilkit.paint(realm, **given, long_prompts="shorten").manifest
    assert (rows["shortened"] != "").any() and rows["prompt"].str.len().max() <= 300
    name, cut = rows.loc[rows["shortened"] != "", ["class_name", "shortened"]].iloc[0]
    assert f"shortened, of {name!r} by {cut!r}" in capsys.readouterr().out


def test_settings_reach_the_generator_and_empty_ones_do_not(realm, monkeypatch):
    asked = {}

    class Enough(Exception):
        pass

    def load(spec, **settings):
        asked.update(settings)
        raise Enough

    monkeypatch.setattr("cilkit.synthesis.load_generator", load)
    with pytest.raises(Enough):
        cilkit.paint(realm, generator="sd15")
    assert asked == {}
    with pytest.raises(Enough):
        cilkit.paint(
            realm,
            generator="sd15",
            steps=10,
            guidance=0.0,
            size=256,
            negative_prompt="text",
            device="cuda:1",
            fast="steps",
        )
    assert asked == {
        **{"steps": 10, "guidance": 0.0, "size": 256, "negative_prompt": "text", "device": "cuda:1", "fast": "steps"}
    }


def test_interrupted_painting_goes_on_in_the_same_folder(realm, images, monkeypatch, tmp_path):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    realm = cilkit.foresee("ornaments and shapes", classes=6)
    arguments = {"generator": "font-renderings", "per_class": 3, "style": "diversified", "workers": 1, "batch_size": 5}
    real = painter_module.work

    def stopped(job, painter):
        painted = real(job, painter)
        yield next(painted)
        painted.close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="5 of 18 images are kept"):
        patch.setattr(painter_module, "work", stopped)
        cilkit.paint(realm, **arguments)
    assert list(tmp_path.glob("images/*.part/plan.parquet"))
    made = cilkit.paint(realm, **arguments)
    assert made.artifact.measured["images"] == 13
    assert not artifacts.verify(made.artifact) and len(open_set(made.artifact, verify=True)) == 18


def test_a_device_that_is_not_there_is_one_sentence(realm):
    with pytest.raises(UserError, match="device 'cuda:7' is not there"):
        cilkit.paint(realm, generator="font-renderings", per_class=1, device="cuda:7")


def test_one_worker_a_gpu_and_one_a_core_without(monkeypatch):
    from cilkit.synthesis import load_generator

    fonts = load_generator("font-renderings")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert painting._workers(fonts, "auto") == 3 and painting._workers(fonts, "cuda:1") == 1
    cores = painting._workers(fonts, "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert painting._workers(fonts, "auto") == cores >= 1
    assert painting._workers(object(), "cpu") == 1  # nobody else can load it
