"""Replies of language models, good and bad, through the one parser; and the three published class lists."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from cilkit.errors import UserError
from cilkit.realms import Realm, Report, overlap
from cilkit.realms.parsing import DESCRIPTION_LIMIT, Row, normal, parse_classes, parse_subtypes
from cilkit.realms.names import merged

LISTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "class_lists.json.gz"


def classes(reply: str, kind: str = "object") -> tuple[list[Row], Report]:
    report = Report()
    return parse_classes(reply, kind, "sofas", "reply 2", report), report


def test_object_table_with_header():
    rows, report = classes("item_id; item_name; item_description\n1; love seat; Two seats.\n2; divan; No back, long.\n")
    assert [(row.name, row.description, row.subtype) for row in rows] == [
        ("love seat", "Two seats.", "sofas"),
        ("divan", "No back, long.", "sofas"),
    ]
    assert len(report) == 0
    assert rows[1].where == "reply 2, line 3"


def test_biological_table_takes_the_columns_in_the_header_s_order():
    reply = "item_id;species_common_name;species_latin_name;species_description\n1;olm;Proteus anguinus;Pale, long.\n"
    (row,), _ = classes(reply, "biological")
    assert (row.name, row.scientific_name, row.description) == ("olm", "Proteus anguinus", "Pale, long.")


def test_every_repair_is_reported_with_its_line():
    reply = (
        "Sure, here is the list:\n```csv\n1; love  seat ; Two\u00a0seats.\n"
        "2; divan; Long; no back.\n3; **settee**; Wood.\n```"
    )
    rows, report = classes(reply)
    assert [(row.name, row.description) for row in rows] == [
        ("love seat", "Two seats."),
        ("divan", "Long, no back."),
        ("settee", "Wood."),
    ]
    assert {repair.what for repair in report.repairs} == {
        "words around the table",
        "stray spaces",
        "separator inside the description",
        "bold marks",
    }
    assert {repair.where for repair in report.repairs if repair.what == "bold marks"} == {"reply 2, line 5"}


def test_number_joined_to_the_name_is_split():
    rows, report = classes("1. love seat; Two seats.\n2. divan; Long.\n")
    assert [row.name for row in rows] == ["love seat", "divan"]
    assert report.count("number joined to the name") == 2


@pytest.mark.parametrize(
    "reply, line, expected",
    [
        ("1; love seat; Two seats.\n2; div", "line 2", "expected 3 fields"),  # broke off at the token limit
        ("1; love seat; Two seats.\n2", "line 2", "expected 3 fields"),
        ("1; love seat; Two seats.\nand also\n2; divan; Long.", "line 2", "expected 3 fields"),
        ('1; love seat; "Two seats.\n2; divan; Long.', "line 1", "every quote closed"),
        ("love seat; big; Two seats.", "line 1", "beginning with a number"),
        ("1; ; Two seats.", "line 1", "expected a name"),
        ("item_id; name; looks\n1; divan; Long.", "line 1", "expected the columns"),
        ("I cannot help with that.", "reply 2", "expected rows"),
        ("", "reply 2", "expected rows"),
    ],
)
def test_broken_reply_is_one_sentence_with_reply_line_and_expectation(reply, line, expected):
    with pytest.raises(UserError) as caught:
        classes(reply)
    message = str(caught.value)
    assert "reply 2" in message and line in message and expected in message and "\n" not in message


def test_quotes_around_and_inside_fields():
    rows, report = classes('1; "love seat"; "Two seats; low."\n2; "Iceberg" divan; White.\n3; stool; 20" tall.')
    assert [(row.name, row.description) for row in rows] == [
        ("love seat", "Two seats; low."),
        ('"Iceberg" divan', "White."),
        ("stool", '20" tall.'),
    ]
    assert [(repair.what, repair.where) for repair in report.repairs] == [("quotes inside a field", "reply 2, line 2")]


def test_long_description_ends_after_its_last_clause_that_fits():
    clause = "a soft round back with many folds, "
    (row,), report = classes("1; divan; " + clause * 8)
    text = (clause * 8).strip()
    assert len(row.description) <= DESCRIPTION_LIMIT and text.startswith(row.description)
    assert text[len(row.description)] == ","  # whole clauses, and one more would not have fitted
    assert len(row.description) + len(clause) > DESCRIPTION_LIMIT
    (repair,) = [one for one in report.repairs if one.what == "description over the limit"]
    assert (repair.before, repair.after) == (text, row.description)


def test_long_description_without_clauses_ends_at_a_word():
    (row,), _ = classes("1; divan; " + "velvet " * 40)
    assert row.description == " ".join(["velvet"] * 25)  # 25 * 7 - 1 = 174 characters, 26 words have 181


def test_description_of_exactly_the_limit_stays():
    (row,), report = classes("1; divan; " + "x" * DESCRIPTION_LIMIT)
    assert len(row.description) == DESCRIPTION_LIMIT and len(report) == 0


def test_repeats_are_found_whatever_case_width_or_spacing():
    rows = [Row("a", "Love Seat", "x"), Row("b", "ｌｏｖｅ　ｓｅａｔ", "y"), Row("b", "divan", "z")]
    report = Report()
    assert [row.description for row in merged(rows, report)] == ["x", "z"]
    assert report.count("repeated name") == 1
    assert normal("Stra\u00dfe") == normal("STRASSE")


def test_repeated_scientific_name_goes_even_under_another_common_name():
    rows = [
        Row("o", "Oilbird", "x", "Steatornis caripensis"),
        Row("o", "Guacharo", "y", "steatornis  caripensis"),
        Row("o", "Nightjar", "z", "Caprimulgus europaeus"),
    ]
    report = Report()
    assert [row.name for row in merged(rows, report)] == ["Oilbird", "Nightjar"]
    assert report.count("repeated scientific name") == 1


def test_dots_in_live_names_stay_whole_and_empty_common_names_become_scientific():
    reply = "1; Brassica oleracea var. botrytis; Cauliflower; White head.\n2; Ilex crenata; ; Small leaves.\n"
    rows, report = classes(reply, "biological")
    assert [(row.name, row.scientific_name, row.cut) for row in rows] == [
        ("Cauliflower", "Brassica oleracea var. botrytis", ""),
        ("Ilex crenata", "Ilex crenata", ""),
    ]
    assert report.count("empty common name") == 1


def test_names_cut_at_a_dot_are_told_from_repeats():
    reply = "1; Brassica oleracea va; Cauliflower; White.\n2; Brassica oleracea va; Kale; Curly.\n"
    rows, report = classes(reply, "biological")
    kept = merged(rows, report)
    assert [(row.name, row.scientific_name) for row in kept] == [
        ("Cauliflower", "Brassica oleracea"),
        ("Kale", "Brassica oleracea"),
    ]
    assert report.count("name cut at a dot") == 2 and report.count("scientific name shared, cut at a dot") == 1


def test_subtypes_by_commas_or_by_lines():
    report = Report()
    assert parse_subtypes("anura, caudata,  gymnophiona.", "reply 1", report) == ["anura", "caudata", "gymnophiona"]
    assert parse_subtypes("Here they are:\n1. breakfast\n2. St. John's bread\n3. Breakfast\n", "reply 1", report) == [
        "breakfast",
        "St. John's bread",
    ]
    assert report.count("repeated subtype") == report.count("words around the list") == 1


@pytest.mark.parametrize("reply", ["", " \n ", "I am sorry, " + "but this is a very long excuse " * 4])
def test_subtypes_that_are_no_list(reply):
    with pytest.raises(UserError, match="reply 1.*expected a comma-separated list"):
        parse_subtypes(reply, "reply 1", Report())


def test_report_as_table_and_text():
    _, report = classes("1; love  seat; Long.")
    assert report.frame().to_dict("records") == [
        {"where": "reply 2, line 1", "what": "stray spaces", "before": "love  seat", "after": "love seat"}
    ]
    assert (str(report), str(Report())) == ("stray spaces: 1", "nothing to repair")


@pytest.mark.skipif(not LISTS.exists(), reason="the published class lists are not beside this checkout")
class TestPublishedLists:
    """Premonition's three class lists, read in source. Rows, repeats and empty names as counted there."""

    @pytest.fixture
    def lists(self):
        with gzip.open(LISTS) as file:
            return json.load(file)

    @staticmethod
    def load(lists, name, folder) -> tuple[Realm, Report, int]:
        path, rows = folder / f"{name}.csv", lists[f"premonition_{name}"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        report = Report()
        return Realm.load(path, report), report, len(rows)

    @pytest.mark.parametrize(
        "name, rows, repeats, empty, concepts",
        [("birds", 620, 14, 0, 605), ("food", 310, 0, 0, 310), ("plants", 1010, 54, 45, 964)],
    )
    def test_shapes_defects_and_folders(self, lists, tmp_path, name, rows, repeats, empty, concepts):
        realm, report, read = self.load(lists, name, tmp_path)
        assert read == rows
        cut = report.count("scientific name shared, cut at a dot")
        assert report.count("repeated scientific name") + cut == repeats
        assert report.count("empty common name") == empty
        assert len(realm) == concepts == rows - repeats + cut - report.count("repeated name")
        assert len({folder.casefold() for folder in realm.folders.values()}) == concepts
        assert all(concept.description == concept.description.strip() for concept in realm.concepts)
        assert report.count("stray spaces") >= rows  # every description begins with one

    def test_overlap_with_the_benchmarks(self, lists, tmp_path):
        food, _, _ = self.load(lists, "food", tmp_path)
        # The list at hand has 100 of Food-101's 101 names, "waffles" is the one missing.
        assert len(overlap(food, [*lists["c3box_food101"], "waffles"])) == 51
        birds, _, _ = self.load(lists, "birds", tmp_path)
        # 32 with this spelling of the 200 CUB names; 34 was counted with another.
        assert len(overlap(birds, lists["c3box_cub200"])) == 32
