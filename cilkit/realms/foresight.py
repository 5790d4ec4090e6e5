"""The first verb of the road: a realm's text in, foreseen classes with their prompts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cilkit.errors import UserError
from cilkit.progress import Progress
from cilkit.realms import parsing, prompts
from cilkit.realms.backends import Replayed, backend, kept_realms
from cilkit.realms.journal import Journal
from cilkit.realms.models import LanguageModel, NoReply
from cilkit.realms.names import canonical
from cilkit.realms.realm import Realm, Reply, slug

ORDERS = 200  # most subtypes that are asked where no number was: birds have 44 orders; our decision


def foresee(
    name: str,
    llm: str | LanguageModel = "replayed",
    classes: int | None = None,
    kind: str | None = None,
    subtypes: int | list[str] = 0,
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
    classes: keep the first so many after repair (None: all). Where a model gives fewer, each subtype is asked again
    for others, in at most `rounds` rounds and until a whole round adds nothing (our decision; the notebook asks once).
    kind: "object", "biological" (None: the paper's list decides), or "free": asked like an object realm, the prompts by
    a `template` of one's own over {name}, {scientific_name}, {description}, {subtype}, {realm}.
    subtypes: how many (0: 20 of an object realm, all orders of a biological one), or the subtypes themselves: the
    notebook skips the first call for Birds and Food.
    per_subtype: classes asked of each subtype, by default 10 (object) or 20 (biological).
    protocol: "csv" (the paper's), "json", or "auto": JSON of a live model, of kept replies what they answer.
    attempts: how often a question is put whose reply gives nothing, each time with what was wrong; then the subtype is
    left out with a line of the report. exclude: names that are asked not to be listed, and left out where they are.
    journal: keeps every reply as it arrives; what it holds already is not asked again, but for the last attempt of a
    question that was given up.
    """
    if llm == "replayed":
        name = next((kept for kept in kept_realms() if slug(kept) == slug(name)), name)  # "Birds" are the kept "birds"
    kind = kind or prompts.kind_of(name)
    given = [] if isinstance(subtypes, int) else list(subtypes)
    _check(name, kind, template, given)
    _check_numbers(classes=classes, subtypes=subtypes, per_subtype=per_subtype, rounds=rounds)
    count = len(given) or subtypes or prompts.SUBTYPES
    model = backend(llm, name, **(options or {}))
    asking = _Asking(model, name, kind, count, per_subtype, max(attempts, 1), journal or Journal())
    asking.choose(protocol, given[0] if given else "")
    named = list(dict.fromkeys(given)) or asking.ask("")
    limit = ORDERS if kind == "biological" and not subtypes else count
    for subtype in named[:limit]:
        asking.ask(subtype, exclude)
    if all(reply.error for reply in asking.replies if reply.subtype):
        what = "classes for the realm" if named else "subtypes of"
        hint = " (its reply was cut: raise max_tokens)" if asking.replies[-1].cut else ""
        raise UserError(f"{model.id} named no {what} {name!r}: {asking.replies[-1].error}{hint}")

    def read() -> tuple[Realm, parsing.Report]:
        return Realm.from_replies(name, kind, asking.replies, template=template, exclude=exclude)

    (realm, report), ended = read(), "rounds used up"
    for _ in range(rounds if classes else 0):
        before = len(realm)
        asking.ask_for_more(realm, classes, exclude)
        realm, report = read()
        if len(realm) == before:
            ended = "the model has no more"
            break
    for subtype in named[limit:]:
        report.add(name, f"over {limit} subtypes", subtype)
    found = len(realm)
    if not found or (found < (classes or 0) and llm == "replayed"):
        advice = f", asked for {classes}; ask for fewer" if found else "; ask for another realm, or another model"
        raise UserError(f"realm {name!r} has {found} classes after repair{advice}")
    if found < (classes or 0):
        report.add(name, ended, f"{classes} classes asked for", f"{found} classes")
    return realm.first(min(classes or found, found)), report


def _check(name: str, kind: str, template: str, subtypes: Sequence[str]) -> None:
    """UserError for words that cannot be asked with."""
    if not name.strip():
        raise UserError("the realm has no name; expected a few words, e.g. 'birds' or 'kitchen tools'")
    if template:
        prompts.check_template(template)
    elif kind == "free":
        raise UserError('a free realm needs a template of its own, e.g. template="A pencil drawing of {name}"')
    for subtype in subtypes:
        if not (isinstance(subtype, str) and subtype.strip() and subtype.isprintable()):
            raise UserError(f"subtype {subtype!r} is no name; expected a plain text, e.g. 'owls' or '1990s'")


