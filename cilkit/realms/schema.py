"""The JSON that a language model is asked for, and what can be saved of the JSON that comes."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cilkit.errors import UserError
from cilkit.realms.parsing import field_of

FAILURES = 200  # brackets that open nothing readable, after which the rest of a reply is given up


class Class(BaseModel):
    """One class. All fields are asked for; `scientific_name` is "" for things that have none."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    scientific_name: str
    description: str


class Classes(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    classes: list[Class]


class Subtypes(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    subtypes: list[str]


def values_in(text: str) -> tuple[list[Any], bool]:
    """(JSON values in the order of the text, whether all of them are whole); of a value that is cut, its whole parts.

    Words and code fences around and between the values are passed over.
    """
    decoder, found, at, failures = json.JSONDecoder(strict=False), [], 0, 0
    while failures < FAILURES and (start := re.compile(r"[\[{]").search(text, at)):
        try:
            value, at = decoder.raw_decode(text, start.start())
            found.append(value)
        except (ValueError, RecursionError):  # broken, cut, nested too deeply, a number with thousands of digits
            failures, at = failures + 1, start.end()
    return found, not failures


def entries_in(value: Any, depth: int = 4) -> Iterator[dict[str, Any]]:
    """The class-like things in a JSON value: objects that have a name, and anything else that stands in a list.

    An object that has a name and a list of objects, but no description, is the list's title and no class.
    """
    if isinstance(value, dict):
        known = {field_of(key): inner for key, inner in value.items() if field_of(key) and not _holds_more(inner)}
        lists = any(isinstance(inner, list) and _holds_more(inner) for inner in value.values())
        if ("name" in known or "scientific_name" in known) and ("description" in known or not lists):
            yield known
        elif depth:
            for inner in value.values():
                if isinstance(inner, (dict, list)):
                    yield from entries_in(inner, depth - 1)
    elif isinstance(value, list) and depth:
        for inner in value:
            yield from entries_in(inner, depth - 1)
    else:
        yield {"name": value}


def _holds_more(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value))


def checked(entry: dict[str, Any], place: str) -> dict[str, str] | UserError:
    """The entry by the schema, what is missing as ""; a UserError where a field holds something else than text."""
    given = {key: value for key, value in entry.items() if key in Class.model_fields and value is not None}
    try:
        return Class.model_validate(dict.fromkeys(Class.model_fields, "") | given).model_dump()
    except ValidationError as error:
        problem = error.errors()[0]
        return UserError(f"{place}: expected text as {problem['loc'][0]}, found {problem['input']!r:.60}; ask again")


def strings_in(text: str) -> list[str]:
    """The whole strings after the first "[" of a JSON list that is cut."""
    quoted = re.findall(r'"(?:[^"\\]|\\.)*"', text.partition("[")[2])
    return [found for found in map(_string, quoted) if found]


def _string(quoted: str) -> str:
    try:
        return json.loads(quoted, strict=False)
    except ValueError:
        return ""
