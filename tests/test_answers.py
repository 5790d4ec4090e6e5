"""Written answers: names out of sentences, and the class seen that a name is nearest to."""

import time
import unicodedata
import zlib

import numpy as np
import pytest

from cilkit.answers import (
    FIGURES,
    LONGEST,
    SENTENCE,
    NameMatcher,
    Sentence,
    check_names,
    figures,
    nearest,
    normalised,
)
from cilkit.errors import UserError

WORDS = [
    "german", "german_shepherd", "German Shepherd", "shepherd-dog", "dog", "DOG", "Ｄｏｇ", "st. bernard", "café",
    "cafe\u0301", "straße", "STRASSE", "ﬁsh", "fish", "İstanbul", "i\u0307stanbul", "istanbul", "ısparta", "Ⅳ", "iv",
    "C#", "c", "a", "non\u2011stick", "non\u2010stick", "x²", "x2", "Å", "A\u030a", "åne", "Σίσυφος", "ΣΊΣΥΦΟΣ",
]  # fmt: skip


# ---------------------------------------------------------------- the matcher, by hand


def read(text):
    """What `normalised` means, a letter at a time."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words, word = [], ""
    for letter in text:
        if letter.isspace() or letter in "_-\u2010":
            words, word = words + [word], ""
        else:
            word += letter
    text = " ".join(part for part in words + [word] if part)
    while text and text[0] in " .":
        text = text[1:]
    while text and text[-1] in " .":
        text = text[:-1]
    return text


def match(names, written, encode, template, spaced):
    """Labels and scores by plain loops in float64, a score rounded once to float32."""
    labels, table = [], []
    for text in written:
        row = []
        for name in names:
            if not read(text):
                row.append(np.float32(0))
                continue
            one, other = (template.replace("{}", read(t) if spaced else t) for t in (text, name))
            total = 0.0
            for a, b in zip(encode([one])[0].tolist(), encode([other])[0].tolist(), strict=True):
                total += a * b
            row.append(np.float32(total))
        for label, name in enumerate(names):
            if read(text) and read(text) == read(name):
                row[label] = np.float32(max(1.0, *map(float, row)) + 1e-5)
        best = 0
        for label in range(len(names)):
            if row[label] > row[best]:
                best = label
        labels.append(best)
        table.append(row)
    return labels, table


def coarse(seed, dim, places):
    """A text encoder that gives one of few vectors, so that names often share one; some lie at equal angles."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(places, dim)) if seed % 2 else random.integers(-1, 2, (places, dim))
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return lambda texts: vectors.astype(np.float32)[[zlib.crc32(text.encode()) % places for text in texts]]


def disguised(random, text):
    """Another way to write the same, or something close by."""
    ways = [
        str.upper,
        lambda t: t.replace(" ", "_"),
        lambda t: t.replace("_", " - "),
        lambda t: f"  {t}. ",
        lambda t: unicodedata.normalize("NFD", t),
        lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in t),
        lambda t: t[: random.integers(len(t) + 1)],
        lambda t: t + "_" + WORDS[random.integers(len(WORDS))],
        lambda t: t[1:],
        lambda t: t,
    ]
    return ways[random.integers(len(ways))](text)


