"""A real HTTP server that speaks the OpenAI protocol, with the bad days that such servers have.

`with Server() as server:` listens on a free port of this machine in a thread; `server.url` ends with /v1. What comes
next is queued, one entry a request, after that `server.answer(body)` answers:

    server.then(text("..."), status(429, headers={"Retry-After": "0.01"}), cut(), slow(2, text("late")), ...)

`server.requests` keeps what was asked: {"path", "headers" (names in lower case), "body"}. Without an `answer` of one's
own it answers the questions of `cilkit.foresee` sensibly: subtypes and classes, as JSON or CSV, as asked.
"""

import json
import re
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODELS = ("tiny-model", "other-model")
MODEL, FINGERPRINT = "tiny-model-0001", "fp_test"


def text(content, finish="stop", **message):
    """A whole answer with this content."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return completion([choice])


def completion(choices):
    """A completion with these choices, whatever they are."""
    return body(json.dumps({"id": "c", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices,
                            "system_fingerprint": FINGERPRINT}))  # fmt: skip


def body(content, kind="application/json"):
    """A response of status 200 with this body."""
    return lambda handler: handler.send(200, content, {"Content-Type": kind})


def status(number, message="", headers=None, **error):
    """An error as the protocol has it."""
    content = json.dumps({"error": {"message": message, "type": "test", **error}})
    return lambda handler: handler.send(number, content, {"Content-Type": "application/json", **(headers or {})})


def slow(seconds, then):
    """Nothing for so long, then that."""

    def do(handler):
        time.sleep(seconds)
        then(handler)

    return do


def cut():
    """The connection breaks in the middle of the body."""

    def do(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [{"mess')
        handler.close_connection = True

    return do


def refuses(*names):
    """An `answer`: a server that takes none of these parameters (400), and else says "ok"."""

    def do(body):
        refused = next((name for name in names if name in body), None)
        return status(400, f"{refused} is not supported here", param=refused) if refused else "ok"

    return do


class Server:
    def __init__(self, answer=None, key=""):
        """answer(body) -> text, or one of the actions above. key: the only one accepted ("": any, or none)."""
        self.answer, self.key = answer or Foresight(), key
        self.requests, self._next = [], deque()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def then(self, *actions):
        self._next.extend(actions)

    def action(self, asked):
        if self._next:
            return self._next.popleft()
        answered = self.answer(asked)
        return text(answered) if isinstance(answered, str) else answered

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()


def lower(headers):
    return {name.lower(): value for name, value in headers.items()}


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append({"path": self.path, "headers": lower(self.headers), "body": asked})
            if self._welcome("/v1/chat/completions"):
                if asked["model"] in MODELS:
                    server.action(asked)(self)
                else:
                    status(404, f"The model `{asked['model']}` does not exist.", code="model_not_found")(self)

        def do_GET(self):
            server.requests.append({"path": self.path, "headers": lower(self.headers), "body": None})
            if self._welcome("/v1/models"):
                listed = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in MODELS]
                body(json.dumps({"object": "list", "data": listed}))(self)

        def _welcome(self, path):
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if server.key and given != server.key:  # some servers repeat the key that they refuse
                status(401, f"Incorrect API key provided: {given}")(self)
            elif self.path != path:
                status(404, "Not Found")(self)
            else:
                return True
            return False

        def send(self, code, content, headers):
            content = content.encode()
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


class Foresight:
    """Answers the questions of `cilkit.foresee` from a small garden of letters and digits.

    With `moods`, also as models and servers do at times, each once: a 429 first, then a code fence, a numbered list,
    and a JSON answer that is cut at max_tokens.
    """

    GARDEN = {
        "digits": ("zero", "one", "two", "three", "four", "five", "six", "seven"),
        "capital letters": ("capital A", "capital B", "capital C", "capital D", "capital E", "capital F"),
        "small letters": ("small a", "small b", "small c", "small d", "small e", "small f"),
        "signs": ("plus sign", "minus sign", "question mark", "ampersand", "at sign", "hash sign"),
    }

    def __init__(self, moods=False):
        self._lock = threading.Lock()
        self._moods = deque(["busy", "fence", "list", "cut"] if moods else [])

    def __call__(self, asked):
        with self._lock:
            schema = self._schema(asked)
            if self._moods and self._moods[0] == "busy":
                self._moods.popleft()
                return status(429, "busy", headers={"Retry-After": "0"})
            if self._first(asked, schema):
                names = list(self.GARDEN)
                return json.dumps({"subtypes": names}) if schema else ", ".join(names)
            return self._classes(asked, schema)

    def _classes(self, asked, schema):
        said = "\n".join(message["content"] for message in asked["messages"])
        questions = [message["content"] for message in asked["messages"] if message["role"] == "user"]
        question = next((one for one in reversed(questions) if any(name in one for name in self.GARDEN)), questions[-1])
        subtype = next((name for name in self.GARDEN if name in question), "")
        names = self.GARDEN.get(subtype) or tuple(f"{question.split()[0]} {kind}" for kind in ("round", "tall"))
        rows = [(name, f"A plain drawing of {name}, dark on light.") for name in names]
        biological = "species_latin_name" in said or "scientific_name" in said and "species" in said
        latin = [f"Planta {re.sub('[^a-z]', '', name.casefold())}" if biological else "" for name, _ in rows]
        if schema:
            listed = [
                {"name": name, "scientific_name": other, "description": described}
                for (name, described), other in zip(rows, latin, strict=True)
            ]
            answered = json.dumps({"classes": listed})
        else:
            lines = [
                "; ".join([str(number), *([other] if biological else []), name, described])
                for number, ((name, described), other) in enumerate(zip(rows, latin, strict=True), 1)
            ]
            answered = "\n".join(lines)
        return self._in_a_mood(answered, rows, bool(schema))

    def _in_a_mood(self, answered, rows, as_json):
        mood = self._moods.popleft() if self._moods else ""
        if mood == "fence":
            return f"Here you are:\n```{'json' if as_json else ''}\n{answered}\n```"
        if mood == "list":
            return "\n".join(f"{number}. {name} - {described}" for number, (name, described) in enumerate(rows, 1))
        if mood == "cut":
            return text(answered[: len(answered) * 2 // 3], finish="length")
        return answered

    @staticmethod
    def _schema(asked):
        """The JSON schema asked for: in response_format, or in words at the end of the question."""
        form = asked.get("response_format") or {}
        if form.get("type") == "json_schema":
            return form["json_schema"]["schema"]
        question = asked["messages"][-1]["content"]
        return json.loads(question[question.index("{") :]) if '"properties"' in question else None

    @staticmethod
    def _first(asked, schema):
        """Whether it is the first question, for subtypes."""
        return "subtypes" in schema["properties"] if schema else "numbered list" not in asked["messages"][0]["content"]
