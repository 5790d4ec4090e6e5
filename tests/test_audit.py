"""The overlap audit: which benchmark classes were foreseen, and how sure the match is."""

import pytest

from cilkit.realms import Realm, audit, overlap
from cilkit.realms.audit import words
from cilkit.realms.parsing import Row


@pytest.fixture
def birds() -> Realm:
    rows = [
        Row("a", "Anna's Hummingbird", "x", "Calypte anna"),
        Row("a", "Arctic Tern", "x", "Sterna paradisaea"),
        Row("a", "Great White Pelican", "x", "Pelecanus onocrotalus"),
        Row("a", "Greater Roadrunner", "x", "Geococcyx californianus"),
        Row("a", "Gadwall", "x", "Mareca strepera"),
    ]
    return Realm.from_rows("birds", "biological", rows)


def test_words_ignore_case_marks_numbers_and_plurals():
    assert (
        words("001.Black_footed_Albatross")
        == words("black-footed albatrosses"[:-2])
        == ("black", "footed", "albatross")
    )
    assert words("Anna's Hummingbirds") == words("anna hummingbird")
    assert words("glass") == ("glass",) and words("Crème  brûlée") == ("crème", "brûlée")


def test_audit_names_the_nearest_concept_and_the_kind_of_match(birds):
    table = audit(birds, ["Gadwall", "Anna_Hummingbird", "White Pelican", "Artic Tern", "Mareca strepera", "Mallard"])
    assert table["match"].tolist() == ["exact", "normalised", "containment", "fuzzy", "exact", "none"]
    assert table["concept"].tolist() == [
        "Gadwall",
        "Anna's Hummingbird",
        "Great White Pelican",
        "Arctic Tern",
        "Gadwall",  # by its scientific name
        "",
    ]
    assert table["score"].tolist()[:3] == [1.0, 1.0, pytest.approx(2 / 3, abs=1e-3)]
    assert 0.85 <= table["score"][3] < 1 and table["score"][5] == 0


def test_overlap_takes_the_kinds_of_match_asked_for(birds):
    names = ["gadwall", "White Pelican", "Artic Tern"]
    assert overlap(birds, names) == ["Gadwall"]
    assert overlap(birds, names, kinds=("normalised", "containment")) == ["Great White Pelican", "Gadwall"]
    assert overlap(birds, []) == []


def test_words_within_words_are_not_contained(birds):
    """ "wall" stands inside "Gadwall", but is no word of it."""
    assert audit(birds, ["wall"])["match"].tolist() == ["none"]


def test_realm_without_its_overlap_has_none_left(birds):
    names = ["Gadwall", "arctic terns"]
    rest = birds.without(overlap(birds, names))
    assert rest.concept_names == ["Anna's Hummingbird", "Great White Pelican", "Greater Roadrunner"]
    assert overlap(rest, names) == []
