"""A language model behind a server that speaks the OpenAI protocol: hosted ones, vLLM, Ollama, llama.cpp."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote, urlsplit

from cilkit.errors import UserError, near_name
from cilkit.realms.backends import NoReply, Sampling, missing_extra
from cilkit.realms.prompts import Message

# What a server may refuse (400 or 422) and is then asked without; the first is then asked for in words.
OPTIONAL = ("response_format", "max_tokens", "temperature", "top_p", "seed")
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
        self.name, self.timeout, self.retries, self.key_from = name, timeout, retries, key_from
        self.sampling = Sampling(**sampling)
        self.id, self.cut = f"endpoint:{name}", False
        self.card = {"backend": "endpoint", "model": name, "revision": "", "licence": ""}
        self.card["sampling"] = asdict(self.sampling)
        self._base_url, self._address, self._key, self._client = base_url, "", "", None
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
        text, self.cut = self._read(completion)
        self._note(completion, request, schema)
        return text

    def _request(self, messages: Sequence[Message], schema: type | None, left_out: frozenset[str]) -> dict[str, Any]:
        messages = [dict(message) for message in messages]
        request: dict[str, Any] = {"model": self.name, "messages": messages}
        request |= {name: value for name, value in asdict(self.sampling).items() if name not in left_out}
        if self.sampling.top_p == 1:  # the protocol's default, which some servers refuse beside a temperature
            request.pop("top_p", None)
        if "max_tokens" in left_out:  # as hosted reasoning models call it
            request["max_completion_tokens"] = self.sampling.max_tokens
        if schema is not None and "response_format" in left_out:
            messages[-1]["content"] += IN_WORDS + _json_schema(schema)
        elif schema is not None:
            form = {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        return request

    def _ask(self, request: dict[str, Any]) -> tuple[Any, str]:
        """(completion, "") or (None, which of OPTIONAL the server refuses)."""
        import openai

        try:
            return self._client.chat.completions.create(**request), ""
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            refused = self._refused(error, request)
            if refused:
                return None, refused
            raise self._sentence(error) from None
        except openai.APIResponseValidationError:
            raise self._unusable("no JSON") from None
        except openai.OpenAIError as error:
            raise self._sentence(error) from None
        except ValueError:  # the body is called JSON and is none
            raise self._unusable("broken JSON") from None

    def _refused(self, error: Any, request: dict[str, Any]) -> str:
        said = f"{error.param} {self._said(error)}".lower()
        if "context" in said and ("length" in said or "size" in said or "window" in said):
            return ""
        named = [name for name in OPTIONAL if name in request and name in said]
        return next(iter(named), "response_format" if "response_format" in request else "")

    def _read(self, completion: Any) -> tuple[str, bool]:
        """(text, whether it was cut at max_tokens); the client checks no shapes, so this does."""
        try:
            choice = completion.choices[0]
            text, reason = choice.message.content, choice.finish_reason
        except (AttributeError, TypeError, IndexError, KeyError):
            raise self._unusable("no choice in it") from None
        if not isinstance(text, str) or not text.strip():
            raise self._unusable(
                "all of max_tokens used up before the first word; raise max_tokens"
                if reason == "length"
                else f"no text (finish_reason {str(reason)[:40]!r})"
            )
        return text, reason == "length"

    def _note(self, completion: Any, request: dict[str, Any], schema: type | None) -> None:
        sampling = asdict(self.sampling)
        self.card = {
            **self.card,
            "revision": self._plain(getattr(completion, "model", "")),
            "fingerprint": self._plain(getattr(completion, "system_fingerprint", "")),
            "server": urlsplit(self._address).hostname,  # without the port: a local server's changes
            "sampling": {
                name: value for name, value in sampling.items() if name not in self._left_out - {"max_tokens"}
            },
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
        self._key = os.environ.get(self.key_from, "").strip()
        if not self._key and not given:
            raise UserError(
                f"environment variable {self.key_from} is not set; set it to the server's key, or give base_url of a "
                "server that needs none"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"environment variable {self.key_from} holds characters that no key has; set it anew")
        self._secrets = [secret for secret in (self._key, *(user or ())) if secret]
        http = openai.DefaultHttpxClient(auth=user) if user else None
        self._client = openai.OpenAI(
            base_url=address,
            api_key=self._key or "none",
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=http,
        )
        self._address = address or str(self._client.base_url).rstrip("/")

    def _sentence(self, error: Exception) -> UserError:
        import openai

        where, tries = f"the language model server at {self._address}", f"after {self.retries} retries"
        if isinstance(error, openai.APITimeoutError):
            return UserError(f"{where} gave no answer within {self.timeout:g} s {tries}; raise timeout, or ask later")
        if isinstance(error, openai.APIConnectionError):
            return UserError(
                f"{where} cannot be reached or breaks the connection, {tries}; start it, or correct base_url "
                "(or OPENAI_BASE_URL)"
            )
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            state = "is set but not accepted" if self._key else "is not set"
            return UserError(
                f"{where} refuses the key ({error.status_code}): environment variable {self.key_from} {state}; "
                "set it to a valid key (key_from names another variable)"
            )
        if isinstance(error, openai.NotFoundError):
            return self._unknown(where)
        if isinstance(error, openai.RateLimitError):
            return UserError(f"{where} still refuses more questions (429) {tries}: {self._said(error)}; ask later")
        if isinstance(error, openai.InternalServerError):
            return UserError(f"{where} still fails ({error.status_code}) {tries}: {self._said(error)}; see its log")
        return UserError(f"{where} does not take the question: {self._said(error)}")

    def _unknown(self, where: str) -> UserError:
        """404: another model's name, or an address that has no such protocol."""
        import openai

        try:
            known = sorted(str(model.id)[:100] for model in self._client.models.list())
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            known = []
        if not known or self.name in known:
            return UserError(f"{where} knows no model {self.name!r}, or its address is wrong: most end with /v1")
        listed = ", ".join(known[:10]) + (" ..." if len(known) > 10 else "")
        return UserError(f"{where} has no model {self.name!r}{near_name(self.name, known)}; it has {listed}")

    def _unusable(self, why: str) -> NoReply:
        return NoReply(f"{self.name} at {self._address} sent an unusable answer: {why}")

    def _said(self, error: Any) -> str:
        """A server's own words: one short line, without the key should it repeat that."""
        body = getattr(error, "body", None)
        text = body.get("message") if isinstance(body, dict) else None
        return self._plain(text or getattr(error, "message", "")) or "no reason given"

    def _plain(self, text: Any) -> str:
        words = " ".join(text.split()) if isinstance(text, str) else ""
        for secret in self._secrets:
            words = words.replace(secret, "(secret)")
        return "".join(character for character in words if character.isprintable())[:200]


def _json_schema(schema: type) -> str:
    import json

    return json.dumps(schema.model_json_schema(), ensure_ascii=False)


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
