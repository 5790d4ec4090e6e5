"""Realms as CSV: our own table (realm.csv, to be corrected by hand) and the class lists that Premonition published."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from cilkit.errors import UserError
from cilkit.realms.parsing import Report, Row, repaired, tidy

OWN = ("subtype", "name", "scientific_name", "description", "prompt")
PUBLISHED = {  # cl-premonition/premonition, SD_Prompts/*.csv (read in source)
    "object": ("subtype", "item_name", "item_description", "SD_prompt"),
    "biological": ("subtype", "species_latin_name", "species_common_name", "species_description", "SD_prompt"),
}


def write_table(concepts: Iterable) -> str:
    """The concepts as realm.csv: one row a concept, columns OWN."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(OWN)
    writer.writerows([getattr(concept, column) for column in OWN] for concept in concepts)
    return text.getvalue()


def read_table(path: Path) -> tuple[str, list[tuple[str, dict[str, str]]]]:
    """(form, rows): form "own", "object" or "biological", rows (where, column -> text).

    Raises UserError naming the file and line for columns of neither form, a row of another length, or an open quote.
    """
    forms = {"own": OWN, **PUBLISHED}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = tuple(next(reader, ()))
            form = next((form for form, columns in forms.items() if header == columns), None)
            if form is None:
                raise UserError(
                    f"{path}, line 1: expected the columns {','.join(OWN)}, found {','.join(header)[:80]!r}"
                )
            return form, [_named(path, reader.line_num, header, fields) for fields in reader if fields]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a realm's table") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}, line {reader.line_num}: expected CSV text, found {error}; correct the file") from None


def _named(path: Path, line: int, header: tuple[str, ...], fields: list[str]) -> tuple[str, dict[str, str]]:
    where = f"{path}, line {line}"
    if len(fields) != len(header):
        raise UserError(
            f"{where}: expected {len(header)} fields {','.join(header)}, found {len(fields)}; correct the line"
        )
    return where, dict(zip(header, fields, strict=True))


def published_rows(kind: str, table: list[tuple[str, dict[str, str]]], report: Report) -> list[Row]:
    """The rows of a published class list, each repaired as a live reply's row is; prompts are written anew."""
    rows = []
    for where, record in table:
        values = {column: tidy(text, where, report) for column, text in record.items() if column != "SD_prompt"}
        if kind == "object":
            row = Row(values["subtype"], values["item_name"], values["item_description"], where=where)
        else:
            common, latin = values["species_common_name"], values["species_latin_name"]
            row = Row(values["subtype"], common, values["species_description"], latin, where)
        rows.append(repaired(row, report))
    return rows
