"""Folders as streams of bytes: every byte arrives, is checked and stays in its folder; what is cut off goes on."""

import json

import pytest

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.workbook import transfer
from cilkit.workbook.transfer import put_in_place, read_by, receive, receive_artifact, send


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(transfer, "PIECE", 7)


@pytest.fixture
def root(monkeypatch, tmp_path):
    """`root(name)` makes that artifacts folder the one that is used from now on."""

    def use(name):
        monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / name))
        return tmp_path / name

    use("home")
    return use


def made(stage, inputs=None, **files):
    def make(work):
        for name, text in files.items():
            artifacts.atomic_write(work.path / name.replace("__", "/"), text)

    return artifacts.obtain(stage, 1, {"name": stage}, inputs or {}, make)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def asks(folder, sent=None, change=list):
    """An `ask` for the stream of a folder; what it sends is noted in `sent`, after `change`."""

    def ask(have):
        for piece in change(list(send(folder, have))):
            if sent is not None:
                sent.append(piece)
            yield piece

    return ask


def test_a_folder_arrives_as_it_is_and_nothing_is_sent_twice(tmp_path):
    there, here, sent = tmp_path / "there", tmp_path / "here", []
    for name, content in {"a": b"x" * 20, "deep/er/b": bytes(range(256)), "empty": b"", "ü {1}": b"\n"}.items():
        artifacts.atomic_write(there / name, content)
    receive(here, asks(there, sent))
    assert tree(here) == tree(there)
    assert max(map(len, sent[1:])) == 7 and b"".join(sent[1:]) == b"x" * 20 + bytes(range(256)) + b"\n"
    sent.clear()
    (here / "a").write_bytes(b"x" * 19 + b"y")
    (here / "more").write_text("of an earlier attempt")
    receive(here, asks(there, sent))
    assert b"".join(sent[1:]) == b"x" * 20 and tree(here) == tree(there)


def test_an_artifact_arrives_with_its_cards_under_its_name_once(root):
    one = made("images", a="first", b__c="second")
    folder, sent = one.path, []
    root("node")
    came = receive_artifact(one.name, one.digest, asks(folder, sent))
    assert came.path != folder and tree(came.path) == tree(folder)
    assert (came.name, came.digest, came.key) == (one.name, one.digest, one.key) and not artifacts.verify(came)
    sent.clear()
    assert receive_artifact(one.name, one.digest, asks(folder, sent)) == came and not sent
    assert {path.name for path in came.path.parent.iterdir()} == {came.path.name}


def flipped(pieces):
    return [*pieces[:2], bytes([pieces[2][0] ^ 1]) + pieces[2][1:], *pieces[3:]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (flipped, r"a did not arrive as it was sent"),
        (lambda pieces: pieces[:2], r"cut off, 23 bytes of a are missing"),
        (lambda pieces: pieces[:-1], r"cut off, . bytes of measured.json are missing"),
        (lambda pieces: [], r"ended before its list of files"),
        (lambda pieces: [pieces[0][:-9]], r"ended before its list of files"),
        (lambda pieces: [*pieces, b"x"], r"more bytes than it lists"),
        (lambda pieces: [pieces[0], b"".join(pieces[1:])], r"a did not arrive as it was sent"),
    ],
)
def test_a_broken_stream_leaves_a_part_that_the_next_attempt_goes_on_from(root, change, sentence):
    one = made("images", a="0123456789" * 3, b="second")
    root("node")
    with pytest.raises(UserError, match=sentence):
        receive_artifact(one.name, one.digest, asks(one.path, change=change))
    stage = artifacts.root() / "images"
    assert all(path.suffix == ".part" for path in stage.iterdir()) and not list(artifacts.all_artifacts())
    assert not list(stage.rglob("*.tmp"))
    whole, sent = [path.name for path in stage.glob("*.part/*")], []
    came = receive_artifact(one.name, one.digest, asks(one.path, sent))
    assert tree(came.path) == tree(one.path) and [path.suffix for path in stage.iterdir()] == [""]
    assert (b"0123456" in sent) == ("a" not in whole)


def test_what_a_card_says_is_not_believed(root):
    one, other = made("images", a="first"), made("backbone", a="other")
    root("node")
    for name, digest in [(one.name, other.digest), (one.name.replace("images", "backbone"), one.digest)]:
        with pytest.raises(UserError, match="arrived with another content than"):
            receive_artifact(name, digest, asks(one.path))
    card = json.loads((one.path / "artifact.json").read_text())
    (one.path / "a").write_text("wrong")
    card["files"][0] |= {"sha256": artifacts.sha256_of(one.path / "a")}
    artifacts.write_json(one.path / "artifact.json", card)
    with pytest.raises(UserError, match="arrived with another content than"):
        receive_artifact(one.name, one.digest, asks(one.path))
    assert not list(artifacts.root().glob("*/*"))


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/../../b", "a\\b", "C:a", "", ".", "a//b", "./a", "a\0"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    listed = json.dumps([{"path": name, "sha256": "0" * 64, "bytes": 1}]).encode()
    with pytest.raises(UserError, match="may lie outside of its folder; it was refused"):
        receive(tmp_path / "here", lambda have: [listed, b"x"])
    assert list(tmp_path.iterdir()) == [tmp_path / "here"] and not tree(tmp_path)


@pytest.mark.parametrize("name", ["images", "images/abc", "../images/" + "0" * 16, "images/..", "a b/" + "0" * 16])
def test_only_names_of_artifacts_are_fetched(root, name):
    with pytest.raises(UserError, match="cannot be fetched"):
        receive_artifact(name, "0" * 64, lambda have: [])


def test_another_payload_with_the_same_key_stands_beside_the_first(root):
    one = made("images", a="on this GPU")
    root("node")
    other = made("images", a="on that GPU")
    root("home")
    came = receive_artifact(other.name, other.digest, asks(other.path))
    assert one.key == other.key and came.name == f"{one.name}~{other.digest[:16]}"
    assert artifacts.open_artifact(one.name).digest == one.digest


def test_a_job_reads_what_its_book_lists_and_what_that_was_made_from(root, tmp_path):
    realm = made("realm", a="1")
    images = made("images", {"realm": realm}, a="2")
    backbone = made("backbone", {"images": images}, a="3")
    made("run", {"backbone": backbone}, a="4")
    listed = [{"name": one.name, "digest": one.digest} for one in (backbone, images)] + [{"name": "run/gone"}]
    book = artifacts.write_json(tmp_path / "book.json", {"artifacts": listed})
    assert list(read_by(book).items()) == [(one.name, one.digest) for one in (realm, images, backbone)]
    assert read_by(tmp_path / "none.json") == {}


def test_a_jobs_files_replace_those_of_an_earlier_attempt(tmp_path):
    part, output = tmp_path / "04-ab.part", tmp_path / "04-ab.ipynb"
    artifacts.atomic_write(tmp_path / "04-ab" / "old.png", "old")
    for name in ("04-ab.ipynb", "04-ab.log", "04-ab.status.json", "04-abc.log"):
        artifacts.atomic_write(tmp_path / name, "old")
    artifacts.atomic_write(part / "04-ab.ipynb", "new")
    artifacts.atomic_write(part / "04-ab.status.json", "new")
    artifacts.atomic_write(part / "04-ab" / "book.json", '{"name": "run/0a"}')
    put_in_place(part, output, {"run/0a": "run/0a~1b"})
    assert tree(tmp_path) == {
        "04-ab.ipynb": b"new",
        "04-ab.status.json": b"new",
        "04-ab/book.json": b'{"name": "run/0a~1b"}',
        "04-abc.log": b"old",
    }
