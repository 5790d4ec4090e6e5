"""Artifacts: what identifies them, that they are whole or absent, and that two makers never meet."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pandas as pd
import pytest

from cilkit import artifacts, locks
from cilkit.errors import Stopped, UserError


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def write_text(text="hello"):
    return lambda work: artifacts.atomic_write(work.path / "text.txt", text)


def make(stage="images", version=1, identity=None, inputs=None, text="hello", **rest):
    return artifacts.obtain(
        stage, version, {"n": 1} if identity is None else identity, inputs or {}, write_text(text), **rest
    )


def test_key_is_the_documented_hash_and_reads_no_execution_parameter():
    first = make(execution={"device": "cpu"})
    assert first.key == artifacts.key_of("images", 1, {"n": 1}, {})
    assert make(execution={"device": "cuda"}).path == first.path
    assert first.measured["execution"] == {"device": "cpu"}


@pytest.mark.parametrize("change", [{"version": 2}, {"identity": {"n": 2}}, {"stage": "realm"}])
def test_every_part_of_the_identity_changes_the_key(change):
    assert make().key != make(**change).key


def test_the_key_depends_on_the_digest_of_an_input_not_on_its_key():
    one = make(stage="realm", text="a")
    other = artifacts.correct(one, lambda folder: (folder / "text.txt").write_text("corrected"))
    assert one.key == other.key and one.digest != other.digest
    assert artifacts.key_of("images", 1, {}, {"realm": one}) != artifacts.key_of("images", 1, {}, {"realm": other})


def test_found_is_not_made_again():
    make()
    again = artifacts.obtain("images", 1, {"n": 1}, {}, lambda work: pytest.fail("made again"))
    assert again.file("text.txt").read_text() == "hello"


def test_identity_is_ordered_and_numpy_scalars_count_as_numbers():
    assert make(identity={"a": 1, "b": 0.5}).key == make(identity={"b": np.float64(0.5), "a": np.int64(1)}).key
    with pytest.raises(UserError, match="cannot identify"):
        make(identity={"x": object()})
    with pytest.raises(UserError, match="cannot identify"):
        make(identity={"x": float("nan")})


def test_a_sibling_stands_beside_and_the_first_stays():
    first = make(text="one")
    second = make(text="two", again=True)
    assert second.key == first.key and second.path != first.path
    assert make().digest == first.digest  # the first is what the key finds
    assert artifacts.find("images", first.key, second.digest).file("text.txt").read_text() == "two"
    assert make(text="two", again=True).path == second.path  # an equal payload is dropped
    assert artifacts.open_artifact(second.name).digest == second.digest
    assert artifacts.open_artifact(first.path).digest == first.digest


def test_payload_alone_decides_the_digest(own_root):
    def maker(work):
        work.measure(seconds_painting=time.time())
        (work.scratch / "checkpoint").write_text(str(time.time()))
        artifacts.atomic_write(work.path / "text.txt", "hello")

    one = artifacts.obtain("images", 1, {"n": 1}, {}, maker)
    two = artifacts.obtain("images", 1, {"n": 2}, {}, maker)
    assert one.digest == two.digest
    assert not (one.path / "scratch").exists() and one.measured["attempts"] == 1


def test_interrupted_work_is_kept_and_gone_on_from(own_root):
    seen = []

    def maker(work):
        seen.append(sorted(p.name for p in work.path.glob("*.txt")))
        artifacts.atomic_write(work.path / "first.txt", "1")
        if len(seen) == 1:
            (work.path / ".torn.txt.1.tmp").write_text("half")
            raise KeyboardInterrupt
        artifacts.atomic_write(work.path / "second.txt", "2")

    with pytest.raises(Stopped, match="run again to go on"):
        artifacts.obtain("images", 1, {}, {}, maker)
    assert artifacts.find("images", artifacts.key_of("images", 1, {}, {})) is None
    done = artifacts.obtain("images", 1, {}, {}, maker)
    assert seen == [[], ["first.txt"]]
    assert [f["path"] for f in done.files] == ["first.txt", "second.txt"] and done.measured["attempts"] == 2


def test_a_full_disk_is_one_sentence_and_resumable(monkeypatch):
    def full(work):
        artifacts.atomic_write(work.path / "first.txt", "1")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="is full while making images/.*free some space and run again"):
        artifacts.obtain("images", 1, {}, {}, full)
    resumed = artifacts.obtain("images", 1, {}, {}, lambda work: artifacts.atomic_write(work.path / "b.txt", "2"))
    assert {f["path"] for f in resumed.files} == {"first.txt", "b.txt"}


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = artifacts.atomic_write(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        artifacts.atomic_write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_truncated_missing_and_changed_files_are_named():
    done = make(text="hello world")
    done.file("text.txt").write_text("HELLO WORLD")
    assert artifacts.verify(done) == [f"{done.name}: text.txt was changed after it was written"]
    done.file("text.txt").write_text("hello")
    with pytest.raises(UserError, match=r"text.txt has 5 bytes, 11 bytes were written"):
        make()
    (done.path / "text.txt").unlink()
    with pytest.raises(UserError, match=r"text.txt is missing"):
        make()


def test_broken_card_names_the_folder_to_delete():
    done = make()
    (done.path / "artifact.json").write_text("{")
    with pytest.raises(UserError, match="delete the folder"):
        make()


def test_open_artifact_refuses_unknown_and_ambiguous_names():
    a, b = make(identity={"n": 1}), make(identity={"n": 2})
    assert artifacts.open_artifact(f"images/{a.key[:10]}").key == a.key
    with pytest.raises(UserError, match="no artifact"):
        artifacts.open_artifact("images/zzz")
    common = os.path.commonprefix([a.path.name, b.path.name])
    with pytest.raises(UserError, match="no artifact|ambiguous"):
        artifacts.open_artifact(f"images/{common}")
    assert {x.key for x in artifacts.all_artifacts()} == {a.key, b.key}


def test_equal_tables_give_equal_bytes(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    one = artifacts.write_parquet(tmp_path / "1.parquet", table)
    two = artifacts.write_parquet(tmp_path / "2.parquet", table.copy())
    assert one.read_bytes() == two.read_bytes() and pd.read_parquet(one).equals(table)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(np.load(artifacts.save_npy(tmp_path / "a.npy", array), allow_pickle=False), array)


def test_an_empty_payload_is_refused():
    with pytest.raises(UserError, match="would be empty"):
        artifacts.obtain("images", 1, {}, {}, lambda work: None)


# ---------------------------------------------------------------- two processes


def test_a_second_asker_waits_and_does_not_make():
    made, results = [], []

    def maker(work):
        made.append(1)
        time.sleep(0.6)
        artifacts.atomic_write(work.path / "text.txt", "x")

    def ask():
        results.append(artifacts.obtain("images", 1, {}, {}, maker).digest)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(made) == 1 and len(set(results)) == 1 and len(results) == 3


MAKER = """
import sys, time
from cilkit import artifacts
def maker(work):
    artifacts.atomic_write(work.path / "first.txt", "1")
    print("making", flush=True)
    time.sleep({seconds})
    artifacts.atomic_write(work.path / "second.txt", "2")
