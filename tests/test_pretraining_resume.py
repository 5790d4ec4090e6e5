"""An interrupted pre-training ends in the same bytes, wherever in an epoch it was stopped or killed."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny import VIT, image_set

from cilkit import pretraining
from cilkit.errors import UserError
from cilkit.pretraining import checkpoint

SETTINGS = {
    "arch": "vit_tiny_patch16_224", "model_args": {**VIT, "drop_path_rate": 0.2, "proj_drop_rate": 0.1},
    "epochs": 2, "batch_size": 16, "held_out": 0.25, "recipe": "digits", "lr": 5e-3,
}  # fmt: skip


def mixed(streamed: bool = False):
    painted, real = image_set(classes=4, per_class=16), image_set(classes=3, per_class=8, seed=1, prefix="real")
    painted.source.streamed = streamed  # then batches are prepared before their time
    return {"images": painted, "real": real, "real_share": 0.25, **SETTINGS}


def bytes_of(backbone) -> list[bytes]:
    return [value.numpy().tobytes() for value in backbone.state_dict().values()]


@pytest.fixture(scope="module")
def whole():
    state = torch.random.get_rng_state()
    made = pretraining.pretrain(**mixed())
    assert torch.equal(state, torch.random.get_rng_state())  # dropout left the global generator alone
    return made


@pytest.mark.parametrize(("streamed", "optimiser"), [(False, "adamw"), (True, "sgd")])
def test_interrupted_after_any_batch_it_ends_in_the_same_bytes(tmp_path, monkeypatch, streamed, optimiser):
    whole, report = pretraining.pretrain(**mixed(), optimiser=optimiser)
    write, written = checkpoint.save, []

    def once(trainer):
        write(trainer)
        written.append(trainer.batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", once)
    for _ in range(40):
        try:
            resumed, again = pretraining.pretrain(**mixed(streamed), optimiser=optimiser, scratch=tmp_path, every=0.0)
            break
        except KeyboardInterrupt:
            continue
    assert written == [1, 2, 3, 4, 0] * 2  # 64 images an epoch: every batch was a stop, and every end of an epoch
    assert again == report and bytes_of(resumed) == bytes_of(whole)


def test_killed_in_mid_epoch_it_ends_in_the_same_bytes(tmp_path, whole):
    """SIGKILL, at moments that nobody chose, again and again until it is over."""
    for pause in (0.0, 0.1, 0.21):
        before = checkpoint_of(tmp_path)
        child = os.fork()  # a process of its own, with torch in it already
        if not child:
            slowly(tmp_path)
            os._exit(0)
        deadline = time.monotonic() + 60
        while checkpoint_of(tmp_path) == before:
            assert time.monotonic() < deadline, "it did not begin"
            time.sleep(0.01)
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it ended before it was killed"
    resumed, again = pretraining.pretrain(**mixed(), scratch=tmp_path)
    assert again == whole[1] and bytes_of(resumed) == bytes_of(whole[0])


def checkpoint_of(folder: Path) -> int:
    path = folder / checkpoint.FILE
    return path.stat().st_mtime_ns if path.exists() else 0


def slowly(folder: Path) -> None:
    """The training above, with a checkpoint after every batch and time to be killed between two."""
    write = checkpoint.save

    def patiently(trainer):
        write(trainer)
        time.sleep(0.2)

    checkpoint.save = patiently
    pretraining.pretrain(**mixed(), scratch=folder, every=0.0)


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    (tmp_path / checkpoint.FILE).write_bytes(b"\xff" * 50)
    with pytest.raises(UserError, match="is damaged .*; delete it and run again"):
        pretraining.pretrain(**mixed(), scratch=tmp_path)
