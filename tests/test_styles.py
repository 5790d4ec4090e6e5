"""Prompt styles: what is appended depends on seed, class and number alone, and does not repeat before it must."""

from itertools import islice

import pytest

from cilkit.errors import UserError
from cilkit.realms.realm import Concept
from cilkit.synthesis.styles import BACKGROUNDS, LIGHTINGS, STYLES, VIEWPOINTS, Style, joined, style_of

ROBIN = Concept("robin", "Red breast.", "A photograph of a robin: Red breast.", "songbirds")


def test_paper_and_plain_are_one_prompt_a_concept():
    assert [STYLES[name].combinations for name in ("paper", "plain")] == [1, 1]
    assert list(islice(STYLES["paper"].endings(0, "robin"), 3)) == ["", "", ""]
    assert joined(STYLES["paper"].beginning(ROBIN), "") == ROBIN.prompt
    assert STYLES["plain"].beginning(ROBIN) == "a photo of a robin"


def test_diversified_images_of_a_class_all_differ_until_every_combination_was_there():
    style = STYLES["diversified"]
    assert style.combinations == len(BACKGROUNDS) * len(VIEWPOINTS) * len(LIGHTINGS) >= 3000
    assert all(len(set(part)) == len(part) for part in style.parts)
    endings = list(islice(style.endings(0, "robin"), style.combinations + 5))
    assert len(set(endings)) == style.combinations and endings[-5:] == endings[:5]
    background, viewpoint, lighting = endings[0].split(", ")
    assert (background in BACKGROUNDS, viewpoint in VIEWPOINTS, lighting in LIGHTINGS) == (True,) * 3
    assert joined(ROBIN.prompt, "at dusk, close-up") == "A photograph of a robin: Red breast, at dusk, close-up"


def test_endings_are_those_of_the_seed_and_the_class():
    style = STYLES["diversified"]
    first = {(s, name): tuple(islice(style.endings(s, name), 20)) for s in (0, 1) for name in ("robin", "wren")}
    assert len(set(first.values())) == 4
    assert first[0, "robin"] == tuple(islice(style.endings(0, "robin"), 20))
    assert first[0, "robin"][0] == "on a stone floor, from a distance, lamp light"  # a check value


def test_each_background_viewpoint_and_lighting_comes_about_equally_often():
    endings = islice(STYLES["diversified"].endings(3, "wren"), 1200)
    for part, drawn in zip(
        STYLES["diversified"].parts, zip(*(e.split(", ") for e in endings), strict=True), strict=True
    ):
        counts = [drawn.count(text) for text in part]
        assert 0.5 * 1200 < min(counts) * len(part) <= max(counts) * len(part) < 1.6 * 1200


def test_the_longest_ending_is_longest_by_the_measure():
    style = Style("own", parts=(("aa", "b b b"), ("cccc", "d d")))
    assert style.longest(lambda texts: [len(text) for text in texts]) == "b b b, cccc"
    assert style.longest(lambda texts: [len(text.split()) for text in texts]) == "b b b, d d"
    assert STYLES["paper"].longest(lambda texts: 1 / 0) == ""


def test_own_endings_are_a_style_and_what_is_none_is_named():
    own = style_of([" in oil", "in ink "])
    assert sorted(islice(own.endings(0, "robin"), 2)) == ["in ink", "in oil"]
    assert style_of("paper") is STYLES["paper"]
    with pytest.raises(UserError, match=r"style 'diversifed' is unknown \(did you mean 'diversified'\?\); take one of"):
        style_of("diversifed")
    for wrong in ([], ["in oil", " "], [3]):
        with pytest.raises(UserError, match="give at least one, none empty"):
            style_of(wrong)
