"""What every learner is: the loop over epochs and batches of one task, and the seams that methods and plug-ins use.

A method overrides `batches(task, epoch)`, `loss(batch)`, `end_task(task)`, `heads()`, and nothing else unless it must.
All chance derives from (seed, task, epoch, purpose), never from a generator that lives on: a learner that is loaded at
the end of a task or of an epoch goes on bit for bit. No torch is needed to import a learner or to check its parameters.
"""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit import precision
from cilkit.data import loading, transforms
from cilkit.errors import UserError
from cilkit.features import FeatureBank
from cilkit.runs import Outputs

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.data import ImageSet, Stream, Task


def derive(*parts: int | str) -> int:
    """A seed below 2**63 from numbers and purposes, e.g. derive(seed_data, task.index, "order")."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in parts]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Moment:
    """One epoch is over. Losses are means over the epoch's batches, by term."""

    task: Task
    epoch: int  # from 0
    epochs: int
    losses: dict[str, float]


@dataclass(frozen=True)
class Batch:
    """Augmented, normalised images (batch, 3, h, w) and stream labels (batch,); `extra` is for plug-ins."""

    images: torch.Tensor
    labels: torch.Tensor
    extra: Batch | None = None


DIVERGED = 1e4  # a mean loss above this is past repair, although it is still a number


@dataclass(frozen=True)
class Hyper:
    """What `Learner.learn` reads. A method's own parameters are a subclass, or a frozen dataclass with these names."""

    epochs: int = 6
    batch_size: int = 32
    lr: float = 0.01
    recipe: str = "digits"  # transforms of training and test images, see cilkit.data.transforms
    image_size: int = 0  # pixels on a side, for recipes that resize; 0: the backbone's own
    norm_statistics: str = "auto"  # see check_norm_statistics
    recipe_of: str = "paper"  # whose: "paper", or another of the learner's RECIPES
    leaks: tuple[str, ...] = ()  # known leaks to switch on, of those that the learner names


