"""Where replies come from: kept ones, a model on this machine, a server, or any object with `id` and `reply`."""

import inspect
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cilkit.errors import UserError, near_name
from cilkit.realms.models import LanguageModel, Sampling
from cilkit.realms.prompts import VERSION, Message
from cilkit.realms.realm import Reply, read_reply, slug

KEPT = Path(__file__).resolve().parent.parent / "assets" / "realms"
# Options that say where and how fast a model answers, not what it is asked: no artifact's key reads them.
EXECUTION = ("base_url", "key_from", "timeout", "retries", "device")


class Replayed:
    """Kept replies: a folder of JSON files, one a call, found by the messages that they answer, word for word.

    The files are those kept with cilkit, or the `replies/` of a saved realm, so that a realm can be asked for again
    without its model. A changed prompt never gets an old answer.
    """

    cut = False

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.id = f"replayed: {self.folder.name}"
        self.card: dict[str, Any] = {"backend": "replayed"}
        inner = self.folder / "replies"
        files = sorted((inner if inner.is_dir() else self.folder).glob("*.json"))
        self._replies = {_key(reply.messages): reply for reply in map(read_reply, files)}
        if not files:
            raise UserError(f"{self.folder} holds no kept replies (*.json); kept realms: {', '.join(kept_realms())}")

    def reply(self, messages: Sequence[Message], schema: type | None = None) -> str:
        found = self._find(messages)
        self.card = found.model or {"backend": "replayed"}
        return found.text

    def source(self, messages: Sequence[Message]) -> str:
        """The file that answers these messages, or for a saved realm's what it names as its reply's source."""
        return self._find(messages).source

    def _find(self, messages: Sequence[Message]) -> Reply:
        found = self._replies.get(_key(messages))
        if found is None:
            raise UserError(
                f"no kept reply in {self.folder.name} answers {messages[-1]['content']!r:.200} as it is asked now "
                f"(prompts version {VERSION}); ask as it was asked then, or ask a live model"
            )
        return found


def _key(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def kept_realms() -> list[str]:
    """Names of the realms whose replies are kept with cilkit."""
    return sorted(folder.name.replace("-", " ") for folder in KEPT.iterdir() if folder.is_dir())


def backend(llm: "str | Path | LanguageModel", realm: str, **options: Any) -> LanguageModel:
    """The language model that `llm` names. Loads and asks nothing yet.

    llm: "replayed" (the replies kept with cilkit for this realm), a folder of kept replies or of a saved realm,
    "local:NAME" (a transformers causal model by hub name or folder), "endpoint:MODEL" (a server), or a model itself.
    options: of local and endpoint models temperature, top_p, max_tokens, seed; of local ones revision, device, dtype;
    of endpoints base_url, key_from (the NAME of the environment variable with the key), timeout (s), retries.
    """
    if not isinstance(llm, (str, Path)):
        return _plain(llm, "a model object", options)
    family, _, name = str(llm).partition(":")
    if family == "local" and name:
        from cilkit.realms.local import Local

        return _live(Local, name, options)
    if family == "endpoint" and name:
        from cilkit.realms.endpoint import Endpoint

        return _live(Endpoint, name, options)
    if str(llm) == "replayed":
        folder = KEPT / slug(realm)
        if not (slug(realm) and folder.is_dir()):
            raise UserError(
                f"no replies are kept for the realm {realm!r}; kept are: {', '.join(kept_realms())}. "
                "Choose one of them, or ask a live model: llm='local:NAME' or 'endpoint:MODEL'"
            )
        return _plain(Replayed(folder), "'replayed'", options)
    if not Path(llm).is_dir():
        raise UserError(
            f"llm {str(llm)!r} is neither 'replayed', a folder of kept replies, nor an object with reply(), nor "
            "a live model: 'local:NAME' (of transformers) or 'endpoint:MODEL' (of a server)"
        )
    return _plain(Replayed(llm), "a folder of kept replies", options)


def _plain(model: LanguageModel, what: str, options: dict[str, Any]) -> LanguageModel:
    if options:
        raise UserError(f"{what} takes no options as a language model, got {', '.join(options)}; leave them out")
    return model


def _live(make: type, name: str, options: dict[str, Any]) -> LanguageModel:
    known = [field.name for field in fields(Sampling)]
    known += [key for key in inspect.signature(make).parameters if key not in ("name", "sampling")]
    for option in options:
        if option not in known:
            raise UserError(
                f"a language model of the kind {make.__name__.lower()!r} has no option {option!r}"
                f"{near_name(option, known)}; it has {', '.join(known)}"
            )
    return make(name, **options)