def case(seed):
    random = np.random.default_rng(seed)
    names = {}
    for _ in range(random.integers(1, 9)):
        chosen = [WORDS[i] for i in random.integers(len(WORDS), size=random.integers(1, 4))]
        name = random.choice(["_", " ", "-", ""]).join(chosen)
        if names and random.random() < 0.3:  # a prefix of another, or longer than it
            name = disguised(random, random.choice(list(names.values())))
        if read(name):
            names.setdefault(read(name), name)
    names = list(names.values()) or ["dog"]
    written = [disguised(random, names[i]) for i in random.integers(len(names), size=3)]
    written += [WORDS[random.integers(len(WORDS))], ["", " ", "_", "...", "zebra"][random.integers(5)]]
    encode = coarse(seed, int(random.integers(2, 7)), int(random.integers(2, 12)))
    return names, written, encode, ["{}", "a photo of a {}"][seed // 2 % 2], bool(random.integers(2))


@pytest.mark.parametrize("cases", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_matcher_equals_plain_loops(cases):
    exact = ties = empty = 0
    for seed in range(cases):
        names, written, encode, template, spaced = case(seed)
        labels, scores = NameMatcher(names, encode, template, spaced).predict(written)
        expected, table = match(names, written, encode, template, spaced)
        assert scores.dtype == np.float32 and labels.dtype == np.int64
        assert labels.tolist() == expected, (seed, names, written)
        assert np.array_equal(scores, np.array(table)), (seed, names, written)
        exact += (scores.max(1) > 1.000005).sum()
        empty += sum(not read(text) for text in written)
        ties += ((scores == scores.max(1, keepdims=True)).sum(1) > 1).sum()
    assert exact > cases and ties > cases / 2 and empty > cases / 2  # the cases are what they are meant to be


def test_an_answer_s_scores_are_its_own_whatever_else_is_answered():
    """512 numbers an embedding: a matrix product would sum them in blocks that depend on how many rows there are."""
    encode = coarse(1, 512, 40)
    names = [f"class_{label}" for label in range(13)]
    written = [f"thing {i % 30}" for i in range(50)] + ["", "class 7", "class 1"]
    matcher = NameMatcher(names, encode)
    whole = matcher.scores(written)
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 17, len(written)):
        rows = random.permutation(len(written))[:size]
        assert np.array_equal(matcher.scores([written[row] for row in rows]), whole[rows])
    for seen in (1, 4, 12):  # nor on the other names, but for what tops them
        some = NameMatcher(names[:seen], encode).scores(written[:50])
        assert np.array_equal(some, whole[:50, :seen])
    assert matcher.scores([]).shape == (0, 13)


@pytest.mark.parametrize("dim", (5, 96, 512))
def test_names_of_one_embedding_tie_exactly_and_the_lower_label_wins(dim):
    random = np.random.default_rng(dim)
    vectors = dict(zip("abc", random.normal(size=(3, dim)).astype(np.float32), strict=True))
    names = [f"{letter}{i}" for i in range(11) for letter in "ab"]  # a0 b0 a1 b1 …
    matcher = NameMatcher(names, lambda texts: np.stack([vectors[text[0]] for text in texts]))
    for _ in range(20):
        vectors["c"] = random.normal(size=dim).astype(np.float32)
        (label,), (row,) = matcher.predict(["c"])
        assert len(set(row[::2].tolist())) == len(set(row[1::2].tolist())) == 1
        assert label == (0 if row[0] >= row[1] else 1)


def test_a_name_written_exactly_beats_every_embedding():
    """Names that an encoder cannot tell apart are told apart by what is written."""
    matcher = NameMatcher(["german_shepherd", "German Shepherd dog", "table lamp"], lambda t: np.ones((len(t), 1)))
    labels, scores = matcher.predict(["table-lamp.", "GERMAN shepherd_dog", "german shepherd", "lamp"])
    assert labels.tolist() == [2, 1, 0, 0]
    assert scores[0].tolist() == [1, 1, np.float32(1 + 1e-5)] and scores[3].tolist() == [1, 1, 1]


def test_names_and_answers_are_embedded_within_the_template_each_once():
    asked = []

    def encode(texts):
        asked.append(texts)
        return np.ones((len(texts), 2))

    NameMatcher(["Table_Lamp", "{}"], encode, "a {} on {x}").scores(["LAMP", "LAMP", ""])
    assert asked == [["a table lamp on {x}", "a {} on {x}"], ["a lamp on {x}"]]
    NameMatcher(["Table_Lamp"], encode, spaced=False).scores(["LAMP_"])
    assert asked[2:] == [["Table_Lamp"], ["LAMP_"]]


@pytest.mark.parametrize("given", (np.full((1, 3), np.nan), np.ones((2, 3)), np.ones(3)))
def test_an_encoder_that_gives_no_row_a_text_is_refused(given):
    with pytest.raises(UserError, match=r"the text encoder gave \(.*\) for 1 texts, or numbers that are not finite"):
        NameMatcher(["dog"], lambda texts: given).scores(["cat"])


@pytest.mark.parametrize(
    "one, other",
    (
        ("german_shepherd", "German-Shepherd."),
        ("straße", "STRASSE"),
        ("İzmir", "i\u0307zmir"),
        ("Ｄｏｇ＿１", "dog 1"),
        ("café", "cafe\u0301"),
        ("ﬁsh", "fish"),
        ("ΣΊΣΥΦΟΣ", "Σίσυφος"),
        ("non\u2011stick", "non-stick"),
        ("a \t\u3000 b", "a_b"),
        ("St. Bernard", "st. bernard"),
    ),
)
def test_what_reads_the_same_has_one_form(one, other):
    assert normalised(one) == normalised(other) != ""


def test_normalising_twice_changes_nothing_and_unicode_s_forms_are_one():
    for letter in map(chr, (*range(0xD800), *range(0xE000, 0x20000))):
        form = normalised(f"a{letter}b")
        assert normalised(form) == form == read(f"a{letter}b")
        assert normalised(unicodedata.normalize("NFD", f"a{letter}b")) == form
    assert normalised("café") != normalised("cafe") and normalised("ı") != normalised("i")  # other letters stay others


def test_equal_and_empty_names_are_refused_in_one_sentence():
    check_names(["dog", "dog house", "hot dog", "C", "C#"])  # prefixes of one another are names
    with pytest.raises(UserError, match=r"classes 0 \('Hot_Dog'\) and 2 \('hot-dog\.'\) read the same, .*rename one"):
        check_names(["Hot_Dog", "dog", "hot-dog."])
    for name in ("", " ", "_", "-.-", "\u3000"):
        with pytest.raises(UserError, match="class 1 has the name .* nothing to write; give it a name"):
            check_names(["dog", name])
    with pytest.raises(UserError, match="read the same"):
        NameMatcher(["straße", "STRASSE"], coarse(0, 2, 2)).scores(["dog"])


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    "answer, name",
    (
        ("this is a photo of a italian_greyhound.", "italian_greyhound"),
        ("this is a photo of a italian_greyhound.##", "italian_greyhound"),  # 984 of the 6,000 released answers
        ("this is a photo of a italian_greyhound.###", "italian_greyhound"),
        ("this is a photo of a italian_greyhound. #", "italian_greyhound"),
        ("this is a photo of a german_shepherd_", "german_shepherd_"),  # cut short
        ("this is a photo of a yorkshire_ter##", "yorkshire_ter"),
        ("This is a photo of an African hunting dog.", "African hunting dog"),
        ("THIS IS A PHOTO OF A TOY_POODLE.", "TOY_POODLE"),
        ("\n\n this is a photo of a\n beagle.\n", "beagle"),
        ("this  is a photo of\ta  beagle .\nIt barks.", "beagle"),
        ("this is a photo of a beagle.### Human: and this?", "beagle"),
        ("Sure!\r\nthis is a photo of a beagle.", "beagle"),
        ("The image shows: this is a photo of the beagle.", "beagle"),
        ("this is a photo of anemone.", "anemone"),  # the article left out
        ("this is a photo of a a-frame.", "a-frame"),
        ("this is a photo of a St. Bernard.", "St. Bernard"),
        ("this is a photo of a St. Bernard", "St. Bernard"),
        ("this is a photo of a St.", "St"),
        ("this is a photo of a C#.###", "C#"),
        ("beagle", "beagle"),
        ("It is a beagle.##", "It is a beagle"),
        ("a dog\na cat", "a dog"),
        ("this is a photo of a", ""),
        ("this is a photo of a .", ""),
        ("this is a photo", "this is a photo"),
        ("###this is a photo of a beagle.", ""),
        ("", ""),
        (" \n\t", ""),
        ("##", ""),
        ("...", ""),
    ),
)
def test_the_name_is_read_out_of_the_released_forms(answer, name):
    assert Sentence().parse(answer) == name


