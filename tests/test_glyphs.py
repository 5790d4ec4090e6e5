"""The renderings: every concept has its own shape, its own family, and a bit-exact road from the random state."""

import numpy as np
import pytest

from cilkit.errors import UserError
from cilkit.synthesis import glyphs


def test_families_are_equal_in_size_disjoint_and_complete():
    characters, ornaments = (set(glyphs.FAMILIES[name]) for name in ("characters", "ornaments"))
    assert len(characters) == len(ornaments) == 47
    assert not characters & ornaments
    assert characters | ornaments == set(glyphs.CONCEPTS)
    assert len(set(glyphs.CONCEPTS.values())) == 94


def test_no_ornament_is_a_letter_or_digit():
    assert not any(glyphs.CONCEPTS[name].isalnum() for name in glyphs.FAMILIES["ornaments"])
    assert all(glyphs.CONCEPTS[name].isalnum() for name in glyphs.FAMILIES["characters"])


def test_fonts_held_out_are_not_trained_on_and_have_every_character():
    assert not set(glyphs.TRAIN_FONTS) & set(glyphs.HELD_OUT_FONTS)
    for name in glyphs.FAMILIES["characters"]:
        assert glyphs.fonts_for(name, glyphs.HELD_OUT_FONTS) == glyphs.HELD_OUT_FONTS
        assert glyphs.fonts_for(name) == glyphs.TRAIN_FONTS


@pytest.mark.parametrize("name", glyphs.CONCEPTS)
def test_every_concept_leaves_ink_and_repeats_bit_for_bit(name):
    first, second = (glyphs.render(name, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert np.ptp(first.astype(int).mean(2)) > 40  # grey levels between glyph and ground


def test_outlines_of_different_concepts_differ():
    outlines = []
    for name in glyphs.CONCEPTS:
        ink = glyphs._outline(name, glyphs.fonts_for(name)[0], "medium")
        rows = np.linspace(0, ink.shape[0] - 1, 24).astype(int)
        columns = np.linspace(0, ink.shape[1] - 1, 24).astype(int)
        aspect = np.full(24, min(ink.shape[1] / ink.shape[0], 3.0))
        outlines.append(np.append(ink[np.ix_(rows, columns)], aspect))
    outlines = np.stack(outlines)
    distances = np.linalg.norm(outlines[:, None] - outlines[None], axis=2) + 1e9 * np.eye(len(outlines))
    assert distances.min() > 1.0


def test_the_renderer_obeys_the_style():
    def mean_of(**style):
        kept = [
            glyphs.render("digit eight", np.random.default_rng(k), "DejaVuSans", glyphs.Style(**style))
            for k in range(20)
        ]
        return np.stack(kept).astype(float)

    edge = lambda images: images[:, [0, -1]].mean()  # noqa: E731
    assert edge(mean_of(ground="light")) > edge(mean_of(ground="dark")) + 80
    thin, thick = (mean_of(weight=weight).mean() for weight in ("thin", "thick"))
    assert thick > 1.3 * thin  # more light ink on the same dark grounds
    blue = mean_of(ground="light", colour="blue")[:, [0, -1]].mean((0, 1, 2))
    assert blue.argmax() == 2


def test_captions_name_the_concept_first_and_sometimes_the_style():
    style = glyphs.Style("thick", "slanted", "dark", "blue")
    captions = [glyphs.caption("digit seven", style, np.random.default_rng(k)) for k in range(200)]
    assert all(text.startswith("A photograph of ") and "digit seven" in text.split(":")[0] for text in captions)
    assert any("thick strokes" in text for text in captions) and not all("thick strokes" in text for text in captions)
    assert len(set(captions)) > 100


def test_a_larger_set_begins_with_the_smaller_one():
    small, labels = glyphs.render_set(["digit one", "heart"], 2, seed=3)
    large, _ = glyphs.render_set(["digit one", "heart"], 4, seed=3)
    assert labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(small[:2], large[:2]) and np.array_equal(small[2:], large[4:6])


def test_an_unknown_concept_is_refused_by_name():
    with pytest.raises(UserError, match="robin"):
        glyphs.render("robin", np.random.default_rng(0))
