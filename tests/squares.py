"""A generator in miniature, and what tests of painting ask of a folder."""

import hashlib
import time
from pathlib import Path

import numpy as np

from cilkit.synthesis.generators import OutOfMemory


class Squares:
    """Each image is one colour drawn from its seed; slow on request, with a memory for `room` images at once."""

    id, digest, batch_size = "squares", "d" * 64, 4

    def __init__(self, seconds: float = 0.0, size: int = 8, room: int = 1000):
        self.seconds, self.size, self.room, self.painted, self.calls = seconds, size, room, 0, 0
        self.settings = {"size": size, "steps": 3, "guidance": 1.5, "scheduler": "none", "batch_size": 4}

    def check(self, concepts, prompts=()):
        pass

    def paint(self, prompts, seeds, concepts):
        if len(seeds) > self.room:
            raise OutOfMemory("the canvas is full")
        time.sleep(self.seconds)
        self.painted, self.calls = self.painted + len(seeds), self.calls + 1
        colours = np.stack([np.random.default_rng(seed).integers(0, 256, 3) for seed in seeds])  # (n, 3)
        return np.tile(colours[:, None, None], (1, self.size, self.size, 1)).astype(np.uint8)


def files_of(folder: Path) -> dict[str, str]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the painting process never came that far"
        time.sleep(0.005)
