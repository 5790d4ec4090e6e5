"""A realm: the classes that a language model foresees under a theme, with the prompts that have them painted."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cilkit.artifacts import atomic_write, write_json
from cilkit.errors import UserError
from cilkit.realms import names, parsing, prompts, tables

FORMAT = 1  # of realm.json


@dataclass(frozen=True)
class Concept:
    """One foreseen class. `prompt` is the text given to the text-to-image model."""

    name: str
    description: str
    prompt: str
    subtype: str
    scientific_name: str = ""


@dataclass(frozen=True)
class Reply:
    """One call to a language model, kept raw: what was asked and what came back. `subtype` is "" for the first call."""

    subtype: str
    messages: tuple[prompts.Message, ...]
    text: str
    source: str  # where the text came from: a file, or a model's id


@dataclass(frozen=True)
class Realm:
    """`kind`: "object", "biological", or "free" (concepts with prompts of their own, asked of no language model)."""

    name: str
    kind: str
    subtypes: tuple[str, ...]
    concepts: tuple[Concept, ...]
    replies: tuple[Reply, ...] = field(default=(), repr=False)

    def __post_init__(self):
        if self.kind not in prompts.KINDS:
            raise UserError(f"realm kind {self.kind!r} is unknown; expected one of {', '.join(prompts.KINDS)}")
        seen: set[str] = set()
        for concept in self.concepts:
            key = parsing.normal(concept.name)
            if key in seen:
                raise UserError(f"realm {self.name!r} has two concepts called {concept.name!r}; rename or remove one")
            seen.add(key)

    def __len__(self) -> int:
        return len(self.concepts)

    @property
    def concept_names(self) -> list[str]:
        return [concept.name for concept in self.concepts]

    @property
    def folders(self) -> dict[str, str]:
        """A folder name for every concept: ASCII letters, digits and hyphens, unique also where case is ignored."""
        taken: dict[str, str] = {}
        for name in self.concept_names:
            base = slug(name) or "class"
            folder, number = base, 2
            while folder in taken.values():
                folder, number = f"{base}-{number}", number + 1
            taken[name] = folder
        return taken

    def without(self, names: Iterable[str]) -> "Realm":
        """The realm without the concepts of these names (as `overlap` lists them). The replies stay as they were."""
        dropped = {parsing.normal(name) for name in names}
        known = {parsing.normal(name) for name in self.concept_names}
        for name in sorted(dropped - known):
            raise UserError(f"realm {self.name!r} has no concept {name!r} to leave out; see realm.concept_names")
        return self._of([concept for concept in self.concepts if parsing.normal(concept.name) not in dropped])

    def first(self, number: int) -> "Realm":
        """The first `number` concepts, in the order of the subtypes."""
        if not 1 <= number <= len(self):
            raise UserError(
                f"realm {self.name!r} has {len(self)} concepts, asked for {number}; ask for at most that many"
            )
        return self._of(self.concepts[:number])

    def _of(self, concepts: Sequence[Concept]) -> "Realm":
        present = {concept.subtype for concept in concepts}
        subtypes = tuple(subtype for subtype in self.subtypes if subtype in present)
        return Realm(self.name, self.kind, subtypes, tuple(concepts), self.replies)

    @classmethod
    def from_replies(
        cls, name: str, kind: str, replies: Sequence[Reply], files: Sequence[str] | None = None
    ) -> tuple["Realm", parsing.Report]:
        """Parse and repair all replies of a realm. `files`: what messages call the replies, without it their source."""
        report = parsing.Report()
        rows: list[parsing.Row] = []
        for number, reply in enumerate(replies, 1):
            where = f"{files[number - 1] if files else reply.source}, reply {number}"
            if reply.subtype:
                rows += parsing.parse_classes(reply.text, kind, reply.subtype, where, report)
            else:
                parsing.parse_subtypes(reply.text, where, report)
        rows = names.merged(rows, report)
        return cls.from_rows(name, kind, rows, replies), report

    @classmethod
    def from_rows(cls, name: str, kind: str, rows: Sequence[parsing.Row], replies: Sequence[Reply] = ()) -> "Realm":
        """The realm of repaired rows, its prompts written by the templates."""
        concepts = tuple(
            Concept(
                row.name,
                row.description,
                prompts.image_prompt(kind, row.name, row.description, row.scientific_name),
                row.subtype,
                row.scientific_name,
            )
            for row in rows
        )
        subtypes = tuple(dict.fromkeys(concept.subtype for concept in concepts))
        return cls(name, kind, subtypes, concepts, tuple(replies))

    def save(self, folder: str | Path) -> None:
        """realm.json (name and kind), realm.csv (the concepts: correct them by hand here), replies/ (kept raw)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("replies/*.json"):
            old.unlink()
        for number, reply in enumerate(self.replies, 1):
            write_json(folder / "replies" / f"{number:02d}.json", asdict(reply))
        atomic_write(folder / "realm.csv", tables.write_table(self.concepts))
        write_json(
            folder / "realm.json",
            {"format": FORMAT, "name": self.name, "kind": self.kind, "prompts_version": prompts.VERSION},
        )

    @classmethod
    def load(cls, path: str | Path, report: parsing.Report | None = None) -> "Realm":
        """A saved folder, its realm.json, a table, or a JSON file with `name`, `kind` and `replies`.

        A table is realm.csv or one of the class lists that Premonition published. `replies` are objects with `subtype`
        ("" for the list of subtypes) and `text`; they, and a folder without realm.csv, are parsed afresh. What had to
        be repaired is added to `report`. A broken file raises UserError naming it, the reply or line, and what was
        expected.
        """
        path, report = Path(path), parsing.Report() if report is None else report
        if path.suffix == ".csv":
            return _from_table(path, path.stem if path.stem != "realm" else path.resolve().parent.name, None, report)
        card = path if path.suffix == ".json" else path / "realm.json"
        header, folder = read_json(card, ("name", "kind")), card.parent
        replies, files = _listed_replies(card, header) if "replies" in header else _read_replies(folder)
        if "replies" not in header and (folder / "realm.csv").exists():
            realm = _from_table(folder / "realm.csv", header["name"], header["kind"], report)
            return replace(realm, replies=tuple(replies))
        if not replies:
            raise UserError(f"{card} has no replies, and neither realm.csv nor replies/*.json lies beside it; add one")
        realm, found = cls.from_replies(header["name"], header["kind"], replies, files)
        report.repairs += found.repairs
        return realm


