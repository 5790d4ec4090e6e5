"""SLCA: slow learner with classifier alignment (Zhang et al., ICCV 2023, arXiv 2303.05118), after the released code.

Stage 1, every task: the slow learner (`slow_learner.py`, `finetune.py`). Then, of each new class, the mean and the full
covariance of its training features in the network as it now is (`statistics.py`). Stage 2, from the second task on: all
heads learn again on Gaussian samples of all classes (`alignment.py`), and the images are classified by these aligned
heads. The next task starts from the raw heads: alignment reads them and writes a copy.

Left as timm has it: the released code replaces the transformer's pre-trained final LayerNorm by a fresh one (read).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit.learners.slow_learner import SlowLearner, SlowLearnerHyper

if TYPE_CHECKING:
    import torch

    from cilkit.data import Stream, Task


@dataclass(frozen=True)
class SLCAHyper(SlowLearnerHyper):
    """Alignment as in the released configurations (read), where no other value is named."""

    align_epochs: int = 20  # SLCA: 5. Ours: 20, for a fifth of a second more
    align_per_class: int = 256  # Gaussian samples a class and epoch; also the batch size
    align_lr: float = 0.01
    temperature: float = 0.1  # tau of the normalised logits: 0.1, Cars-196 0.05; 0 leaves the logits as they are
    legacy_task_index: bool = False  # the released code's c // s, wrong for uneven splits


class SLCA(SlowLearner):
    """Heads: "raw" is the slow learner, "aligned" is SLCA, from one training."""

    default_head = "aligned"
    Hyper = SLCAHyper
    protocols = ("class",)

    def build(self) -> None:
        from cilkit.learners.statistics import ClassStatistics

        super().build()
        self.statistics = ClassStatistics(self.backbone.dim)
        self._factors: dict[int, np.ndarray] = {}  # Cholesky factors by class; statistics never change

    def end_task(self, task: Task) -> None:
        new = task.fresh
        features = self.features(new, "statistics")  # (n, dim), test transform, eval mode
        for label in task.classes:
            self.statistics.add(features[new.labels == label], new.class_names[label])

    def heads(self):
        from cilkit.learners.alignment import align

        h = self.hyper
        aligned = align(
            self.raw,
            self.statistics,
            epochs=h.align_epochs,
            per_class=h.align_per_class,
            lr=h.align_lr,
            momentum=h.momentum,
            weight_decay=h.weight_decay,
            temperature=h.temperature,
            legacy_task_index=h.legacy_task_index,
            seed=self.seed_data,
            factors=self._factors,
        )
        return {"raw": self.raw, "aligned": aligned}

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        kept = {"means": self.statistics.means, "packed": self.statistics.packed}
        return super().state() | {f"statistics.{name}": torch.from_numpy(value) for name, value in kept.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.statistics.means = state["statistics.means"].numpy()
        self.statistics.packed = state["statistics.packed"].numpy()

    def declared(self, stream: Stream) -> dict[str, int]:
        """The slow learner's, and one pass over each new class's training images for its statistics."""
        return super().declared(stream) | {"statistics": len(stream.train)}

    def stored_bytes(self) -> dict[str, int]:
        return {"class means and covariances": self.statistics.bytes}


LEARNER = SLCA  # what this file's name stands for
