"""Several processes: the same training as one, and what the notebook reads when one of them fails."""

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from tiny import VIT, image_set

from cilkit import artifacts, backbones, pretraining
from cilkit.errors import UserError
from cilkit.pretraining import checkpoint, launch, rank
from cilkit.pretraining.crew import Crew

SETTINGS = pretraining.Settings(
    arch="vit_tiny_patch16_224", model_args=VIT, epochs=2, batch_size=11, held_out=0.25, recipe="pretrain", lr=0.05,
    optimiser="sgd", processes=2, real_share=0.2,
)  # fmt: skip


def data():
    return {"images": image_set(classes=4, per_class=15), "real": image_set(classes=3, per_class=8, seed=1)}


def one_process(**changes):
    return pretraining.pretrain(**data(), settings=SETTINGS, processes=1, **changes)


def differences(one, other) -> float:
    states = one.state_dict(), other.state_dict()
    return max(float((states[0][name] - value).abs().max()) for name, value in states[1].items())


def test_two_processes_under_torchrun_are_one(tmp_path):
    """The same images, the same augmentations, gradients over the whole batch; batches of 11, 11 … 1 leave one idle."""
    moments, told = [], []
    alone, expected = one_process()
    assert expected["epochs"][0]["real_share"] == 0.2 and expected["train_images"] == 44  # 55 = 5 x 11 an epoch
    together, report = pretraining.pretrain(
        **data(), settings=SETTINGS, scratch=tmp_path, every=0.0, log=moments.append, tell=lambda *x: told.append(x)
    )
    assert differences(alone, together) < 2e-6
    assert [m.epoch for m in moments] == [0, 1] and told[-1][:2] == (110, 110) and "epoch 2 of 2" in told[-1][2]
    for one, other in zip(report["epochs"], expected["epochs"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6) and one["accuracy"] == other["accuracy"]
    assert report["forwarded"] == expected["forwarded"]


def part(folder, number: int, port: int, size: int = 2):
    """One rank in a forked process: torch is there already."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(number), "WORLD_SIZE": str(size)}
    status = 1
    try:
        rank.run(folder, number, size)
        status = 0
    finally:
        os._exit(status)


def trained_by_forks(folder, settings, images):
    network = backbones.create(settings.arch, settings.seed_init, settings.model_args)
    backbones.save(network, folder / launch.START)
    job = {
        "settings": asdict(settings), "images": launch.describe(images, folder / "images"),
        "real": None, "device": "cpu", "scratch": str(folder), "every": 0.0,
        "threads": 1,
    }  # fmt: skip
    artifacts.write_json(folder / launch.JOB, job)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [part(folder, number, port, settings.processes) for number in range(settings.processes)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * settings.processes
    return pretraining.pretrain(images, settings, processes=1, scratch=folder)


@pytest.mark.parametrize("changes", [{"processes": 3, "recipe": "digits"}, {"tune": "last_block"}])
def test_other_numbers_of_processes_and_frozen_parts(tmp_path, changes):
    """Batches of 15: 44 images leave a last one of 14, which three processes share unevenly."""
    from dataclasses import replace

    settings = replace(SETTINGS, batch_size=15, real_share=0.0, **changes)
    images = data()["images"]
    alone, _ = pretraining.pretrain(images, settings, processes=1)
    together, _ = trained_by_forks(tmp_path, settings, images)
    assert differences(alone, together) < 2e-6


def test_parts_cover_a_batch_also_where_it_is_smaller_than_the_crew():
    for n, size in ((11, 2), (1, 3), (0, 2), (64, 8)):
        parts = [Crew(r, size).rows(n) for r in range(size)]
        assert np.concatenate(parts).tolist() == list(range(n)) and np.ptp([len(p) for p in parts]) <= 1


def with_processes(monkeypatch, code: str, folder, **changes):
    """A training whose torchrun is this Python text; FOLDER is where it may write."""
    text = f"FOLDER = {str(folder / 'processes')!r}\n" + code
    monkeypatch.setattr(launch, "command", lambda processes, where: [sys.executable, "-c", text])
    return pretraining.pretrain(**data(), settings=SETTINGS, scratch=folder, **changes)


ERROR = """
import json, sys
for rank, when, words in ((0, 2.0, "connection closed by peer"), (1, 1.0, "the pre-training loss is nan in epoch 1")):
    open(f"{FOLDER}/error-{rank}.json", "w").write(json.dumps({"error": words, "when": when}))
sys.exit(1)
"""
KILLED = """
import sys
print("[1]:\\n rank : 0 (local_rank: 0)\\n exitcode : 1 (pid: 7)", file=sys.stderr)
print("Root Cause (first observed failure):\\n[0]:\\n time : 1\\n host : x", file=sys.stderr)
print("  rank      : 1 (local_rank: 1)\\n  exitcode  : -9 (pid: 14460)  (SIGKILL)", file=sys.stderr)
sys.exit(1)
"""


def test_a_failed_process_is_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="^the pre-training loss is nan in epoch 1$"):  # the first, not its echo
        with_processes(monkeypatch, ERROR, tmp_path)
    with pytest.raises(UserError, match="process 2 of 2 was killed, perhaps for lack of memory; what was finished is"):
        with_processes(monkeypatch, KILLED, tmp_path)
    assert not (tmp_path / checkpoint.FILE).exists()


def test_an_interrupt_ends_the_processes(monkeypatch, tmp_path):
    """They read from the pipe that this process holds: it closes when we are interrupted, or killed."""
    code = 'import os; os.write(1, b"1\\n"); os.read(0, 1); open(FOLDER + "/left", "w").close()'
    main = threading.main_thread().ident
    timer = threading.Timer(0.7, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        with_processes(monkeypatch, code, tmp_path)
    assert (tmp_path / "processes" / "left").exists() and time.monotonic() - began < 10


def test_errors_of_a_process_become_its_answer(tmp_path, monkeypatch):
    assert rank.describe(UserError("say this"), 0, 2) == {"error": "say this"}
    full = OSError(28, "No space left on device")
    assert rank.describe(full, 0, 2)["errno"] == 28
    memory = rank.describe(RuntimeError("CUDA out of memory. Tried\nto"), 1, 4)["error"]
    assert memory.startswith("pre-training failed in process 2 of 4 (RuntimeError: CUDA out of memory. Tried)")
    assert memory.endswith("lower batch_size")
    (tmp_path / "error-0.json").write_text(json.dumps({"error": "full", "errno": 28, "when": 1}))
    assert launch.failure(tmp_path, 2).errno == 28


def test_gpus_are_asked_for_one_a_process(monkeypatch):
    with pytest.raises(UserError, match="processes is 2, but torch sees 0 GPUs"):
        launch.demand_devices(2, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    launch.demand_devices(4, torch.device("cuda"))
    with pytest.raises(UserError, match="names one GPU"):
        launch.demand_devices(2, torch.device("cuda:1"))


def test_a_set_is_opened_elsewhere_as_it_was(tmp_path):
    from cilkit.data import shards

    images = image_set(classes=4, per_class=3)
    names, labels = images.class_names, images.labels.tolist()
    rows = [{"image_id": f"i{i}", "class_id": y, "class_name": names[y]} for i, y in enumerate(labels)]
    writer = shards.ShardWriter(tmp_path / "set")
    for image, row in zip(images.images(), rows, strict=True):
        writer.add(image, row)
    writer.close()
    on_disk = shards.open_set(tmp_path / "set").select(np.array([7, 2, 5]))
    for one in (images.select(np.array([7, 2, 5])), on_disk):
        again = launch.reopen(json.loads(json.dumps(launch.describe(one, tmp_path / "beside"))))
        assert np.array_equal(again.images(), one.images()) and np.array_equal(again.labels, one.labels)
        assert again.class_names == one.class_names
    assert launch.describe(on_disk, tmp_path / "x")["folder"] and launch.reopen(None) is None
