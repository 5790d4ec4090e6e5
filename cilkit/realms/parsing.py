"""From a language model's replies to rows: one parser for kept and live replies, and the repairs it reports.

The formats are those of Premonition's prompt notebook (read in source: cl-premonition/premonition,
Get_SD_Prompts_From_Realm.ipynb): a comma-separated list of subtypes, then for each subtype a table with ';' between
its fields. The defects repaired here are those found in the three published class lists (stray spaces, repeated names,
empty common names, names cut at a dot) and those that models are known for (words around the table, bold marks, a
separator inside a description, descriptions over the limit). Live models are asked for JSON as well, and answer with
lists and Markdown tables when they please: `parse_classes` takes all of these, keeps what is whole and reports the
rest. Every repair is a line of the report, none is silent.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from cilkit.errors import UserError
from cilkit.realms.names import NAME_LIMIT, normal, plain, unusable, visible, without_markup

DESCRIPTION_LIMIT = 180  # characters; asked for in the prompt and not enforced by the paper's notebook, enforced here
COLUMNS = {
    "object": ("item_id", "item_name", "item_description"),
    "biological": ("item_id", "species_latin_name", "species_common_name", "species_description"),
    "free": ("item_id", "item_name", "item_description"),
}
FIELDS = {  # what models and the papers' tables call the fields of a class
    **dict.fromkeys(["number", "item_id", "id", "#", "no", "no.", "item"], "number"),
    **dict.fromkeys(["name", "item_name", "species_common_name", "common_name", "class_name"], "name"),
    **dict.fromkeys(["scientific_name", "species_latin_name", "latin_name"], "scientific_name"),
    **dict.fromkeys(["description", "item_description", "species_description"], "description"),
}
REPLY_LIMIT, LINE_LIMIT, LINES = 200_000, 20_000, 2_000  # characters, lines (or classes) that are read; our decision
SHOWN = 400  # characters of a text that a report repeats
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
        self.repairs.append(Repair(where, what, shown(before), shown(after)))

    def count(self, what: str) -> int:
        return sum(repair.what == what for repair in self.repairs)

    def __len__(self) -> int:
        return len(self.repairs)

    def frame(self):
        """The repairs as a DataFrame: where, what, before, after."""
        import pandas as pd

        rows = [(repair.where, repair.what, repair.before, repair.after) for repair in self.repairs]
        return pd.DataFrame(rows, columns=["where", "what", "before", "after"])


_JSON = re.compile(r"^[ \t]*[\[{]|\{\s*\"", re.MULTILINE)
_BARE = re.compile(r"\s*[\[{].*[\]}]\s*", re.DOTALL)
_STRUCTURED = re.compile(r"\s*(?:\||\d{1,4}\s*(?:[.)]|$)|[-*•]\s)")  # a row that broke off after its number counts
_ITEM = re.compile(
    r"\s*(?:\d{1,4}[.)]|[-*•])\s+(?P<name>[^;]{1,160}?)(?:\s+[-–—]\s+|\s*[:–—]\s+|\s*:?$)(?P<description>.*)"
)
_LATIN = re.compile(r"[A-Z][a-z-]+(?: [a-z.×'-]+)+")


def shown(text: str) -> str:
    """The beginning of a text, what nobody sees in it written as an escape."""
    text = text[:SHOWN]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def tidy(text: str, where: str, report: Report) -> str:
    """The text without markup, control characters, formula signs, bold marks, stray spaces; reported if changed."""
    unmarked = plain(without_markup(text) if "<" in text or "&" in text or not text.isascii() else text)
    tidied = re.sub(r"^[=+@-]+(?=\w)", "", unmarked)  # a spreadsheet would take it for a formula
    if tidied.count("$") > 1:  # between two of them a notebook's page reads mathematics
        tidied = plain(tidied.replace("$", ""))
    if tidied != text:
        what = "control characters" if visible(text) != text else "stray spaces"
        what = "formula signs" if tidied != unmarked else what
        what = "markup" if "<" in text and "<" not in tidied else "bold marks" if "**" in text else what
        report.add(where, what, text, tidied)
    return tidied


def field_of(title: str) -> str:
    """Which field a column or a JSON key means: "number", "name", "scientific_name", "description", or ""."""
    return FIELDS.get(normal(title).replace(" ", "_"), "")


def readable(reply: str, where: str, report: Report) -> str:
    """The reply up to REPLY_LIMIT, without a model's thinking aloud and without characters that nobody sees."""
    if len(reply) > REPLY_LIMIT:
        report.add(where, f"reply over {REPLY_LIMIT:,} characters", reply)
        reply = reply[:REPLY_LIMIT]
    text = visible(reply)
    if text != reply:
        report.add(where, "control characters", reply, text)
    if thought := re.match(r"\s*<think>.*?</think>", text, re.DOTALL):
        report.add(where, "thinking aloud", thought[0])
        text = text[thought.end() :]
    return text


