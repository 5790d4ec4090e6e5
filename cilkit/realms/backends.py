"""Where replies come from: a live model is any object with `id` and `reply`, kept replies are read by `Replayed`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cilkit.errors import UserError
from cilkit.realms.prompts import VERSION, Message
from cilkit.realms.realm import read_json, slug

KEPT = Path(__file__).resolve().parent.parent / "assets" / "realms"


class LanguageModel(Protocol):
    """`id` names model, revision and sampling; `reply` answers a conversation with text."""

    id: str

    def reply(self, messages: Sequence[Message]) -> str: ...


class Replayed:
    """Kept replies: a folder of JSON files, one a call, each with `origin`, `messages` and `reply` (a list of lines).

    A reply is found by the messages that it answers, word for word, so a changed prompt never gets an old answer.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.id = f"replayed: {self.folder.name}"
        self._replies: dict[str, tuple[str, str]] = {}
        for path in sorted(self.folder.glob("*.json")):
            kept = read_json(path, ("origin", "prompts_version", "sampling", "messages", "reply"))
            if not (isinstance(kept["reply"], list) and all(isinstance(line, str) for line in kept["reply"])):
                raise UserError(f"{path}: expected 'reply' to be a list of lines of text; restore the file")
            self._replies[_key(kept["messages"])] = (f"{self.folder.name}/{path.name}", "\n".join(kept["reply"]))
        if not self._replies:
            raise UserError(f"{self.folder} holds no kept replies (*.json); kept realms: {', '.join(kept_realms())}")

    def reply(self, messages: Sequence[Message]) -> str:
        return self._find(messages)[1]

    def source(self, messages: Sequence[Message]) -> str:
        """The file that answers these messages."""
        return self._find(messages)[0]

    def _find(self, messages: Sequence[Message]) -> tuple[str, str]:
        found = self._replies.get(_key(messages))
        if found is None:
            raise UserError(
                f"no kept reply in {self.folder.name} answers {messages[-1]['content']!r} as it is asked now "
                f"(prompts version {VERSION}); keep the defaults of foresee, or ask a live model"
            )
        return found


def _key(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def kept_realms() -> list[str]:
    """Names of the realms whose replies are kept with cilkit."""
    return sorted(folder.name.replace("-", " ") for folder in KEPT.iterdir() if folder.is_dir())


def backend(llm: "str | LanguageModel", realm: str) -> LanguageModel:
    """ "replayed" -> the kept replies of this realm; a folder -> the replies kept there; a model -> itself."""
    if not isinstance(llm, (str, Path)):
        return llm
    if str(llm) == "replayed":
        folder = KEPT / slug(realm)
        if not folder.is_dir():
            raise UserError(
                f"no replies are kept for the realm {realm!r}; kept are: {', '.join(kept_realms())}. "
                "Choose one of them, or pass a live model as llm"
            )
        return Replayed(folder)
    if not Path(llm).is_dir():
        raise UserError(f"llm {str(llm)!r} is neither 'replayed', a folder of kept replies, nor an object with reply()")
    return Replayed(llm)
