"""Secrets of the environment: found in a text, and taken out of it before it reaches a file, a log or a page.

A variable holds a secret if its name says so (OPENAI_API_KEY, HF_TOKEN, DB_PASSWORD …) and its value may be one: eight
characters or more, no number, no single word, no path that exists. So does the password of an address in any variable
(`https://user:password@host`). A secret is found as it stands, as JSON, HTML, LaTeX, CSV, an address or Python's `repr`
write it, line by line, and cut off after 16 characters or more, as a table does with wide cells.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

NAMES = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH)S?(_|$)|_(PASS|PWD|PAT)$", re.IGNORECASE
)
ADDRESS = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
SHORTEST = 8  # characters of a value that is looked for: what is shorter stands in ordinary texts
BEGINNING = 16  # characters of a longer one that give it away


def hidden(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """`value` (a text; or lists and dicts of texts) with "[NAME hidden]" for the secrets of `environment` (default:
    this process')."""
    return _replaced(value, _finder(_secrets(environment)))


def secret_in(text: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Name of the variable whose secret stands in `text`; None if there is none."""
    return next((name for _, _, name, _ in _finder(_secrets(environment)).spans(text)), None)


class Sieve:
    """A text that comes in pieces: a secret that is split over two of them is hidden as well."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._finder = _finder(_secrets(environment))
        self._kept = ""

    def sift(self, piece: str) -> str:
        """What can be shown by now. An end that could be the beginning of a secret is kept back."""
        text = self._kept + piece
        spans = list(self._finder.spans(text))
        if spans and spans[-1][1] == len(text) and not spans[-1][3]:
            end = spans[-1][0]
        else:
            end = self._finder.unfinished(text, spans[-1][1] if spans else 0)
        self._kept = text[end:]
        return _replaced(text[:end], self._finder)

    def rest(self) -> str:
        """What was kept back, when nothing more comes."""
        kept, self._kept = self._kept, ""
        return _replaced(kept, self._finder)


def _replaced(value: Any, finder: _Finder) -> Any:
    if isinstance(value, str):
        parts, end = [], 0
        for start, stop, name, _ in finder.spans(value):
            parts += [value[end:start], f"[{name} hidden]"]
            end = stop
        return "".join([*parts, value[end:]]) if parts else value
    if isinstance(value, dict):
        return {_replaced(key, finder): _replaced(item, finder) for key, item in value.items()}
    return [_replaced(item, finder) for item in value] if isinstance(value, list | tuple) else value


def _secrets(environment: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """(name of the variable, secret) for each secret."""
    found = []
    for name, value in (os.environ if environment is None else environment).items():
        value = value.strip()
        if NAMES.search(name) and _may_be_secret(value):
            found.append((name, value))
        elif (address := ADDRESS.search(value)) and len(address[1]) >= SHORTEST:
            found.append((name, address[1]))
    return tuple(found)


def _may_be_secret(value: str) -> bool:
    a_word = value.isdigit() or (value.isalpha() and len(value) < BEGINNING)
    a_path = os.path.dirname(value) and os.path.exists(os.path.expanduser(value))
    return len(value) >= SHORTEST and not a_word and not a_path


class _Finder:
    """Where a text holds one of the secrets, in any of their forms."""

    def __init__(self, secrets: tuple[tuple[str, str], ...]) -> None:
        self._forms = [(form, name) for name, secret in secrets for form in _forms(secret)]
        self._beginnings = sorted({form[:BEGINNING] for form, _ in self._forms}, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, self._beginnings)))
        self._longest = max((len(form) for form, _ in self._forms), default=0)

    def spans(self, text: str) -> Iterator[tuple[int, int, str, bool]]:
        """(start, end, name, whether it is the whole secret) of each secret or its beginning, from left to right."""
        if not any(beginning in text for beginning in self._beginnings):
            return  # which is much faster than the expression below
        end = 0
        while found := self._any.search(text, end):
            start = found.start()
            candidates = [form for form in self._forms if form[0].startswith(found[0])]
            shared = [len(os.path.commonprefix([form, text[start : start + len(form)]])) for form, _ in candidates]
            length, (form, name) = max(zip(shared, candidates, strict=True), key=lambda pair: pair[0])
            end = start + length
            yield start, end, name, length == len(form)

    def unfinished(self, text: str, start: int) -> int:
        """From where on the end of `text`, not before `start`, could be the beginning of a secret."""
        for place in range(max(start, len(text) - self._longest + 1), len(text)):
            if any(form.startswith(text[place:]) for form, _ in self._forms):
                return place
        return len(text)


_finder = lru_cache(maxsize=16)(_Finder)


def _forms(secret: str) -> set[str]:
    """A secret as it may be written, and the longer lines of one that has several."""
    forms = set()
    for text in {secret, *(line for line in secret.splitlines() if len(line) > BEGINNING)}:
        forms |= {text, html.escape(text), repr(text)[1:-1], quote(text), quote(text, safe=""), text.replace('"', '""')}
        forms |= {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
        forms.add(re.sub(r"([_&%$#{}])", r"\\\1", text))
    return forms
