"""Realms: the two calls, kept replies and live models through one road, files that people correct by hand."""

import json
from dataclasses import replace

import pytest

from cilkit.errors import UserError
from cilkit.realms import Concept, Realm, Report, foresee, kept_realms, prompts
from cilkit.realms.backends import KEPT, Replayed
from cilkit.realms.realm import slug
from cilkit.synthesis import glyphs

FAMILIES = {"handwritten characters": "characters", "ornaments and shapes": "ornaments"}


class Zoologist:
    """A live model in miniature: answers the subtypes call, then each classes call, and remembers what it was asked."""

    id = "zoologist, revision 1"

    def __init__(self, **replies: str):
        self.replies, self.asked = replies, []

    def reply(self, messages, schema=None):
        self.asked.append(messages)
        return self.replies[messages[-1]["content"]]


@pytest.fixture
def amphibians():
    return Zoologist(
        salamanders="caudata, gymnophiona.",
        caudata="1; Proteus anguinus; olm; Pale.\n2; Siren lacertina; ; Eel-like.\n3; Proteus anguinus; proteus; Pale.",
        gymnophiona="item_id; species_latin_name; species_common_name; species_description\n1; Ichthyophis; OLM; x",
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_realm_names_what_the_embedded_generator_paints(name):
    realm, report = foresee(name)
    assert realm.kind == "object" and len(realm) == 47
    assert set(realm.concept_names) == set(glyphs.FAMILIES[FAMILIES[name]])
    assert all(glyphs.CONCEPTS[concept.name] for concept in realm.concepts)
    assert {concept.subtype for concept in realm.concepts} == set(realm.subtypes)
    assert all(
        concept.prompt == f"A photograph of {concept.name}: {concept.description}" and len(concept.description) <= 180
        for concept in realm.concepts
    )
    assert len({concept.description for concept in realm.concepts}) == 47
    assert report.count("stray spaces") >= 1 and report.count("repeated name") >= 1  # the blemishes left in


def test_kept_replies_say_where_they_come_from():
    assert set(kept_realms()) >= set(FAMILIES)
    for path in [path for name in FAMILIES for path in (KEPT / slug(name)).glob("*.json")]:
        kept = json.loads(path.read_text(encoding="utf-8"))
        assert "not a recorded API call" in kept["origin"]
        assert (kept["prompts_version"], kept["sampling"]) == (prompts.VERSION, "none")


def test_no_style_word_ties_a_class_to_one_look():
    """The generator obeys style words, so one in a description would mark the class by its colour or slant."""
    styles = {
        *glyphs.SLANTS,
        *glyphs.COLOURS,
        *(f"{weight} strokes" for weight in glyphs.WEIGHTS),
        "dark on",
        "light on",
    }
    for name in FAMILIES:
        for concept in foresee(name)[0].concepts:
            padded = f" {concept.description.lower()} "
            assert not [style for style in styles if f" {style} " in padded], concept


def test_kept_reply_answers_only_the_messages_it_was_kept_for():
    kept = Replayed(KEPT / "handwritten-characters")
    messages = prompts.subtypes_messages("handwritten characters", "object")
    assert kept.reply(messages).startswith("digits, ")
    with pytest.raises(UserError, match="no kept reply .* answers 'handwritten characters' as it is asked now"):
        kept.reply(prompts.subtypes_messages("handwritten characters", "object", subtypes=5))


def test_live_model_takes_the_same_road(amphibians):
    realm, report = foresee("salamanders", llm=amphibians, kind="biological")
    assert [messages[-1]["content"] for messages in amphibians.asked] == ["salamanders", "caudata", "gymnophiona"]
    assert [message["role"] for message in amphibians.asked[1]] == ["system", "user", "assistant", "user"]
    assert "scientific order of salamanders" in amphibians.asked[1][0]["content"]
    assert [(concept.name, concept.scientific_name, concept.prompt) for concept in realm.concepts] == [
        ("olm", "Proteus anguinus", "A photograph of a olm (Proteus anguinus): Pale."),
        ("Siren lacertina", "Siren lacertina", "A photograph of a Siren lacertina: Eel-like."),
    ]
    assert {repair.what: repair.before for repair in report.repairs} == {
        "empty common name": "",
        "repeated scientific name": "proteus (Proteus anguinus)",
        "repeated name": "OLM (Ichthyophis)",
    }
    assert {reply.source for reply in realm.replies} == {amphibians.id}


def test_subtypes_given_skip_the_first_call(amphibians):
    realm, _ = foresee("salamanders", llm=amphibians, kind="biological", subtypes=["caudata"], classes=1)
    assert [messages[-1]["content"] for messages in amphibians.asked] == ["caudata"]
    assert realm.concept_names == ["olm"] and realm.subtypes == ("caudata",)
    with pytest.raises(UserError, match="has 47 classes after repair, asked for 99; ask for fewer"):
        foresee("handwritten characters", classes=99)


def test_prompts_carry_the_requirements():
    system = prompts.classes_messages("food", "object", "soups", 12)[0]["content"]
    for wanted in ("12 different", "180 characters", "item_id; item_name; item_description", "theme 'food'", "'**'"):
        assert wanted in system
    assert prompts.kind_of("Birds") == "biological" and prompts.kind_of("Food") == "object"
    for kind, count in prompts.PER_SUBTYPE.items():  # the exemplar shows as many rows as are asked for by default
        exemplar = prompts.classes_messages("x", kind, "y")[2]["content"]
        assert len(exemplar.splitlines()) == count + 1
    with pytest.raises(UserError, match="realm kind 'animal' is unknown; expected one of object, biological, free"):
        prompts.subtypes_messages("x", "animal")


def test_exemplars_pass_the_parser():
    from cilkit.realms.parsing import parse_classes, parse_subtypes

    report = Report()
    for kind, count in prompts.PER_SUBTYPE.items():
        rows = parse_classes(prompts.classes_messages("x", kind, "y")[2]["content"], kind, "y", "exemplar", report)
        assert len(rows) == count
        assert parse_subtypes(prompts.subtypes_messages("x", kind)[2]["content"], "exemplar", report)
    assert len(report) == 0


def test_save_and_load_give_the_same_realm_and_bytes(tmp_path):
    realm, _ = foresee("ornaments and shapes")
    realm.save(tmp_path / "a")
    again = Realm.load(tmp_path / "a")
    assert again == realm and Realm.load(tmp_path / "a" / "realm.json") == realm
    again.save(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert str(tmp_path) not in "".join((tmp_path / "b" / file).read_text() for file in files)


def test_realm_csv_corrected_by_hand_is_what_counts(tmp_path):
    realm, _ = foresee("ornaments and shapes")
    realm.save(tmp_path)
    table = tmp_path / "realm.csv"
    table.write_text(table.read_text().replace("A filled shape with two round curves", "Two round curves"))
    changed = Realm.load(tmp_path)
    heart = next(concept for concept in changed.concepts if concept.name == "heart")
    assert heart.prompt.startswith("A photograph of heart: Two round curves")
    assert sum(one != other for one, other in zip(changed.concepts, realm.concepts, strict=True)) == 1


def test_realm_without_its_table_is_parsed_from_its_replies(tmp_path):
    realm, report = foresee("handwritten characters")
    realm.save(tmp_path)
    (tmp_path / "realm.csv").unlink()
    again = Report()
    assert Realm.load(tmp_path, again) == realm
    assert len(again) == len(report)


def test_broken_reply_in_a_realm_s_folder_is_named_with_its_line(tmp_path):
    foresee("handwritten characters")[0].save(tmp_path)
    (tmp_path / "realm.csv").unlink()
    path = tmp_path / "replies" / "003.json"
    kept = json.loads(path.read_text())
    lines = kept["text"].splitlines()
    lines[4] = lines[4].replace(";", ",")
    path.write_text(json.dumps(kept | {"text": "\n".join(lines)}))
    with pytest.raises(UserError) as caught:
        Realm.load(tmp_path)
    for part in (str(path), "reply 3", "line 5", "expected 3 fields", "item_id; item_name; item_description"):
        assert part in str(caught.value)


def test_json_file_with_replies_of_one_s_own(tmp_path):
    path = tmp_path / "soups.json"
    replies = [{"subtype": "clear", "text": "1; consommé; Amber and clear."}, {"subtype": "thick", "text": "1; bisque"}]
    path.write_text(json.dumps({"name": "soups", "kind": "object", "replies": replies[:1]}))
    assert [concept.prompt for concept in Realm.load(path).concepts] == ["A photograph of consommé: Amber and clear."]
    path.write_text(json.dumps({"name": "soups", "kind": "object", "replies": replies}))
    with pytest.raises(UserError, match=r"soups\.json, reply 2, line 1: expected 3 fields"):
        Realm.load(path)
    path.write_text(json.dumps({"name": "soups", "kind": "object", "replies": [*replies[:1], {"subtype": "cold"}]}))
    with pytest.raises(UserError, match=r"soups\.json, reply 2: expected an object with texts"):
        Realm.load(path)


def test_broken_files_are_one_sentence(tmp_path):
    (tmp_path / "realm.txt").write_text("birds")
    with pytest.raises(UserError, match="does not exist; expected a saved realm"):
        Realm.load(tmp_path / "realm.txt")
    with pytest.raises(UserError, match="does not exist"):
        Realm.load(tmp_path / "nowhere")
    (tmp_path / "realm.json").write_text('{"name": "x"')
    with pytest.raises(UserError, match=r"realm\.json: expected a JSON object, found broken text"):
        Realm.load(tmp_path)
    (tmp_path / "realm.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match="kind is missing"):
        Realm.load(tmp_path)
    (tmp_path / "realm.json").write_text(
        '{"name": "x", "kind": "animal", "replies": [{"subtype": "y", "text": "1; z; d"}]}'
    )
    with pytest.raises(UserError, match="realm kind 'animal' is unknown"):
        Realm.load(tmp_path)
    (tmp_path / "realm.json").write_text('{"name": "x", "kind": "object"}')
    with pytest.raises(UserError, match="neither realm.csv nor replies/"):
        Realm.load(tmp_path)
    for text, expected in [
        ("a,b\n1,2\n", "line 1: expected the columns"),
        ("subtype,name,scientific_name,description,prompt\nx,y\n", "line 2: expected 5 fields"),
        ("subtype,name,scientific_name,description,prompt\nx,,,d,p\n", "line 2: '' cannot name a concept"),
        ("subtype,name,scientific_name,description,prompt\nx,y,,d,\n", "line 2: expected a prompt"),
        ("subtype,name,scientific_name,description,prompt\nx,y\u202e,,d,p\n", "line 2: .* cannot name a concept"),
        ('subtype,name,scientific_name,description,prompt\nx,y,"z,d,p\n', "expected CSV text"),
    ]:
        (tmp_path / "realm.csv").write_text(text)
        with pytest.raises(UserError, match=expected):
            Realm.load(tmp_path)


def test_kept_reply_file_that_is_broken_is_named(tmp_path):
    (tmp_path / "00.json").write_text('{"origin": "x", "prompts_version": 1, "sampling": "none", "messages": []}')
    with pytest.raises(UserError, match=r"00\.json.*reply is missing"):
        foresee("handwritten characters", llm=str(tmp_path))


def test_unknown_realm_or_backend():
    with pytest.raises(UserError, match="kept for the realm 'fish'; kept are: .*handwritten characters, ornaments"):
        foresee("fish")
    with pytest.raises(UserError, match="neither 'replayed', a folder of kept replies, nor an object"):
        foresee("birds", llm="gpt-9")


def test_without_and_first():
    realm, _ = foresee("handwritten characters")
    digits = [name for name in realm.concept_names if name.startswith("digit")]
    rest = realm.without(digits)
    assert len(rest) == 37 and "digits" not in rest.subtypes and rest.replies == realm.replies
    assert realm.first(10).concept_names == digits
    with pytest.raises(UserError, match="no concept 'digit ten'"):
        realm.without(["digit ten"])
    with pytest.raises(UserError, match="47 concepts, asked for 48"):
        realm.first(48)


def test_names_are_unique_and_so_are_folders():
    concept = Concept("Viper's Bugloss", "x", "p", "s")
    others = [replace(concept, name=name) for name in ("Viper s bugloss", "vipers bugloss", "日本")]
    realm = Realm("plants", "free", ("s",), (concept, *others))
    assert list(realm.folders.values()) == ["viper-s-bugloss", "viper-s-bugloss-2", "vipers-bugloss", "class"]
    with pytest.raises(UserError, match="two concepts called 'viper’s"):
        Realm("plants", "free", ("s",), (replace(concept, name="Viper’s"), replace(concept, name="viper’s")))
    with pytest.raises(UserError, match="realm kind 'animal' is unknown"):
        Realm("plants", "animal", (), ())
