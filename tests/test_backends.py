"""Which language model a name stands for, its options, and replies that are kept."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from cilkit.errors import UserError
from cilkit.realms import Realm, Reply, prompts
from cilkit.realms.backends import EXECUTION, KEPT, Replayed, backend
from cilkit.realms.endpoint import Endpoint
from cilkit.realms.local import Local
from cilkit.realms.models import Sampling

REALM = "handwritten characters"


def asked(text="hello"):
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]


def test_a_name_stands_for_a_model():
    assert isinstance(backend("replayed", REALM), Replayed)
    assert backend(str(KEPT / "handwritten-characters"), "anything").folder == KEPT / "handwritten-characters"
    endpoint = backend("endpoint:org/model:7b", REALM, temperature=0.7, base_url="http://127.0.0.1:1/v1")
    assert isinstance(endpoint, Endpoint) and endpoint.id == "endpoint:org/model:7b"
    assert endpoint.card["sampling"] == {"temperature": 0.7, "top_p": 1.0, "max_tokens": 2000, "seed": 0}
    model = object()
    assert backend(model, REALM) is model


def test_sampling_defaults_are_the_notebook_s():
    assert asdict(Sampling()) == {**prompts.SAMPLING, "top_p": 1.0, "seed": 0}


@pytest.mark.parametrize(
    ("llm", "options", "sentence"),
    [
        ("gpt-9", {}, "neither 'replayed', a folder of kept replies, nor an object"),
        ("endpoint:", {}, "neither 'replayed'"),
        ("openai:gpt-9", {}, "'endpoint:MODEL'"),
        ("endpoint:m", {"temprature": 1}, "no option 'temprature' .did you mean 'temperature'.*base_url"),
        ("endpoint:m", {"device": "cpu"}, "no option 'device'"),
        ("endpoint:m", {"name": "x"}, "no option 'name'"),
        ("local:m", {"base_url": "x"}, "no option 'base_url'"),
        ("replayed", {"seed": 1}, "'replayed' takes no options .* got seed"),
        ("endpoint:m", {"temperature": "0.2"}, "temperature of a language model is '0.2'; expected 0 or more"),
        ("endpoint:m", {"temperature": -1}, "temperature .* is -1"),
        ("endpoint:m", {"top_p": 0}, "top_p .* is 0"),
        ("endpoint:m", {"max_tokens": 1.5}, "max_tokens .* is 1.5"),
        ("endpoint:m", {"seed": True}, "seed .* is True"),
        ("endpoint:m", {"timeout": 0}, "timeout 0"),
        ("endpoint:m", {"retries": -1}, "retries -1"),
    ],
)
def test_wrong_names_and_options_are_one_sentence(llm, options, sentence):
    with pytest.raises(UserError, match=sentence):
        backend(llm, REALM, **options)


def test_execution_options_exist_and_are_no_sampling():
    import inspect

    known = {*inspect.signature(Endpoint).parameters, *inspect.signature(Local).parameters}
    assert set(EXECUTION) <= known and not set(EXECUTION) & set(asdict(Sampling()))


def test_a_model_is_named_without_loading_anything_heavy(tmp_path):
    """A realm that is found must not cost the import of torch."""
    (tmp_path / "config.json").write_text("{}")
    lines = (
        "import sys",
        "from cilkit.realms.backends import backend",
        f"print(backend({f'local:{tmp_path}'!r}, 'birds').id, backend('endpoint:m', 'birds').id)",
        "print(sorted({'torch', 'transformers', 'openai', 'outlines', 'xgrammar'} & set(sys.modules)))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    ids, loaded = done.stdout.splitlines()
    assert ids.startswith(f"local:{tmp_path.name}@") and ids.endswith("endpoint:m") and loaded == "[]"


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r'openai is not installed.* pip install -e "\.\[llm\]"'):
        backend("endpoint:m", REALM, base_url="http://127.0.0.1:1/v1").reply(asked())


def test_kept_replies_carry_their_origin_and_ignore_a_schema():
    kept = backend("replayed", REALM)
    messages = json.loads((KEPT / "handwritten-characters" / "01_digits.json").read_text())["messages"]
    assert kept.reply(messages, schema=dict) == kept.reply(messages)
    assert kept.card["backend"] == "replayed" and kept.card["origin"] and kept.card["sampling"] is not None
    assert not kept.cut


def test_a_saved_realm_answers_without_its_model(tmp_path):
    card = {"backend": "endpoint", "model": "m"}
    first = asdict(Reply("", tuple(asked("letters")), "big, small", "endpoint:m")) | {"model": card}
    second = asdict(Reply("big", tuple(asked("big")), "1; A; tall", "endpoint:m")) | {"model": {}}
    Realm("letters", "object", (), ()).save(tmp_path)
    (tmp_path / "replies").mkdir()
    for number, reply in enumerate((first, second), 1):
        (tmp_path / "replies" / f"{number:02d}.json").write_text(json.dumps(reply))
    for folder in (tmp_path, tmp_path / "replies"):
        kept = backend(folder, "letters")
        assert kept.reply(asked("letters")) == "big, small" and kept.card == card
        assert kept.source(asked("letters")) == "endpoint:m"
        assert kept.reply(asked("big")) == "1; A; tall" and kept.card == {"backend": "replayed"}
        with pytest.raises(UserError, match="no kept reply .* answers 'Letters'"):
            kept.reply(asked("Letters"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "messages is missing"),
        ('{"messages": []}', "reply is missing"),
        ('{"messages": [], "text": "a"}', "source is missing"),
        ('{"messages": [], "text": 1, "source": "a", "subtype": ""}', "expected texts 'text'"),
        ('{"messages": [], "text": "a", "source": "a", "subtype": "", "model": [1]}', "object 'model'"),
        ('{"messages": [1], "text": "a", "source": "a", "subtype": ""}', "'role' and 'content'"),
        ('{"messages": [{"role": "user"}], "text": "a", "source": "a", "subtype": ""}', "'role' and 'content'"),
        ('{"messages": 3, "text": "a", "source": "a", "subtype": ""}', "'role' and 'content'"),
    ],
)
def test_broken_kept_replies_are_named(tmp_path, content, sentence):
    (tmp_path / "01.json").write_text(content)
    with pytest.raises(UserError, match=f"01.json.*{sentence}"):
        Replayed(tmp_path)
