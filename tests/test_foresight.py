"""Asking a model that does not always answer: attempts, rounds, protocols, the journal, and corrections by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cilkit import artifacts, realms
from cilkit.errors import UserError
from cilkit.realms import Realm, Report, foresee, prompts
from cilkit.realms.journal import Journal
from cilkit.realms.models import NoReply
from cilkit.realms.realm import Reply


class Scripted:
    """A live model that gives these replies in order, an exception where one stands, and remembers the questions."""

    id, card, cut = "scripted", {"backend": "test", "revision": "7"}, False

    def __init__(self, *replies):
        self.replies, self.asked, self.schemas = list(replies), [], []

    def reply(self, messages, schema=None):
        self.asked.append(list(messages))
        self.schemas.append(schema)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def rows(*names):
    return json.dumps({"classes": [{"name": name, "scientific_name": "", "description": "x"} for name in names]})


SOFAS = '{"subtypes": ["sofas", "chairs"]}'


def test_live_models_are_asked_for_the_schema_and_every_reply_is_kept_with_its_card():
    from cilkit.realms.schema import Classes, Subtypes

    model = Scripted(SOFAS, rows("divan"), rows("stool"))
    realm, report = foresee("seats", model)
    assert realm.concept_names == ["divan", "stool"] and len(report) == 0
    assert model.schemas == [Subtypes, Classes, Classes]
    first = realm.replies[0]
    assert (first.subtype, first.text, first.source, first.model) == ("", SOFAS, "scripted", Scripted.card)
    assert {reply.template_version for reply in realm.replies} == {f"json {prompts.JSON_VERSION}"}
    system = model.asked[1][0]["content"]
    assert '{"classes": [{"name"' in system and "numbered list" not in system and "';'" not in system


def test_json_exemplars_are_the_papers_rows_in_json():
    from cilkit.realms.parsing import parse_classes

    for kind in ("object", "biological"):
        made = [
            prompts.classes_messages("x", kind, "y", protocol=protocol)[2]["content"] for protocol in ("csv", "json")
        ]
        csv, as_json = (parse_classes(text, kind, "y", "exemplar", Report()) for text in made)
        assert [(r.name, r.scientific_name, r.description) for r in csv] == [
            (r.name, r.scientific_name, r.description) for r in as_json
        ]
        assert set(json.loads(made[1])["classes"][0]) == {"name", "scientific_name", "description"}


def test_an_unusable_reply_goes_back_with_its_error():
    model = Scripted(SOFAS, "I would rather not.", rows("divan"), rows("stool"))
    realm, report = foresee("seats", model)
    assert realm.concept_names == ["divan", "stool"]
    again = model.asked[2]
    assert again[:4] == model.asked[1] and [message["role"] for message in again[4:]] == ["assistant", "user"]
    assert again[4]["content"] == "I would rather not." and "expected rows" in again[5]["content"]
    assert [(reply.attempt, bool(reply.error)) for reply in realm.replies] == [(1, 0), (1, 1), (2, 0), (1, 0)]
    assert [repair.what for repair in report.repairs] == ["asked again"]


def test_attempts_are_bounded_and_a_subtype_that_fails_is_left_out():
    model = Scripted(SOFAS, "no", "no", NoReply("the server sent no text"), rows("stool"))
    realm, report = foresee("seats", model)
    assert realm.concept_names == ["stool"] and realm.subtypes == ("chairs",) and len(model.asked) == 5
    assert [repair.what for repair in report.repairs] == ["no answer", "no answer", "no answer", "subtype left out"]
    assert realm.replies[3].error == "the server sent no text" and report.repairs[3].before == "sofas"


def test_nothing_at_all_is_one_sentence():
    with pytest.raises(UserError, match="scripted named no classes for the realm 'seats': .*expected rows"):
        foresee("seats", Scripted(SOFAS, *["no"] * 4), attempts=2)
    with pytest.raises(UserError, match="scripted named no subtypes of 'seats': .*expected a comma-separated list"):
        foresee("seats", Scripted(*["I am sorry, " + "but no " * 20] * 3))
    with pytest.raises(UserError, match="protocol 'xml' is unknown; expected auto, csv, json"):
        foresee("seats", Scripted(), protocol="xml")
    with pytest.raises(UserError, match="realm 'seats' has 0 classes"):
        foresee("seats", Scripted(rows("other")), subtypes=["sofas"])


def test_rounds_ask_for_others_until_there_are_enough():
    model = Scripted(SOFAS, rows("divan", "Love Seats"), rows("stool"), rows("love seat", "settee"), rows("bench"))
    realm, report = foresee("seats", model, classes=5, exclude=["throne"], rounds=3)
    assert realm.concept_names == ["divan", "Love Seats", "stool", "settee", "bench"]
    assert "List none of these: throne.\n" in model.asked[1][0]["content"] + "\n"
    assert "List none of these: throne; divan; Love Seats." in model.asked[3][0]["content"]
    assert model.asked[3][3]["content"] == "sofas" and report.count("same name in another form") == 1


def test_rounds_end_when_the_model_has_no_more():
    model = Scripted(SOFAS, rows("divan"), rows("stool"), rows("Divan"), rows("stools"))
    realm, report = foresee("seats", model, classes=9, rounds=5)
    assert len(realm) == 2 and len(model.asked) == 5
    assert report.repairs[-1].what == "the model has no more" and report.repairs[-1].before == "9 classes asked for"
    realm, report = foresee(
        "seats", Scripted(SOFAS, rows("divan"), rows("stool"), rows("pew"), rows("bench")), classes=9
    )
    assert len(realm) == 4 and report.repairs[-1].what == "rounds used up"


def test_a_subtype_that_gave_nothing_new_is_not_asked_the_same_again():
    model = Scripted(SOFAS, rows("divan"), rows("stool"), rows("divan"), rows("bench"), rows("pew"))
    realm, report = foresee("seats", model, classes=5, rounds=2)
    assert [messages[3]["content"] for messages in model.asked[3:]] == ["sofas", "chairs", "chairs"]
    assert realm.concept_names == ["divan", "stool", "bench", "pew"] and len(realm.replies) == 6
    assert report.count("repeated name") == 1


def test_orders_are_asked_as_many_as_wanted_or_all():
    orders = json.dumps({"subtypes": [f"order {number}iformes" for number in range(30)]})
    for subtypes, asked in ((3, 3), (0, 30)):
        model = Scripted(orders, *[rows(f"species {number}") for number in range(asked)])
        assert len(foresee("seats", model, kind="biological", subtypes=subtypes)[0]) == asked


@pytest.mark.parametrize("number", ["classes", "subtypes", "per_subtype", "rounds"])
def test_negative_numbers_and_no_name_stop_before_any_question(number):
    model = Scripted()
    with pytest.raises(UserError, match=f"{number} is -1; expected 0 or more"):
        foresee("seats", model, **{number: -1})
    with pytest.raises(UserError, match="the realm has no name"):
        foresee(" ", model)
    with pytest.raises(UserError, match="no replies are kept for the realm '鳥'"):
        foresee("鳥")
    assert not model.asked


@pytest.mark.parametrize("subtype", ["", " ", 1990, None, ["a"], "a\nb"])
def test_subtypes_that_are_no_names_stop_before_any_question(subtype):
    model = Scripted()
    with pytest.raises(UserError, match="is no name; expected a plain text"):
        foresee("seats", model, subtypes=["sofas", subtype])
    assert not model.asked


def test_the_list_of_names_that_a_model_is_told_has_a_bounded_length():
    names = [f"name {number}" for number in range(1000)]
    system = prompts.classes_messages("x", "object", "y", exclude=names)[0]["content"]
    told = system.partition("List none of these: ")[2].rstrip(".").split("; ")
    assert told == names[-len(told) :] and 1800 < len("; ".join(told)) <= prompts.EXCLUDED


def test_subtypes_over_the_number_asked_for_are_not_asked():
    realm, report = foresee("seats", Scripted(SOFAS, rows("divan")), subtypes=1)
    assert realm.subtypes == ("sofas",) and report.repairs[-1].before == "chairs"


def test_an_interrupted_asking_goes_on_without_asking_again(tmp_path):
    script = [SOFAS, "no", rows("divan"), UserError("the server cannot be reached")]
    with pytest.raises(UserError, match="cannot be reached"):
        foresee("seats", Scripted(*script), journal=Journal(tmp_path))
    kept = sorted(path.name for path in (tmp_path / "replies").iterdir())
    assert kept == ["001.json", "002.json", "003.json"]
    later = Scripted(rows("stool"))
    realm, report = foresee("seats", later, journal=Journal(tmp_path))
    assert len(later.asked) == 1 and realm.concept_names == ["divan", "stool"]
    undisturbed = foresee("seats", Scripted(*script[:3], rows("stool")))
    assert (realm, report) == undisturbed and realm.replies[1].error


@pytest.mark.parametrize("stopped", range(9))
def test_wherever_it_is_interrupted_nothing_is_asked_twice(tmp_path, stopped):
    script = [SOFAS, "no", rows("divan"), rows("stool"), "no", rows("pew"), rows("bench"), rows("pew"), rows("bench")]
    whole, settings = Scripted(*script), {"classes": 9, "rounds": 3}
    undisturbed = foresee("seats", whole, **settings)
    first, second = Scripted(*script[:stopped], UserError("unplugged")), Scripted(*script[stopped:])
    with pytest.raises(UserError, match="unplugged"):
        foresee("seats", first, journal=Journal(tmp_path), **settings)
    assert foresee("seats", second, journal=Journal(tmp_path), **settings) == undisturbed
    assert first.asked[:-1] + second.asked == whole.asked and len(whole.asked) == 9


def test_an_asking_that_was_given_up_asks_its_last_question_again(tmp_path):
    with pytest.raises(UserError, match="named no classes"):
        foresee("seats", Scripted("no", NoReply("empty")), subtypes=["sofas"], attempts=2, journal=Journal(tmp_path))
    later = Scripted(rows("divan"))
    realm, _ = foresee("seats", later, subtypes=["sofas"], attempts=2, journal=Journal(tmp_path))
    assert realm.concept_names == ["divan"] and len(later.asked) == 1 and len(realm.replies) == 2


def test_a_reply_is_on_disk_before_anybody_reads_it(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug in the parser")

    monkeypatch.setattr("cilkit.realms.parsing.parse_subtypes", broken)
    with pytest.raises(RuntimeError):
        foresee("seats", Scripted(SOFAS), journal=Journal(tmp_path))
    assert Journal(tmp_path).replies[0].text == SOFAS


def test_half_a_character_in_a_reply_can_be_kept(tmp_path):
    realm, _ = foresee("seats", Scripted("1; divan \ud800; x"), subtypes=["sofas"], journal=Journal(tmp_path))
    assert realm.replies[0].text == "1; divan ?; x" and Journal(tmp_path).replies == list(realm.replies)


def test_a_saved_realm_is_replayed_without_its_model(tmp_path):
    answers = [rows(name) for name in ("divan", "stool", "settee", "bench", "pew", "pew")]
    model = Scripted(SOFAS, "no", *answers)
    settings = {"classes": 9, "rounds": 2, "exclude": ["throne"]}  # more than it has
    realm, report = foresee("seats", model, **settings)
    realm.save(tmp_path)
    again, repairs = foresee("seats", tmp_path, **settings)
    assert repairs.repairs[-1] == report.repairs[-1] and len(realm) == 5
    assert again == realm and again.replies[1].model == Scripted.card
    assert Realm.load(tmp_path) == realm
    (tmp_path / "realm.csv").unlink()
    assert Realm.load(tmp_path) == realm  # from its replies, with what was asked again


def test_free_realms_fill_a_template_of_one_s_own():
    template = "A pencil drawing of {name} ({subtype}, {realm}), {description}"
    answers = '{"classes": [{"name": "divan {name}", "description": "low"}, {"name": "stool"}]}'
    model = Scripted(answers)
    realm, _ = foresee("seats", model, kind="free", template=template, subtypes=["sofas"])
    assert [concept.prompt for concept in realm.concepts] == [
        "A pencil drawing of divan {name} (sofas, seats), low",
        "A pencil drawing of stool (sofas, seats)",
    ]
    assert model.asked[0][0]["content"].count("theme 'seats'") == 1  # asked as an object realm is


@pytest.mark.parametrize(
    "template, says",
    [
        ("", "a free realm needs a template"),
        ("a drawing", "the same prompt"),
        ("{name.__class__}", "has a field 'name.__class__'"),
        ("{name!r:>9999999999}", "has a field 'name'"),
        ("{nmae}", "expected name, scientific_name, description, subtype, realm"),
        ("{0}", "has a field '0'"),
        ("{name", "cannot be read"),
    ],
)
def test_templates_that_cannot_be_filled_stop_before_any_question(template, says):
    model = Scripted()
    with pytest.raises(UserError, match=says):
        foresee("seats", model, kind="free", template=template)
    assert not model.asked


def test_a_reply_cut_at_max_tokens_is_noted_and_its_broken_row_left_out():
    model = Scripted("1; divan; Long.\n2; stool; Rou")
    model.cut = True
    realm, report = foresee("seats", model, subtypes=["sofas"], protocol="csv")
    assert realm.concept_names == ["divan"] and report.count("cut at max_tokens") == 1
    assert realm.replies[0].cut


# ---------------------------------------------------------------- the road


@pytest.fixture
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def test_the_verb_keeps_the_journal_and_does_not_read_execution_options(own_root, monkeypatch):
    from cilkit.road import foreseeing

    script = [SOFAS, "no", UserError("unplugged"), rows("divan"), rows("stool")]
    model = Scripted(*script)
    monkeypatch.setattr("cilkit.realms.foresight.backend", lambda llm, realm, **options: model)
    arguments = {"llm": "endpoint:x", "rounds": 2}
    with pytest.raises(UserError, match="unplugged"):
        foreseeing.foresee("seats", **arguments, llm_options={"base_url": "http://a.example", "temperature": 0.5})
    realm = foreseeing.foresee("seats", **arguments, llm_options={"timeout": 3, "temperature": 0.5})
    assert len(model.asked) == 5 and [reply.error[:5] for reply in realm.replies] == ["", "scrip", "", ""]
    assert sorted(path.name for path in (realm.artifact.path / "replies").iterdir()) == [
        "001.json",
        "002.json",
        "003.json",
        "004.json",
    ]
    assert realm.artifact.identity["options"] == {"temperature": 0.5}
    assert not (realm.artifact.path / "scratch").exists()
    assert foreseeing.foresee("seats", **arguments, llm_options={"temperature": 0.5}).artifact == realm.artifact
    model.replies = [SOFAS, rows("divan"), rows("stool")]
    assert foreseeing.foresee("seats", **arguments).artifact.key != realm.artifact.key


def test_a_password_in_a_parameter_and_a_path_to_nothing_are_refused(own_root):
    from cilkit.road.foreseeing import foresee

    with pytest.raises(UserError, match="base_url holds a user or password") as caught:
        foresee("seats", llm="endpoint:m", llm_options={"base_url": "http://me:secret@host/v1"})
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="no realm lies at .*cats/dogs"):
        foresee("cats/dogs")


def test_corrections_are_an_artifact_of_their_own(own_root):
    from cilkit.road.foreseeing import correct, foresee

    realm = foresee("ornaments and shapes")
    changes = {
        "drop": ["heart"],
        "rename": {realm.concept_names[0].upper(): "thin moon"},
        "describe": {realm.concept_names[1]: "Two strokes."},
        "add": [{"name": "spiral", "description": "One line round and round.", "subtype": "lines"}],
    }
    corrected = correct(realm, **changes)
    assert len(corrected) == len(realm) and "heart" not in corrected.concept_names
    prompts_of = {concept.name: concept.prompt for concept in corrected.concepts}
    assert prompts_of["thin moon"].startswith("A photograph of thin moon: ")
    assert prompts_of[realm.concept_names[1]] == f"A photograph of {realm.concept_names[1]}: Two strokes."
    assert prompts_of["spiral"] == "A photograph of spiral: One line round and round."
    assert corrected.subtypes[-1] == "lines" and corrected.replies == realm.replies
    assert corrected.artifact.inputs["realm"]["digest"] == realm.artifact.digest
    assert correct(realm.artifact, **changes).artifact == corrected.artifact
    assert artifacts.verify(realm.artifact) == []


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"drop": ["hart"]}, r"no concept 'hart' \(did you mean 'heart'\?\)"),
        ({"rename": {"hart": "x"}}, "no concept 'hart'"),
        ({"rename": {"heart": "<b>" + "x" * 90}}, "cannot name a concept"),
        ({"rename": {"heart": "a\u202eb"}}, "cannot name a concept"),
        ({"add": [{"description": "x"}]}, "cannot name a concept"),
        ({"add": [{"name": "x", "prompt": "y"}]}, "'prompt' is nothing that a concept has"),
        ({"add": [{"name": "Heart"}]}, "two concepts called 'Heart'"),
    ],
)
def test_corrections_that_fit_nothing_are_one_sentence(own_root, changes, says):
    from cilkit.road.foreseeing import correct, foresee

    with pytest.raises(UserError, match=says):
        correct(foresee("ornaments and shapes"), **changes)


def test_a_free_realm_without_a_template_has_its_words_exchanged():
    from cilkit.realms import Concept

    realm = Realm("x", "free", ("s",), (Concept("elm", "tall", "an etching of elm, tall", "s"),))
    corrected = realm.corrected(rename={"elm": "oak"}, describe={"Elm": "wide"})
    assert corrected.concepts[0].prompt == "an etching of oak, wide"


def test_frozen_and_read_back_it_is_the_same_realm(own_root, tmp_path):
    from cilkit.road.foreseeing import correct, foresee, freeze

    realm = correct(foresee("handwritten characters"), drop=["digit zero"])
    folder = freeze(realm, tmp_path / "kept" / "characters")
    again = foresee(str(folder))
    assert again.concepts == realm.concepts and again.replies == realm.replies
    assert freeze(realm, folder) == folder  # a realm may be written over
    (folder / "realm.json").unlink()  # written last: a freezing was killed before it
    assert freeze(realm, folder) == folder and foresee(str(folder)).concepts == realm.concepts
    assert foresee(str(folder)).artifact == again.artifact
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a realm"):
        freeze(realm, tmp_path / "kept")
    assert (tmp_path / "kept" / "notes.txt").read_text() == "mine"


def test_a_realm_s_folder_counts_by_what_is_read_not_by_clock_and_host(own_root):
    from cilkit.road.foreseeing import foresee

    folder = foresee("ornaments and shapes").artifact.path
    before = foresee(str(folder)), foresee("ornaments and shapes", llm=str(folder))
    (folder / "measured.json").write_text('{"host": "another"}')
    after = foresee(str(folder)), foresee("ornaments and shapes", llm=str(folder))
    assert [realm.artifact.key for realm in after] == [realm.artifact.key for realm in before]


LIVE = [  # kind, protocol, a reply of one class, the prompt
    ("object", '{"classes": [{"name": "elm", "scientific_name": "Ulmus", "description": "tall"}]}', "elm: tall"),
    ("biological", '{"classes": [{"name": "elm", "scientific_name": "", "description": "tall"}]}', "a elm: tall"),
    ("biological", "1; Ulmus; elm; tall\n\n2; Tilia; lime; wide", "a elm (Ulmus): tall"),
    ("object", "1; elm; tall", "elm: tall"),
    ("object", '{"classes": [{"name": "elm"}]}', None),
    ("object", '{"classes": [{"name": "elm", "scientific_name": null, "description": 7}, {"name": "oak"}]}', None),
    ("object", '[{"name": "elm", "description": "tall"}]', None),
    ("object", '```json\n{"classes": [{"name": "elm", "scientific_name": "", "description": "tall"}]}\n```', None),
]


@pytest.mark.parametrize("kind, reply, prompt", LIVE)
def test_notebook_01_s_prompts_by_hand_are_the_artifact_s_whatever_a_live_model_says(kind, reply, prompt):
    notebook = Path(__file__).resolve().parent.parent / "notebooks" / "01_realm_prompting.ipynb"
    cells = ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]
    (by_hand,) = [source for source in cells if "by_hand = " in source]
    asked, _ = foresee("trees", Scripted(reply), kind=kind, subtypes=["broad-leaved"])
    names = {"asked": asked, "llm": "endpoint:x", "realm": "trees", "template": "", "realms": realms, "repairs": []}
    exec(by_hand, names | {"book": SimpleNamespace(record=lambda **numbers: names.update(numbers))})
    assert prompt is None or f"A photograph of {prompt}" in {concept.prompt for concept in asked.concepts}
    assert prompt is None or names["prompts_that_differ"] == 0


def test_journal_finds_by_messages_and_replaces(tmp_path):
    journal, messages = Journal(tmp_path), ({"role": "user", "content": "x"},)
    journal.add(Reply("s", messages, "a", "m"))
    journal.add(Reply("s", (*messages, *messages), "b", "m"))
    journal.add(Reply("s", messages, "a", "m", error="bad"))
    for kept in (journal, Journal(tmp_path)):
        assert [reply.text for reply in kept.replies] == ["a", "b"] and kept.find(messages).error == "bad"
    assert Journal().find(messages) is None


def test_a_deleted_reply_is_asked_again_and_no_other_is_lost(tmp_path):
    with pytest.raises(UserError, match="unplugged"):
        script = [SOFAS, rows("divan"), rows("stool"), rows("pew"), UserError("unplugged")]
        foresee("seats", Scripted(*script), classes=9, journal=Journal(tmp_path))
    (tmp_path / "replies" / "002.json").unlink()
    later = Scripted(rows("settee"), rows("bench"), rows("throne"))
    realm, _ = foresee("seats", later, classes=9, journal=Journal(tmp_path))
    assert realm.concept_names == ["settee", "stool", "bench", "throne"] and len(later.asked) == 3
    assert {reply.text for reply in Journal(tmp_path).replies} > {SOFAS, rows("stool"), rows("pew"), rows("settee")}


def test_a_kept_realm_is_found_however_its_name_is_written():
    assert foresee("Common Objects")[0].concept_names == foresee("common objects")[0].concept_names