class Learner:
    """A backbone, heads, and a way to learn a task.

    hyper:        the method's parameters, a frozen dataclass `Hyper` with the paper's values in its comments.
    sizes:        classes of each task learnt or being learnt.
    needs:        "transformer" for a method that attaches to transformer blocks.
    linear_heads: whether `raw` holds linear heads over `features`, which classifier alignment can learn again.
    leaks:        what published code does that a fair comparison must not: name -> what it is, and where it was read.
    RECIPES:      whose code -> the parameters in which it departs from the paper.
    """

    default_head = "raw"
    Hyper = Hyper
    protocols = ("class",)  # of the streams that the method is defined for
    needs = ""
    linear_heads = False
    leaks: dict[str, str] = {}
    RECIPES: dict[str, dict[str, Any]] = {}
    passes = 1  # forward passes that `embed` takes for an image
    test_batch = 256  # images at a time in eval mode; never changes an answer

    def __init__(self, backbone: Backbone, *, seed_init: int = 0, seed_data: int = 0, **hyper: Any) -> None:
        self.backbone = backbone
        self.hyper = self.Hyper(**hyper)
        self.seed_init, self.seed_data = seed_init, seed_data
        self.norm_statistics = norm_statistics_for(backbone, getattr(self.hyper, "norm_statistics", "auto"))
        self.recipe = transforms.recipe(
            getattr(self.hyper, "recipe", "none"), backbone.input, getattr(self.hyper, "image_size", 0)
        )
        self.sizes: list[int] = []
        self.bank = FeatureBank()  # of a backbone that cannot change: no image passes through it twice
        self.found: set[str] = set()  # kinds of passes that found all their features made before
        self._optimiser: torch.optim.Optimizer | None = None  # while a task is learnt
        self._epochs_done = 0  # of that task
        if self.needs == "transformer" and not backbone.blocks:
            raise UserError(
                f"learner {self.name!r} attaches to transformer blocks, and {backbone.arch!r} has none; take a vision "
                "transformer, such as arch small_vit or vit_base_patch16_224.augreg_in21k"
            )
        self.build()

    @property
    def name(self) -> str:
        """The file's name for a method of this package, else the class's."""
        package, _, file = type(self).__module__.rpartition(".")
        return file if package == "cilkit.learners" else type(self).__name__

    @property
    def epochs(self) -> int:
        """Epochs a task; 0 for a method that trains nothing."""
        return getattr(self.hyper, "epochs", 0)

    def identity(self) -> dict[str, Any]:
        return {"learner": self.name, **asdict(self.hyper)}

    @property
    def dim(self) -> int:
        """Numbers an image, as `embed` gives them."""
        return self.backbone.dim

    def leaking(self, name: str) -> bool:
        """Whether a leak that this learner names is switched on."""
        return name in getattr(self.hyper, "leaks", ())

    @classmethod
    def always_frozen(cls, settings: dict[str, Any]) -> bool:
        """Whether, with these parameters, the features of all images can be had before anything is learnt."""
        return cls.frozen is True

    @property
    def known(self) -> int:
        """Classes of the tasks before the current one."""
        return sum(self.sizes[:-1])

    @property
    def seen(self) -> int:
        return sum(self.sizes)

    # ------------------------------------------------------------ seams

    def build(self) -> None:
        """Make the parts that outlive a task (heads, memories)."""

    def begin_task(self, task: Task) -> None:
        """Make room for the task's classes."""

    def optimiser(self, task: Task) -> tuple[torch.optim.Optimizer, Any]:
        """A fresh optimiser and its schedule, stepped once an epoch."""
        raise NotImplementedError

    def training_set(self, task: Task) -> ImageSet:
        """The images, with stream labels, that the task's epochs go through."""
        return task.train

    def batches(self, task: Task, epoch: int) -> Iterator[Batch]:
        """One epoch's batches: shuffled by (seed_data, task, epoch), augmented, on the backbone's device.

        Read and augmented ahead of the step where pixels come from disk or go to a GPU.
        """
        images = self.training_set(task)
        order = derive(self.seed_data, task.index, "order")
        cuts = transforms.batches(len(images), self.hyper.batch_size, order, epoch)
        prepare = self.augmenter(task, epoch, "augmentation")
        ahead = loading.ahead_for(images, self.backbone.device)
        return loading.prefetched(images, cuts, prepare, ahead, self.recipe.shortest)

    def epochs_of(self, task: Task) -> int:
        """How often the task's images are gone through."""
        return self.epochs

    def embed(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        """Features (batch, dim) of normalised images (batch, 3, h, w), the way this method reads an image."""
        return self.backbone(images, kind)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The terms of the loss by name; their sum is minimised."""
        raise NotImplementedError

    def descend(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The gradients of the loss; its terms, detached."""
        terms = self.loss(batch)
        sum(terms.values()).backward()
        return {name: term.detach() for name, term in terms.items()}

    def before_step(self, batch: Batch) -> None:
        """Between backward pass and optimiser: clipping."""

    def after_step(self, batch: Batch) -> None:
        """After the optimiser: what a method notes of each batch."""

    def end_task(self, task: Task) -> None:
        """After the last epoch: statistics, exemplars."""

    def heads(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """By name, what turns features (n, dim) into logits (n, seen). They share one pass over the test images."""
        raise NotImplementedError

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next task needs, at a task boundary."""
        import torch

        state = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        state["sizes"] = torch.tensor(self.sizes, dtype=torch.int64)
        state |= {f"forwarded.{kind}": torch.tensor(count) for kind, count in self.backbone.forwarded.items()}
        return state | {f"bank.{name}": value for name, value in self.bank.state().items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.sizes = state["sizes"].tolist()
        if weights := part(state, "backbone."):  # some methods keep none of a backbone that never changes
            self.backbone.load_state_dict(weights)
        self.backbone.forwarded.clear()
        self.backbone.forwarded.update({kind: int(count) for kind, count in part(state, "forwarded.").items()})
        self.bank.load(part(state, "bank."))

    def declared(self, stream: Stream) -> dict[str, int]:
        """Images that learning and testing this stream forwards, by kind, as the method's formula has it."""
        raise NotImplementedError

    def stored_bytes(self) -> dict[str, int]:
        """Bytes kept from task to task beside the backbone and its heads, by what they hold."""
        return {}

    def notes(self) -> dict[str, Any]:
        """What the method decided by itself on the way, for the run's record."""
        return {}

    # ------------------------------------------------------------ what all learners share

    def learn(self, task: Task, resumed: dict[str, torch.Tensor] | None = None) -> Iterator[Moment]:
        """Learn one task; yields after every epoch.

        resumed: what `moment_state` gave after an epoch of this task, for a learner that was loaded at the end of the
                 task before; the epochs up to there are left out.
        UserError for labels that no head is for, and when a loss is no longer a finite number.
        """
        self.sizes.append(len(task.classes))
        self._check_labels(task.train)
        self.begin_task(task)
        self._epochs_done, epochs = 0, self.epochs_of(task)
        if resumed is not None:
            self.load(resumed)
        if epochs:
            self._optimiser, schedule = self.optimiser(task)
        if resumed is not None:
            self._take_up(resumed, schedule)
        for epoch in range(self._epochs_done, epochs):
            self.backbone.learning(self.norm_statistics)
            losses = self._epoch(task, epoch)
            schedule.step()
            self._epochs_done = epoch + 1
            yield Moment(task, epoch, epochs, losses)
        self._optimiser = None
        self.end_task(task)

    def _check_labels(self, images: ImageSet) -> None:
        highest = int(images.labels.max(initial=-1))
        if highest >= self.seen:
            raise UserError(
                f"images of class {images.class_names[highest]!r} came to heads for {self.seen} classes, which have "
                "not seen it; learn its task first"
            )

    def _epoch(self, task: Task, epoch: int) -> dict[str, float]:
        sums: Counter = Counter()
        totals = []  # of each batch: tensors, so that nothing waits for the device
        for batch in self.batches(task, epoch):
            self._optimiser.zero_grad(set_to_none=True)
            terms = self.descend(batch)
            self.before_step(batch)
            self._optimiser.step()
            self.after_step(batch)
            sums.update(terms)
            totals.append(sum(terms.values()))
        losses = {name: float(value) / len(totals) for name, value in sums.items()}
        for name, value in losses.items():
            if not abs(value) < DIVERGED:
                raise UserError(
                    f"the {name} loss is {value:g} in epoch {epoch + 1} of task {task.index + 1} (first seen in batch "
                    f"{_first_bad(totals)} of {len(totals)}); lower lr (now {self.hyper.lr:g}) and run again"
                )
        return losses

    def moment_state(self) -> dict[str, torch.Tensor]:
        """Everything that the rest of the task and of the stream needs, at the end of an epoch."""
        import torch

        kept = self._optimiser.state_dict()["state"]
        state = {
            f"optimiser.{index}.{name}": value
            for index, values in kept.items()
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        return self.state() | state | {"epochs_done": torch.tensor(self._epochs_done)}

    def _take_up(self, resumed: dict[str, torch.Tensor], schedule: Any) -> None:
        """The optimiser's own state and the schedule's place, as they were after the epochs that are done."""
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in part(resumed, "optimiser.").items():
            index, _, what = name.partition(".")
            kept.setdefault(int(index), {})[what] = value
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": kept})
        self._epochs_done = int(resumed["epochs_done"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the steps of the optimiser came before, in another process
            for _ in range(self._epochs_done):
                schedule.step()

    def augmenter(self, task: Task, epoch: int, purpose: str) -> Callable[[Any, np.ndarray], Batch]:
        """Turns uint8 images and labels into a batch; its chance depends on (seed_data, task, epoch, purpose)."""
        import torch

        generator = torch.Generator().manual_seed(derive(self.seed_data, task.index, epoch, purpose))
        device = self.backbone.device

        def batch(images: Any, labels: np.ndarray) -> Batch:
            floats = self.recipe.train(images, generator, device)
            return Batch(floats, torch.from_numpy(labels).to(device))

        return precision.on_own_stream(batch, device)

    def find(self, features: dict[str, np.ndarray]) -> None:
        """Features (n, dim) of whole sources, by `ImageSet.source.key`, made before with this very backbone, frozen,
        and this recipe: none of their images is forwarded again."""
        for key, array in features.items():
            self.bank.fill(key, array)
        self.found = {"statistics", "test", "probe"}

    def features(self, images: ImageSet | np.ndarray, kind: str) -> np.ndarray:
        """Features float32 (n, dim) in eval mode, without augmentation or gradients; never twice where the backbone is
        frozen and the features of these images are at hand."""
        from cilkit.backbones import extract

        def forward(some: ImageSet) -> np.ndarray:
            embed = lambda batch, rows: self.embed(batch, kind)  # noqa: E731
            return extract(self.backbone, some, kind, self.recipe, self.test_batch, embed)

        if not self.frozen or isinstance(images, np.ndarray):
            return forward(images)
        return self.bank.of(images, forward, keep=kind == "test")  # training images are asked for once

    @property
    def frozen(self) -> bool:
        """Whether this learner never changes the backbone; then no image is forwarded twice for its features."""
        return False

    def predict(self, images: ImageSet) -> Outputs:
        """Outputs of all heads on test images, from one forward pass; `ids` are places in the benchmark's test set."""
        import torch

        self._check_labels(images)
        heads = self.heads()
        features = self.features(images, "test")  # (n, dim)
        with torch.no_grad():
            inputs = torch.from_numpy(features).to(self.backbone.device)
            logits = {name: head(inputs).float().cpu().numpy() for name, head in heads.items()}  # (n, seen)
        return Outputs(images.index, images.labels, logits, features)

    def declared_tests(self, stream: Stream) -> int:
        """Test images: all classes seen so far after every task; once each where the backbone is frozen."""
        counts = [len(stream.test_after(task)) for task in stream]
        return counts[-1] if self.frozen else sum(counts)


def _first_bad(totals: list[torch.Tensor]) -> int:
    """Place, from 1, of the first batch whose loss is not below DIVERGED; the last one where each of them is."""
    import torch

    bad = ~(torch.stack(totals).abs() < DIVERGED)
    return int(bad.int().argmax()) + 1 if bool(bad.any()) else len(totals)


def part(state: dict[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    """The entries whose name begins with `start`, without it."""
    return {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}


def check_norm_statistics(value: str) -> None:
    if value not in ("auto", "frozen", "batch"):
        raise UserError(
            f"norm_statistics is {value!r}; expected 'frozen' (running statistics), 'batch' or 'auto' ('frozen' for a "
            "backbone that comes trained, 'batch' for random weights, whose running statistics mean nothing)"
        )


def norm_statistics_for(backbone: Backbone, value: str) -> str:
    """What "auto" comes to: no normalisation has seen a batch yet where the weights are random."""
    check_norm_statistics(value)
    if value != "auto":
        return value
    return "batch" if any(int(norm.num_batches_tracked) == 0 for norm in backbone.norms) else "frozen"
