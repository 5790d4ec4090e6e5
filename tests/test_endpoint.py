"""The openai client against a real HTTP server on its good and bad days."""

import json
import logging
import traceback

import openai_server
import pytest
from openai_server import MODEL, Server, body, completion, cut, refuses, slow, status, text
from pydantic import BaseModel, ConfigDict

from cilkit import realms
from cilkit.errors import UserError
from cilkit.realms.backends import backend
from cilkit.realms.models import NoReply

openai = pytest.importorskip("openai", reason='needs pip install -e ".[llm]"')

KEY = "sk-secret-0123456789"
ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "list birds"}]


class Names(BaseModel):
    model_config = ConfigDict(extra="forbid")
    names: list[str]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """A key, no address, and no waiting between tries."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for delay in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(f"openai._base_client.{delay}", 0.01)


@pytest.fixture
def server():
    with Server(lambda asked: "sparrow") as server:
        yield server


def model(server, name="tiny-model", **options):
    return backend(f"endpoint:{name}", "birds", **{"base_url": server.url, "timeout": 5, **options})


def sentence(model, kind=UserError, schema=None):
    """What a failing question raises, as text with its traceback, in which no key stands."""
    with pytest.raises(kind) as caught:
        model.reply(ASKED, schema)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_question_and_its_card(server):
    one = model(server, temperature=0.5, top_p=0.9, max_tokens=77, seed=3)
    assert one.reply(ASKED) == "sparrow" and not one.cut
    asked = server.requests[0]
    assert asked["path"] == "/v1/chat/completions" and asked["headers"]["authorization"] == f"Bearer {KEY}"
    sampling = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 77, "seed": 3}
    assert asked["body"] == {"model": "tiny-model", "messages": ASKED, **sampling}
    assert one.card == {
        "backend": "endpoint",
        "model": "tiny-model",
        "revision": MODEL,
        "fingerprint": openai_server.FINGERPRINT,
        "licence": "",
        "server": "127.0.0.1",
        "sampling": sampling,
        "structured": "",
        "versions": {"openai": openai.__version__},
    }


def test_nothing_is_asked_before_the_first_reply(server):
    assert model(server).id == "endpoint:tiny-model" and not server.requests


def test_address_from_the_environment_and_a_server_without_a_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert backend("endpoint:tiny-model", "birds").reply(ASKED) == "sparrow"


def test_no_key_and_no_address_names_the_variable(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in sentence(backend("endpoint:tiny-model", "birds"))
    assert "MY_KEY is not set" in sentence(backend("endpoint:tiny-model", "birds", key_from="MY_KEY"))


def test_schema_is_asked_for_as_response_format(server):
    one = model(server)
    one.reply(ASKED, Names)
    form = server.requests[0]["body"]["response_format"]
    assert form["json_schema"] == {"name": "Names", "schema": Names.model_json_schema(), "strict": True}
    assert one.card["structured"] == "json_schema" and server.requests[0]["body"]["messages"] == ASKED


def test_a_server_without_response_format_is_asked_in_words_and_remembered():
    with Server(refuses("response_format")) as server:
        one = model(server)
        assert one.reply(ASKED, Names) == "ok" and one.reply(ASKED, Names) == "ok"
        assert ["response_format" in asked["body"] for asked in server.requests] == [True, False, False]
        said = server.requests[-1]["body"]["messages"][-1]["content"]
        assert said.startswith("list birds\n") and json.dumps(Names.model_json_schema()) in said
        assert ASKED[-1]["content"] == "list birds" and one.card["structured"] == "in words"


def test_a_400_without_a_reason_counts_as_the_schema_s():
    with Server(lambda asked: status(400, "bad grammar") if "response_format" in asked else "ok") as server:
        assert model(server).reply(ASKED, Names) == "ok"


def test_sampling_that_a_server_refuses_is_left_out_and_not_claimed():
    with Server(refuses("max_tokens", "temperature", "seed")) as server:
        one = model(server, max_tokens=50)
        assert one.reply(ASKED, Names) == "ok"
        asked = server.requests[-1]["body"]
        assert asked["max_completion_tokens"] == 50 and not {"max_tokens", "temperature", "seed"} & set(asked)
        assert one.card["sampling"] == {"top_p": 1.0, "max_tokens": 50} and one.card["structured"] == "json_schema"


def test_a_context_that_is_too_long_is_said_at_once(server):
    said = "max_tokens is too large: this model's maximum context length is 512 tokens"
    server.then(status(400, said))
    one = model(server)
    assert said in sentence(one, schema=Names) and len(server.requests) == 1
    one.reply(ASKED, Names)
    assert "max_tokens" in server.requests[-1]["body"]  # nothing was learnt from that


def test_a_cut_reply_comes_back_and_is_marked(server):
    server.then(text('{"names": ["spar', finish="length"))
    one = model(server)
    assert one.reply(ASKED, Names) == '{"names": ["spar' and one.cut
    assert one.reply(ASKED) == "sparrow" and not one.cut


@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        (status(429, "slow down", headers={"Retry-After": "0.01"}), 3),
        (status(429, "slow down", headers={"Retry-After": "0"}), 3),
        (status(500, "oops"), 3),
        (status(503, "loading"), 3),
        (cut(), 3),
    ],
)
def test_passing_troubles_are_asked_again(server, bad, seen):
    server.then(bad, bad)
    assert model(server, retries=2).reply(ASKED) == "sparrow" and len(server.requests) == seen


def test_retry_after_is_waited_for(server, monkeypatch):
    waits = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits.append)
    server.then(status(429, headers={"Retry-After": "7"}), status(503, headers={"Retry-After": "2.5"}))
    assert model(server).reply(ASKED) == "sparrow" and waits == [7, 2.5]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (status(429, "quota used up"), r"still refuses more questions \(429\) after 1 retries: quota used up"),
        (status(500, "oops\n<b>x</b>"), r"still fails after 1 retries: oops <b>x</b>;"),
        (cut(), "breaks off, after 1 retries"),
        (slow(0.5, text("late")), "no answer within 0.1 s after 1 retries; raise timeout"),
    ],
)
def test_lasting_troubles_are_one_sentence_after_bounded_tries(server, bad, said):
    import re

    server.then(*[bad] * 5)
    found = sentence(model(server, retries=1, timeout=0.1 if "within" in said else 5))
    assert re.search(said, found) and server.url in found and len(server.requests) == 2


def test_a_wait_of_hours_is_not_waited_for(server):
    server.then(status(429, "come back tomorrow", headers={"Retry-After": "3600"}))
    assert "come back tomorrow" in sentence(model(server)) and len(server.requests) == 1


def test_a_slow_answer_within_the_timeout_is_taken(server):
    server.then(slow(0.2, text("late")))
    assert model(server, retries=0).reply(ASKED) == "late"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (completion([]), "no choice in it"),
        (completion(None), "no choice in it"),
        (completion([{"index": 0, "finish_reason": "stop"}]), "no choice in it"),
        (completion("choices"), "no choice in it"),
        (body('{"detail": "warming up"}'), "no choice in it"),
        (body("[1, 2]"), "no choice in it"),
        (body('{"choices": [{"mess'), "broken JSON"),
        (body("<html>a proxy</html>", "text/html"), "no choice in it"),
        (text(""), "no text, ended by 'stop'"),
        (text(None, finish="content_filter"), "no text, ended by 'content_filter'"),
        (text(None, refusal="I can't"), "no text"),
        (text([{"type": "text", "text": "a"}]), "no text"),
        (text("", finish="length"), "raise them"),
    ],
)
def test_unusable_answers_concern_one_question_only(server, bad, said):
    import re

    server.then(bad)
    one = model(server)
    assert re.search(f"tiny-model at {server.url} sent an unusable answer: .*{said}", sentence(one, NoReply))
    assert one.reply(ASKED) == "sparrow"


def test_unknown_model_with_the_nearest_that_there_is(server):
    said = sentence(model(server, name="tiny-modle"))
    assert "no model 'tiny-modle' (did you mean 'tiny-model'?); it has other-model, tiny-model" in said


def test_an_address_without_the_protocol(server):
    assert "most end with /v1" in sentence(model(server, base_url=server.url.removesuffix("/v1")))


def test_a_server_that_is_not_there():
    with Server() as gone:
        pass
    said = sentence(model(gone, base_url=f"http://user:{KEY}@127.0.0.1:{gone.port}/v1", retries=0))
    assert f"http://127.0.0.1:{gone.port}/v1 cannot be reached" in said and "user" not in said


def test_a_refused_key_names_the_variable_and_not_the_key(monkeypatch):
    with Server(key="another") as server:
        said = sentence(model(server))
        assert "(401): environment variable OPENAI_API_KEY is set but not accepted" in said
        monkeypatch.delenv("OPENAI_API_KEY")
        assert "OPENAI_API_KEY is not set" in sentence(model(server))


def test_a_key_in_the_place_of_its_name_is_not_repeated(server):
    with pytest.raises(UserError, match="NAME of an environment variable") as caught:
        model(server, key_from=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["two\nlines", "naïve"])
def test_a_key_that_no_header_can_carry(server, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said = sentence(model(server))
    assert "OPENAI_API_KEY holds characters" in said and key not in said


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://h/v1", "http://", "http://h:port/v1", f"http://h/v1?key={KEY}", f"http://h/#{KEY}"]
)
def test_addresses_that_are_none(server, url):
    assert "is no server's address" in sentence(model(server, base_url=url))


def test_no_key_and_no_user_info_in_any_trace(monkeypatch, caplog, capfd):
    """All libraries at their most talkative, output, card, id, and a server that repeats what it was sent."""
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    secret = "pass-word-9"
    with Server(lambda asked: status(400, f"no {KEY} and no {secret}")) as server:
        address = server.url.replace("//", f"//user:{secret}@")
        one = model(server, base_url=address)
        said = sentence(one, schema=Names)
        assert server.requests[0]["headers"]["authorization"].startswith("Basic ")
        server.answer = lambda asked: "fine"
        assert one.reply(ASKED) == "fine"
        keyed = model(server)
        server.answer = lambda asked: f"you sent {KEY}"
        assert keyed.reply(ASKED) == "you sent (secret)"
    seen = [said, caplog.text, *capfd.readouterr(), repr(one), one.id, json.dumps([one.card, keyed.card])]
    for trace in seen:
        assert KEY not in trace and secret not in trace


def test_the_plugin_s_server_has_its_moods_and_a_realm_comes_through(monkeypatch):
    import live_endpoint

    monkeypatch.setenv("OPENAI_BASE_URL", "")  # put back what the plugin changes
    live_endpoint.pytest_configure(None)
    try:
        realm, report = realms.foresee("handwriting", llm="endpoint:tiny-model", kind="object")
    finally:
        live_endpoint.pytest_unconfigure(None)
    assert {"zero", "capital A", "small a", "plus sign"} <= set(realm.concept_names) and len(report)


def test_a_realm_is_foreseen_through_the_server():
    with Server(openai_server.Foresight(moods=False)) as server:
        one = model(server)
        realm, _ = realms.foresee("handwriting", llm=one, kind="object")
    assert {"zero", "capital A", "plus sign"} <= set(realm.concept_names) and len(realm) == 26
    assert KEY not in json.dumps([str(reply) for reply in realm.replies])
