"""Image sets painted again: as `cilkit.paint` paints them, from other seeds, and what a run makes of that."""

import shutil

import numpy as np
import pytest

import cilkit
from cilkit import incremental
from cilkit.errors import UserError
from cilkit.road import assembling
from cilkit.synthesis.generators import EMBEDDED

RUN = {"arch": "resnet10t", "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""}}
RUN |= {"epochs": 2, "milestones": [1], "painted_per_class": 2, "repaint": True, "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def own_root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        yield


@pytest.fixture(scope="module")
def stream():
    return cilkit.stream("digits", order_seed=1993, increment=2)[:3]


@pytest.fixture(scope="module")
def painted():
    realm = cilkit.foresee("handwritten characters", classes=10)
    return cilkit.paint(realm, per_class=2, seed=5, batch_size=4, steps=2, style="plain", workers=1)


def again(painted, **changes):
    return assembling.repainter(painted.artifact, "", "cpu", **changes)


def test_of_the_same_classes_and_seed_they_are_the_same_images(painted):
    anew = again(painted).paint(painted.class_names, 2, seed=5)
    assert anew.class_names == painted.class_names and np.array_equal(anew.labels, painted.labels)
    assert np.array_equal(anew.images(), painted.images())
    assert anew.manifest["prompt"].tolist() == painted.manifest["prompt"].tolist()


def test_labels_are_places_in_the_names_asked_for_and_seeds_make_other_images(painted):
    painter, names = again(painted), [painted.class_names[place] for place in (7, 2)]
    first = painter.paint(names, 3, seed=1)
    assert first.class_names == names and first.counts.tolist() == [3, 3]
    of_class = dict(zip(first.manifest["class_name"], first.labels, strict=True))
    assert of_class == {names[0]: 0, names[1]: 1}
    pixels, folder = first.images(), first.source.folder
    assert folder.exists()
    first = painter.paint(names, 3, seed=2)
    assert not np.array_equal(pixels, first.images()) and not folder.exists()  # thrown away
    assert np.array_equal(painter.paint(names, 3, seed=1).images(), pixels)


def test_what_is_kept_is_the_generators_weights_and_the_prompts(painted):
    weights = sum(file.stat().st_size for file in EMBEDDED.rglob("*.safetensors"))
    prompts = sum(len(f"a photo of a {name}") for name in painted.class_names)
    assert again(painted).bytes == weights + prompts and weights > 5_000_000


def test_a_run_paints_for_every_task_and_goes_on_to_the_same_bytes(painted, stream, monkeypatch):
    asked, paint = [], assembling.repainter(painted.artifact, "", "cpu").__class__.paint

    def noted(self, names, per_class, seed):
        found = paint(self, names, per_class, seed)
        asked.append((list(names), seed, found.images()))
        return found

    monkeypatch.setattr("cilkit.synthesis.repainting.Repainter.paint", noted)
    monkeypatch.setattr(incremental, "EVERY", 0.0)
    whole = cilkit.run("lwf+synthetic_replay", stream, images=painted, **RUN)
    assert [names for names, *_ in asked] == [stream.class_names[:2], stream.class_names[:4]]
    assert asked[0][1] != asked[1][1] and not np.array_equal(asked[0][2], asked[1][2][:4])
    assert whole.settings["stored_bytes"] == {"generator": again(painted).bytes}
    assert whole.artifact.inputs["images"]["digest"] == painted.artifact.digest
    shutil.rmtree(whole.artifact.path)

    tick, ticks = incremental._Record.tick, []

    def stopping(self, moment, **told):
        tick(self, moment, **told)
        ticks.append(moment)
        if len(ticks) == 3:  # in the second task, whose images are painted
            raise KeyboardInterrupt

    monkeypatch.setattr(incremental._Record, "tick", stopping)
    with pytest.raises(KeyboardInterrupt):
        cilkit.run("lwf+synthetic_replay", stream, images=painted, **RUN)
    part = cilkit.run("lwf+synthetic_replay", stream, images=painted, **RUN)
    assert part.artifact.digest == whole.artifact.digest and len(ticks) == 6


def test_a_run_that_trains_its_own_generator_needs_no_images(painted, stream):
    settings = {**RUN, "painter_steps": 2, "painter_size": 8, "painter_width": 8, "painter_sampling": 2}
    made = cilkit.run("lwf+generative_replay", stream, **settings)
    assert set(made.settings["stored_bytes"]) == {"generator"} and "images" not in made.artifact.inputs
    with pytest.raises(UserError, match="trains a generator of its own; leave `images` out"):
        cilkit.run("lwf+generative_replay", stream, images=painted, **settings)


def test_a_set_that_cannot_be_painted_again_says_why(painted, stream, tmp_path):
    rendered = cilkit.paint(cilkit.foresee("handwritten characters", classes=10), "font-renderings", per_class=2)
    with pytest.raises(UserError, match="font-renderings has no weights to keep"):
        cilkit.run("lwf+synthetic_replay", stream, images=rendered, **RUN)
    curated = cilkit.curate(painted, {})
    with pytest.raises(UserError, match="is curated; repaint needs the set as it was painted"):
        cilkit.run("lwf+synthetic_replay", stream, images=curated, **RUN)
    with pytest.raises(UserError, match="no class 'a gnu'"):
        again(painted).paint(["a gnu"], 1, 0)


def test_a_generator_in_a_folder_is_found_by_it_and_must_be_the_same(painted, tmp_path):
    copy = shutil.copytree(EMBEDDED, tmp_path / "mine")
    realm = cilkit.foresee("handwritten characters", classes=10)
    own = cilkit.paint(realm, generator=str(copy), per_class=1, batch_size=4, steps=2, style="plain", workers=1)
    with pytest.raises(UserError, match="'mine' is unknown.*give its folder as `generator`"):
        assembling.repainter(own.artifact, "", "cpu")
    found = assembling.repainter(own.artifact, str(copy), "cpu").paint(own.class_names, 1, seed=0)
    assert np.array_equal(found.images(), own.images())
    (copy / "more.json").write_text("{}")
    with pytest.raises(UserError, match="is not the one that painted"):
        assembling.repainter(own.artifact, str(copy), "cpu")
