"""Secrets of the environment are found however they are written, and ordinary texts are left alone."""

import html
import json
import os
import random
from urllib.parse import quote

import pytest

from cilkit import artifacts
from cilkit.hiding import Sieve, hidden, secret_in

KEY = "sk-proj-4fJ_x8Qz0<&\"'>Lm2vR7/tYb+Nw5é"
ENVIRONMENT = {"OPENAI_API_KEY": KEY, "HF_TOKEN": "hf_aBcDeFgHiJkLmNoP", "PATH": "/usr/bin:/bin"}
MARK = "[OPENAI_API_KEY hidden]"


@pytest.mark.parametrize(
    "written",
    [
        str,
        repr,
        html.escape,
        quote,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: quote(text, safe=""),
        lambda text: text.replace('"', '""'),
        lambda text: text.replace("_", r"\_").replace("&", r"\&"),
        lambda text: text[:16] + "…",
    ],
)
def test_a_secret_is_found_however_it_is_written(written):
    text = f"before {written(KEY)} after"
    assert secret_in(text, ENVIRONMENT) == "OPENAI_API_KEY"
    marks = [MARK, f"'{MARK}'", f'"{MARK}"', MARK + "…"]
    assert hidden(text, ENVIRONMENT) in [f"before {mark} after" for mark in marks]


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "/wJalrXUtnFEMI/K7MDENG", True),  # no such path
        ("aws_session_token", "FwoGZXIvYXdzEBYaD", True),
        ("WANDB_APIKEY", "0123456789abcdef", True),
        ("DB_PASS", "correct-horse", True),
        ("MAIL_PASSWORD", "abcdefghijklmnop", True),
        ("GOOGLE_CREDENTIALS", '{"id": 1, "key": "xyz"}', True),
        ("HTTPS_PROXY", "http://me:hunter2-hunter2@proxy:80", True),
        ("TOKENIZERS_PARALLELISM", "false-or-true", False),  # nothing but a name that begins so
        ("MAX_TOKENS", "100000000", False),
        ("VLLM_API_KEY", "placeholder", False),
        ("MY_KEY", "short", False),
        ("SSL_KEY", os.path.abspath(__file__), False),
        ("PWD", "/somewhere/else", False),
        ("GIT_AUTHOR_NAME", "somebody else", False),
        ("HTTP_PROXY", "http://proxy.example:8080", False),
    ],
)
def test_what_counts_as_a_secret(name, value, secret):
    wanted = "hunter2-hunter2" if "me:" in value else value
    assert secret_in(f"<{wanted}>", {name: value}) == (name if secret else None)


def test_lists_and_dicts_are_searched_and_other_values_left():
    value = {"a": [1, None, "x" + KEY], KEY: ("y", 2.5)}
    assert hidden(value, ENVIRONMENT) == {"a": [1, None, "x" + MARK], MARK: ["y", 2.5]}
    assert hidden(b"\x00", ENVIRONMENT) == b"\x00" and hidden("nothing", {}) == "nothing"


def test_a_key_of_many_lines_is_hidden_line_by_line():
    lines = ["-----BEGIN PRIVATE KEY-----", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC", "-----END PRIVATE KEY-----"]
    shown = hidden("> " + "\n> ".join(lines), {"SIGNING_KEY": "\n".join(lines)})
    assert shown.count("[SIGNING_KEY hidden]") == 3 and not any(line in shown for line in lines)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_give_what_the_whole_gives(seed):
    draw = random.Random(seed)
    secrets = {"A_KEY": "abababab12", "B_KEY": "ababcdcdcdcdcdcdcdcdcdcdcd", "C_TOKEN": "cdabab1212"}
    words = [*secrets.values(), "ab", "cd", "1", "\n", "abab", secrets["B_KEY"][:17]]
    text = "".join(draw.choice(words) for _ in range(60))
    sieve, shown, place = Sieve(secrets), [], 0
    while place < len(text):
        size = draw.choice([1, 2, 3, 11, 40])
        shown.append(sieve.sift(text[place : place + size]))
        place += size
    assert "".join(shown) + sieve.rest() == hidden(text, secrets)


def test_what_cannot_become_a_secret_is_shown_at_once():
    sieve = Sieve(ENVIRONMENT)
    assert sieve.sift("epoch 1\n") == "epoch 1\n"
    assert (sieve.sift("tasks"), sieve.sift("k!"), sieve.rest()) == ("task", "sk!", "")
    assert (sieve.sift("hf_aB"), sieve.rest(), sieve.rest()) == ("", "hf_aB", "")


def test_written_texts_never_hold_a_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    artifacts.write_json(tmp_path / "a.json", {"answer": f"<{KEY}>", KEY: 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"answer": f"<{MARK}>", MARK: 1}
    artifacts.atomic_write(tmp_path / "a.csv", f'name,"{KEY.replace(chr(34), chr(34) * 2)}"\n')
    assert (tmp_path / "a.csv").read_text() == f'name,"{MARK}"\n'