print(artifacts.obtain("images", 1, {{}}, {{}}, maker).digest, flush=True)
"""


def start(seconds):
    code = textwrap.dedent(MAKER.format(seconds=seconds))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_the_waiting_process_takes_over_when_the_maker_is_killed(capfd):
    victim = start(60)
    assert victim.stdout.readline() == "making\n"
    waiting = start(0)
    assert "waiting for another process" in waiting.stdout.readline()
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    rest = waiting.stdout.read().split()
    assert rest[0] == "making" and waiting.wait() == 0

    def undisturbed(work):
        artifacts.atomic_write(work.path / "first.txt", "1")
        artifacts.atomic_write(work.path / "second.txt", "2")

    assert rest[1] == artifacts.obtain("other", 1, {}, {}, undisturbed).digest


def test_a_silent_maker_on_another_machine_loses_its_lock_but_a_beating_one_does_not(tmp_path):
    lock = tmp_path / "x.lock"
    claim = {"host": "elsewhere", "pid": 1, "pid_started": "1", "token": "t"}
    lock.write_text(json.dumps(claim))
    assert not locks._is_dead(lock)
    old = time.time() - locks.SILENCE - 1
    os.utime(lock, (old, old))
    assert locks._is_dead(lock)


def test_a_maker_that_lost_its_lock_does_not_publish(own_root):
    def robbed(work):
        artifacts.atomic_write(work.path / "a.txt", "1")
        lock = next((own_root / "images").glob("*.lock"))
        lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "pid_started": "1", "token": "thief"}))

    with pytest.raises(UserError, match="another process took over"):
        artifacts.obtain("images", 1, {}, {}, robbed)
    assert artifacts.find("images", artifacts.key_of("images", 1, {}, {})) is None


def test_no_place_for_artifacts_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("CILKIT_ARTIFACTS")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(artifacts, "__file__", str(tmp_path / "site-packages" / "cilkit" / "artifacts.py"))
    with pytest.raises(UserError, match="set CILKIT_ARTIFACTS"):
        artifacts.root()
