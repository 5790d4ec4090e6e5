"""Classifier alignment (SLCA, Zhang et al., ICCV 2023, stage 2; specs, section 7): all heads learn again, together, on
samples of the classes' Gaussians in feature space. A plug-in for every learner with linear heads: "ewc+alignment".

    x ~ N(k_c mu_c, S_c),  k_c = 0.9 + 0.1 (t_c + 1) / T               samples of every class seen
    L = cross-entropy((l / r) / tau, c),  r = mean_t ||l[block t]||    logits of all heads, normalised

The learner's heads stay as they are and "aligned" is a copy, made afresh after every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit.errors import UserError, near_name
from cilkit.learners.base import derive, part
from cilkit.learners.statistics import KINDS, ClassStatistics

if TYPE_CHECKING:
    import torch

    from cilkit.data import Stream, Task
    from cilkit.learners.base import Learner
    from cilkit.learners.heads import TaskHeads

# Further heads from the same training, by name, and in what they differ from "aligned".
VARIANTS: dict[str, dict[str, Any]] = {
    "unscaled": {"mean_scaling": False},
    "plain_logits": {"temperature": 0.0},
    "unscaled_plain": {"mean_scaling": False, "temperature": 0.0},
    **{kind: {"statistics": kind} for kind in KINDS},
}
FEW = 16  # classes up to which every head is its own product, under autograd, as in runs made before: their bits stay


@dataclass(frozen=True)
class AlignmentHyper:
    """SLCA's values (read in its code) stand in the comments where ours differ (our decision)."""

    align_epochs: int = 20  # SLCA: 5. Ours: 20, for a fifth of a second more. 0: off, no statistics are made
    align_per_class: int = 256  # Gaussian samples a class and epoch; also the batch size
    align_lr: float = 0.01
    align_weight_decay: float = 5e-4
    mean_scaling: bool = True  # k_c; False: 1
    temperature: float = 0.1  # tau of the normalised logits: 0.1, Cars-196 0.05; 0 leaves the logits as they are
    statistics: str = "full"  # or "low_rank", "diagonal", "shared": see statistics.py
    rank: int = 16  # of "low_rank"
    align_also: tuple[str, ...] = ()  # further heads at no forward pass, of VARIANTS

    def __post_init__(self) -> None:
        for name in self.align_also:
            if name not in VARIANTS:
                raise UserError(
                    f"align_also has {name!r}{near_name(name, VARIANTS)}; known heads are {', '.join(VARIANTS)}"
                )
        if self.statistics not in KINDS:
            raise UserError(f"statistics is {self.statistics!r}; expected one of {', '.join(KINDS)}")
        if self.align_epochs < 0 or self.align_per_class < 1 or self.temperature < 0:
            raise UserError(
                f"align_epochs {self.align_epochs}, align_per_class {self.align_per_class} and temperature "
                f"{self.temperature:g} do not make an alignment; epochs and temperature: 0 or more, samples: 1 or more"
            )


