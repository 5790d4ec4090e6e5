"""Features of a frozen backbone: each image passes through it once, however often its features are asked for.

A bank belongs to one backbone and one way of preparing images; whoever changes either takes a new bank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet


class FeatureBank:
    """Features by what an image set was opened from (`source.key`) and the place in it (`index`).

    reused: images that were asked for and needed no pass.
    """

    def __init__(self) -> None:
        self._positions: dict[str, np.ndarray] = {}  # source -> positions whose features are here, in the rows' order
        self._features: dict[str, np.ndarray] = {}  # source -> float32 (rows, dim)
        self._filled: set[str] = set()  # sources that came whole from outside: no part of the state
        self.reused = 0

    def of(self, images: ImageSet, forward: Callable[[ImageSet], np.ndarray], keep: bool = True) -> np.ndarray:
        """Features float32 (n, dim) of these images; `forward` computes those that are not here, each image once.

        keep: whether what is computed now stays for the next time.
        """
        key, index = images.source.key, images.index
        rows = self._rows(key, index)  # (n,), -1 where there is none
        absent = np.flatnonzero(rows < 0)
        _, first, again = np.unique(index[absent], return_index=True, return_inverse=True)
        asked = np.sort(first)  # one place of each absent image, in the order of asking
        self.reused += len(index) - len(asked)
        if not len(absent) and len(index):
            return np.asarray(self._features[key][rows])
        fresh = np.asarray(forward(images.select(absent[asked])), np.float32)  # (asked, dim)
        found = np.empty((len(index), fresh.shape[1]), np.float32)
        found[absent] = fresh[np.searchsorted(asked, first)[again]]
        if len(absent) < len(index):
            found[rows >= 0] = self._features[key][rows[rows >= 0]]
        if keep:
            self._add(key, index[absent[asked]], fresh)
        return found

    def fill(self, key: str, features: np.ndarray) -> None:
        """The features (n, dim) of a whole opened set, computed elsewhere; a memory map stays one."""
        self._positions[key], self._features[key] = np.arange(len(features)), features
        self._filled.add(key)

    def state(self) -> dict[str, torch.Tensor]:
        """What was computed here, for a checkpoint; what it was filled with must be filled in again."""
        import torch

        state = {"reused": torch.tensor(self.reused)}
        for key in self._features.keys() - self._filled:
            state[f"positions.{key}"] = torch.from_numpy(self._positions[key])
            state[f"features.{key}"] = torch.from_numpy(self._features[key])
        return state

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.reused = int(state["reused"])
        for name, value in state.items():
            part, _, key = name.partition(".")
            if part in ("positions", "features"):
                getattr(self, f"_{part}")[key] = value.numpy()

    def _rows(self, key: str, index: np.ndarray) -> np.ndarray:
        positions = self._positions.get(key, np.zeros(0, np.int64))
        places = np.full(max(index.max(initial=-1), positions.max(initial=-1)) + 1, -1)
        places[positions] = np.arange(len(positions))
        return places[index]

    def _add(self, key: str, positions: np.ndarray, fresh: np.ndarray) -> None:
        if key in self._features:
            if self._features[key].shape[1] != fresh.shape[1]:
                raise UserError(
                    f"features of {fresh.shape[1]} numbers came for a bank of {self._features[key].shape[1]}; "
                    "take a bank for each backbone"
                )
            positions = np.concatenate([self._positions[key], positions])
            fresh = np.concatenate([self._features[key], fresh])
        self._positions[key], self._features[key] = positions, fresh
        self._filled.discard(key)
