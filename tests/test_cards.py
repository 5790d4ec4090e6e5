"""Data cards: the facts, equal bytes for equal facts, and nothing that a model wrote becomes markup."""

import json
from html.parser import HTMLParser

import pytest

from cilkit.realms.realm import Concept, Realm, Reply
from cilkit.synthesis import cards, load_generator

WICKED = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![i](http://x.y/z.png)",
    "a | b | c",
    "line\n\n# heading\n- item\n\n    code",
    "```\ncode\n```",
    "**bold** _it_ `code` ~~gone~~ $x$ &lt;b&gt; \\| \\",
    "https://evil.example www.evil.example",
    "\u202egnp.exe\x00\x1b[31m",
    "<!-- -->]]>",
    "{{ config }} %s {0}",
]


def realm(texts=("great tit", "robin")) -> Realm:
    concepts = tuple(Concept(f"{text} {n}", text, text, text) for n, text in enumerate(texts))
    replies = (Reply("", (), "x", "birds/00_subtypes.json"), Reply("a", (), "x", "birds/01_a.json"))
    return Realm(texts[0], "object", tuple(texts), concepts, replies)


class Page(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_comment(self, data):
        self.tags.append(("comment", data))

    def handle_data(self, data):
        self.text.append(data)


def rendered(markdown: str) -> Page:
    """As notebooks and pages render it: raw HTML would go through."""
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    return Page(markdown2html_mistune(markdown))


def wicked_card(texts) -> dict:
    class Painter:
        id, digest, licence = texts[0], "d" * 64, texts[1]
        settings = {"steps": 40, texts[3]: texts[4], "scheduler": texts[5], "negative_prompt": texts[6]}

    return cards.card(
        realm=realm(texts),
        generator=Painter(),
        counts=dict.fromkeys(texts, 3),
        style=texts[2],
        rejected=dict.fromkeys(texts, 1),
        rules={texts[0]: texts[1]},
        overlaps={text: {"classes": 2, "concepts": list(texts)} for text in texts},
    )


def test_no_text_becomes_markup():
    page = rendered(cards.markdown(wicked_card(WICKED)))
    plain = rendered(cards.markdown(wicked_card([f"text {n}" for n in range(len(WICKED))])))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags], "as many tags as with harmless texts"
    assert {tag for tag, _ in page.tags} <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "a", "code"}
    assert all(value.startswith("#") for _, attrs in page.tags for name, value in attrs if name in ("href", "src"))


@pytest.mark.parametrize("text", WICKED)
def test_escaped_text_reads_as_it_was(text):
    wanted = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    escaped = cards.escaped(text)
    assert "\n" not in escaped and not set("<>|*_`[]") & set(escaped)
    assert "".join(rendered(f"So it is: {escaped} (end)").text).strip() == f"So it is: {wanted} (end)"
    assert "".join(Page(escaped).text) == wanted


def test_long_texts_are_cut_where_they_are_shown_only(tmp_path):
    cards.write_card(tmp_path, counts={"x" * 1000: 2})
    assert "x" * 299 + "…" in (tmp_path / "README.md").read_text()
    assert "x" * 1000 not in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "card.json").read_text())["classes"] == {"x" * 1000: 2}


class Unlicensed:
    id, digest, settings = "some-model", "0" * 64, {"size": 32}


@pytest.mark.parametrize("licensed", [True, False])
def test_what_a_card_tells(tmp_path, licensed):
    facts = cards.write_card(
        tmp_path,
        realm=realm(),
        generator=load_generator("font-renderings") if licensed else Unlicensed(),
        counts={"great tit 0": 30, "robin 1": 50},
        style="paper",
        rejected={"blank": 15, "sharpness >=3": 5},
        rules={"blank": False, "sharpness": ">=3"},
        overlaps=cards.overlaps_of(realm(), {"tits": ["Robin 1", "wren"]}),
    )
    assert facts == json.loads((tmp_path / "card.json").read_text())
    assert facts["images"] == 80 and facts["overlaps"] == {"tits": {"classes": 2, "concepts": ["robin 1"]}}
    assert facts["realm"]["language_models"] == [{"source": "birds"}], "the model of all replies is told once"
    assert facts["generator"]["settings"]["size"] == 32
    text = "".join(rendered((tmp_path / "README.md").read_text()).text)
    for wanted in (
        "Images of the realm great tit",
        "20 of 100 images (20.0 %) were left out.",
        "Rules: blank False, sharpness >=3.",
        "1 (it has 2 classes): robin 1",
        "font-renderings" if licensed else "some-model",
        "the fonts have matplotlib's" if licensed else "not known (ask before the images are passed on)",
        "30 to 50",
    ):
        assert wanted in text


def test_models_of_replies_are_told_with_their_sampling():
    model = {"backend": "local", "model": "tiny", "revision": "abc", "sampling": {"temperature": 0.2}}
    replies = (Reply("", (), "x", "local:tiny", model), Reply("a", (), "y", "local:tiny", model | {"cut": True}))
    facts = cards.card(realm=Realm("birds", "object", (), (), replies), counts={})
    assert facts["realm"]["language_models"] == [model], "that one answer was cut makes it no other model"
    assert "sampling temperature 0.2" in "".join(rendered(cards.markdown(facts)).text)


def test_equal_facts_give_equal_bytes_and_a_base_is_kept(tmp_path):
    for name in ("a", "b"):
        base = cards.card(realm=realm(), counts={"robin": 9}, style="paper")
        cards.write_card(tmp_path / name, counts={"robin": 8}, rejected={"blank": 1}, style="paper", base=base)
    for file in ("card.json", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    kept = json.loads((tmp_path / "a" / "card.json").read_text())
    assert kept["realm"]["name"] == "great tit" and kept["images"] == 8


def test_an_empty_list_of_reasons_is_no_table():
    page = rendered(cards.markdown(cards.card(counts={"robin": 8}, rejected={}, rules={})))
    text = "".join(page.text)
    assert "0 of 8 images (0.0 %) were left out. Rules: none." in text and "reason" not in text


def test_a_thousand_classes_make_no_endless_page():
    facts = cards.card(counts={f"class {n}": n + 1 for n in range(1000)})
    page = cards.markdown(facts)
    assert "class 49 " in page and "class 50 " not in page and "and 950 more" in page
    assert len(facts["classes"]) == 1000
