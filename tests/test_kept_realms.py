"""Kept replies of the five realms of real things: whole, without repeats, and short enough for a text encoder."""

import gzip
import json
import re
from pathlib import Path

import pytest

from cilkit.realms import foresee, kept_realms, parsing, prompts
from cilkit.realms.backends import KEPT
from cilkit.realms.realm import slug

SIZES = {"birds": (40, 345), "plants": (43, 362), "food": (20, 200), "cars": (20, 200), "common objects": (20, 200)}
BIOLOGICAL = ("birds", "plants")
VOCABULARY = Path(__file__).resolve().parents[2] / "shared" / "data" / "clip_bpe_simple_vocab_16e6.txt.gz"
TOKENS = 77  # of CLIP's text encoder, start and end included
ORIGIN = "Written with a language model and kept; not a recorded API call."


@pytest.fixture(scope="module")
def realms():
    return {name: foresee(name) for name in SIZES}


@pytest.fixture(scope="module")
def clip_tokens():
    """CLIP's own tokenizer, from the merges that it was published with."""
    transformers = pytest.importorskip("transformers", reason="CLIP's tokenizer is transformers'")
    if not VOCABULARY.exists():
        pytest.skip("CLIP's merges are not beside this checkout, so its tokens cannot be counted")
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves, then the rest
    letters = [chr(byte) for byte in (*printable, *range(256, 512 - len(printable)))]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]  # CLIP's known answer
    return lambda texts: [len(ids) for ids in tokenizer(texts).input_ids]


@pytest.mark.parametrize("name", SIZES)
def test_every_reply_is_found_and_needs_no_repair(realms, name):
    realm, report = realms[name]
    assert (len(realm.subtypes), len(realm)) == SIZES[name] and len(report) == 0
    assert realm.kind == ("biological" if name in BIOLOGICAL else "object")
    per_subtype = prompts.PER_SUBTYPE[realm.kind]
    counts = [sum(concept.subtype == subtype for concept in realm.concepts) for subtype in realm.subtypes]
    assert max(counts) <= per_subtype, "more were answered than were asked for"
    assert realm.kind == "biological" or set(counts) == {per_subtype}


@pytest.mark.parametrize("name", SIZES)
def test_no_name_folder_or_description_is_shared(realms, name):
    concepts = realms[name][0].concepts
    for field in ("name", "description", "prompt") + (("scientific_name",) if name in BIOLOGICAL else ()):
        values = [parsing.normal(getattr(concept, field)) for concept in concepts]
        assert all(values) and len(set(values)) == len(values), field
    folders = realms[name][0].folders
    assert len({folder.casefold() for folder in folders.values()}) == len(concepts)
    assert {folder for folder in folders.values() if not folder.isascii()} == set()


@pytest.mark.parametrize("name", SIZES)
def test_descriptions_are_visual_short_and_whole_sentences(realms, name):
    unseen = re.compile(r"\b(smell|scent|taste|tasty|flavour|sound|song|voice|delicious|fragran\w*|sticky|crunchy)\b")
    for concept in realms[name][0].concepts:
        assert 15 < len(concept.description) <= parsing.DESCRIPTION_LIMIT and ";" not in concept.description
        assert concept.description.endswith(".") and concept.description[0].isupper(), concept
        assert not unseen.search(concept.description.lower()), concept


def test_scientific_names_are_two_words_or_a_hybrid_s_three(realms):
    for name in BIOLOGICAL:
        for concept in realms[name][0].concepts:
            genus, *rest = concept.scientific_name.split()
            assert genus[0].isupper() and rest[-1].islower(), concept
            assert len(rest) == 1 or (len(rest) == 2 and rest[0] == "x"), concept


@pytest.mark.parametrize("name", SIZES)
def test_every_prompt_fits_clip_by_a_bound_on_its_characters(realms, name):
    """At two characters a token or more, 150 characters are at most 75 tokens besides the start and the end."""
    assert max(len(concept.prompt) for concept in realms[name][0].concepts) <= 150


@pytest.mark.parametrize("name", SIZES)
def test_every_prompt_fits_clip_by_its_own_tokens(realms, clip_tokens, name):
    counts = clip_tokens([concept.prompt for concept in realms[name][0].concepts])
    assert max(counts) <= TOKENS, realms[name][0].concepts[counts.index(max(counts))].prompt


def test_kept_realms_name_the_five_and_say_where_they_come_from():
    assert set(SIZES) < set(kept_realms())
    for name in SIZES:
        for path in (KEPT / slug(name)).glob("*.json"):
            kept = json.loads(path.read_text(encoding="utf-8"))
            assert kept["origin"] == ORIGIN and kept["sampling"] == "none"
            assert kept["prompts_version"] == prompts.VERSION