@pytest.mark.parametrize(
    "form, answer, name",
    (
        ("{}", "german_shepherd.", "german_shepherd"),
        ("{}", "", ""),
        ("it is {}", "It is roof top.##", "roof top"),
        ("is {}", "this lion", "this lion"),  # holds "is", and is no sentence
        ("photo of {}.", "roof.", "roof"),
        ("a {} on a table.", "the lamp on a  TABLE.#", "lamp"),
        ("a {} on a table.", "a lamp on a", "lamp on a"),  # cut short
        ("a {} on a table.", "a salon on a table.", "salon"),
        ("my {}s", "glass", "glass"),  # no sentence: its end is not taken off
        ("{x} photo of a {}!", "{x} photo of a dog!", "dog"),
    ),
)
def test_other_sentences(form, answer, name):
    assert Sentence(form).parse(answer) == name


FORMS = (
    SENTENCE,
    "A photo of {}!",
    "{}, it is.",
    "the {} on a table.",
    "[{x}] (an {})",
    "my {}s",
    "{}",
    "photo of a {}",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_name_comes_back_out_of_its_sentence(form):
    random, sentence = np.random.default_rng(len(form)), Sentence(form)
    parts = [*WORDS, *"_-.# s", "a ", "an ", "the ", "{}", "{0}", "(", "[x]*", "\\", " on a table.", "this is"]
    count = 0
    while count < 4000:
        name = "".join(parts[i] for i in random.integers(len(parts), size=random.integers(1, 6))).strip()
        stops = "###" in sentence.fill(name) or not read(name)
        if stops or (form.endswith("{}") and (name[0] == "." or name.endswith((".", "##", ". #", ".#")))):
            continue  # a stop mark, or a full stop that is the answer's where the sentence has none
        count += 1
        assert sentence.parse(sentence.fill(name)) == name
        assert sentence.parse(sentence.fill(name) + "###") == name or name.endswith("#")


@pytest.mark.parametrize("form, places", (("this is a photo", 0), ("a {} or a {}", 2), ("a {x}", 0)))
def test_a_sentence_has_one_place_for_the_name(form, places):
    with pytest.raises(UserError, match=f"has {places} places {{}} for the name; expected one"):
        Sentence(form)


BEGUN = SENTENCE[:-3]


@pytest.mark.parametrize(
    "piece", ("x", " ", "\n", "#", ".", ". ", ".# ", "a ", BEGUN, "this ", BEGUN + " " * 900, "on a ", "\u0344")
)
def test_an_answer_of_a_megabyte_is_read_to_its_thousandth_letter(piece):
    answer = (piece * (2**20 // len(piece) + 1))[: 2**20]
    started = time.perf_counter()
    for form in FORMS:
        for text in (answer, BEGUN + answer, answer[: LONGEST - 9] + "x" * 2**20):
            name = Sentence(form).parse(text)
            assert len(name) <= LONGEST and name == Sentence(form).parse(text[:LONGEST])
            normalised(name)
    assert time.perf_counter() - started < 2  # 48 answers; a backtracking pattern would take minutes


# ---------------------------------------------------------------- figures


def test_figures_of_a_table_counted_by_hand():
    names = ["german_shepherd_dog", "great_white_shark", "great_white_heron", "dog", "dog house", "german", "gray wolf"]
    table = [  # written, label, what it is, with five classes seen
        ("German Shepherd-dog", 0, "exact"),
        ("dog", 3, "exact"),  # a whole name, though another begins with it
        ("dog", 4, "wrong"),
        ("great_white_heron", 1, "wrong"),
        ("german_shepherd_", 0, "prefix, repaired"),
        ("great_white_sh", 1, "prefix, repaired"),
        ("great_white_sh", 2, "prefix"),
        ("great_white_", 1, "outside"),  # of two classes
        ("german", 0, "future"),  # and no prefix, though one class seen begins with it
        ("gray wo", 1, "outside"),  # of a future class alone
        ("", 3, "outside"),
        ("zebra", 3, "outside"),
    ]
    written, labels, kinds = zip(*table, strict=True)
    counted = {
        "exact match": kinds.count("exact"),
        "exact match, prefixes repaired": kinds.count("exact") + kinds.count("prefix, repaired"),
        "out of vocabulary": len(kinds) - kinds.count("exact") - kinds.count("wrong"),
        "future class": kinds.count("future"),
        "prefix of one class": kinds.count("prefix") + kinds.count("prefix, repaired"),
    }
    assert list(counted.values()) == [2, 4, 8, 1, 3]
    found = figures(written, np.array(labels), names, 5)
    assert found == {name: pytest.approx(100 * count / 12) for name, count in counted.items()}
    assert tuple(found) == FIGURES
    assert figures(written, np.array(labels), names, 7)["future class"] == 0  # all are learnt


def test_figures_of_no_answers_are_unknown():
    assert all(np.isnan(value) for value in figures([], np.zeros(0, int), ["dog"], 1).values())


def test_nearest_names_are_the_best_first_and_the_lower_label_of_two_that_tie():
    scores = np.array([[0.1, 0.5, 0.5, 0.2], [1, 0, 0, 0]], np.float32)
    assert nearest(scores, ["a", "b", "c", "d"]) == [
        [("b", 0.5), ("c", 0.5), ("d", pytest.approx(0.2))],
        [("a", 1.0), ("b", 0.0), ("c", 0.0)],
    ]
    assert [len(row) for row in nearest(scores, ["a", "b", "c", "d"], 9)] == [4, 4]
    many = np.arange(200)[None] % 2.0
    assert [name for name, _ in nearest(many, range(200), 100)[0]] == list(range(1, 200, 2))