def _check_numbers(**numbers: Any) -> None:
    for name, number in numbers.items():
        if isinstance(number, int) and number < 0:
            raise UserError(f"{name} is {number}; expected 0 or more")


@dataclass
class _Asking:
    """One asking of one model: every question and reply, in order. The subtype "" stands for the first question."""

    model: LanguageModel
    realm: str
    kind: str
    count: int
    per_subtype: int | None
    attempts: int
    journal: Journal
    protocol: str = "csv"
    replies: list[Reply] = field(default_factory=list)

    def __post_init__(self):
        self._progress = Progress(f"asking for {self.realm}")

    @property
    def replays(self) -> bool:
        return isinstance(self.model, Replayed)

    def choose(self, protocol: str, first: str) -> None:
        """ "auto": JSON of a live model; of kept replies the protocol in which they answer the first question."""
        if protocol not in ("auto", *prompts.PROTOCOLS):
            raise UserError(f"protocol {protocol!r} is unknown; expected auto, {', '.join(prompts.PROTOCOLS)}")
        self.protocol = "json" if protocol == "auto" else protocol
        if protocol == "auto" and self.replays and not self._answers(self._question(first)):
            self.protocol = "csv"

    def ask(self, subtype: str, exclude: Sequence[str] = (), again: bool = False) -> list:
        """What the first usable reply gives; nothing after so many attempts that gave nothing.

        Kept replies may have been given without `exclude`, and need not have been asked `again`.
        """
        messages = self._question(subtype, exclude)
        if again and any(list(reply.messages) == messages for reply in self.replies):
            return []  # nothing came since, so that the same would be asked, and answered
        if not self._answers(messages):
            if again:
                return []
            messages = self._question(subtype)
        self._progress(f"{len(self.replies)} replies so far, next {subtype or 'its subtypes'}")
        for attempt in range(1, self.attempts + 1):
            if attempt > 1 and not self._answers(messages):
                break
            reply = self.journal.find(messages)
            if reply is None or (reply.error and attempt == self.attempts):  # given up before: one more chance
                reply = self._call(subtype, messages, attempt)
            try:
                found = self._read(reply)
            except UserError as problem:
                reply, found = replace(reply, error=reply.error or str(problem)), []
                self.journal.add(reply)
            self.replies.append(reply)
            if found:
                return found
            messages = prompts.again_messages(messages, reply.text, reply.error)
        return []

    def ask_for_more(self, realm: Realm, classes: int, exclude: Sequence[str]) -> None:
        """One round: each subtype is asked for others than it has, until there seem to be enough."""
        known = set(map(canonical, realm.concept_names))
        for subtype in realm.subtypes:
            if len(known) < classes:
                listed = [concept.name for concept in realm.concepts if concept.subtype == subtype]
                known |= {canonical(row.name) for row in self.ask(subtype, [*exclude, *listed], again=True)}

    def _question(self, subtype: str, exclude: Sequence[str] = ()) -> list[prompts.Message]:
        if not subtype:
            return prompts.subtypes_messages(self.realm, self.kind, self.count, self.protocol)
        return prompts.classes_messages(self.realm, self.kind, subtype, self.per_subtype, self.protocol, exclude)

    def _answers(self, messages: list[prompts.Message]) -> bool:
        """Whether an answer may come: always of a live model."""
        try:
            return not self.replays or bool(self.model.source(messages))
        except UserError:
            return False

    def _read(self, reply: Reply) -> list:
        """The subtypes or rows of a reply; their repairs are reported when the whole realm is read."""
        text, where, report = reply.text, reply.source, parsing.Report()
        if not reply.subtype:
            return parsing.parse_subtypes(text, where, report)
        return parsing.parse_classes(text, self.kind, reply.subtype, where, report, cut=reply.cut)

    def _call(self, subtype: str, messages: list[prompts.Message], attempt: int) -> Reply:
        """Put the question; the reply is in the journal before anything reads it."""
        form, text, error = {}, "", ""
        if self.protocol == "json":
            from cilkit.realms import schema

            form = {"schema": schema.Classes if subtype else schema.Subtypes}
        try:
            text = self.model.reply(messages, **form)
        except NoReply as problem:
            error = str(problem)
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be kept
        card = dict(getattr(self.model, "card", {"backend": "object"}))
        card |= {"cut": True} if getattr(self.model, "cut", False) else {}
        source = self.model.source(messages) if self.replays else self.model.id
        reply = Reply(subtype, tuple(messages), text, source, card, prompts.PROTOCOLS[self.protocol], attempt, error)
        self.journal.add(reply)
        return reply
