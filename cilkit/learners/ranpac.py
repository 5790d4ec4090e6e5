"""RanPAC (McDonnell et al., "Random Projections and Pre-trained Models for Continual Learning", NeurIPS 2023).

    h = ReLU(f W)                                   f (dim,) frozen features, W (dim, M) drawn once and never trained
    G = sum h h^T,  Q = sum h y^T                   over all images of all tasks, y one-hot
    W_o = (G + lambda I)^-1 Q,  logits = h W_o      after every task

Phase 1, in the first task only, adapts the backbone (`first_task`). Then each task adds its images, prepared as test
images are, to G and Q, and lambda is searched on this task alone: of 17 values the one whose fit to the first 80 % of
its images, shuffled, has the least squared error on the last 20 %. For one lambda the result is joint ridge regression
on all images, in whatever order and tasks they came.

The rows of the paper's ablation are switches: `projection` 0 ("no RPs": h = f), `phase1` "none", and the head "means",
which is nearest class mean by cosine ("NCM"), comes from the same training. All values are read in RanPAC's code.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.learners.base import derive
from cilkit.learners.first_task import FirstTask, FirstTaskHyper
from cilkit.learners.simplecil import SimpleCIL

if TYPE_CHECKING:
    import torch

    from cilkit.data import Task

ROWS = 2048  # images whose projections are held at a time


@dataclass(frozen=True)
class RanPACHyper(FirstTaskHyper):
    """RanPAC's choice of phase 1: "adapter" (CIFAR-100, CUB), "ssf" (ImageNet-R, -A, VTAB), "prompts" (Cars)."""

    projection: int = 1000  # M; 0: none. RanPAC: 10,000
    ridge: float = 0.0  # lambda; 0: search 1e-8 … 1e8 in every task
    dtype: str = "float64"  # of G, Q and the solution. RanPAC: float32, too coarse for small lambda (our decision)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("float32", "float64"):
            raise UserError(f"dtype is {self.dtype!r}; expected 'float64' or 'float32'")
        if self.projection < 0 or self.ridge < 0:
            raise UserError(f"projection ({self.projection}) and ridge ({self.ridge:g}) must not be negative")


class RanPAC(FirstTask, SimpleCIL):
    """ridges: the lambda of every task so far."""

    default_head = "ridge"
    Hyper = RanPACHyper
    RECIPES = {
        "official_code": {"dtype": "float32"},
        "pilot": {"dtype": "float32"},
        "mammoth": {"dtype": "float32", "phase1": "finetune"},  # the optimiser holds the whole plain network
    }

    def build(self) -> None:
        import torch

        super().build()
        self.width, self.projection = self.hyper.projection or self.dim, None
        self.place = {"dtype": getattr(torch, self.hyper.dtype), "device": self.backbone.device}
        if self.hyper.projection:
            generator = torch.Generator().manual_seed(derive(self.seed_init, "projection"))
            self.projection = torch.randn(self.dim, self.width, generator=generator).to(**self.place)  # (dim, M)
        self.gram, self.cross = torch.zeros(0, 0, **self.place), torch.zeros(0, 0, **self.place)  # until a task is over
        self.ridges: list[float] = []

    def end_task(self, task: Task) -> None:
        self._arrived: list[tuple[np.ndarray, np.ndarray]] = []
        super().end_task(task)
        features, labels = (np.concatenate(parts) for parts in zip(*self._arrived, strict=True))
        self._arrived = []
        gram, cross = self._moments(features, labels)
        if self.ridges:
            gram += self.gram
            cross[:, : self.cross.shape[1]] += self.cross
        self.gram, self.cross = gram, cross
        self.ridges.append(self.hyper.ridge or self._search(task, features, labels))

    def add(self, features: np.ndarray, labels: np.ndarray) -> None:
        super().add(features, labels)
        self._arrived.append((features, labels))

    def _search(self, task: Task, features: np.ndarray, labels: np.ndarray) -> float:
        """The lambda of the smallest error on a fifth of this task's images."""
        from cilkit.learners import ridge

        order = np.random.default_rng(derive(self.seed_data, task.index, "ridge")).permutation(len(labels))
        kept, held = np.split(order, [int(0.8 * len(order))])
        if not len(kept):
            raise UserError(f"task {task.index + 1} has one image; the search for lambda needs two: give `ridge`")
        asked = self._pair(features[held], labels[held])
        if len(kept) < self.width:
            errors = ridge.losses_dual(*self._pair(features[kept], labels[kept]), *asked)
        else:
            errors = ridge.losses_primal(*self._moments(features[kept], labels[kept]), *asked)
        best = int(errors.argmin())
        if best in (0, len(ridge.GRID) - 1):
            warnings.warn(
                f"task {task.index + 1}: the best lambda, {ridge.GRID[best]:g}, is the last of the grid; give `ridge` "
                "to look beyond it",
                stacklevel=2,
            )
        return ridge.GRID[best]

    def _moments(self, features: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """H^T H (M, M) and H^T Y (M, seen)."""
        import torch

        gram, cross = (torch.zeros(self.width, columns, **self.place) for columns in (self.width, self.seen))
        for start in range(0, len(labels), ROWS):
            rows = slice(start, start + ROWS)
            inputs, targets = self._pair(features[rows], labels[rows])
            gram.addmm_(inputs.T, inputs)
            cross.addmm_(inputs.T, targets)
        return gram, cross

    def _pair(self, features: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """H (n, M) and one-hot Y (n, seen)."""
        import torch

        from cilkit.learners import ridge

        inputs = self.expand(torch.from_numpy(features))
        labels = torch.from_numpy(labels).to(inputs.device)
        return inputs, ridge.one_hot(labels, self.seen, inputs.dtype)

    def expand(self, features: torch.Tensor) -> torch.Tensor:
        """h (n, M) of features (n, dim)."""
        import torch

        features = features.to(**self.place)
        return features if self.projection is None else torch.relu(features @ self.projection)

    def heads(self):
        import torch

        from cilkit.learners import ridge

        weights = ridge.solve(self.gram, self.cross, self.ridges[-1])  # (M, seen)

        def logits(features: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.expand(some) @ weights for some in features.split(ROWS)])

        return {"ridge": logits} | super().heads()

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        ridges = torch.tensor(self.ridges, dtype=torch.float64)
        return super().state() | {"gram": self.gram, "cross": self.cross, "ridges": ridges}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.gram, self.cross = (state[name].to(self.backbone.device) for name in ("gram", "cross"))
        self.ridges = state["ridges"].tolist()

    def notes(self) -> dict:
        """The strength of the ridge that each task chose."""
        return {"ridge": [float(value) for value in self.ridges]}

    def stored_bytes(self) -> dict[str, int]:
        """M^2 + M C numbers, whatever the number of images; the projection can be drawn again."""
        drawn = {} if self.projection is None else {"projection": self.projection.nbytes}
        return super().stored_bytes() | {"G and Q": self.gram.nbytes + self.cross.nbytes} | drawn


LEARNER = RanPAC  # what this file's name stands for