def _from_table(path: Path, name: str, kind: str | None, report: parsing.Report) -> Realm:
    form, table = tables.read_table(path)
    if form != "own":
        rows = names.merged(tables.published_rows(form, table, report), report)
        return Realm.from_rows(name, kind or form, rows)
    for where, record in table:
        if not record["name"].strip() or not record["prompt"].strip():
            raise UserError(f"{where}: expected a name and a prompt, found an empty field; correct the line")
    concepts = tuple(Concept(**record) for _, record in table)
    guessed = "biological" if any(concept.scientific_name for concept in concepts) else "object"
    return Realm(name, kind or guessed, tuple(dict.fromkeys(concept.subtype for concept in concepts)), concepts)


def _read_replies(folder: Path) -> tuple[list[Reply], list[str]]:
    """The kept replies and the files they lie in."""
    files = sorted((folder / "replies").glob("*.json"))
    kept = [read_json(path, ("subtype", "messages", "text", "source")) for path in files]
    replies = [Reply(one["subtype"], tuple(one["messages"]), one["text"], one["source"]) for one in kept]
    return replies, [str(path) for path in files]


def _listed_replies(path: Path, content: dict) -> tuple[list[Reply], list[str]]:
    """The replies in a JSON file; they answer messages that nobody noted."""
    listed = content["replies"] if isinstance(content["replies"], list) else [content["replies"]]
    for number, one in enumerate(listed, 1):
        if not (isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("subtype", "text"))):
            raise UserError(
                f"{path}, reply {number}: expected an object with texts 'subtype' and 'text', found {one!r:.60}"
            )
    return [Reply(one["subtype"], (), one["text"], path.name) for one in listed], [str(path)] * len(listed)


def read_json(path: Path, expected: Sequence[str]) -> dict:
    """A JSON object with at least the expected keys; UserError naming file, line and what was expected otherwise."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} does not exist; expected a saved realm (a folder with realm.json, or a .csv)"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a JSON object, found broken text ({error}); restore the file") from None
    missing = [key for key in expected if key not in (content if isinstance(content, dict) else {})]
    if missing:
        raise UserError(f"{path}: expected a JSON object with {', '.join(expected)}; {', '.join(missing)} is missing")
    return content


def slug(text: str) -> str:
    """A name for folders and files: lower-case ASCII words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", parsing.normal(text)).strip("-")
