"""What L2P, DualPrompt and CODA-Prompt share: prompts are learnt in front of a vision transformer that never changes.

Every image passes twice. First without prompts: its features are the *query*, which chooses or weighs the prompts. Then
with them. Two ways to bring prompts in:

    with prepended(backbone, tokens): ...    # prompt tuning: more tokens at the first block (L2P)
    with prefixed(backbone, {2: pair}): ...  # prefix tuning: more keys and values in a block's attention (the others)

Both leave the model as it was, so a query can never see a prompt. Every image is read by itself: what it is taken for
does not depend on the other images of its batch, unless a leak is switched on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit import precision
from cilkit.errors import UserError
from cilkit.learners.base import Batch, Hyper, Learner, derive, part

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.data import ImageSet, Stream, Task

BATCH_LEAKS = ("batch_vote", "kv_reshape")  # in which a batch's images change each other's answers


@dataclass(frozen=True)
class PromptHyper(Hyper):
    """What the three have in common; the official values (read) in the comments where ours differ: our decision for
    32 x 32 images and a transformer of four blocks. Rates were chosen on a validation split of three tasks, where they
    hardly matter within a factor of three."""

    epochs: int = 3  # a task
    batch_size: int = 32
    lr: float = 0.01  # of Adam, as it is used: the codes of L2P and DualPrompt write lr * 256 / batch
    clip: float = 1.0  # largest norm of the gradient; 0: no clipping
    clip_backbone: bool = False  # whether the frozen backbone's gradient counts in that norm
    head_start: str = "zero"  # or "linear": PyTorch's own, uniform within 1 / sqrt(dim)

    def __post_init__(self) -> None:
        if self.head_start not in ("zero", "linear"):
            raise UserError(f"head_start is {self.head_start!r}; expected 'zero' or 'linear'")
        if self.clip < 0:
            raise UserError(f"clip is {self.clip:g}; expected the largest norm of a gradient, or 0 for no clipping")


class Prompter(Learner):
    """Prompts and linear heads on a frozen vision transformer.

    A method makes `self.prompts` in `build`, gives its `loss`, and in `prompted` the features of images with prompts.
    """

    Hyper = PromptHyper
    protocols = ("class", "domain")
    needs = "transformer"
    linear_heads = True
    passes = 2  # the query, and the one with prompts

    # ------------------------------------------------------------ what a method gives

    @property
    def layers(self) -> Sequence[int]:
        """The blocks, from 0, that the method's prompts go into."""
        return (0,)

    def prompted(self, images: torch.Tensor, queries: torch.Tensor, kind: str) -> torch.Tensor:
        """Features (batch, dim) of normalised images with the prompts that their queries (batch, dim) ask for."""
        raise NotImplementedError

    # ------------------------------------------------------------ what they share

    def build(self) -> None:
        from cilkit.learners.heads import TaskHeads

        check_layers(self.backbone, self.layers)
        self.backbone.requires_grad_(self.hyper.clip_backbone)
        self.raw = TaskHeads(self.backbone.dim)
        self.prompts: dict[str, torch.nn.Parameter] = {}  # and keys, by name

    def begin_task(self, task: Task) -> None:
        # Where old classes come again (cumulative and domain streams) every head learns, over all classes.
        self.local = task.train.labels.min() >= self.known
        if task.classes:
            self.raw.grow(len(task.classes), self.seed_init, self.local, self.backbone.device)
            bound = 0.0 if self.hyper.head_start == "zero" else 1 / math.sqrt(self.raw.dim)
            for name, value in self.raw.current.named_parameters():
                value.data.copy_(self.uniform(value.shape, -bound, bound, "head " + name, task.index))

    def uniform(self, shape: Sequence[int], low: float, high: float, purpose: str, task: int = 0) -> torch.Tensor:
        """Uniform in low … high, drawn from (seed_init, task, purpose)."""
        import torch

        generator = torch.Generator().manual_seed(derive(self.seed_init, task, purpose))
        return torch.rand(tuple(shape), generator=generator) * (high - low) + low

    def add_prompts(self, name: str, values: torch.Tensor) -> None:
        """Prompts or keys that learn, under a name."""
        from torch import nn

        self.prompts[name] = nn.Parameter(values.to(self.backbone.device))

    def of_tasks(self, name: str) -> list[torch.nn.Parameter]:
        """The prompts "name.0", "name.1" … that each task added."""
        tasks = sum(key.startswith(f"{name}.") for key in self.prompts)
        return [self.prompts[f"{name}.{task}"] for task in range(tasks)]

    def freeze_prompts(self, names: Sequence[str]) -> None:
        """The prompts that the tasks so far added under these names learn no more."""
        for old in (one for name in names for one in self.of_tasks(name)):
            old.requires_grad_(False).grad = None

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """What the optimiser steps."""
        return [p for p in (*self.raw.parameters(), *self.prompts.values()) if p.requires_grad]

    def optimiser(self, task: Task):
        """Adam at a constant rate, anew in every task."""
        import torch

        optimiser = precision.adam(self.trained, self.backbone.device, lr=self.hyper.lr)
        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, self.rate)

    def rate(self, epoch: int) -> float:
        """The share of lr in an epoch, from 0."""
        return 1.0

    def before_step(self, batch: Batch) -> None:
        from torch.nn.utils import clip_grad_norm_

        if self.hyper.clip:
            counted = self.backbone.parameters() if self.hyper.clip_backbone else ()
            clip_grad_norm_([*self.trained, *counted], self.hyper.clip)
        if self.hyper.clip_backbone:
            self.backbone.zero_grad(set_to_none=True)

    def query(self, images: torch.Tensor) -> torch.Tensor:
        """q(x), (batch, dim): the features without prompts, in evaluation mode and without gradients."""
        import torch

        training = self.backbone.training
        self.backbone.eval()
        with torch.no_grad():
            found = self.backbone(images, "query")
        self.backbone.train(training)
        return found

    def classification(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the current task's classes: the same as with -inf for the other tasks' logits."""
        from torch.nn.functional import cross_entropy

        if self.local:
            return cross_entropy(self.raw.current(features), labels - self.known)
        return cross_entropy(self.raw(features), labels)

    def embed(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        return self.prompted(images, self.query(images), kind)

    def features(self, images: ImageSet | np.ndarray, kind: str) -> np.ndarray:
        """As the base class. A test image's query is asked for once in a run: nothing that it depends on changes."""
        if isinstance(images, np.ndarray):
            return self._features(images, self._queries(images), kind, self.test_batch)
        queries = self.bank.of(images, self._queries, keep=kind == "test")
        if not any(self.leaking(name) for name in BATCH_LEAKS):
            return self._features(images, queries, kind, self.test_batch)
        # Leaks show in the batches of those codes: of one task's images, as many as in training.
        features, task = np.empty_like(queries), np.repeat(np.arange(len(self.sizes)), self.sizes)[images.labels]
        for rows in (np.flatnonzero(task == index) for index in np.unique(task)):
            features[rows] = self._features(images.select(rows), queries[rows], kind, self.hyper.batch_size)
        return features

    def _queries(self, images: ImageSet | np.ndarray) -> np.ndarray:
        from cilkit.backbones import extract

        return extract(self.backbone, images, "query", self.recipe, self.test_batch)

    def _features(self, images: ImageSet | np.ndarray, queries: np.ndarray, kind: str, batch_size: int) -> np.ndarray:
        import torch

        from cilkit.backbones import extract

        known = torch.from_numpy(queries).to(self.backbone.device)

        def embed(batch: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
            return self.prompted(batch, known[torch.from_numpy(rows).to(known.device)], kind)

        return extract(self.backbone, images, kind, self.recipe, batch_size, embed)

    def heads(self):
        return {"raw": self.raw}

    def state(self) -> dict[str, torch.Tensor]:
        raw = {f"raw.{name}": value for name, value in self.raw.state_dict().items()}
        return super().state() | raw | {f"prompts.{name}": value.detach() for name, value in self.prompts.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        import torch

        super().load(state)
        self.raw.set_state(part(state, "raw."), self.backbone.device)
        with torch.no_grad():
            for name, value in part(state, "prompts.").items():
                if name in self.prompts:
                    self.prompts[name].copy_(value)
                else:
                    self.add_prompts(name, value)

    def declared(self, stream: Stream) -> dict[str, int]:
        """Student and query: every training image once an epoch. Query: each test image once, and where classifier
        alignment is plugged in each training image once more, for its statistics."""
        trained = self.hyper.epochs * sum(len(task.train) for task in stream)
        asked = len(stream.train) if getattr(self.hyper, "align_epochs", 0) else 0
        tested = len(stream.test_after(stream[-1]))
        return {"student": trained, "query": trained + asked + tested, "test": self.declared_tests(stream)}

    def stored_bytes(self) -> dict[str, int]:
        return {"prompts and keys": sum(value.nbytes for value in self.prompts.values())}


# ---------------------------------------------------------------- prompts in a transformer


def check_layers(backbone: Backbone, layers: Sequence[int]) -> None:
    """UserError for a backbone that takes no prompts, or for blocks that it does not have."""
    from timm.models.vision_transformer import Attention

    blocks = backbone.blocks
    if not blocks or not all(isinstance(block.attn, Attention) for block in blocks):
        raise UserError(f"{backbone.arch!r} takes no prompts; take a plain vision transformer, such as 'small_vit'")
    if not set(layers) <= set(range(len(blocks))):
        raise UserError(f"prompts for blocks {list(layers)} do not fit {backbone.arch!r}; it has 0 … {len(blocks) - 1}")


@contextmanager
def prepended(backbone: Backbone, tokens: torch.Tensor) -> Iterator[None]:
    """While open, tokens (batch, n, dim) stand in front of all others at the first block, behind the position
    embedding, and the features are the mean of their outputs; with n = 0 they are the model's own."""
    import torch

    model, n = backbone.model, tokens.shape[1]

    def insert(block, inputs):
        return (torch.cat([tokens.to(inputs[0].dtype), inputs[0]], dim=1), *inputs[1:])

    def average(norm, inputs, output):  # as many times as the model's own pooling, of whatever kind, needs
        mean = output[:, :n].mean(1, keepdim=True)
        return mean.expand(-1, model.num_prefix_tokens + 1, -1) if n else output

    with ExitStack() as stack:
        stack.callback(model.blocks[0].register_forward_pre_hook(insert).remove)
        stack.callback(model.norm.register_forward_hook(average).remove)
        yield


@contextmanager
def prefixed(backbone: Backbone, prefixes: dict[int, torch.Tensor]) -> Iterator[None]:
    """While open, blocks attend to further keys and values: prefixes[block] is (2, batch or 1, n, dim), keys first."""

    def attending(attention, pair):  # a closure: for `torch.compile` the pair then is an input, not a constant
        return lambda x, **_: attend(attention, pair[0], pair[1], x)

    with ExitStack() as stack:
        for layer, pair in prefixes.items():
            attention = backbone.model.blocks[layer].attn
            stack.callback(delattr, attention, "forward")
            attention.forward = attending(attention, pair)
        yield


def attend(attention: torch.nn.Module, keys: torch.Tensor, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """timm's `Attention.forward` for tokens x (batch, t, dim), with keys and values (batch or 1, n, dim) in front of
    the tokens' own. They are used as they are: no projection, no norm (read in DualPrompt's and CODA-Prompt's code)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    batch, t, _ = x.shape
    heads = (attention.num_heads, attention.head_dim)
    q, k, v = attention.qkv(x).reshape(batch, t, 3, *heads).permute(2, 0, 3, 1, 4).unbind()  # (batch, heads, t, head)
    q, k = attention.q_norm(q), attention.k_norm(k)
    keys, values = (
        some.to(k.dtype).unflatten(-1, heads).transpose(1, 2).expand(batch, -1, -1, -1) for some in (keys, values)
    )
    dropout = attention.attn_drop.p if attention.training else 0.0
    x_new = scaled_dot_product_attention(q, torch.cat([keys, k], 2), torch.cat([values, v], 2), dropout_p=dropout)
    x_new = attention.norm(x_new.transpose(1, 2).flatten(2))
    if attention.gate is not None:
        x_new = x_new * attention.gate(x).sigmoid()
    return attention.proj_drop(attention.proj(x_new))


def similarity(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Cosine of each query (batch, dim) with each key (n, dim): (batch, n)."""
    from torch.nn.functional import normalize

    return normalize(queries) @ normalize(keys).T


def majority(chosen: torch.Tensor, pool: int) -> torch.Tensor:
    """The most frequent of all choices (batch, n) from 0 … pool - 1, for every image: (batch, n). Of equally frequent
    ones the first, as in L2P's code (read)."""
    import torch

    counts = (chosen[..., None] == torch.arange(pool, device=chosen.device)).sum((0, 1))  # (pool,)
    return counts.argsort(descending=True, stable=True)[: chosen.shape[1]].expand_as(chosen)
