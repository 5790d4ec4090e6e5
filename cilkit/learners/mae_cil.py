"""MAE-CIL: masked autoencoders are efficient class incremental learners (Zhai et al., ICCV 2023, arXiv 2308.12510).

One vision transformer has two objectives: it classifies whole images, and from a quarter of their patches a decoder
rebuilds them. So an exemplar needs a quarter of its bytes, and the same memory holds four times as many:

    L = l_cls L_cls + l_rec L_rec + l_det L_det                     (paper, as its readers quote it)
    (1 - l) (L_cls + L_rec + L_det) + l KL(old || new)              (released code, third-party), l = old / all classes

    L_rec = mean over all pixels of (R - x)^2,     R: the rebuilt image with the visible patches' true pixels pasted in
    L_det = 0.02 x mean | D - H(R' - R) |,         R' rebuilt from 9 / 16 of the patches, without gradient

H keeps the high frequencies. D = H(decoder(early tokens)) is the detail branch, part of R. As the pasted pixels are
true, L_rec is the loss over hidden patches alone, MAE's own, times 3 / 4 (derived). Masks are random, of every image
anew in every epoch; the released code draws one and keeps it (third-party). KL is divided by the batch alone: the
code's reduction 'mean' divides by the old classes too, and so teaches ever less as they grow (derived).

Ours: R' sees the patches of R and more, all in one random order, so that R' - R is what those bring. L_cls is the mean
over classes seen of one sigmoid's cross-entropy each, as in the code, without its mixup, divergence head,
sharpness-aware steps and balanced fine-tuning. DyTox's task tokens are the transformer's own pooling; exemplars are
herded on the features that the heads read. They are rebuilt once at the beginning of a task, and once at its end for
their means. No pass behind a mask is made to predict. Exemplars, whole ones too, are what testing shows the network of
an image; a recipe that crops when testing crops them again. The paper's tables could not be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit import precision
from cilkit.errors import UserError
from cilkit.learners.base import derive, part
from cilkit.learners.masked_memory import MaskedMemory, joined
from cilkit.learners.rehearsal import Rehearsal, RehearsalHyper

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from cilkit.backbones import Backbone
    from cilkit.data import ImageSet, Stream, Task
    from cilkit.learners.base import Batch


@dataclass(frozen=True)
class MAECILHyper(RehearsalHyper):
    """Values of the released code (third-party) and of the paper (quoted) stand in the comments; others are ours."""

    epochs: int = 12  # a task. Both: 400
    milestones: tuple[int, ...] = ()  # none: lr falls along a cosine to 0, as in the code
    batch_size: int = 32  # code: 128 on each of 2 devices. Paper: 1024
    lr: float = 1e-3  # of AdamW. Code: 2.5e-4. Paper: 1e-4
    weight_decay: float = 1e-6  # code
    masked: bool = True  # exemplars are visible patches; False: whole images, fewer in the same bytes
    visible: float = 0.25  # share of the patches that an exemplar keeps and L_rec shows. Both: 1/4
    more_visible: float = 0.5625  # of R'. Code: 9/16
    classification_weight: float = 1.0  # l_cls. Code: 1
    reconstruction_weight: float = 1.0  # l_rec. Code: 1
    detail_weight: float = 0.02  # l_det. Code: 0.02
    detail: bool = True  # the detail branch, and L_det
    fusion: bool = True  # heads read features of two depths
    early: int = 2  # block after which the shallow tokens are taken. Code: 2 (of 6)
    early_share: float = 0.2  # of their numbers. Code: 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.visible < self.more_visible <= 1:
            raise UserError(
                f"visible is {self.visible:g} and more_visible {self.more_visible:g}; expected shares of the patches, "
                "the second above the first, such as 0.25 and 0.5625"
            )
        weights = self.classification_weight, self.reconstruction_weight, self.detail_weight
        if min(weights) < 0 or (self.masked and not self.reconstruction_weight):
            raise UserError(
                "the weights of the losses are {:g}, {:g} and {:g}; expected 0 or more, and a reconstruction_weight "
                "above 0 where exemplars are masked".format(*weights)
            )
        if not 0 < self.early_share <= 1:
            raise UserError(f"early_share is {self.early_share:g}; expected a share of the early tokens' numbers")


class MAECIL(Rehearsal):
    """autoencoder: the decoder and the detail branch, kept from task to task. replay: the task's rebuilt exemplars."""

    default_head = "raw"
    Hyper = MAECILHyper
    needs = "transformer"

    def build(self) -> None:
        import torch

        from cilkit.masked import Autoencoder, grid_of

        h, network = self.hyper, self.backbone
        if not 1 <= h.early <= len(network.blocks):
            raise UserError(f"early is {h.early}; expected a block, 1 … {len(network.blocks)}")
        self.patches, _ = grid = grid_of(network)
        self.visible, self.more = (max(1, round(share * self.patches)) for share in (h.visible, h.more_visible))
        self.width = max(1, round(h.early_share * network.model.embed_dim))
        super().build()
        kept = self.visible if h.masked else self.patches
        self.memory = MaskedMemory(h, self.seed_data, grid, kept, self.levels, self.rebuilt)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed_init, "decoder"))
            self.autoencoder = Autoencoder(network, h.early, self.width, h.detail).to(network.device)

    def new_heads(self):
        if not self.hyper.fusion:
            return super().new_heads()
        from cilkit.learners.fused_heads import FusedHeads

        return FusedHeads(self.backbone.dim, self.width, self.seed_init, self.backbone.device)

    @property
    def dim(self) -> int:
        return self.backbone.dim + self.width * self.hyper.fusion

    def bytes_each(self, images: ImageSet) -> int:
        return self.memory.each

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.replay = self.memory.of(task.train)

    def training_set(self, task: Task) -> ImageSet:
        return joined(task.train, self.replay) if len(self.replay) else task.train

    def batches(self, task: Task, epoch: int) -> Iterator[Batch]:
        """And the chance of the epoch's masks."""
        import torch

        seed = derive(self.seed_data, task.index, epoch, "masks")
        self.chance = torch.Generator(self.backbone.device).manual_seed(seed)
        return super().batches(task, epoch)

    def optimiser(self, task: Task):
        import torch

        h = self.hyper
        ours = [*self.raw.parameters(), *self.autoencoder.parameters()]
        groups = [{"params": ours, "lr": h.lr}, {"params": list(self.backbone.parameters()), "lr": h.lr * h.slow_rate}]
        settings = {"betas": (h.momentum, 0.999), "weight_decay": h.weight_decay}
        optimiser = precision.adamw(groups, self.backbone.device, **settings)
        schedules = torch.optim.lr_scheduler
        if h.milestones:
            return optimiser, schedules.MultiStepLR(optimiser, list(h.milestones), gamma=self.decay)
        return optimiser, schedules.CosineAnnealingLR(optimiser, h.epochs)

    # ------------------------------------------------------------ features and losses

    def embed(self, images: torch.Tensor, kind: str, network: Backbone | None = None) -> torch.Tensor:
        """Features (batch, dim): the transformer's own and, with fusion, numbers of an early block, detached."""
        import torch

        from cilkit.masked import encode

        network = network or self.backbone
        if not self.hyper.fusion:
            return network(images, kind)
        tokens, shallow = encode(network, images, kind, early=self.hyper.early)
        early = network.model.pool(shallow[:, :, : self.width].detach())
        return torch.cat([network.model.forward_head(tokens, pre_logits=True), early], dim=1)

    def trunk(self, images: torch.Tensor, kind: str = "student", network: Backbone | None = None) -> torch.Tensor:
        return self.embed(images, kind, network)

    @property
    def share(self) -> float:
        """l, of the old classes among those seen: the weight of what the teacher says."""
        return self.known / self.seen

    def terms(self, reading: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return super().terms(reading, batch) | self.reconstruction(batch.images)

    def classification(self, reading: torch.Tensor, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        """One sigmoid a class seen, mean over rows and classes."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        targets = labels[:, None] == torch.arange(self.seen, device=labels.device)  # (rows, seen)
        loss = binary_cross_entropy_with_logits(reading, targets.to(reading.dtype))
        return {"classification": (1 - self.share) * self.hyper.classification_weight * loss}

    def distillation(self, reading: torch.Tensor, taught: torch.Tensor) -> dict[str, torch.Tensor]:
        """KL(old || new) over the old classes, temperature 1, mean over rows."""
        from torch.nn.functional import kl_div

        answers = reading[:, : self.known].log_softmax(1), taught.log_softmax(1)
        return {"distillation": self.share * kl_div(*answers, reduction="batchmean", log_target=True)}

    def reconstruction(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """L_rec and L_det of images (batch, 3, h, w), behind a random mask each."""
        import torch

        from cilkit.masked import high_frequencies, orders, paste

        h, auto = self.hyper, self.autoencoder
        if not h.reconstruction_weight:
            return {}
        order = orders(len(images), self.patches, self.chance)
        main, details = auto(self.backbone, images, order, self.visible, "student")
        whole = paste(main + details, images, order, self.visible, auto.side)
        weight = (1 - self.share) * h.reconstruction_weight
        terms = {"reconstruction": weight * (whole - images).square().mean()}
        if h.detail:
            with torch.no_grad():
                more = auto.rebuild(self.backbone, images, order, self.more, "student")
                target = high_frequencies(more - whole)
            terms["detail"] = (1 - self.share) * h.detail_weight * (details - target).abs().mean()
        return terms

    # ------------------------------------------------------------ exemplars

    def levels(self, images: ImageSet) -> np.ndarray:
        """What the network sees of images without augmentation, as levels: uint8 (m, 3, h, w)."""
        return self._rounded(self.recipe.test(images.read(), self.backbone.device))

    def _rounded(self, images: torch.Tensor) -> np.ndarray:
        import torch

        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.recipe.mean, self.recipe.std))
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def rebuilt(self, levels: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Exemplars, uint8 (m, 3, h, w), from their visible patches: the first ones of `order` (m, patches)."""
        import torch

        from cilkit.data.transforms import to_float

        network, device, whole = self.backbone, self.backbone.device, []
        was_training = network.training
        network.eval()
        with torch.no_grad():
            for start in range(0, len(levels), self.test_batch):
                cut = slice(start, start + self.test_batch)
                shown = to_float(levels[cut].transpose(0, 2, 3, 1), self.recipe.mean, self.recipe.std).to(device)
                places = torch.from_numpy(order[cut]).to(device)
                rebuilt = self.autoencoder.rebuild(network, shown, places, self.visible, "statistics")
                whole.append(self._rounded(rebuilt))
        network.train(was_training)
        return np.concatenate(whole)

    # ------------------------------------------------------------ keeping and counting

    def state(self) -> dict[str, torch.Tensor]:
        kept = {f"autoencoder.{name}": value for name, value in self.autoencoder.state_dict().items()}
        return super().state() | kept

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.autoencoder.load_state_dict(part(state, "autoencoder."))

    def declared(self, stream: Stream) -> dict[str, int]:
        """A student's image passes once whole, once behind a mask and, for L_det, once behind a smaller one: each of
        them counts, although it sees a part only. Exemplars pass behind their masks when a task begins and, those that
        stay, when it ends."""
        h, passes = self.hyper, super().declared(stream)
        views = 1 + bool(h.reconstruction_weight) * (1 + h.detail)
        if h.masked:
            passes["statistics"] += sum(self.replayed(stream))
            passes["statistics"] += sum(self._kept(stream, task.classes.start, task.seen) for task in stream)
        return passes | {"student": views * passes["student"]}

    def stored_bytes(self) -> dict[str, int]:
        """The detail branch counts with the decoder; what fuses features is a part of the heads."""
        decoder = sum(value.nbytes for value in self.autoencoder.state_dict().values())
        return super().stored_bytes() | {"decoder": decoder}


LEARNER = MAECIL  # what this file's name stands for
