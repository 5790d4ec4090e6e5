"""Several processes for one training: torchrun, as a subprocess of the call that asked for them.

The images' places and the first weights are written into the scratch folder; each process opens them itself
(`cilkit.pretraining.rank`). The trained weights come back as the last checkpoint. One machine only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import cilkit
from cilkit import artifacts
from cilkit.errors import UserError

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.data.imagesets import ImageSet
    from cilkit.pretraining.settings import Settings

JOB, LOG, START = "job.json", "processes.log", "start"
PATIENCE = 20.0  # seconds that processes have to end by themselves


def train(
    images: ImageSet,
    real: ImageSet | None,
    settings: Settings,
    network: Backbone,
    device: torch.device,
    scratch: Path,
    every: float | None,
    tell: Callable[[int, int, str], None] | None,
) -> None:
    """Train in settings.processes processes; afterwards `scratch` holds the finished training's checkpoint.

    UserError for what one of them raised, or how it died. An interrupt here ends them all.
    """
    import torch

    from cilkit import backbones
    from cilkit.pretraining import trainer

    demand_devices(settings.processes, device)
    folder = scratch / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("error-*.json"):
        old.unlink()
    backbones.save(network, folder / START)
    job = {
        "settings": asdict(settings),
        "images": describe(images, folder / "images"),
        "real": real and describe(real, folder / "real"),
        "device": device.type,
        "scratch": str(scratch),
        "every": trainer.EVERY if every is None else every,
        "threads": torch.get_num_threads(),
    }
    artifacts.write_json(folder / JOB, job)
    _follow(command(settings.processes, folder), folder, settings, tell)


def demand_devices(processes: int, device: torch.device) -> None:
    """UserError unless there is a GPU for each, where GPUs are asked for."""
    import torch

    if device.type == "cuda" and device.index:
        raise UserError(
            f"device {str(device)!r} names one GPU, but processes is {processes}; take 'cuda', or 1 process"
        )
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise UserError(f"processes is {processes}, but torch sees {torch.cuda.device_count()} GPUs; take fewer")


def command(processes: int, folder: Path) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*torchrun, "--module", "cilkit.pretraining.rank", str(folder)]


def describe(images: ImageSet, beside: Path) -> dict[str, Any]:
    """How another process opens this set: its folder where it has one, else its pixels, written down."""
    folder = getattr(images.source, "folder", None)
    index = images.index if folder else np.arange(len(images))
    if not folder:
        artifacts.save_npy(beside.with_suffix(".pixels.npy"), images.images())
    artifacts.save_npy(beside.with_suffix(".npy"), np.stack([index, images.labels]))
    return {
        "folder": str(folder.absolute() if folder else ""),
        "beside": str(beside),
        "class_names": list(images.class_names),
    }


def reopen(described: dict[str, Any] | None) -> ImageSet | None:
    """The set that `describe` described."""
    if described is None:
        return None
    from cilkit.data.imagesets import Arrays, ImageSet
    from cilkit.data.shards import open_set

    beside = Path(described["beside"])
    index, labels = np.load(beside.with_suffix(".npy"))
    if described["folder"]:
        source = open_set(described["folder"]).source
    else:
        pixels = np.load(beside.with_suffix(".pixels.npy"), mmap_mode="r")
        source = Arrays(pixels, np.array([f"{i:06d}" for i in range(len(pixels))]), None, ())
    return ImageSet(source, index, labels, described["class_names"])


def _follow(run: list[str], folder: Path, settings: Settings, tell) -> None:
    """Start, pass on what the first process tells, and wait. They end when their input ends: with this process, too."""
    package = str(Path(cilkit.__file__).resolve().parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = json.loads((folder / JOB).read_text())["threads"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with open(folder / LOG, "w") as kept:
        torchrun = subprocess.Popen(run, stderr=kept, env=environment, **pipes)
    try:
        for line in torchrun.stdout:
            if tell is not None:
                _pass_on(line, tell)
        status = torchrun.wait()
    finally:
        torchrun.stdin.close()
        try:
            torchrun.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            torchrun.kill()
            torchrun.wait()
    if status:
        raise failure(folder, settings.processes)


def _pass_on(line: str, tell: Callable[[int, int, str], None]) -> None:
    try:
        told = json.loads(line)["told"]
    except (ValueError, TypeError, KeyError):
        return  # a library's own words
    tell(*told)


def failure(folder: Path, processes: int) -> Exception:
    """What ended a training: what a process said itself; else which one died; else the first error, for when one
    process ends the others fail for want of it."""
    errors = sorted((json.loads(path.read_text()) for path in folder.glob("error-*.json")), key=lambda e: e["when"])
    for error in errors:
        if error.get("errno"):
            return OSError(error["errno"], error["error"])
        if error["own"]:
            return UserError(error["error"])
    died = re.search(r"rank\s*:\s*(\d+) .*\s+exitcode\s*:\s*-(?!15)\d+", (folder / LOG).read_text(errors="replace"))
    if errors and not died:
        return UserError(errors[0]["error"])
    how = (
        f"process {int(died[1]) + 1} of {processes} was killed, perhaps for lack of memory"
        if died
        else "torchrun ended"
    )
    return UserError(
        f"pre-training stopped: {how}; what was finished is kept, run again to go on (log: {folder / LOG})"
    )
