"""What every language model has: an id, a card, a way to reply; and how a live one draws its words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cilkit.errors import UserError
from cilkit.realms.prompts import SAMPLING, Message


class NoReply(UserError):
    """This one question got no usable answer; the next may. Any other UserError of a backend will come again."""


class LanguageModel(Protocol):
    """What answers a conversation with text.

    `id`: short, names backend, model and revision. `card`: what answered (backend, model, revision, licence, sampling,
    versions), up to date after each reply; no key in it, nor a machine's paths. `cut`: whether the last reply ended at
    max_tokens; such a reply is given back as it is.
    """

    id: str
    card: dict[str, Any]
    cut: bool

    def reply(self, messages: Sequence[Message], schema: type | None = None) -> str:
        """The raw text. `schema`: a pydantic model, JSON of which is asked for, and enforced where that is possible."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How a live model draws its words. temperature 0: always the likeliest; the defaults are the paper's notebook's.

    temperature and max_tokens (of one reply): read in source; top_p and seed: our decision.
    """

    temperature: float = SAMPLING["temperature"]
    top_p: float = 1.0
    max_tokens: int = SAMPLING["max_tokens"]
    seed: int = 0

    def __post_init__(self):
        self._check("temperature", self.temperature >= 0 if _is_number(self.temperature) else False, "0 or more")
        self._check("top_p", 0 < self.top_p <= 1 if _is_number(self.top_p) else False, "above 0, at most 1")
        self._check("max_tokens", type(self.max_tokens) is int and self.max_tokens > 0, "a whole number, 1 or more")
        self._check("seed", type(self.seed) is int, "a whole number")

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise UserError(f"{name} of a language model is {getattr(self, name)!r}; expected {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def missing_extra(package: str) -> UserError:
    """What to say where the extra for live models is not installed."""
    return UserError(f'{package} is not installed, which this language model needs; run pip install -e ".[llm]"')
