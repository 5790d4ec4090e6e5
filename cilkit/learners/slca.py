"""SLCA: slow learner with classifier alignment (Zhang et al., ICCV 2023, arXiv 2303.05118), after the released code.

Stage 1, every task: the slow learner (`slow_learner.py`, `finetune.py`). Then, of each new class, the mean and the full
covariance of its training features in the network as it now is (`statistics.py`). Stage 2, from the second task on: all
heads learn again on Gaussian samples of all classes (`alignment.py`), and the images are classified by these aligned
heads. The next task starts from the raw heads: alignment reads them and writes a copy.

Left as timm has it: the released code replaces the transformer's pre-trained final LayerNorm by a fresh one (read);
backbone "slca_vit_b16_in21k" does so too. Not repeated: mammoth's port skips every task's first optimiser step (read).
"""

from __future__ import annotations

from dataclasses import dataclass

from cilkit.learners.alignment import Alignment, AlignmentHyper
from cilkit.learners.slow_learner import SlowLearner, SlowLearnerHyper


@dataclass(frozen=True)
class SLCAHyper(AlignmentHyper, SlowLearnerHyper):
    """The slow learner's and alignment's."""

    def __post_init__(self) -> None:
        SlowLearnerHyper.__post_init__(self)
        AlignmentHyper.__post_init__(self)


class SLCA(Alignment, SlowLearner):
    """Heads: "raw" is the slow learner, "aligned" is SLCA, from one training."""

    Hyper = SLCAHyper
    # In what each code departs from the released configurations, the values in the comments (slca.md, 12 and 13; read).
    RECIPES = {
        "official_code": {"leaks": ("legacy_task_index",)},
        # SLCA: 5 alignment epochs, batch 128
        "pilot": {"align_epochs": 3, "batch_size": 64, "recipe": "pilot", "leaks": ("legacy_task_index",)},
        # --optim_wd is 0, milestones are parsed as strings, and the loop looks for a scheduler that is not there
        "mammoth": {"weight_decay": 0.0, "align_weight_decay": 0.0, "milestones": ()},
    }


LEARNER = SLCA  # what this file's name stands for