def parse_subtypes(reply: str, where: str, report: Report) -> list[str]:
    """The subtypes of a reply, without repeats: a comma-separated list, a list of lines, or JSON.

    Where the notebook deletes every dot of the reply, only a dot that ends the list or numbers a line goes here: a dot
    inside a name stays. Raises UserError where the reply holds no such list.
    """
    text = readable(reply, where, report)
    named = _json_subtypes(text, where, report) or _listed_subtypes(text, where, report)
    subtypes: dict[str, str] = {}
    for place, raw in named:
        name = tidy(raw.strip(), place, report)
        if normal(name) in subtypes:
            report.add(place, "repeated subtype", name)
        elif what := unusable(name):
            report.add(place, what, name)
        else:
            subtypes[normal(name)] = name
    if not subtypes:
        raise UserError(f"{where}, line 1: expected a comma-separated list of subtypes, found nothing; ask again")
    too_long = [name for name in subtypes.values() if len(name) > NAME_LIMIT]
    if too_long:
        raise UserError(
            f"{where}: expected a comma-separated list of short names, found {too_long[0][:120]!r}; ask again"
        )
    return list(subtypes.values())


def _json_subtypes(text: str, where: str, report: Report) -> list[tuple[str, str]]:
    if not _JSON.search(text):
        return []
    from cilkit.realms import schema

    values, whole = schema.values_in(text)
    names = [entry.get("name") for value in values for entry in schema.entries_in(value)] or schema.strings_in(text)
    if not whole:
        report.add(where, "JSON cut off or broken", text[-SHOWN:])
    found = [name for name in names if isinstance(name, str) and len(name) <= NAME_LIMIT]
    for name in names:
        if name not in found:
            report.add(where, "no short name", repr(name))
    return [(where, name) for name in found]


def _listed_subtypes(text: str, where: str, report: Report) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(text.strip().splitlines()[:LINES], 1):
        place = f"{where}, line {number}"
        if line.rstrip().endswith(":") or line.startswith("```"):
            report.add(place, "words around the list", line)
            continue
        line = line[:LINE_LIMIT].strip().removesuffix(".")
        item = re.sub(r"^(?:\d+[.)]|[-*•])\s+", "", line)
        names = item if item == line else re.split(r":\s|\s[-–—]\s", item)[0]  # without what explains a list's item
        names = re.sub(r"^[^,]*:\s", "", names)
        if names != item:
            report.add(place, "words around the list", item, names)
        parts = next(csv.reader([names], skipinitialspace=True), [])
        found += [(place, re.sub(r"^and ", "", part.strip())) for part in parts if part.strip()]
    return found


