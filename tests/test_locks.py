"""Claims: one holder at a time, a dead one is replaced, and one that was taken for dead learns of it."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cilkit import locks
from cilkit.errors import UserError
from cilkit.locks import claim

RACE = """
import sys, time
from pathlib import Path
from cilkit.errors import UserError
from cilkit.locks import claim
folder, begin, number = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
while time.time() < begin:
    pass
won = [(k, held) for k in range(number) if (held := claim(folder / f"{k}")) is not None]
print("done", flush=True)
sys.stdin.readline()
print(*(k for k, held in won if held.still_ours()))
"""
HOLD = """
import sys, time
from cilkit import locks
held = locks.claim(sys.argv[1])
print(held is not None, flush=True)
for line in sys.stdin:
    print(held.still_ours(), flush=True)
"""


def start(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def holder_of(path):
    return json.loads(path.read_text())["token"]


def racing(folder, number=200, processes=3):
    """What processes that claim the same files at the same time still hold when all are done."""
    begin = time.time() + 1.0
    racers = [start(RACE, folder, begin, number) for _ in range(processes)]
    assert [racer.stdout.readline() for racer in racers] == ["done\n"] * processes
    return sorted(int(k) for racer in racers for k in racer.communicate("\n")[0].split())


def test_of_processes_that_race_one_wins_each(tmp_path):
    assert racing(tmp_path) == list(range(200))


def test_of_processes_that_race_for_a_dead_holder_s_claims_one_wins_each(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for k in range(200):
        who = {"host": locks._host(), "pid": dead.pid, "pid_started": "1", "token": f"dead {k}"}
        (tmp_path / f"{k}").write_text(json.dumps(who))
    assert racing(tmp_path) == list(range(200))
    assert not list(tmp_path.glob(".*"))


def test_a_process_killed_while_it_removed_a_dead_claim_is_in_nobody_s_way(tmp_path):
    gone = {"host": locks._host(), "pid": 2**22 + 1, "pid_started": "1", "token": "gone"}
    for name in ("shard", ".shard.guard"):
        (tmp_path / name).write_text(json.dumps(gone))
    assert claim(tmp_path / "shard") is None  # this look only clears the way
    assert claim(tmp_path / "shard") is not None and [path.name for path in tmp_path.iterdir()] == ["shard"]


def test_of_threads_that_race_one_wins(tmp_path):
    ready, held = threading.Barrier(8), []

    def race():
        ready.wait()
        held.append(claim(tmp_path / "shard"))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [one for one in held if one]
    assert winner.still_ours() and claim(tmp_path / "shard") is None
    winner.release()
    assert not winner.still_ours() and not list(tmp_path.iterdir())


def test_a_holder_that_was_killed_is_replaced_and_one_that_is_frozen_is_not(tmp_path):
    path = tmp_path / "00007"
    holder = start(HOLD, path)
    assert holder.stdout.readline() == "True\n"
    holder.send_signal(signal.SIGSTOP)
    assert claim(path) is None  # alive on this machine, however long it is silent
    holder.kill()
    holder.wait()
    with claim(path) as held:
        assert held.still_ours()
    assert not path.exists()


def test_a_silent_holder_that_comes_back_publishes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "00007"
    elsewhere = HOLD.replace("held =", "locks._host = lambda: 'elsewhere'; locks.HEARTBEAT = 0.05; held =")
    holder = start(elsewhere, path)
    assert holder.stdout.readline() == "True\n"
    monkeypatch.setattr(locks, "SILENCE", 0.5)
    time.sleep(0.8)
    assert claim(path) is None  # it gives signs of life
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.8)
    held = claim(path)
    holder.send_signal(signal.SIGCONT)
    assert held is not None
    assert holder.communicate("?\n")[0] == "False\n"
    assert held.still_ours() and holder_of(path) == held._token  # nor does its end take it from the new holder


def test_release_of_what_was_taken_over_leaves_it_to_the_new_holder(tmp_path):
    held = claim(tmp_path / "shard")
    (tmp_path / "shard").write_text(json.dumps({"host": "elsewhere", "pid": 1, "pid_started": "1", "token": "thief"}))
    held.release()
    assert holder_of(tmp_path / "shard") == "thief"


def test_an_error_releases(tmp_path):
    with pytest.raises(RuntimeError), claim(tmp_path / "shard"):
        raise RuntimeError
    assert claim(tmp_path / "shard") is not None


def test_clocks_of_two_machines_may_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_host", lambda: "elsewhere")
    held = claim(tmp_path / "shard")
    monkeypatch.undo()
    monkeypatch.setattr(time, "time", lambda: os.stat(tmp_path).st_mtime + 3600)
    assert claim(tmp_path / "shard") is None and held.still_ours()


def test_a_claim_cut_off_in_its_writing_is_taken_over_after_a_silence(tmp_path, monkeypatch):
    (tmp_path / "shard").touch()
    assert claim(tmp_path / "shard") is None
    monkeypatch.setattr(locks, "SILENCE", -1.0)
    assert claim(tmp_path / "shard").still_ours()


def test_a_file_system_that_does_not_answer_is_no_thief(tmp_path, monkeypatch):
    held = claim(tmp_path / "shard")

    def away(path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(Path, "read_text", away)
        held.still_ours()
    assert held.still_ours()


def test_a_full_disk_leaves_no_claim(tmp_path, monkeypatch):
    def full(who, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(json, "dump", full)
        claim(tmp_path / "shard")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "images").write_text("a file in the folder's place")
    sentence = r"images \(File exists\), so images/3f cannot be made; make room there"
    with pytest.raises(UserError, match=sentence), locks.sole_maker(tmp_path / "images" / "3f.lock", "images/3f"):
        pass
