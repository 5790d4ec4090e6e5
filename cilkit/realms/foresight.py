"""The first verb of the road: a realm's text in, foreseen classes with their prompts out."""

from cilkit.errors import UserError
from cilkit.realms import parsing, prompts
from cilkit.realms.backends import LanguageModel, backend
from cilkit.realms.realm import Realm, Reply


def foresee(
    name: str,
    llm: str | LanguageModel = "replayed",
    classes: int | None = None,
    kind: str | None = None,
    subtypes: int | list[str] = prompts.SUBTYPES,
    per_subtype: int | None = None,
) -> tuple[Realm, parsing.Report]:
    """Ask for the realm's subtypes, then for each subtype's classes; parse and repair (Premonition, stage 1).

    llm: "replayed", a folder of kept replies, or an object with `id` and `reply(messages)`.
    classes: keep the first so many after repair (None: all). kind: "object" or "biological" (None: the paper's list).
    subtypes: how many to ask for, or the subtypes themselves: the notebook skips the first call for Birds and Food.
    per_subtype: classes asked of each subtype, by default 10 (object) or 20 (biological).
    """
    kind = kind or prompts.kind_of(name)
    model = backend(llm, name)
    if isinstance(subtypes, int):
        first = _ask(model, "", prompts.subtypes_messages(name, kind, subtypes))
        named, replies = parsing.parse_subtypes(first.text, f"{first.source}, reply 1", parsing.Report()), [first]
    else:
        named, replies = list(subtypes), []
    for subtype in named:
        replies.append(_ask(model, subtype, prompts.classes_messages(name, kind, subtype, per_subtype)))
    realm, report = Realm.from_replies(name, kind, replies)
    if classes is not None and classes > len(realm):
        raise UserError(f"realm {name!r} has {len(realm)} classes after repair, asked for {classes}; ask for fewer")
    return (realm if classes is None else realm.first(classes)), report


def _ask(model: LanguageModel, subtype: str, messages: list[prompts.Message]) -> Reply:
    source = model.source(messages) if hasattr(model, "source") else model.id
    return Reply(subtype, tuple(messages), model.reply(messages), source)
