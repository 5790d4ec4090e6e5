"""The first verb of the road: a realm's text in, foreseen classes with their prompts out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cilkit.errors import UserError
from cilkit.progress import Progress
from cilkit.realms import parsing, prompts
from cilkit.realms.backends import LanguageModel, NoReply, Replayed, backend
from cilkit.realms.journal import Journal
from cilkit.realms.names import canonical
from cilkit.realms.realm import Realm, Reply

ORDERS = 200  # most subtypes that are asked where no number was: birds have 44 orders; our decision


def foresee(
    name: str,
    llm: str | LanguageModel = "replayed",
    classes: int | None = None,
    kind: str | None = None,
    subtypes: int | list[str] = prompts.SUBTYPES,
    per_subtype: int | None = None,
    *,
    template: str = "",
    protocol: str = "auto",
    rounds: int = 1,
    attempts: int = 3,
    exclude: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    journal: Journal | None = None,
) -> tuple[Realm, parsing.Report]:
    """Ask for the realm's subtypes, then for each subtype's classes; parse and repair (Premonition, stage 1).

    llm: "replayed", a folder of kept replies, "local:NAME", "endpoint:MODEL", or an object with `id` and `reply`;
    `options` are the live models' own (temperature, revision, base_url ...).
    classes: keep the first so many after repair (None: all). Where a live model gave fewer, each subtype is asked again
    for others, in at most `rounds` rounds and until a whole round adds nothing (our decision; the notebook asks once).
    kind: "object", "biological" (None: the paper's list decides), or "free": asked like an object realm, the prompts by
    a `template` of one's own over {name}, {scientific_name}, {description}, {subtype}, {realm}.
    subtypes: how many to ask for, or the subtypes themselves: the notebook skips the first call for Birds and Food.
    per_subtype: classes asked of each subtype, by default 10 (object) or 20 (biological).
    protocol: "csv" (the paper's), "json", or "auto": JSON of a live model, of kept replies what they answer.
    attempts: how often a question is put whose reply gives nothing, each time with what was wrong; then the subtype is
    left out with a line of the report. exclude: names that are asked not to be listed, and left out where they are.
    journal: keeps every reply as it arrives; what it holds already is not asked again.
    """
    kind = kind or prompts.kind_of(name)
    if template:
        prompts.check_template(template)
    elif kind == "free":
        raise UserError('a free realm needs a template of its own, e.g. template="A pencil drawing of {name}"')
    asking = _Asking(backend(llm, name, **(options or {})), name, kind, per_subtype, attempts, journal or Journal())
    asking.choose(protocol, subtypes)
    if isinstance(subtypes, int):
        named, limit = asking.subtypes(subtypes), ORDERS if kind == "biological" else subtypes
    else:
        named, limit = list(subtypes), len(subtypes)
    progress = Progress(f"asking for {name}")
    for number, subtype in enumerate(named[:limit], 1):
        asking.classes(subtype, exclude)
        progress(f"{number} of {len(named[:limit])} subtypes")
    if all(reply.error for reply in asking.replies if reply.subtype):
        why = asking.replies[-1].error if asking.replies else "no subtypes were given"
        raise UserError(f"{asking.model.id} named no classes for the realm {name!r}: {why}")

    def read() -> tuple[Realm, parsing.Report]:
        realm, report = Realm.from_replies(name, kind, asking.replies, template=template, exclude=exclude)
        for subtype in named[limit:]:
            report.add(name, f"over {limit} subtypes", subtype)
        return realm, report

    realm, report = read()
    for _ in range(rounds if classes else 0):
        before, known = len(realm), set(map(canonical, realm.concept_names))
        for subtype in realm.subtypes:
            if len(known) < classes:
                listed = [concept.name for concept in realm.concepts if concept.subtype == subtype]
                rows = asking.classes(subtype, [*exclude, *listed], again=True)
                known |= {canonical(row.name) for row in rows}
        realm, report = read()
        if len(realm) == before:
            break
    return _kept(realm, classes or len(realm), report, asking.replays)


def _kept(realm: Realm, classes: int, report: parsing.Report, replayed: bool) -> tuple[Realm, parsing.Report]:
    """The first so many concepts; of a live model all, with a line of the report, where there are fewer."""
    if not len(realm) or (len(realm) < classes and replayed):
        raise UserError(
            f"realm {realm.name!r} has {len(realm)} classes after repair, asked for {classes}; ask for fewer"
        )
    if len(realm) < classes:
        report.add(realm.name, "the model has no more", f"{classes} classes asked for", f"{len(realm)} classes")
    return realm.first(min(classes, len(realm))), report


class _Asking:
    """One asking of one model: every question and reply, in order."""

    def __init__(
        self, model: LanguageModel, realm: str, kind: str, per_subtype: int | None, attempts: int, journal: Journal
    ):
        self.model, self.realm, self.kind, self.per_subtype = model, realm, kind, per_subtype
        self.attempts, self.journal = attempts, journal
        self.replays = isinstance(model, Replayed)
        self.protocol = "csv"
        self.replies: list[Reply] = []

    def choose(self, protocol: str, subtypes: int | list[str]) -> None:
        """ "auto": JSON of a live model; of kept replies the protocol in which they answer the first question."""
        if protocol not in ("auto", *prompts.PROTOCOLS):
            raise UserError(f"protocol {protocol!r} is unknown; expected auto, {', '.join(prompts.PROTOCOLS)}")
        for name in prompts.PROTOCOLS if protocol == "auto" and self.replays else ():
            self.protocol = name
            first = self._subtypes(subtypes) if isinstance(subtypes, int) else self._classes(subtypes[0])
            if self._answers(first):
                return
        self.protocol = protocol if protocol != "auto" else "csv" if self.replays else "json"

    def subtypes(self, count: int) -> list[str]:
        def read(reply: Reply) -> list[str]:
            return parsing.parse_subtypes(reply.text, reply.source, parsing.Report())

        named = self._ask("", self._subtypes(count), read)
        if named is None:
            raise UserError(f"{self.model.id} named no subtypes of {self.realm!r}: {self.replies[-1].error}")
        return named

    def classes(self, subtype: str, exclude: Sequence[str], again: bool = False) -> list[parsing.Row]:
        """Ask for the classes of a subtype. Kept replies were given without `exclude`, and may know nothing `again`."""
        messages = self._classes(subtype, exclude)
        if not self._answers(messages):
            if again:
                return []
            messages = self._classes(subtype)
        return self._ask(subtype, messages, self._rows) or []

    def _rows(self, reply: Reply) -> list[parsing.Row]:
        return parsing.parse_classes(
            reply.text, self.kind, reply.subtype, reply.source, parsing.Report(), cut=reply.cut
        )

    def _subtypes(self, count: int) -> list[prompts.Message]:
        return prompts.subtypes_messages(self.realm, self.kind, count, self.protocol)

    def _classes(self, subtype: str, exclude: Sequence[str] = ()) -> list[prompts.Message]:
        return prompts.classes_messages(self.realm, self.kind, subtype, self.per_subtype, self.protocol, exclude)

    def _answers(self, messages: list[prompts.Message]) -> bool:
        """Whether an answer may come: always of a live model."""
        try:
            return not self.replays or bool(self.model.source(messages))
        except UserError:
            return False

    def _ask(self, subtype: str, messages: list[prompts.Message], read: Callable[[Reply], list]) -> list | None:
        """What the first usable reply gives; None after so many attempts that gave nothing."""
        for attempt in range(1, self.attempts + 1):
            if attempt > 1 and not self._answers(messages):
                break
            reply = self.journal.find(messages) or self._call(subtype, messages, attempt)
            try:
                found = read(reply)
            except UserError as problem:
                reply, found = replace(reply, error=reply.error or str(problem)), None
                self.journal.add(reply)
            self.replies.append(reply)
            if found:
                return found
            messages = prompts.again_messages(messages, reply.text, reply.error)
        return None

    def _call(self, subtype: str, messages: list[prompts.Message], attempt: int) -> Reply:
        """Put the question; the reply is in the journal before anything reads it."""
        source = self.model.source(messages) if self.replays else self.model.id
        text, error = "", ""
        try:
            text = self.model.reply(messages, **self._schema(subtype))
        except NoReply as problem:
            error = str(problem)
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be kept
        card = {**getattr(self.model, "card", {"backend": "object"})} | (
            {"cut": True} if getattr(self.model, "cut", False) else {}
        )
        reply = Reply(subtype, tuple(messages), text, source, card, prompts.PROTOCOLS[self.protocol], attempt, error)
        self.journal.add(reply)
        return reply

    def _schema(self, subtype: str) -> dict[str, type]:
        if self.protocol == "csv":
            return {}
        from cilkit.realms import schema

        return {"schema": schema.Classes if subtype else schema.Subtypes}
