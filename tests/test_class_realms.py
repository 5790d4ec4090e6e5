"""A benchmark's class list as a realm: given names with glosses that tell them apart, and said to be no foresight."""

import json

import numpy as np
import pytest
from PIL import Image

import cilkit
from cilkit.data import benchmarks, catalogue
from cilkit.errors import UserError
from cilkit.realms.realm import Realm
from cilkit.synthesis import cards

TABLES = {name: entry.class_table() for name, entry in catalogue.entries().items() if entry.class_table()}
TEMPLATE = "a photo of a {name}, {description}"


@pytest.fixture(autouse=True)
def _artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))


def prompts_of(benchmark):
    return {
        one.name: one.prompt for one in Realm.of_classes(benchmark, benchmarks.glosses(benchmark), TEMPLATE).concepts
    }


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "pacs", "imagenet100"])
def test_every_class_has_a_gloss_of_its_own(name):
    glosses = benchmarks.glosses(name)
    assert list(glosses) == benchmarks.class_names(name) == list(TABLES[name].values())
    assert all(10 < len(gloss) <= 80 and gloss == gloss.strip(" .") for gloss in glosses.values())
    assert len(set(glosses.values())) == len(glosses)


@pytest.mark.parametrize("name", TABLES)
def test_a_gloss_says_more_than_the_name_and_belongs_to_a_class(name):
    keys = {key for entry in catalogue.entries().values() for key in entry.class_table() or ()}
    assert set(catalogue.find(name).glosses()) <= keys
    for readable, gloss in benchmarks.glosses(name).items():
        assert "\t" not in gloss and gloss.casefold() != readable.casefold()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("ray (fish)", "sea fish"),
        ("mouse (animal)", "rodent"),
        ("plate (dish)", "food is served"),
        ("orange (fruit)", "citrus fruit"),
        ("aquarium fish", "glass tank"),
        ("seal (animal)", "sea mammal"),
        ("plain (landscape)", "open land"),
        ("train (railway)", "locomotive"),
    ],
)
def test_ambiguous_names_are_read_rightly(name, read):
    assert read in benchmarks.glosses("cifar100")[name]
    assert prompts_of("cifar100")[name] == f"a photo of a {name}, {benchmarks.glosses('cifar100')[name]}"


def test_imagenet_s_duplicates_and_homonyms_have_prompts_of_their_own():
    prompts = prompts_of("imagenet1k")
    assert len(set(prompts.values())) == 1000
    for pair in (("crane (bird)", "crane (machine)"), ("maillot (swimsuit)", "maillot (tank suit)")):
        first, second = (benchmarks.glosses("imagenet1k")[name] for name in pair)
        assert first and second and first != second
    assert "wading bird" in prompts["crane (bird)"] and "lifting machine" in prompts["crane (machine)"]
    assert "drums" in prompts["drumstick (for drums)"] and "screen" in prompts["mouse (computer)"]
    assert prompts["tench"] == "a photo of a tench", "a name without a gloss stands alone"
    glosses = benchmarks.glosses("imagenet1k")
    assert all(glosses[name] for name in glosses if "(" in name), "a name that was read as something else has a gloss"


def test_the_road_takes_a_class_list_and_says_that_it_was_given():
    realm = cilkit.foresee("classes:cifar100")
    assert realm.concept_names == benchmarks.class_names("cifar100")
    assert realm.concepts[67].prompt.startswith("a photo of a ray (fish), a flat sea fish")
    assert realm.subtypes == ("given",) and not realm.replies
    told = "the class list of cifar100: given, not foreseen"
    assert realm.origin == json.loads(realm.artifact.file("realm.json").read_text())["origin"] == told
    card = cards.card(realm=realm, counts=dict.fromkeys(realm.concept_names, 2))
    assert card["realm"]["origin"] == told and card["realm"]["language_models"] == []
    assert "given, not foreseen" in cards.markdown(card).replace("&#58;", ":")
    assert "origin" not in cards.card(realm=cilkit.foresee("birds"), counts={})["realm"]


def test_a_list_s_beginning_and_a_template_of_one_s_own():
    realm = cilkit.foresee("classes:cifar100", template="a picture of a {name}", classes=3)
    assert [one.prompt for one in realm.concepts] == [f"a picture of a {n}" for n in ("apple", "aquarium fish", "baby")]
    assert realm.origin and cilkit.correct(realm, drop=["baby"]).origin == realm.origin
    with pytest.raises(UserError, match="same prompt"):
        cilkit.foresee("classes:cifar100", template="a picture")


def test_a_folder_s_classes_are_painted_by_name(tmp_path):
    for part in ("train", "test"):
        for name in ("digit_one", "digit two"):
            (tmp_path / "two" / part / name).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "two" / part / name / "a.png")
    realm = cilkit.foresee(f"classes:folder:{tmp_path / 'two'}")
    assert [one.prompt for one in realm.concepts] == [
        "a photo of a digit two",
        "a photo of a digit one",
    ]  # folders' order
    assert realm.name == "classes of two", "no path of this machine in what the artifact holds"
    images = cilkit.paint(realm, per_class=2, steps=1, workers=1, device="cpu", style="plain")
    assert images.class_names == ["digit two", "digit one"] and len(images) == 4
    assert "given, not foreseen" in json.loads(images.artifact.file("card.json").read_text())["realm"]["origin"]


def test_a_class_that_nothing_can_be_painted_by_is_refused():
    with pytest.raises(UserError, match="cannot name a concept"):
        Realm.of_classes("two", {"apple": "", "two\nlines": ""}, TEMPLATE)