def parse_classes(
    reply: str, kind: str, subtype: str, where: str, report: Report, strict: bool = False, cut: bool = False
) -> list[Row]:
    """The rows of one reply, repaired one by one (repeats: see `names.merged`).

    Taken are JSON (with words around it, in a code fence, cut: its whole objects are kept), rows with ';' between the
    fields, Markdown tables, and numbered or bulleted lists ("1. name - description"). What cannot be read is a line of
    the report and left out. Raises UserError naming the reply, the line and what was expected where nothing can be
    read; with `strict` (for files that a person can correct) at the first row that cannot. cut: the reply ended at
    max_tokens, so its last line is not whole.
    """
    text, rows, problems = readable(reply, where, report), [], []
    if cut and not _JSON.search(text):
        text, _, rest = text.rpartition("\n")
        report.add(where, "cut at max_tokens", rest)
    for place, found, values in _json_classes(text, where, report) or _Lines(kind, where, report).read(text):
        try:
            rows.append(_row(values, kind, subtype, place, report))
        except UserError as problem:
            problems.append(problem)
            report.add(place, "unreadable", found)
    if problems and (strict or not rows):
        raise problems[0]
    if not rows:
        raise UserError(
            f"{where}: expected rows of {'; '.join(COLUMNS[kind])}, or whole JSON objects, found none; ask again"
        )
    return rows


Found = tuple[str, str, dict[str, str] | UserError]  # where, the text, its fields by name or why they cannot be read


def _json_classes(text: str, where: str, report: Report) -> list[Found]:
    if not _JSON.search(text):
        return []
    from cilkit.realms import schema

    values, whole = schema.values_in(text)
    entries = [entry for value in values for entry in schema.entries_in(value)][:LINES]
    if entries and not whole:
        report.add(where, "JSON cut off or broken", text[-SHOWN:])
    elif entries and not _BARE.fullmatch(text):
        report.add(where, "words around the JSON", text)
    places = [f"{where}, class {number}" for number in range(1, len(entries) + 1)]
    return [(place, repr(one), schema.checked(one, place)) for place, one in zip(places, entries, strict=True)]


class _Lines:
    """A reply with one class a line: ';' between the fields, a Markdown table, or a list."""

    def __init__(self, kind: str, where: str, report: Report):
        self.where, self.report = where, report
        self.titles = COLUMNS[kind]
        self.columns = [field_of(title) for title in self.titles]
        self.indent: int | None = None  # of the first list item

    def read(self, text: str) -> Iterator[Found]:
        """The lines from the first to the last that look like a class; those around them are reported."""
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()][:LINES]
        inside = [index for index, (_, line) in enumerate(lines) if _STRUCTURED.match(line) or ";" in line]
        first, last = (inside[0], inside[-1]) if inside else (len(lines), -1)
        for index, (number, line) in enumerate(lines):
            place = f"{self.where}, line {number}"
            if index < first or index > last:
                self.report.add(place, "words around the table", line)
            elif line.strip().strip("|:- \t"):  # not the rule below a Markdown table's head
                try:
                    values = self._values(line, place)
                except UserError as problem:
                    values = problem
                if values:
                    yield place, line, values

    def _values(self, line: str, place: str) -> dict[str, str]:
        """One line's fields by name; none for a head line, which sets the columns of the lines below."""
        if len(line) > LINE_LIMIT:
            raise UserError(f"{place}: expected a class on each line, found {len(line):,} characters; ask again")
        if item := _ITEM.fullmatch(line.replace("**", "")):
            indent = len(line) - len(line.lstrip())
            self.indent = indent if self.indent is None else self.indent
            within = indent > self.indent + 1  # it explains the item above
            self.report.add(place, "words around the list" if within else "list item, not a row", line)
            return {} if within else _listed(item)
        table = line.strip().startswith("|")
        cells = map(str.strip, line.strip().strip("|").split("|"))
        fields = list(cells) if table else self._fields(line, place)
        known = [field_of(title) for title in fields]
        if known[0] == "number" or sum(map(bool, known)) > 1:
            self._head(fields, known, place)
            return {}
        return dict(zip(self.columns, self._fitted(fields, place), strict=True))

    def _head(self, fields: list[str], known: list[str], place: str) -> None:
        if not {"name", "scientific_name"} & set(known) or "" in known or len(set(known)) < len(known):
            raise UserError(
                f"{place}: expected the columns {'; '.join(self.titles)}, found {'; '.join(fields)[:200]}; ask again"
            )
        self.titles, self.columns = tuple(map(str.strip, fields)), known

    def _fields(self, line: str, place: str) -> list[str]:
        form = {"delimiter": ";", "skipinitialspace": True}
        try:
            return next(csv.reader([line], strict=True, **form))
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UserError(
                    f"{place}: expected fields separated by ';' with every quote closed on its line, "
                    f"found {line.strip()[:60]!r}; correct the line or ask again"
                ) from None
        self.report.add(place, "quotes inside a field", line, line)  # kept as they are: "Iceberg" rose
        return next(csv.reader([line], quoting=csv.QUOTE_NONE, **form))

    def _fitted(self, fields: list[str], place: str) -> list[str]:
        """As many fields as columns: a joined number is split off, a missing one added, a split description joined."""
        columns = len(self.columns)
        joined = re.match(r"\s*(?:(\d+)\s*[.)]|[-*•])\s*(\S.*)", fields[0])
        if len(fields) == columns - 1 and self.columns[0] == "number":
            if joined:
                self.report.add(place, "number joined to the name", fields[0], joined[2])
                fields = [joined[1] or "0", joined[2], *fields[1:]]
            elif not fields[0].strip().isdigit():
                self.report.add(place, "number missing", "; ".join(fields))
                fields = ["0", *fields]
        if len(fields) > columns:
            rest = fields[columns - 1 :]
            self.report.add(place, "separator inside the description", ";".join(rest), ", ".join(map(str.strip, rest)))
            fields = [*fields[: columns - 1], ", ".join(text.strip() for text in rest if text.strip())]
        numbered = self.columns[0] != "number" or re.fullmatch(r"\s*\d+[.)]?\s*", fields[0])
        if len(fields) != columns or not numbered:
            raise UserError(
                f"{place}: expected {columns} fields '{'; '.join(self.titles)}' beginning with a number, "
                f"found {'; '.join(fields)[:60]!r}; correct the line or ask again"
            )
        return fields


