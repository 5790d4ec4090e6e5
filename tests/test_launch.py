"""Several processes: the same training as one, and what the notebook reads when one of them fails."""

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from tiny import ARGS, VIT, image_set

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
    told = []
    alone, expected = one_process()
    assert expected["epochs"][0]["real_share"] == 0.2 and expected["train_images"] == 44  # 55 = 5 x 11 an epoch
    together, report = pretraining.pretrain(
        **data(), settings=SETTINGS, scratch=tmp_path, every=0.0, tell=lambda *x: told.append(x)
    )
    assert differences(alone, together) < 2e-6
    assert told[-1][:2] == (110, 110) and "epoch 2 of 2" in told[-1][2]
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


def started(folder, settings, images) -> list[int]:
    """The processes of a training, by number."""
    backbones.save(backbones.create(settings.arch, settings.seed_init, settings.model_args), folder / launch.START)
    job = {"settings": asdict(settings), "images": launch.describe(images, folder / "images"), "real": None}
    job |= {"device": "cpu", "scratch": str(folder), "every": 0.0, "threads": 1}
    artifacts.write_json(folder / launch.JOB, job)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [part(folder, number, port, settings.processes) for number in range(settings.processes)]


def trained_by_forks(folder, settings, images):
    for child in started(folder, settings, images):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return pretraining.pretrain(images, settings, processes=1, scratch=folder)


@pytest.mark.parametrize("changes", [{"processes": 3, "recipe": "digits"}, {"tune": "last_block"}])
def test_other_numbers_of_processes_and_frozen_parts(tmp_path, changes):
    """Batches of 15: 44 images leave a last one of 14, which three processes share unevenly."""
    settings = replace(SETTINGS, batch_size=15, real_share=0.0, **changes)
    images = data()["images"]
    alone, _ = pretraining.pretrain(images, settings, processes=1)
    together, _ = trained_by_forks(tmp_path, settings, images)
    assert differences(alone, together) < 2e-6


def test_all_killed_in_mid_epoch_end_in_the_same_bytes(tmp_path, monkeypatch):
    """A network with batch normalisation, whose running statistics the processes keep apart between two batches."""
    settings = replace(SETTINGS, arch="small_resnet", model_args=ARGS, real_share=0.0)
    images, write = data()["images"], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda trainer: (write(trainer), time.sleep(0.1)))
    whole, report = trained_by_forks(tmp_path / "whole", settings, images)
    folder = tmp_path / "killed"
    children, deadline = started(folder, settings, images), time.monotonic() + 60
    while not (folder / checkpoint.FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [-signal.SIGKILL] * 2
    resumed, again = trained_by_forks(folder, settings, images)
    assert again == report and differences(whole, resumed) == 0.0


def test_synchronised_normalisation_keeps_what_the_optimiser_holds():
    """What becomes of a network on GPUs; the synchronised layers themselves need some."""
    import timm.layers

    backbone = backbones.create(model_args=ARGS)
    before, names = dict(backbone.named_parameters()), list(backbone.state_dict())
    assert timm.layers.convert_sync_batchnorm(backbone) is backbone and list(backbone.state_dict()) == names
    assert all(before[name] is value for name, value in backbone.named_parameters())
    assert backbone.norms and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in backbone.norms)


def test_parts_cover_a_batch_also_where_it_is_smaller_than_the_crew():
    for n, size in ((11, 2), (1, 3), (0, 2), (64, 8)):
        parts = [Crew(r, size).rows(n) for r in range(size)]
        assert np.concatenate(parts).tolist() == list(range(n)) and np.ptp([len(p) for p in parts]) <= 1


def with_processes(monkeypatch, code: str, folder, **changes):
    """A training whose torchrun is this Python text; FOLDER is where it may write."""
    text = f"FOLDER = {str(folder / 'processes')!r}\n" + code
    monkeypatch.setattr(launch, "command", lambda processes, where: [sys.executable, "-c", text])
    return pretraining.pretrain(**data(), settings=SETTINGS, scratch=folder, **changes)


FAILED = """
import json, sys
for rank, (when, own, words) in enumerate({errors}):
    facts = {{"error": words, "when": when, "own": own}}
    open(f"{{FOLDER}}/error-{{rank}}.json", "w").write(json.dumps(facts))
print("[1]:\\n rank : 0 (local_rank: 0)\\n exitcode : -15 (pid: 7) (SIGTERM)", file=sys.stderr)
print("  rank      : {rank} (local_rank: 1)\\n  exitcode  : {status} (pid: 14460)", file=sys.stderr)
sys.exit(1)
"""
ECHO = (1.0, False, "failed in process 1 of 2 (RuntimeError: connection reset by peer)")
OWN = (2.0, True, "the pre-training loss is nan in epoch 1")


@pytest.mark.parametrize(
    ("errors", "status", "sentence"),
    [
        ([ECHO, OWN], 1, "^the pre-training loss is nan in epoch 1$"),
        ([ECHO], -9, "process 2 of 2 was killed, perhaps for lack of memory; what was finished is kept"),
        ([ECHO], 1, r"^failed in process 1 of 2 \(RuntimeError"),
        ([], 1, "pre-training stopped: torchrun ended; what was finished is kept"),
    ],
)
def test_a_failed_process_is_one_sentence(monkeypatch, tmp_path, errors, status, sentence):
    """Of several errors the one that was the cause: when a process ends, the others fail for want of it."""
    with pytest.raises(UserError, match=sentence):
        with_processes(monkeypatch, FAILED.format(errors=errors, rank=1, status=status), tmp_path)
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
    assert rank.describe(UserError("say this"), 0, 2) == {"error": "say this", "own": True}
    full = OSError(28, "No space left on device")
    assert rank.describe(full, 0, 2)["errno"] == 28
    memory = rank.describe(RuntimeError("CUDA out of memory. Tried\nto"), 1, 4)
    assert memory["error"].startswith("pre-training failed in process 2 of 4 (RuntimeError: CUDA out of memory. Tried)")
    assert memory["error"].endswith("lower batch_size") and memory["own"]
    assert not rank.describe(RuntimeError("connection closed by peer"), 1, 4)["own"]
    (tmp_path / "error-0.json").write_text(json.dumps({"error": "full", "own": True, "errno": 28, "when": 1}))
    assert launch.failure(tmp_path, 2).errno == 28


def test_gpus_are_asked_for_one_a_process(monkeypatch):
    with pytest.raises(UserError, match="processes is 2, but torch sees 0 GPUs"):
        launch.demand_devices(2, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    launch.demand_devices(4, torch.device("cuda"))
    with pytest.raises(UserError, match="names one GPU"):
        launch.demand_devices(2, torch.device("cuda:1"))


def test_on_gpus_a_process_takes_its_own_and_they_speak_nccl(tmp_path, monkeypatch):
    """As far as it goes without one."""
    said = []

    def begin(*arguments, **named):
        said.append((arguments, named))
        raise UserError("far enough")

    monkeypatch.setattr(torch.cuda, "set_device", said.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", begin)
    monkeypatch.setenv("LOCAL_RANK", "1")
    artifacts.write_json(tmp_path / launch.JOB, {"device": "cuda", "threads": torch.get_num_threads()})
    with pytest.raises(UserError, match="far enough"):
        rank.run(tmp_path, 1, 2)
    assert said == [torch.device("cuda", 1), (("nccl",), {"rank": 1, "world_size": 2})]
    run = launch.command(4, tmp_path)
    assert "--nproc-per-node=4" in run and run[-2:] == ["cilkit.pretraining.rank", str(tmp_path)]


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
