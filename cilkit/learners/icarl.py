"""iCaRL: incremental classifier and representation learning (Rebuffi et al., CVPR 2017), after the released code.

Every task trains on its images and the exemplars, against one sigmoid a class: new classes have their labels for
target, old classes what the network of the task before says (for exemplars too, in place of their own labels). Then
exemplars are herded, and images are classified by the nearest mean of exemplars, in unit-length features of the present
network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.rehearsal import Rehearsal, RehearsalHyper

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ICaRLHyper(RehearsalHyper):
    """The official CIFAR-100 values (read) stand in the comments where ours differ."""

    epochs: int = 6  # iCaRL: 70
    milestones: tuple[int, ...] = (4, 5)  # lr is divided by 5 after these epochs. iCaRL: 49 and 63 of 70
    batch_size: int = 32  # iCaRL: 128
    lr: float = 0.05  # iCaRL: 2.0, for a loss that is a mean over 100 outputs; ours is over the classes seen
    weight_decay: float = 1e-5
    criterion: str = "bce"  # the paper's; "ce": softmax over all classes seen + distillation with T = 2, as PyCIL
    temperature: float = 2.0  # of "ce" only
    distillation: float = 1.0  # weight lambda of the distillation term
    total: int = 0  # iCaRL: 2000
    recipe: str = "digits"  # iCaRL: "icarl_cifar"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion not in ("bce", "ce"):
            raise UserError(f"criterion is {self.criterion!r}; expected 'bce' (the paper's) or 'ce'")


class ICaRL(Rehearsal):
    """Heads: "nme", nearest mean of exemplars (the method's), and "raw", the network's own outputs ("hybrid 1").

    Future classes are unknown (our decision: the official code has outputs for them from the start, with target 0).
    """

    default_head = "nme"
    Hyper = ICaRLHyper
    decay = 0.2

    def classification(self, logits: torch.Tensor, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        """ "bce": sum over the new classes' outputs (of replayed images over all) against the one-hot label, divided by
        batch x seen, so that it and the distillation add up to the paper's mean over all outputs. "ce": softmax over
        all classes seen."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        if self.hyper.criterion == "ce":
            return {"classification": cross_entropy(logits, labels)}
        first = 0 if old else self.known  # old outputs are distillation's alone
        outputs = torch.arange(first, self.seen, device=labels.device)
        targets = (labels[:, None] == outputs).to(logits.dtype)  # (batch, seen - first)
        loss = binary_cross_entropy_with_logits(logits[:, first:], targets, reduction="sum")
        return {"classification": loss / logits.numel()}

    def distillation(self, logits: torch.Tensor, taught: torch.Tensor) -> dict[str, torch.Tensor]:
        """ "bce": old outputs against the teacher's sigmoids, divided by batch x seen. "ce": softened cross-entropy of
        the old classes' softmaxes, T = 2, as PyCIL (read; no T squared)."""
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        h, student = self.hyper, logits[:, : self.known]
        if h.criterion == "ce":
            loss = cross_entropy(student / h.temperature, (taught / h.temperature).softmax(1))
        else:
            loss = binary_cross_entropy_with_logits(student, taught.sigmoid(), reduction="sum") / logits.numel()
        return {"distillation": h.distillation * loss}


LEARNER = ICaRL  # what this file's name stands for
