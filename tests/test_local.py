"""A real transformers model of random weights, asked for text and for JSON."""

import json
import shutil
import sys
from typing import Annotated, Literal

import pytest
import tiny_llm
import torch
from pydantic import BaseModel, ConfigDict, Field

from cilkit.errors import UserError
from cilkit.realms.backends import backend
from cilkit.realms.models import NoReply

pytest.importorskip("outlines", reason='needs pip install -e ".[llm]"')
pytest.importorskip("xgrammar", reason='needs pip install -e ".[llm]"')

ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "list birds"}]


class Bird(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=8)]
    legs: Annotated[int, Field(ge=0, le=9)]
    colour: Literal["red", "blue"]


class Birds(BaseModel):
    model_config = ConfigDict(extra="forbid")
    birds: Annotated[list[Bird], Field(min_length=1, max_length=3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With seven rows of its output layer that stand for no token, as large models have."""
    return tiny_llm.write(tmp_path_factory.mktemp("models") / "tiny", padding=7)


@pytest.fixture(scope="module")
def warm(folder):
    """Loaded once; hot, so that the constraint and not the model makes the JSON."""
    return model(folder, temperature=1.3)


def model(folder, **options):
    return backend(f"local:{folder}", "birds", **{"max_tokens": 200, "device": "cpu", **options})


def draws(warm, number, **changes):
    """Replies to different questions."""
    return [warm.reply([{"role": "user", "content": f"question {index}"}], **changes) for index in range(number)]


def test_constrained_replies_are_json_of_the_schema(warm):
    said = draws(warm, 12, schema=Birds)
    assert len(set(said)) == 12
    for text in said:
        assert Birds.model_validate_json(text) and not warm.cut
        assert text == json.dumps(json.loads(text), ensure_ascii=False)  # no white space to get lost in
    assert warm.card["structured"] == "xgrammar" and {"outlines", "xgrammar"} <= set(warm.card["versions"])
    kept = warm.card
    warm.reply(ASKED)
    assert kept["structured"] == "xgrammar" and set(warm.card["versions"]) == {"torch", "transformers"}


def test_no_control_character_where_the_constraint_would_let_one_through(folder):
    """xgrammar 0.2 does where a string has a maximal length; JSON forbids them. This model wants many."""
    one = model(folder, temperature=1.0)
    one._load()
    tabs = one._tokenizer.convert_tokens_to_ids(["\u0109", "\u010a"])  # tab and line feed
    one._model.lm_head.weight.data[tabs, 0] = 3
    assert "\t" in one.reply(ASKED)
    for text in draws(one, 3, schema=Birds):
        assert Birds.model_validate_json(text)


def test_unconstrained_replies_are_no_json(warm):
    for text in draws(warm, 3):
        with pytest.raises(ValueError):
            json.loads(text)
    assert warm.card["structured"] == ""


def test_a_reply_depends_on_the_seed_and_the_messages_only(folder, warm):
    first, other = warm.reply(ASKED, Birds), warm.reply([*ASKED[:1], {"role": "user", "content": "list fish"}], Birds)
    assert other != first == warm.reply(ASKED, Birds)
    anew = model(folder, temperature=1.3)
    assert anew.reply(ASKED, Birds) == first and anew.reply(ASKED) == warm.reply(ASKED)
    assert model(folder, temperature=1.3, seed=1).reply(ASKED, Birds) != first


def test_the_global_random_state_stays(warm):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    warm.reply(ASKED, Birds)
    assert torch.equal(torch.rand(3), expected)


def test_a_gpu_s_random_state_stays_too(monkeypatch):
    """A dry run: the GPU's generator is a CPU one."""
    from cilkit.realms.local import _seeded

    fake = torch.Generator().manual_seed(5)
    before = fake.get_state()
    monkeypatch.setattr(torch.cuda, "default_generators", (None, fake))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: fake.get_state() if device == 1 else None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: fake.set_state(state))
    with _seeded(7, torch.device("cuda", 1)):
        assert torch.equal(fake.get_state(), torch.Generator().manual_seed(7).get_state())
    assert torch.equal(fake.get_state(), before)


def test_temperature_zero_is_the_likeliest_token_each_time(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = model(folder, temperature=0, max_tokens=12).reply(ASKED)
    network, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = "<|start|>system\nbe brief<|end|>\n<|start|>user\nlist birds<|end|>\n<|start|>assistant\n"
    tokens = words(chat, return_tensors="pt")["input_ids"]
    for _ in range(12):
        logits = network(tokens).logits[:, -1, : len(words)]
        tokens = torch.cat([tokens, logits.argmax(1, keepdim=True)], 1)
    assert said == words.decode(tokens[0, -12:], skip_special_tokens=True)


def test_a_cut_reply_comes_back_and_is_marked(folder):
    one = model(folder, temperature=1.3, max_tokens=10)
    assert one.reply(ASKED, Birds).startswith('{"birds": ') and one.cut


def test_the_card(folder, warm):
    warm.reply(ASKED)
    card = dict(warm.card)
    assert len(card.pop("revision")) == 64 and set(card.pop("versions")) >= {"torch", "transformers"}
    assert card == {
        "backend": "local",
        "model": "tiny",
        "licence": "mit",
        "sampling": {"temperature": 1.3, "top_p": 1.0, "max_tokens": 200, "seed": 0},
        "dtype": "float32",
        "template": "the model's chat template",
        "structured": "",
    }
    assert str(folder.parent) not in json.dumps(warm.card) + warm.id
    assert warm.id == f"local:tiny@{warm.card['revision'][:16]}"


def test_the_revision_of_a_folder_is_its_content(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "tiny")
    assert model(copy).id == model(folder).id
    (copy / "README.md").write_text("other words")
    assert model(copy).id == model(folder).id
    tiny_llm.write(copy, seed=1, padding=7)
    assert model(copy).id != model(folder).id


def test_without_a_chat_template_a_plain_transcript_is_written(tmp_path):
    folder = tiny_llm.write(tmp_path / "base", chat="", card="no header")
    one = model(folder, max_tokens=20)
    one.reply(ASKED)
    assert one.card["template"].startswith("plain transcript") and one.card["licence"] == ""
    assert one._tokenizer.decode(one._encode(ASKED)[0]) == "System: be brief\n\nUser: list birds\n\nAssistant:"
    assert json.loads(model(folder, temperature=1.3).reply(ASKED, Birds))["birds"]


def test_a_transcript_ends_where_the_model_invents_the_other_side(tmp_path, monkeypatch):
    one = model(tiny_llm.write(tmp_path / "base", chat=""))
    one._load()
    said = one._tokenizer("sparrow\nUser: and fish?", return_tensors="pt")["input_ids"]
    monkeypatch.setattr(one._model, "generate", lambda tokens, **_: torch.cat([tokens, said], 1))
    assert one.reply(ASKED) == "sparrow"


def test_a_template_that_knows_no_system_message(tmp_path):
    chat = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny_llm.CHAT
    one = model(tiny_llm.write(tmp_path / "gem", chat=chat), max_tokens=20)
    one.reply(ASKED)
    decoded = one._tokenizer.decode(one._encode(ASKED)[0])
    assert decoded == "<|start|>user\nbe brief\n\nlist birds<|end|>\n<|start|>assistant\n"


def test_a_template_that_refuses_the_question(tmp_path):
    one = model(tiny_llm.write(tmp_path / "strict", chat="{{ raise_exception('never') }}"))
    with pytest.raises(UserError, match="chat template of local:strict@.* refuses the question: never"):
        one.reply(ASKED)


@pytest.mark.parametrize("card", ["---\n- 1\n---\n", "---\n: [\n---\n", "---\nlicense: 3\n", ""])
def test_a_broken_model_card_has_no_licence(tmp_path, card):
    from cilkit.realms.local import _licence

    (tmp_path / "README.md").write_text(card)
    assert _licence(str(tmp_path), "") == ""


def test_what_does_not_fit_the_context_is_said_and_room_is_what_is_left(tmp_path):
    folder = tiny_llm.write(tmp_path / "short", context=100)
    one = model(folder)
    with pytest.raises(UserError, match="the question has 3.. tokens and local:short@.* has a context of 100"):
        one.reply([{"role": "user", "content": "a" * 300}])
    used = one._encode(ASKED).shape[1]
    one.reply(ASKED)
    assert one._room(used) == 100 - used


def test_an_answer_without_a_word_is_no_reply(warm, monkeypatch):
    end = torch.tensor([[warm._ends[0]]])
    monkeypatch.setattr(warm._model, "generate", lambda tokens, **_: torch.cat([tokens, end], 1))
    with pytest.raises(NoReply, match="answered with no text to 'list birds'"):
        warm.reply(ASKED)


def test_a_hub_name_is_its_commit_in_the_cache(folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    store = tmp_path / "models--lab--tiny"
    shutil.copytree(folder, store / "snapshots" / commit)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one = model("lab/tiny", temperature=1.3)
    assert one.id == f"local:lab/tiny@{commit[:16]}"
    assert one.reply(ASKED, Birds) == model(folder, temperature=1.3).reply(ASKED, Birds)
    assert one.card["revision"] == commit and one.card["licence"] == "mit"
    with pytest.raises(UserError, match="'lab/other' .newest. is neither a folder nor to be had"):
        model("lab/other")
    with pytest.raises(UserError, match="'lab/tiny' .v9. is neither"):
        model("lab/tiny", revision="v9")


def test_a_device_that_is_not_there_is_one_sentence(folder):
    with pytest.raises(UserError, match="cannot be loaded on 'gpu' .*expected a device that is there"):
        model(folder, device="gpu").reply(ASKED)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nothing"}'), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    ],
)
def test_broken_models_are_one_sentence(folder, tmp_path, break_it, sentence):
    copy = shutil.copytree(folder, tmp_path / "tiny")
    break_it(copy)
    with pytest.raises(UserError, match=sentence):
        model(copy).reply(ASKED)


@pytest.mark.parametrize(
    ("options", "sentence"), [({"revision": "main"}, "no revisions"), ({"dtype": "float7"}, "cannot be loaded")]
)
def test_options_that_no_folder_takes(folder, options, sentence):
    with pytest.raises(UserError, match=sentence):
        model(folder, **options).reply(ASKED)


def test_without_the_extra_plain_text_works_and_json_names_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "outlines", None)
    one = model(folder, max_tokens=10)
    assert one.reply(ASKED)
    with pytest.raises(UserError, match=r'outlines .* is not installed.* pip install -e "\.\[llm\]"'):
        one.reply(ASKED, Birds)


def test_nothing_is_ever_unpickled(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "tiny")
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        model(copy).reply(ASKED)
