"""GMM, "Generative Multi-modal Models are Good Class-Incremental Learners" (Cao, Lu, Huang, Liu, Cheng, CVPR 2024).

No classifier. A model that reads images and writes text is tuned, task after task, to answer "this is a photo of a
[CLS].": cross-entropy over the answer's tokens, from which the projection alone learns, between a frozen image encoder
and a frozen language model. A text encoder embeds the answer and the names of the classes seen; the nearest name is the
prediction. Values and steps: read in the official code (MiniGPT-4 with Vicuna-7B, ImageNet-R). What differs here:

- greedy decoding, each answer ended by itself. The code samples at temperature 0.01 and stops a batch when its first
  answer ends, which cuts the others short (109 of 255 bad answers, computed from its outputs);
- answers are parsed by pattern, not at fixed places (`cilkit.answers`);
- beside the head "written" (free text, nearest name) stands "constrained": log p(answer) of every name seen.

What stands in for the large model is not this file's matter: `captioner` and `text_encoder` are given by the caller.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cilkit import answers, precision
from cilkit.data import transforms
from cilkit.errors import UserError
from cilkit.learners.base import Batch, Learner, derive, part
from cilkit.learners.memory import Memory, bytes_each, herd
from cilkit.learners.rehearsal import unit
from cilkit.outputs import Outputs

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.data import ImageSet, Stream, Task


NO_CLASSES = (
    "exemplars are kept by class, and a domain's classes are those of the others; set per_class, total and budget to 0"
)


class AnswerGenerator(Protocol):
    """Images -> texts, and a loss on image-answer pairs. `cilkit.captioning.Captioner` is one."""

    look: Callable[[Backbone, torch.Tensor, str], torch.Tensor]  # backbone, images, kind -> (batch, tokens, width)
    connector: torch.nn.Module  # those to (batch, slots, dim), the language model's own width
    embed: torch.nn.Module  # its words' vectors: `weight` is (words, dim)

    def train_only(self, part: str, rank: int, recompute: bool) -> None: ...
    def learnt(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...
    def padded(self, texts: Sequence[str]) -> torch.Tensor: ...
    def nll(self, tokens: torch.Tensor, padded: torch.Tensor) -> torch.Tensor: ...
    def write(self, tokens: torch.Tensor) -> list[str]: ...
    def trie_of(self, texts: Sequence[str]) -> Any: ...
    def score(self, tokens: torch.Tensor, trie: Any) -> torch.Tensor: ...


# ---------------------------------------------------------------- what is shared with the control, gmm_linear.py


@dataclass(frozen=True)
class TuningHyper:
    """Ours, for the embedded captioner and few classes; the released values stand in RECIPES["released"]."""

    epochs: int = 2  # a task; 0: zero-shot, nothing is tuned
    batch_size: int = 32
    micro_batch: int = 0  # images a backward pass, their gradients summed to the batch's; 0: all at once
    lr: float = 4e-3
    warmup_lr: float = 1e-5  # of the first step
    final_lr: float = 4e-4  # where the cosine ends
    warmup: int = 20  # steps
    weight_decay: float = 0.05  # not on biases and other vectors (read)
    augment: bool = False  # training images anew in every epoch, as read; else each is encoded once, kept for the task
    balanced: bool = True  # an old class's exemplars as often in an epoch as a new class's images (ours)
    per_class: int = 20  # exemplars kept a class. The released run: 2,000 in all (read)
    total: int = 0  # if > 0: exemplars in all
    budget: int = 0  # if > 0: bytes for all exemplars
    recipe: str = "none"
    image_size: int = 0
    recipe_of: str = "paper"  # whose: see RECIPES
    leaks: tuple[str, ...] = ()  # known leaks to switch on: this learner has none

    def __post_init__(self) -> None:
        least = dict.fromkeys(("epochs", "micro_batch", "lr", "warmup_lr", "final_lr", "warmup", "weight_decay"), 0)
        for name, value in {**least, "batch_size": 1, "per_class": 0, "total": 0, "budget": 0}.items():
            if not getattr(self, name) >= value:
                raise UserError(f"{name} is {getattr(self, name)}; expected {value} or more")


class Tuning(Learner):
    """Something learns from a frozen image encoder's tokens, task after task.

    captioner:    an AnswerGenerator, whose image encoder is the backbone.
    text_encoder: texts -> unit vectors, float32 (n, dim); of no use where `matches` is False.
    """

    Hyper = TuningHyper
    protocols = ("class", "domain")
    writes = True  # the caller gives captioner and text_encoder
    matches = True  # what is written is matched to names
    RECIPES = {
        # Read in train.py and minigpt4_stage2_finetune.yaml; the epochs in a released log.
        "released": {
            "epochs": 5, "batch_size": 2, "lr": 3e-6, "warmup_lr": 1e-7, "final_lr": 1e-6, "warmup": 200,
            "weight_decay": 0.05, "augment": True, "total": 2000, "balanced": False, "recipe": "gmm", "image_size": 224,
        },
    }  # fmt: skip

    def __init__(
        self,
        backbone: Backbone,
        *,
        captioner: AnswerGenerator | None = None,
        text_encoder: answers.Encoder | None = None,
        **settings: Any,
    ) -> None:
        if captioner is None or (self.matches and text_encoder is None):
            raise UserError(
                f"learner {self.name!r} needs captioner= (cilkit.prealign makes one; a backbone 'vlm:NAME' has one)"
                + " and text_encoder=" * self.matches
            )
        self.captioner, self.text_encoder = captioner, text_encoder
        super().__init__(backbone, **settings)

    def build(self) -> None:
        h, shown = self.hyper, (self.recipe.mean, self.recipe.std)
        if self.backbone.elsewhere and not np.allclose(shown, (self.backbone.mean, self.backbone.std), atol=1e-3):
            raise UserError(
                f"recipe {h.recipe!r} normalises by {shown[0]}, and {self.backbone.tag} was trained with "
                f"{self.backbone.mean}; take a recipe in the backbone's own, such as 'timm' or 'timm_test'"
            )
        self.backbone.requires_grad_(False)
        self.norm_statistics = "frozen"
        self.memory = Memory(h.per_class, h.total, h.budget)
        self.tokens_shape = (0, 0)  # of an image: tokens, width

    @classmethod
    def always_frozen(cls, settings: dict[str, Any]) -> bool:
        return False

    @property
    def frozen(self) -> bool:
        return True

    @property
    def remembers(self) -> bool:
        """Whether exemplars are kept; a model that is never tuned has no use for them."""
        h = self.hyper
        return bool(h.epochs and (h.per_class or h.total or h.budget))

    def learnt(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The parameters that learn, by name."""
        raise NotImplementedError

    def terms(self, labels: torch.Tensor) -> torch.Tensor:
        """(batch,): of how many terms each image's share of the loss is the mean."""
        raise NotImplementedError

    def begin_task(self, task: Task) -> None:
        """Encode the task's images and the exemplars once, where they are shown as they are."""
        if self.remembers:
            if not task.classes:
                raise UserError(NO_CLASSES)
            self.memory.each = bytes_each(task.train)
            self.memory.room(self.seen)  # a budget too small is said before an epoch is learnt
        self.encoded = None
        if not self.hyper.augment and self.epochs:
            self.encoded = self.features(self.shown(task), "statistics")  # (n, tokens * width)

    def embed(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        """(batch, tokens * width): all tokens of an image in a row."""
        tokens = self.captioner.look(self.backbone, images, kind)
        self.tokens_shape = tuple(tokens.shape[1:])
        return tokens.flatten(1)

    def shown(self, task: Task) -> ImageSet:
        """The task's images, then the exemplars."""
        return self.memory.beside(task.train)

    def training_set(self, task: Task) -> ImageSet:
        """What an epoch goes through; balanced, exemplars are repeated."""
        shown = self.shown(task)
        return shown.select(self._places(task))

    def _places(self, task: Task) -> np.ndarray:
        """Places in `shown`, int64: once each, or exemplars as often as brings their class to the new classes' size."""
        old = np.arange(len(self.memory)) + len(task.train)
        return np.append(np.arange(len(task.train)), np.tile(old, self._times(task, len(old))))

    def _times(self, task: Task, exemplars: int) -> int:
        """How often an epoch shows each exemplar."""
        if not (self.hyper.balanced and exemplars):
            return 1
        new, old = len(task.fresh) / len(task.classes), exemplars / task.classes.start  # images a class
        return max(1, round(new / old))

    def batches(self, task: Task, epoch: int) -> Iterator[Batch]:
        """With cached tokens, a batch's `images` are tokens (batch, tokens, width)."""
        if self.encoded is None:
            self.backbone.eval()  # read: the encoder stays in this mode
            yield from super().batches(task, epoch)
            return
        import torch

        labels, places = self.shown(task).labels, self._places(task)
        order = derive(self.seed_data, task.index, "order")
        for rows in transforms.batches(len(places), self.hyper.batch_size, order, epoch):
            rows = places[rows]
            tokens = torch.from_numpy(self.encoded[rows]).to(self.backbone.device).unflatten(1, self.tokens_shape)
            yield Batch(tokens, torch.from_numpy(labels[rows]).to(self.backbone.device))

    def tokens(self, batch: Batch) -> torch.Tensor:
        """(batch, tokens, width)"""
        if self.encoded is not None:
            return batch.images
        import torch

        with torch.no_grad():
            return self.embed(batch.images, "student").unflatten(1, self.tokens_shape)

    def descend(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The gradients of `loss`, some images at a time: each part weighs as many terms as it has."""
        size = self.hyper.micro_batch or len(batch.labels)
        if size >= len(batch.labels):
            return super().descend(batch)
        whole, total = self.terms(batch.labels).sum(), Counter()
        for images, labels in zip(batch.images.split(size), batch.labels.split(size), strict=True):
            share = self.terms(labels).sum() / whole
            terms = {name: term * share for name, term in self.loss(Batch(images, labels)).items()}
            sum(terms.values()).backward()
            total.update({name: term.detach() for name, term in terms.items()})
        return dict(total)

    def optimiser(self, task: Task):
        """A fresh AdamW and schedule for every task (read); vectors, such as biases, do not decay."""
        h, learning = self.hyper, [value for _, value in self.learnt()]
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": h.weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        made = precision.adamw([group for group in groups if group["params"]], self.backbone.device, lr=h.lr)
        steps = math.ceil(len(self._places(task)) / h.batch_size)
        self.schedule = WarmCosine(made, steps, h.epochs, h.lr, h.warmup_lr, h.final_lr, h.warmup)
        return made, self.schedule

    def before_step(self, batch: Batch) -> None:
        self.schedule.before_step()

    def end_task(self, task: Task) -> None:
        """Herd the new classes' exemplars by their mean tokens, as iCaRL does; how the paper chose is not known."""
        encoded, self.encoded = self.encoded, None
        if not self.remembers:
            return
        self.memory.shrink(self.seen)
        new = task.fresh if encoded is None else task.train
        found = self.features(new, "statistics") if encoded is None else encoded[: len(new)]
        features = unit(self.pooled(found))
        for label in task.classes:
            rows = np.flatnonzero(new.labels == label)
            self.memory.add(new.select(rows[herd(features[rows], self.memory.room(self.seen))]))

    def pooled(self, features: np.ndarray) -> np.ndarray:
        """Mean tokens, float32 (n, width)."""
        return features.reshape(len(features), *self.tokens_shape).mean(1)

    # ------------------------------------------------------------ keeping and counting

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        state = {name: value for name, value in super().state().items() if not name.startswith("backbone.")}
        state |= {f"learnt.{name}": value for name, value in self.learnt()}
        memory = {f"memory.{name}": torch.from_numpy(value) for name, value in self.memory.state().items()}
        return state | memory | {"tokens_shape": torch.tensor(self.tokens_shape)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        import torch

        super().load(state)
        learnt = part(state, "learnt.")
        with torch.no_grad():
            for name, value in self.learnt():
                value.copy_(learnt[name])
        self.memory.load({name: value.numpy() for name, value in part(state, "memory.").items()})
        self.tokens_shape = tuple(state["tokens_shape"].tolist())

    def declared(self, stream: Stream) -> dict[str, int]:
        """Each task's images and the exemplars before it once through the image encoder ("statistics"); augmented, once
        an epoch ("student"), and the images once more to choose exemplars. Every test image once."""
        if stream.domain and self.remembers:
            raise UserError(NO_CLASSES)
        h, tasks = self.hyper, list(stream)
        kept = [0] * len(tasks)  # exemplars before each task
        if self.remembers:
            self.memory.each = bytes_each(stream.train)
            rooms = [self.memory.room(task.seen) for task in tasks]
            seen = zip(tasks[:-1], rooms, strict=False)
            kept[1:] = [int(np.minimum(stream.train.counts[: task.seen], room).sum()) for task, room in seen]
        counts = {"student": 0, "statistics": 0}
        for task, old in zip(tasks, kept, strict=True):
            if h.augment:
                counts["student"] += h.epochs * (len(task.train) + old * self._times(task, old))
                counts["statistics"] += len(task.fresh) if self.remembers else 0
            elif h.epochs:  # in a cumulative stream the exemplars are among the task's images
                counts["statistics"] += len(task.train) + (0 if stream.kind == "cumulative" else old)
        return counts | {"test": self.declared_tests(stream)}

    def stored_bytes(self) -> dict[str, int]:
        return {"exemplars": self.memory.bytes} if self.remembers else {}

    def notes(self) -> dict[str, Any]:
        return {
            "captioner": self.captioner.tag,
            "features": "mean tokens",  # which need not be what the backbone gives
            "parameters tuned": sum(p.numel() for _, p in self.learnt()),
        }


# ---------------------------------------------------------------- the method


@dataclass(frozen=True)
class GMMHyper(TuningHyper):
    train: str = "projection"  # read; or "lora", "language" (projection and language model)
    rank: int = 8  # of the LoRAs (ours)
    recompute: bool = False  # activation checkpointing: less memory, a third more time
    sentence: str = answers.SENTENCE
    names: str = "spaced"  # underscores as spaces (ours); "plain": as they stand (read); "shuffled": a control
    template: str = "{}"  # what names and answers are put into before they are embedded; bare names (read)
    constrained: bool = True  # also score every name seen, the head "constrained"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names not in ("spaced", "plain", "shuffled"):
            raise UserError(f"names is {self.names!r}; expected 'spaced', 'plain' or 'shuffled'")
        if self.train not in ("projection", "lora", "language"):
            raise UserError(f"train is {self.train!r}; expected 'projection', 'lora' or 'language'")
        if self.rank < 1:
            raise UserError(f"rank is {self.rank}; expected 1 or more")
        if self.template.count("{}") != 1:
            raise UserError(f"template is {self.template!r}; expected one {{}} for the name")
        answers.Sentence(self.sentence)


class GMM(Tuning):
    default_head = "written"
    Hyper = GMMHyper
    RECIPES = {"released": {"names": "plain"}}  # beside what is shared

    def build(self) -> None:
        h = self.hyper
        super().build()
        self.captioner.train_only(h.train, h.rank, h.recompute)
        self.sentence = answers.Sentence(h.sentence)
        self.called: list[str] = []  # what the stream's classes are called in answers, those to come among them

    def learnt(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self.captioner.learnt()

    # ------------------------------------------------------------ names

    def call(self, all_names: Sequence[str]) -> list[str]:
        """Decide what the stream's classes are called in answers, and give the answers for those seen, by label.

        Shuffled: each by another's name, drawn once. UserError for names that no answer could tell apart.
        """
        answers.check_names(all_names)
        names = list(all_names)
        if self.hyper.names == "shuffled":
            cycle = np.random.default_rng(derive(self.seed_init, "names")).permutation(len(names))
            theirs = np.empty_like(cycle)
            theirs[cycle] = np.roll(cycle, 1)  # along one random cycle: no class keeps its own
            names = [names[other] for other in theirs]
        self.called = names if self.hyper.names == "plain" else [name.replace("_", " ") for name in names]
        return [self.sentence.fill(name) for name in self.called[: self.seen]]

    # ------------------------------------------------------------ learning

    def begin_task(self, task: Task) -> None:
        self.table = self.captioner.padded(self.call(task.train.class_names))  # (seen, length)
        super().begin_task(task)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Cross-entropy a token, over the answers' tokens alone."""
        nll = self.captioner.nll(self.tokens(batch), self.table[batch.labels])  # (batch,)
        return {"answer": nll.sum() / self.terms(batch.labels).sum()}

    def terms(self, labels: torch.Tensor) -> torch.Tensor:
        """Tokens of each image's answer, its end among them."""
        return (self.table[labels] >= 0).sum(1)

    # ------------------------------------------------------------ answering

    def predict(self, images: ImageSet) -> Outputs:
        """Heads "written": cosines of the name that was written to each name seen, times 100; "constrained": log p of
        each name's answer. `texts` are the answers as they were written."""
        import torch

        h, sentences = self.hyper, self.call(images.class_names)
        self._check_labels(images)
        features = self.features(images, "test")  # (n, tokens * width)
        matcher = answers.NameMatcher(self.called[: self.seen], self.text_encoder, h.template, h.names != "plain")
        trie = self.captioner.trie_of(sentences) if h.constrained else None
        texts, scores = [], []
        for start in range(0, len(features), self.test_batch):
            rows = torch.from_numpy(features[start : start + self.test_batch]).to(self.backbone.device)
            tokens = rows.unflatten(1, self.tokens_shape)
            texts += self.captioner.write(tokens)
            if trie is not None:
                scores.append(self.captioner.score(tokens, trie).cpu().numpy())
        written = matcher.scores([self.sentence.parse(text) for text in texts])
        heads = {"written": np.float32(answers.SCALE) * written}  # (n, seen)
        heads |= {"constrained": np.concatenate(scores)} if scores else {}
        return Outputs(images.index, images.labels, heads, self.pooled(features), texts=texts)

    def heads(self):
        raise NotImplementedError("a model that writes has no head over features; ask for `predict`")

    def declared(self, stream: Stream) -> dict[str, int]:
        self.call(stream.class_names)
        self.captioner.padded([self.sentence.fill(name) for name in self.called])  # a name too long is said at once
        return super().declared(stream)

    def notes(self) -> dict[str, Any]:
        whole = sum(parameter.nbytes for parameter in self.captioner.parameters())
        return super().notes() | {"names": self.called, "captioner bytes": whole}


class WarmCosine:
    """The learning rate of every step: linear from `start` to `rate` over `warmup` steps, then a cosine over all steps
    of the task, the warm-up's among them, to `end` (LAVIS's schedule, remembered; its values read).

    `step` is called once an epoch, and brings the count to the epoch's end: a resumed task goes on in its place.
    """

    def __init__(self, optimiser, steps: int, epochs: int, rate: float, start: float, end: float, warmup: int) -> None:
        self.optimiser, self.steps, self.epochs = optimiser, steps, epochs
        self.rate, self.start, self.end, self.warmup = rate, start, end, warmup
        self.taken = self.finished = 0

    def at(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (self.rate - self.start) * step / self.warmup
        return self.end + (self.rate - self.end) * 0.5 * (1 + math.cos(math.pi * step / (self.steps * self.epochs)))

    def before_step(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.at(self.taken)
        self.taken += 1

    def step(self) -> None:
        self.finished += 1
        self.taken = self.finished * self.steps


LEARNER = GMM  # what this file's name stands for
