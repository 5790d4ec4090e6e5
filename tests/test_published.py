"""Numbers of others: none without its tag, none twice, none of this workbook's."""

import re
from pathlib import Path

import pytest

from cilkit import learners, published
from cilkit.data import catalogue
from cilkit.errors import UserError

HOME = Path(__file__).resolve().parent.parent
ELSEWHERE = {"imagenet_a", "objectnet", "omnibenchmark", "vtab", "cddb"}  # benchmarks that are not in the catalogue
SPEC = HOME.parent / "shared" / "specs"


@pytest.fixture(scope="module")
def numbers():
    return published.table()


def test_every_number_says_how_it_is_known_and_what_it_belongs_to(numbers):
    assert set(numbers["tag"]) == {"read", "quoted", "third-party", "remembered", "derived"}
    assert set(numbers["learner"]) <= {"", "joint", *learners.NAMES}
    assert set(numbers["benchmark"]) <= set(catalogue.entries()) | ELSEWHERE
    percent = numbers[~numbers["figure"].isin(["seconds", "backward_transfer"])]
    assert percent["value"].between(0, 100).all()
    assert not numbers.duplicated(["table", "row", "benchmark", "figure"]).any()


def test_the_file_is_headed_quoted_by_tag():
    first = (HOME / published.FILE).read_text().splitlines()[0]
    assert published.HEADING == "quoted, by tag" and published.HEADING in first


def test_slca_s_own_row_is_the_table_that_everybody_quotes(numbers):
    own = numbers.query("table == 'slca_in21k' and row == 'SLCA' and benchmark == 'cifar100'").set_index("figure")
    assert own.loc["last", ["value", "std", "tag"]].tolist() == [91.53, 0.28, "third-party"]
    assert published.shown(own.reset_index())[0] == "91.53 ± 0.28 [third-party]"
    ewc = numbers.query("table == 'slca_in21k' and learner == 'ewc'")
    assert set(ewc["tag"]) == {"remembered"}, "nobody has checked these rows"


def test_a_gain_that_was_computed_is_the_difference_that_it_says(numbers):
    gains = {"cifar100": 49.76, "imagenet_r": 50.05, "cub200": 44.69, "cars196": 40.16}  # SLCA's abstract
    table = numbers.query("table == 'slca_in21k' and figure == 'last'").set_index(["row", "benchmark"])["value"]
    for benchmark, gain in gains.items():
        assert table["SLCA", benchmark] - gain == pytest.approx(table["Seq FT", benchmark], abs=0.005)


@pytest.mark.skipif(not SPEC.is_dir(), reason="the notes that the numbers were taken from are not beside this checkout")
def test_no_number_is_one_that_the_notes_do_not_hold(numbers):
    notes = " ".join(path.read_text() for path in sorted([*SPEC.glob("*.md"), *SPEC.parent.glob("field/*.md")]))
    notes += re.sub(r"(?<=\d)\s(?=\d{3}\b)", "", notes)  # 9 781 s
    held = {float(found.replace(",", "")) for found in re.findall(r"(?<![\d.])\d[\d,]*\.?\d*|\.\d+", notes)}
    for _, row in numbers.iterrows():
        assert abs(row["value"]) in held, f"{row['table']}, {row['row']}, {row['benchmark']}: {row['value']}"


ENTRY = "{row: A, learner: slca, benchmark: cifar100, last: 91.5, tag: read}"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{row: A, benchmark: cifar100, last: 91.5}", "'A' on 'cifar100': tag None; every number needs one of read"),
        (ENTRY.replace("read", "known"), "tag 'known'"),
        (ENTRY.replace("last", "latest"), "did you mean 'last'"),
        (ENTRY.replace("91.5", "about 91"), "expected a number"),
        (ENTRY.replace("last: 91.5, ", ""), "no number"),
    ],
)
def test_an_untagged_or_broken_entry_is_refused_in_one_sentence(tmp_path, entry, says):
    path = tmp_path / "published.yaml"
    path.write_text(f"tags: {{read: seen}}\ntables:\n  t:\n    setting: s\n    rows:\n      - {entry}\n")
    with pytest.raises(UserError) as caught:
        published.table(path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no file of published numbers"):
        published.table(tmp_path / "none.yaml")
