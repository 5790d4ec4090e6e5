"""From a language model's replies to rows: one parser for kept and live replies, and the repairs it reports.

The formats are those of Premonition's prompt notebook (read in source: cl-premonition/premonition,
Get_SD_Prompts_From_Realm.ipynb): a comma-separated list of subtypes, then for each subtype a table with ';' between
its fields. The defects repaired here are those found in the three published class lists (stray spaces, repeated names,
empty common names, names cut at a dot) and those that models are known for (words around the table, bold marks, a
separator inside a description, descriptions over the limit). Every repair is a line of the report, none is silent.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from cilkit.errors import UserError

DESCRIPTION_LIMIT = 180  # characters; asked for in the prompt and not enforced by the paper's notebook, enforced here
COLUMNS = {
    "object": ("item_id", "item_name", "item_description"),
    "biological": ("item_id", "species_latin_name", "species_common_name", "species_description"),
}
# Endings that remain of "var. botrytis", "subsp. pekinensis", "ssp. abietis", "'Nellie R. Stevens'", "St. John's wort".
_CUT = re.compile(r"\s+(?:va|subs|ss)$")
_CUT_OTHER = re.compile(r"(?:^St|\s[A-Z])$")


@dataclass(frozen=True)
class Row:
    """One proposed class. `where`: its reply and line; `cut`: the scientific name before repair, if cut at a dot."""

    subtype: str
    name: str
    description: str
    scientific_name: str = ""
    where: str = ""
    cut: str = ""


@dataclass(frozen=True)
class Repair:
    """One change: where it was, what was wrong, the text before and after ("" = dropped)."""

    where: str
    what: str
    before: str
    after: str


@dataclass
class Report:
    """What the parser repaired, in the order of the replies."""

    repairs: list[Repair] = field(default_factory=list)

    def add(self, where: str, what: str, before: str, after: str = "") -> None:
        self.repairs.append(Repair(where, what, before, after))

    def count(self, what: str) -> int:
        return sum(repair.what == what for repair in self.repairs)

    def __len__(self) -> int:
        return len(self.repairs)

    def __str__(self) -> str:
        if not self.repairs:
            return "nothing to repair"
        counts = Counter(repair.what for repair in self.repairs)
        return ", ".join(f"{what}: {number}" for what, number in counts.items())

    def frame(self):
        """The repairs as a DataFrame: where, what, before, after."""
        import pandas as pd

        rows = [(repair.where, repair.what, repair.before, repair.after) for repair in self.repairs]
        return pd.DataFrame(rows, columns=["where", "what", "before", "after"])


def normal(text: str) -> str:
    """The form in which two names are the same name: NFKC, case folded, single spaces, no bold marks at the ends."""
    return _plain(text).casefold()


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).replace("**", "").split())


def tidy(text: str, where: str, report: Report) -> str:
    """The text in NFKC form with single spaces and without bold marks; reported when that changed it."""
    tidied = _plain(text)
    if tidied != text:
        marks = "bold marks" if "**" in text else "stray spaces"
        report.add(where, marks, text, tidied)
    return tidied


def parse_subtypes(reply: str, where: str, report: Report) -> list[str]:
    """The comma-separated list of subtypes (a numbered list of lines is taken too), without repeats.

    Where the notebook deletes every dot of the reply, only a dot that ends the list or numbers a line goes here: a dot
    inside a name stays.
    """
    subtypes: list[str] = []
    for number, line in enumerate(reply.strip().splitlines(), 1):
        place = f"{where}, line {number}"
        if line.rstrip().endswith(":"):
            report.add(place, "words around the list", line)
            continue
        line = re.sub(r"^\s*(?:\d+[.)]|[-*•])\s+", "", line).strip().removesuffix(".")
        for part in next(csv.reader([line], skipinitialspace=True), []):
            name = tidy(part.rstrip(), place, report)
            if normal(name) in map(normal, subtypes):
                report.add(place, "repeated subtype", name)
            elif name:
                subtypes.append(name)
    if not subtypes:
        raise UserError(f"{where}, line 1: expected a comma-separated list of subtypes, found nothing; ask again")
    too_long = [name for name in subtypes if len(name) > 80]
    if too_long:
        raise UserError(f"{where}: expected a comma-separated list of short names, found {too_long[0]!r}; ask again")
    return subtypes


def parse_classes(reply: str, kind: str, subtype: str, where: str, report: Report) -> list[Row]:
    """The rows of one reply with ';' between its fields, repaired one by one (repeats: see `without_repeats`).

    Raises UserError naming the reply, the line and what was expected when a row cannot be read.
    """
    columns = COLUMNS[kind]
    rows = []
    for line, fields in _table(_records(reply, where, report), where, report):
        place = f"{where}, line {line}"
        if normal(fields[0]) == columns[0]:
            columns = _header(fields, kind, place)
            continue
        values = dict(zip(columns, _fitted(fields, columns, place, report), strict=True))
        rows.append(_row(values, kind, subtype, place, report))
    if not rows:
        raise UserError(f"{where}: expected rows of {'; '.join(columns)}, found none; ask again")
    return rows


def _records(reply: str, where: str, report: Report) -> list[tuple[int, list[str]]]:
    """The reply read as CSV, every line a record: (line, fields), blank lines left out."""
    lines = enumerate(reply.splitlines(), 1)
    return [(number, _fields(line, f"{where}, line {number}", report)) for number, line in lines if line.strip()]


def _fields(line: str, place: str, report: Report) -> list[str]:
    form = {"delimiter": ";", "skipinitialspace": True}
    try:
        return next(csv.reader([line], strict=True, **form))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise UserError(
                f"{place}: expected fields separated by ';' with every quote closed on its line, "
                f"found {line.strip()[:60]!r}; correct the line or ask again"
            ) from None
    report.add(place, "quotes inside a field", line, line)  # kept as they are: "Iceberg" rose
    return next(csv.reader([line], quoting=csv.QUOTE_NONE, **form))


def _table(records: list[tuple[int, list[str]]], where: str, report: Report) -> list[tuple[int, list[str]]]:
    """The records without the words that a model writes before and after its table."""
    numbered = re.compile(r"\s*\d+\s*([.)]|$)")  # a row that broke off after its number is no word around the table
    inside = [index for index, (_, fields) in enumerate(records) if len(fields) > 1 or numbered.match(fields[0])]
    first, last = (inside[0], inside[-1]) if inside else (len(records), -1)
    for index, (line, fields) in enumerate(records):
        if index < first or index > last:
            report.add(f"{where}, line {line}", "words around the table", fields[0])
    return records[first : last + 1]


def _header(fields: list[str], kind: str, place: str) -> tuple[str, ...]:
    found = tuple(normal(text) for text in fields)
    if sorted(found) != sorted(COLUMNS[kind]):
        raise UserError(
            f"{place}: expected the columns {'; '.join(COLUMNS[kind])}, found {'; '.join(found)}; ask again"
        )
    return found


def _fitted(fields: list[str], columns: tuple[str, ...], place: str, report: Report) -> list[str]:
    """As many fields as columns, the number first; a joined number is split off, a split description joined."""
    joined = re.match(r"\s*(\d+)\s*[.)]\s*(\S.*)", fields[0])
    if len(fields) == len(columns) - 1 and joined:
        report.add(place, "number joined to the name", fields[0], joined[2])
        fields = [joined[1], joined[2], *fields[1:]]
    if len(fields) > len(columns):
        rest = fields[len(columns) - 1 :]
        report.add(place, "separator inside the description", ";".join(rest), ", ".join(map(str.strip, rest)))
        fields = [*fields[: len(columns) - 1], ", ".join(text.strip() for text in rest if text.strip())]
    if len(fields) != len(columns) or not re.fullmatch(r"\s*\d+[.)]?\s*", fields[0]):
        raise UserError(
            f"{place}: expected {len(columns)} fields '{'; '.join(columns)}' beginning with a number, "
            f"found {'; '.join(fields)[:60]!r}; correct the line or ask again"
        )
    return fields


def _row(values: dict[str, str], kind: str, subtype: str, place: str, report: Report) -> Row:
    values = {column: tidy(text, place, report) for column, text in values.items()}
    if kind == "object":
        row = Row(subtype, values["item_name"], values["item_description"], where=place)
    else:
        common, latin = values["species_common_name"], values["species_latin_name"]
        row = Row(subtype, common, values["species_description"], latin, place)
    return repaired(row, kind, report)


def repaired(row: Row, kind: str, report: Report) -> Row:
    """One row with its name, scientific name and description made usable; tidied text is expected."""
    latin = _CUT.sub("", row.scientific_name)
    cut = row.scientific_name if latin != row.scientific_name or _CUT_OTHER.search(latin) else ""
    if cut:
        report.add(row.where, "name cut at a dot", row.scientific_name, latin)
    name = row.name
    if not name and kind == "biological":
        name = latin
        report.add(row.where, "empty common name", "", name)
    if not name:
        raise UserError(f"{row.where}: expected a name, found an empty field; correct the line or ask again")
    if not row.description:
        report.add(row.where, "empty description", "")
    return replace(row, name=name, scientific_name=latin, cut=cut, description=_limited(row, report))


def _limited(row: Row, report: Report) -> str:
    """The description within the limit, ended after its last whole clause that fits (else its last whole word)."""
    text = row.description
    if len(text) <= DESCRIPTION_LIMIT:
        return text
    ends = [match.start() for match in re.finditer(r"[.,;:](?= )", text) if 0 < match.start() <= DESCRIPTION_LIMIT]
    end = ends[-1] if ends else text.rfind(" ", 0, DESCRIPTION_LIMIT + 1)
    shortened = text[: end if end > 0 else DESCRIPTION_LIMIT]
    report.add(row.where, "description over the limit", text, shortened)
    return shortened


def without_repeats(rows: Iterable[Row], report: Report) -> list[Row]:
    """The rows of all subtypes, each scientific name and each name once: the first row that bears it is kept.

    Names are compared case-folded in NFKC form, where the notebook compares exact strings. A scientific name cut at a
    dot is reported and kept: seven cabbages were left as "Brassica oleracea va", and their common names differ.
    """
    kept, names, scientific, cuts = [], set(), set(), set()
    for row in rows:
        label = f"{row.name} ({row.scientific_name})" if row.scientific_name else row.name
        name, latin = normal(row.name), normal(row.scientific_name)
        if row.cut and row.cut in cuts and name not in names:
            report.add(row.where, "scientific name shared, cut at a dot", label, label)
        elif not row.cut and latin in scientific:
            report.add(row.where, "repeated scientific name", label)
            continue
        elif name in names:
            report.add(row.where, "repeated name", label)
            continue
        names.add(name)
        cuts |= {row.cut} - {""}
        scientific |= {"" if row.cut else latin} - {""}
        kept.append(row)
    return kept
