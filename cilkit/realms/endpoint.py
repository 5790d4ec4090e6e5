"""A language model behind a server that speaks the OpenAI protocol: hosted ones, vLLM, Ollama, llama.cpp."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote, urlsplit

from cilkit.errors import UserError, near_name
from cilkit.realms.models import NoReply, Sampling, missing_extra
from cilkit.realms.prompts import Message

# What a server may refuse (400 or 422) and is then asked without; the first is then asked for in words.
OPTIONAL = ("response_format", "max_tokens", "temperature", "top_p", "seed")
SECRET = 8  # characters from which a key or password is looked for in what a server says ("none", "test" are none)
IN_WORDS = "\n\nAnswer with JSON of this schema and with nothing else:\n"


class Endpoint:
    """`base_url`: else OPENAI_BASE_URL, else the openai client's own; user and password in it are sent, never shown.

    key_from: NAME of the environment variable that holds the key, read at the first question; a server with an address
    of its own may need none. timeout: seconds without a sign of life before a try counts as failed. retries: of 429,
    5xx and broken connections, waiting exponentially longer or as Retry-After says (at most 2 min; the openai client's
    own rules). What a server refuses of OPTIONAL is left out, remembered, and missing from the card's sampling.
    """

    def __init__(
        self,
        name: str,
        base_url: str = "",
        key_from: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        retries: int = 4,
        **sampling: Any,
    ):
        if not (isinstance(timeout, (int, float)) and timeout > 0 and type(retries) is int and retries >= 0):
            raise UserError(f"timeout {timeout!r} and retries {retries!r}: expected seconds above 0 and a whole number")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key_from):  # unshown: somebody may have put the key itself there
            raise UserError(
                "key_from is not the NAME of an environment variable, such as OPENAI_API_KEY; give its name"
            )
        self.name, self.timeout, self.retries, self.key_from = name, timeout, retries, key_from
        self.id, self.cut, self.sampling = f"endpoint:{name}", False, asdict(Sampling(**sampling))
        self.card = {"backend": "endpoint", "model": name, "revision": "", "licence": "", "sampling": self.sampling}
        self._base_url, self._address, self._client = base_url, "", None
        self._secrets: list[str] = []
        self._left_out: frozenset[str] = frozenset()

    def reply(self, messages: Sequence[Message], schema: type | None = None) -> str:
        """The server's text. UserError: it cannot be reached, refuses or keeps failing; NoReply: an unusable answer."""
        self._connect()
        left_out = self._left_out
        while True:  # at most once for each of OPTIONAL
            request = self._request(messages, schema, left_out)
            completion, refused = self._ask(request)
            if not refused:
                break
            left_out |= {refused}
        self._left_out = left_out
        text = self._read(completion)
        self._note(completion, request, schema)
        return text

    def _request(self, messages: Sequence[Message], schema: type | None, left_out: frozenset[str]) -> dict[str, Any]:
        messages = [dict(message) for message in messages]
        sampling = {name: value for name, value in self.sampling.items() if name not in left_out}
        if sampling.get("top_p") == 1:  # the protocol's default, which some servers refuse beside a temperature
            del sampling["top_p"]
        if "max_tokens" in left_out:  # as hosted reasoning models call it
            sampling["max_completion_tokens"] = self.sampling["max_tokens"]
        request: dict[str, Any] = {"model": self.name, "messages": messages, **sampling}
        if schema is not None and "response_format" in left_out:
            messages[-1]["content"] += IN_WORDS + json.dumps(schema.model_json_schema(), ensure_ascii=False)
        elif schema is not None:
            form = {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        return request

    def _ask(self, request: dict[str, Any]) -> tuple[Any, str]:
        """(completion, "") or (None, which of OPTIONAL the server refuses)."""
        import openai

        try:
            return self._client.chat.completions.create(**request), ""
        except openai.OpenAIError as error:
            refused = self._refused(error, request)
            if refused:
                return None, refused
            raise self._sentence(error) from None
        except ValueError:  # the body is called JSON and is none
            raise self._unusable("broken JSON") from None

    def _refused(self, error: Any, request: dict[str, Any]) -> str:
        if getattr(error, "status_code", 0) not in (400, 422):
            return ""
        said = f"{error.param} {self._said(error)}".lower()
        if "context" in said and ("length" in said or "size" in said or "window" in said):
            return ""
        named = [name for name in OPTIONAL if name in request and name in said]
        return next(iter(named), "response_format" if "response_format" in request else "")

    def _read(self, completion: Any) -> str:
        """The text; the client checks no shapes, so this does."""
        try:
            choice = completion.choices[0]
            text, reason = choice.message.content, self._plain(choice.finish_reason)
        except (AttributeError, TypeError, IndexError, KeyError):
            raise self._unusable("no choice in it") from None
        self.cut = reason == "length"
        if isinstance(text, str) and text.strip():
            return self._without_secrets(text)
        raise self._unusable(
            "max_tokens were used up before its first word; raise them" if self.cut else f"no text, ended by {reason!r}"
        )

    def _note(self, completion: Any, request: dict[str, Any], schema: type | None) -> None:
        left_out = self._left_out - {"max_tokens"}  # asked for under another name
        self.card = {
            **self.card,
            "revision": self._plain(getattr(completion, "model", "")),
            "fingerprint": self._plain(getattr(completion, "system_fingerprint", "")),
            "server": urlsplit(self._address).hostname,  # without the port: a local server's changes
            "sampling": {name: value for name, value in self.sampling.items() if name not in left_out},
            "structured": "" if schema is None else "json_schema" if "response_format" in request else "in words",
            "versions": {"openai": version("openai")},
        }

    def _connect(self) -> None:
        if self._client is not None:
            return
        try:
            import openai
        except ImportError:
            raise missing_extra("openai") from None
        given = self._base_url or os.environ.get("OPENAI_BASE_URL", "")
        address, user = _split(given) if given else (None, None)
        key = os.environ.get(self.key_from, "").strip()
        if not key and not given:
            raise UserError(
                f"environment variable {self.key_from} is not set; set it to the server's key, or give base_url of a "
                "server that needs none"
            )
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"environment variable {self.key_from} holds characters that no key has; set it anew")
        self._secrets = [secret for secret in (key, *(user or ())) if len(secret) >= SECRET]
        http = openai.DefaultHttpxClient(auth=user) if user else None
        limits = {"timeout": self.timeout, "max_retries": self.retries}
        self._client = openai.OpenAI(base_url=address, api_key=key or "none", http_client=http, **limits)
        self._address = address or str(self._client.base_url).rstrip("/")

    def _sentence(self, error: Exception) -> UserError:
        import openai

        where = f"the language model server at {self._address}"
        if isinstance(error, openai.NotFoundError):
            return UserError(f"{where} {self._unknown()}")
        tries, said, key = f"after {self.retries} retries", self._said(error), f"environment variable {self.key_from}"
        state = "is set but not accepted" if os.environ.get(self.key_from) else "is not set"
        reasons = (
            (openai.APITimeoutError, f"gave no answer within {self.timeout:g} s {tries}; raise timeout, or ask later"),
            (openai.APIConnectionError, f"cannot be reached or breaks off, {tries}; start it, or correct base_url"),
            (openai.AuthenticationError, f"refuses the key (401): {key} {state}; set it to a valid one"),
            (openai.PermissionDeniedError, f"forbids it (403): {said}; {key} {state}; set it to a key that may"),
            (openai.RateLimitError, f"still refuses more questions (429) {tries}: {said}; ask later"),
            (openai.InternalServerError, f"still fails {tries}: {said}; see its log, or ask later"),
            (Exception, f"does not take the question: {said}"),
        )
        reason = next(text for kind, text in reasons if isinstance(error, kind))
        return UserError(f"{where} {reason}")

    def _unknown(self) -> str:
        """What a 404 means: another model's name, or an address that has no such protocol."""
        import openai

        try:
            known = sorted(self._plain(model.id) for model in self._client.models.list())
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            known = []
        if not known or self.name in known:
            return f"knows no model {self.name!r}, or its address is wrong: most end with /v1"
        return f"has no model {self.name!r}{near_name(self.name, known)}; it has {', '.join(known[:10])}"

    def _unusable(self, why: str) -> NoReply:
        return NoReply(f"{self.name} at {self._address} sent an unusable answer: {why}")

    def _said(self, error: Any) -> str:
        """A server's own words: one short line, without the key should it repeat that."""
        body = getattr(error, "body", None)
        text = body.get("message") if isinstance(body, dict) else None
        return self._plain(text or getattr(error, "message", "")) or "no reason given"

    def _plain(self, text: Any) -> str:
        words = self._without_secrets(" ".join(text.split())) if isinstance(text, str) else ""
        return "".join(character for character in words if character.isprintable())[:200]

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "(secret)")
        return text


def _split(url: str) -> tuple[str, tuple[str, str] | None]:
    """(address without user and password, those two). A '?...' is refused unshown: it may hold a key."""
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise UserError(
            "base_url (or OPENAI_BASE_URL) is no server's address: expected 'http://HOST:PORT/v1' or "
            "'https://HOST/v1', without '?' or '#'; a key belongs into an environment variable"
        )
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    return address, (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