def _listed(item: re.Match) -> dict[str, str]:
    """The fields of "1. Blue tit (*Cyanistes caeruleus*) - description"."""
    name, latin = item["name"].strip(" *_`"), ""
    if (pair := re.fullmatch(r"(.+?)\s*\(([^()]+)\)", name)) and _LATIN.fullmatch(pair[2].strip(" *_`")):
        name, latin = pair[1].strip(" *_`"), pair[2].strip(" *_`")
    return {"name": name, "scientific_name": latin, "description": item["description"]}


def _row(values: dict[str, str] | UserError, kind: str, subtype: str, place: str, report: Report) -> Row:
    if isinstance(values, UserError):
        raise values
    named = {key: tidy(values.get(key, ""), place, report) for key in ("name", "scientific_name", "description")}
    if normal(named["scientific_name"]) in ("n/a", "none", "-"):  # what models write for "has none"
        report.add(place, "no scientific name", named["scientific_name"])
        named["scientific_name"] = ""
    return repaired(Row(subtype, **named, where=place), report)


def repaired(row: Row, report: Report) -> Row:
    """One row with its name, scientific name and description made usable; tidied text is expected."""
    latin = _CUT.sub("", row.scientific_name)
    cut = row.scientific_name if latin != row.scientific_name or _CUT_OTHER.search(latin) else ""
    if cut:
        report.add(row.where, "name cut at a dot", row.scientific_name, latin)
    name = row.name
    if not name and latin:
        name = latin
        report.add(row.where, "empty common name", "", name)
    if not name:
        raise UserError(f"{row.where}: expected a name, found an empty field; correct the line or ask again")
    if len(name) > NAME_LIMIT:
        name = name[: name.rfind(" ", 1, NAME_LIMIT + 1) if " " in name[1:NAME_LIMIT] else NAME_LIMIT].strip()
        report.add(row.where, f"name over {NAME_LIMIT} characters", row.name, name)
    if not row.description:
        report.add(row.where, "empty description", "")
    return replace(row, name=name, scientific_name=latin[:NAME_LIMIT], cut=cut, description=_limited(row, report))


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
