"""A realm: the classes that a language model foresees under a theme, with the prompts that have them painted."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cilkit.artifacts import atomic_write, write_json
from cilkit.errors import UserError, near_name
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
    model: dict[str, Any] = field(default_factory=dict)  # the model's card: revision, sampling, versions
    template_version: str = ""  # of the words that were asked, see prompts.PROTOCOLS
    attempt: int = 1
    error: str = ""  # why it was asked again; the text was not used

    @property
    def cut(self) -> bool:
        """Whether it ended at max_tokens."""
        return bool(self.model.get("cut"))


@dataclass(frozen=True)
class Realm:
    """`kind`: "object", "biological", or "free" (prompts by a `template` of one's own, or written by hand)."""

    name: str
    kind: str
    subtypes: tuple[str, ...]
    concepts: tuple[Concept, ...]
    replies: tuple[Reply, ...] = field(default=(), repr=False)
    template: str = ""  # "": the paper's
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)  # names dropped as a repetition
    origin: str = ""  # where the concepts come from, if nobody foresaw them

    def __post_init__(self):
        prompts.check_kind(self.kind)
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
        taken, used, last = {}, set(), {}
        for name in self.concept_names:
            base = folder = slug(name) or "class"
            while folder in used:
                last[base] = last.get(base, 1) + 1
                folder = f"{base}-{last[base]}"
            used.add(folder)
            taken[name] = folder
        return taken

    def without(self, names: Iterable[str]) -> "Realm":
        """The realm without the concepts of these names (as `overlap` lists them). The replies stay as they were."""
        return self.corrected(drop=list(names))

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
        named = {concept.name for concept in concepts}
        synonyms = {name: also for name, also in self.synonyms.items() if name in named}
        return replace(self, subtypes=subtypes, concepts=tuple(concepts), synonyms=synonyms)

    def corrected(
        self,
        drop: Sequence[str] = (),
        rename: Mapping[str, str] = MappingProxyType({}),
        describe: Mapping[str, str] = MappingProxyType({}),
        add: Sequence[Mapping[str, str]] = (),
    ) -> "Realm":
        """The realm with concepts left out, renamed, described anew, and added; their prompts written anew.

        rename: old name -> new name; describe: (old) name -> description; add: {"name", "description", "subtype",
        "scientific_name"}, all but the name may be missing. The replies stay as they were.
        """
        known = {parsing.normal(name): name for name in self.concept_names}
        for name in [*drop, *rename, *describe]:
            if parsing.normal(name) not in known:
                hint = near_name(name, self.concept_names)
                raise UserError(f"realm {self.name!r} has no concept {name!r}{hint}; see realm.concept_names")
        for name in [*rename.values(), *(one.get("name", "") for one in add)]:
            if problem := names.misnamed(name):
                raise UserError(problem)
        dropped = set(map(parsing.normal, drop))
        renamed = {parsing.normal(old): new for old, new in rename.items()}
        described = {parsing.normal(name): names.plain(text) for name, text in describe.items()}
        concepts = []
        for concept in self.concepts:
            key = parsing.normal(concept.name)
            name, text = renamed.get(key, concept.name), described.get(key, concept.description)
            if key not in dropped:
                new = replace(concept, name=name, description=text)
                concepts.append(concept if new == concept else replace(new, prompt=self._prompt(new, concept)))
        concepts += [replace(new, prompt=self._prompt(new)) for new in map(_concept_of, add)]
        subtypes = tuple(dict.fromkeys([*self.subtypes, *(one.subtype for one in concepts)]))
        synonyms = {renamed.get(parsing.normal(name), name): also for name, also in self.synonyms.items()}
        return replace(self, subtypes=subtypes, synonyms=synonyms)._of(concepts)

    def _prompt(self, concept: Concept, before: Concept | None = None) -> str:
        """By the template; in a free realm without one the words of the old prompt are exchanged."""
        if self.kind == "free" and not self.template and before:
            prompt = before.prompt.replace(before.name, concept.name)
            return prompt.replace(before.description, concept.description) if before.description else prompt
        return prompts.image_prompt(self.kind, **asdict(concept) | {"realm": self.name, "template": self.template})

    @classmethod
    def from_replies(
        cls,
        name: str,
        kind: str,
        replies: Sequence[Reply],
        files: Sequence[str] | None = None,
        template: str = "",
        exclude: Sequence[str] = (),
        strict: bool = False,
    ) -> tuple["Realm", parsing.Report]:
        """Parse and repair all replies of a realm; what those with an `error` said is not used.

        files: what messages call the replies, without it their source. exclude: names that are left out.
        strict: a row of a kept reply that cannot be read raises UserError, it is not only reported.
        """
        report, rows = parsing.Report(), []
        prompts.check_kind(kind)
        answered = {reply.subtype for reply in replies if not reply.error}
        for number, reply in enumerate(replies, 1):
            where = f"{files[number - 1] if files else reply.source}, reply {number}"
            if reply.error:
                report.add(where, "asked again" if reply.subtype in answered else "no answer", reply.error)
            elif reply.subtype:
                by_hand = strict and reply.model.get("backend", "replayed") == "replayed"
                rows += parsing.parse_classes(reply.text, kind, reply.subtype, where, report, by_hand, reply.cut)
            else:
                parsing.parse_subtypes(reply.text, where, report)
        for subtype in dict.fromkeys(reply.subtype for reply in replies):
            if subtype not in answered:
                report.add(name, "subtype left out", subtype)
        rows = names.merged(rows, report, exclude)
        realm = cls.from_rows(name, kind, rows, replies, template)
        return replace(realm, synonyms=names.synonyms_of(rows, report)), report

    @classmethod
    def of_classes(cls, benchmark: str, glosses: Mapping[str, str], template: str) -> "Realm":
        """A benchmark's own classes, with their glosses for descriptions: given, not foreseen."""
        if problem := next(filter(None, map(names.misnamed, glosses)), ""):
            raise UserError(problem)
        rows = [parsing.Row("given", name, gloss) for name, gloss in glosses.items()]
        realm = cls.from_rows(f"classes of {benchmark}", "free", rows, template=prompts.check_template(template))
        return replace(realm, origin=f"the class list of {benchmark}: given, not foreseen")

    @classmethod
    def from_rows(
        cls, name: str, kind: str, rows: Sequence[parsing.Row], replies: Sequence[Reply] = (), template: str = ""
    ) -> "Realm":
        """The realm of repaired rows, its prompts written by the templates."""
        realm = cls(name, kind, (), (), tuple(replies), template)
        listed = [Concept(row.name, row.description, "", row.subtype, row.scientific_name) for row in rows]
        concepts = tuple(replace(concept, prompt=realm._prompt(concept)) for concept in listed)
        return replace(realm, subtypes=tuple(dict.fromkeys(one.subtype for one in concepts)), concepts=concepts)

    def save(self, folder: str | Path) -> None:
        """realm.json (name and kind), realm.csv (the concepts: correct them by hand here), replies/ (kept raw)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("replies/*.json"):
            old.unlink()
        for number, reply in enumerate(self.replies, 1):
            write_reply(folder, number, reply)
        atomic_write(folder / "realm.csv", tables.write_table(self.concepts))
        card = {"format": FORMAT, "name": self.name, "kind": self.kind, "template": self.template}
        card |= {name: value for name in ("synonyms", "origin") if (value := getattr(self, name))}
        write_json(folder / "realm.json", card | {"prompts_version": prompts.VERSION})

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
        template = prompts.check_template(str(header["template"])) if header.get("template") else ""
        replies, files = _listed_replies(card, header) if "replies" in header else read_replies(folder)
        if "replies" not in header and (folder / "realm.csv").exists():
            realm = _from_table(folder / "realm.csv", header["name"], header["kind"], report)
            told = {"synonyms": header.get("synonyms", {}), "origin": header.get("origin", "")}
            return replace(realm, replies=tuple(replies), template=template, **told)
        if not replies:
            raise UserError(f"{card} has no replies, and neither realm.csv nor replies/*.json lies beside it; add one")
        realm, found = cls.from_replies(header["name"], header["kind"], replies, files, template, strict=True)
        report.repairs += found.repairs
        return realm


def _from_table(path: Path, name: str, kind: str | None, report: parsing.Report) -> Realm:
    form, table = tables.read_table(path)
    if form != "own":
        rows = names.merged(tables.published_rows(form, table, report), report)
        return replace(Realm.from_rows(name, kind or form, rows), synonyms=names.synonyms_of(rows, report))
    for where, record in table:
        problem = names.misnamed(record["name"]) or ("expected a prompt" if not record["prompt"].strip() else "")
        if problem:
            raise UserError(f"{where}: {problem}; correct the line")
    concepts = tuple(Concept(**record) for _, record in table)
    guessed = "biological" if any(concept.scientific_name for concept in concepts) else "object"
    return Realm(name, kind or guessed, tuple(dict.fromkeys(concept.subtype for concept in concepts)), concepts)


def write_reply(folder: Path, number: int, reply: Reply) -> None:
    write_json(folder / "replies" / f"{number:03d}.json", asdict(reply))


def read_replies(folder: Path) -> tuple[list[Reply], list[str]]:
    """The kept replies and the files they lie in."""
    files = sorted((folder / "replies").glob("*.json"), key=lambda path: (len(path.name), path.name))
    return list(map(read_reply, files)), list(map(str, files))


def read_reply(path: Path) -> Reply:
    """A reply of a saved realm, or one kept with cilkit: origin, prompts_version, sampling, messages, reply (lines)."""
    kept = read_json(path, ("messages",))
    if "text" in kept:
        kept = read_json(path, ("subtype", "messages", "text", "source"))
    else:
        kept = read_json(path, ("origin", "prompts_version", "sampling", "messages", "reply"))
        if not (isinstance(kept["reply"], list) and all(isinstance(line, str) for line in kept["reply"])):
            raise UserError(f"{path}: expected 'reply' to be a list of lines of text; restore the file")
        kept |= {"subtype": "", "text": "\n".join(kept["reply"]), "source": f"{path.parent.name}/{path.name}"}
        kept["model"] = {"backend": "replayed", "origin": kept["origin"], "sampling": kept["sampling"]}
    texts = all(isinstance(kept[key], str) for key in ("subtype", "text", "source"))
    if not (texts and isinstance(kept.get("model", {}), dict)):
        raise UserError(f"{path}: expected texts 'text' and 'source' and an object 'model'; restore the file")
    try:
        messages = tuple({"role": one["role"], "content": one["content"]} for one in kept["messages"])
    except (KeyError, TypeError):
        raise UserError(f"{path}: expected 'messages' to be objects with 'role' and 'content'") from None
    known = {one.name for one in fields(Reply)} & set(kept)
    return Reply(**{name: kept[name] for name in known} | {"messages": messages})


def _concept_of(given: Mapping[str, str]) -> Concept:
    """A concept added by hand, its prompt still to be written."""
    wanted = ("name", "description", "subtype", "scientific_name")
    unknown = [key for key in given if key not in wanted]
    if unknown:
        raise UserError(f"{unknown[0]!r} is nothing that a concept has; expected {', '.join(wanted)}")
    return Concept(prompt="", **dict.fromkeys(wanted, "") | dict(given))


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