class Alignment:
    """Mix it in before a learner's class: `class Mine(Alignment, MyLearner)`, with a Hyper of both.

    Heads: the learner's own, "aligned", and those of `align_also`, from one training.
    """

    default_head = "aligned"
    Hyper = AlignmentHyper
    protocols = ("class",)
    leaks = {
        "legacy_task_index": "t_c = c // (size of the current task) for k_c: wrong for uneven splits "
        "(SLCA's and PILOT's code, read)"
    }

    @classmethod
    def check_base(cls, base: type[Learner]) -> None:
        """UserError for a learner that has no linear heads, aligns already or has parameters of the same names."""
        if issubclass(base, cls):
            raise UserError(f"{base.__name__} aligns already; leave '+alignment' out")
        if not base.linear_heads:
            raise UserError(
                f"alignment needs linear heads over the features (learners.heads.TaskHeads), and {base.__name__} has "
                "none; leave '+alignment' out, or choose a learner such as slow_learner"
            )
        ours, theirs = ({field.name for field in fields(hyper)} for hyper in (cls.Hyper, base.Hyper))
        both = ours & theirs
        if both:
            raise UserError(
                f"alignment and {base.__name__} both have a parameter {sorted(both)[0]!r}; rename the learner's"
            )

    def build(self) -> None:
        super().build()
        h = self.hyper
        kinds = [h.statistics] + [VARIANTS[name].get("statistics", h.statistics) for name in h.align_also]
        self.kept = {kind: ClassStatistics(self.dim, kind, h.rank) for kind in dict.fromkeys(kinds)}

    @property
    def statistics(self) -> ClassStatistics:
        return self.kept[self.hyper.statistics]

    def end_task(self, task: Task) -> None:
        """Of each new class, mean and covariance of its training features in the network as it now is."""
        super().end_task(task)
        if not self.hyper.align_epochs:
            return
        new = task.fresh
        features = self.features(new, "statistics")  # (n, dim), test transform, eval mode
        for label in task.classes:
            for kept in self.kept.values():
                kept.add(features[new.labels == label], new.class_names[label])

    def heads(self):
        also = {name: self.aligned(**VARIANTS[name]) for name in self.hyper.align_also}
        return {**super().heads(), "aligned": self.aligned(), **also}

    def aligned(self, **other: Any) -> TaskHeads:
        """The raw heads aligned; `other`: values in place of the learner's."""
        h = self.hyper
        kept = self.kept[other.get("statistics", h.statistics)]
        return align(
            self.raw,
            kept,
            epochs=h.align_epochs,
            per_class=h.align_per_class,
            lr=h.align_lr,
            weight_decay=h.align_weight_decay,
            temperature=other.get("temperature", h.temperature),
            legacy_task_index=self.leaking("legacy_task_index"),
            seed=self.seed_data,
            **self.scaling(other.get("mean_scaling", h.mean_scaling)),
        )

    def scaling(self, on: bool) -> dict[str, Any]:
        """How `align` treats old classes' samples where scaling is switched on, and where it is off."""
        return {"mean_scaling": on}

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        kept = {f"{kind}.{name}": value for kind, one in self.kept.items() for name, value in one.state().items()}
        return super().state() | {f"statistics.{name}": torch.from_numpy(value) for name, value in kept.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        for kind, kept in self.kept.items():
            kept.load({name: value.cpu().numpy() for name, value in part(state, f"statistics.{kind}.").items()})

    def declared(self, stream: Stream) -> dict[str, int]:
        """The learner's, and one pass over each new class's training images for its statistics."""
        declared = super().declared(stream)
        passes = len(stream.train) if self.hyper.align_epochs else 0
        return declared | ({"statistics": declared.get("statistics", 0) + passes} if passes else {})

    def stored_bytes(self) -> dict[str, int]:
        ours = {f"class means and {kind.replace('_', '-')} covariances": kept.bytes for kind, kept in self.kept.items()}
        return super().stored_bytes() | ours


def task_index_of_classes(sizes: Sequence[int], legacy: bool = False) -> np.ndarray:
    """int64 (seen,): t_c, the task of each class, by cumulative sizes.

    legacy: the official code's `c // s` with s the *current* task's size: right for equal splits only. On Cars-196
    (9 x 20 + 16) it misplaces 156 classes after the last task and lets k_c reach 1.03 (read, and computed).
    """
    if legacy:
        return np.arange(sum(sizes)) // sizes[-1]
    return np.repeat(np.arange(len(sizes)), sizes)


def mean_scales(sizes: Sequence[int], legacy: bool = False) -> np.ndarray:
    """float64 (seen,): k_c = 0.9 + 0.1 (t_c + 1) / T; 1 for the newest task, 0.9 + 0.1 / T for the oldest."""
    return 0.9 + 0.1 * (task_index_of_classes(sizes, legacy) + 1) / len(sizes)


def normalised_logits(logits: torch.Tensor, sizes: Sequence[int], temperature: float) -> torch.Tensor:
    """(l / r) / tau, r = mean over tasks of the norm of the task's logits + 1e-7; with gradient."""
    import torch

    norms = [block.norm(dim=1, keepdim=True) + 1e-7 for block in logits.split(list(sizes), dim=1)]
    return logits / torch.stack(norms).mean(0) / temperature


def align(
    raw: TaskHeads,
    statistics: ClassStatistics,
    *,
    epochs: int = 5,
    per_class: int = 256,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    temperature: float = 0.1,
    mean_scaling: bool = True,
    feature_scale: float = 0.0,
    legacy_task_index: bool = False,
    seed: int = 0,
) -> TaskHeads:
    """Aligned copies of the raw heads; the raw heads stay as they are, so nothing is ever "restored".

    Each epoch draws 256 samples a class anew, shuffles them and takes as many steps of 256 as there are classes: SGD
    0.01, momentum 0.9, weight decay 5e-4, cosine over the 5 epochs (all read in SLCA's code). temperature 0: plain
    cross-entropy. After the first task there is nothing to align: an unchanged copy comes back.

    feature_scale: SLCA++'s mu: old classes' samples shrink with their age, and old heads read features that many times
    larger when they classify (see slca_pp.py).
    """
    import torch

    from cilkit.learners.sampling import GaussianSampler

    aligned, sizes = raw.trainable_copy().requires_grad_(False), raw.sizes
    if len(sizes) < 2 or epochs == 0:
        return aligned
    device, tasks = raw.current.weight.device, task_index_of_classes(sizes, legacy_task_index)
    weight = torch.cat([head.weight.detach() for head in raw.tasks]).requires_grad_()  # (seen, dim)
    bias = torch.cat([head.bias.detach() for head in raw.tasks]).requires_grad_()  # (seen,)
    optimiser = torch.optim.SGD(
        [weight, bias],
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        fused=device.type == "cuda" or len(tasks) > FEW,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs)
    scales = mean_scales(sizes, legacy_task_index) if mean_scaling else np.ones(len(tasks))
    ages = torch.from_numpy(len(sizes) - 1 - tasks).to(device)  # (seen,)
    sampler = GaussianSampler(statistics, scales, device)
    gradients = by_autograd if len(tasks) <= FEW else in_closed_form
    blocks = sizes if len(tasks) <= FEW else torch.from_numpy(task_index_of_classes(sizes)).to(device)  # (seen,)

    def one_epoch(generator: torch.Generator) -> float:  # a function, so that one epoch's samples go before the next's
        features, labels = sampler.draw(per_class, generator)  # (seen * per_class, dim)
        if feature_scale:
            shrink(features, ages[labels], feature_scale, generator)
        steps = torch.randperm(len(labels), generator=generator, device=device).split(per_class)
        total = 0.0
        for rows in steps:
            batch = features[rows], labels[rows]
            loss, weight.grad, bias.grad = gradients(*batch, weight, bias, blocks, temperature, len(sizes))
            optimiser.step()
            total += loss
        return float(total) / len(steps)

    for epoch in range(epochs):
        seeded = torch.Generator(device).manual_seed(derive(seed, len(sizes), epoch, "alignment"))
        mean = one_epoch(seeded)
        schedule.step()
        if not np.isfinite(mean):
            raise UserError(
                f"the alignment loss is {mean} in epoch {epoch + 1} after task {len(sizes)}; "
                f"lower align_lr (now {lr:g})"
            )
    with torch.no_grad():
        found = zip(aligned.tasks, weight.split(sizes), bias.split(sizes), strict=True)
        for t, (head, w, b) in enumerate(found):
            head.weight.copy_(w * (1 + feature_scale * (len(sizes) - 1 - t)))
            head.bias.copy_(b)
    return aligned


def by_autograd(features, labels, weight, bias, sizes: list[int], temperature: float, tasks: int = 0):
    """The cross-entropy over all classes, and its gradients by weight (seen, dim) and bias (seen,)."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    heads = zip(weight.split(sizes), bias.split(sizes), strict=True)
    logits = torch.cat([linear(features, w, b) for w, b in heads], dim=1)  # (batch, seen)
    if temperature:
        logits = normalised_logits(logits, sizes, temperature)
    loss = cross_entropy(logits, labels)
    return loss.detach(), *torch.autograd.grad(loss, [weight, bias])


def in_closed_form(features, labels, weight, bias, blocks: torch.Tensor, temperature: float, tasks: int):
    """The same in less time: all heads are one product, and few small operations stand beside it.

    With z = l / (r tau), r = mean_t n_t, n_t the norm of task t's logits, and g = softmax(z) - y:
        d loss / d l_j = g_j / (r tau) - (sum_k g_k z_k) / r * l_j / (T n_t(j))
    blocks: the task t of each class, (seen,); tasks: T.
    """
    import torch
    from torch.nn.functional import nll_loss

    with torch.no_grad():
        z = logits = torch.addmm(bias, features, weight.T)  # (batch, seen)
        if temperature:
            squares = logits.new_zeros(len(logits), tasks).index_add_(1, blocks, logits.square())
            norms = squares.clamp_min_(1e-30).sqrt_()  # n, (batch, tasks)
            r = norms.mean(1, keepdim=True).add_(1e-7)
            z = logits / (r * temperature)
        log_p = z.log_softmax(1)
        loss = nll_loss(log_p, labels)
        g = log_p.exp_()
        g.scatter_add_(1, labels[:, None], torch.full_like(g[:, :1], -1.0))
        g /= len(labels)
        if temperature:
            along = torch.linalg.vecdot(g, z)[:, None] * temperature / tasks
            g = (g - logits.div_(norms.index_select(1, blocks)).mul_(along)).div_(r * temperature)
        return loss, g.T @ features, g.sum(0)


def shrink(features: torch.Tensor, ages: torch.Tensor, scale: float, generator: torch.Generator) -> None:
    """x / (1 + m age), m = scale + U(-0.01, 0.01) for every sample, in place (SLCA++'s code, read)."""
    import torch

    m = scale + 0.02 * torch.rand(len(features), generator=generator, device=features.device) - 0.01
    features /= (1 + m * ages)[:, None]


PLUGIN = Alignment  # what this file's name stands for
