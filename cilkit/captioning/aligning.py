"""Pre-alignment: projection and language model learn to write the captions of a realm's paintings, which a frozen
backbone shows them. The paintings are dropped afterwards; a stream tunes the projection alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cilkit import artifacts, precision
from cilkit.data import transforms
from cilkit.errors import UserError
from cilkit.progress import bar

if TYPE_CHECKING:
    from cilkit.backbones import Backbone
    from cilkit.captioning.captioner import Captioner
    from cilkit.data import ImageSet

WARMUP = 50  # steps
DECAY = 0.01
EPOCH = "epoch.safetensors"


@torch.no_grad()
def seen(
    captioner: Captioner, backbone: Backbone, images: ImageSet, recipe: str, views: int, seed: int
) -> torch.Tensor:
    """Tokens (views, images, tokens, width): of the images as they are, then of random variants by the recipe."""
    prepare = transforms.recipe(recipe, backbone.input)
    found = []
    with bar("paintings seen", views * len(images)) as tick:
        for view in range(views):
            generator = torch.Generator().manual_seed(seed + view)
            for start in range(0, len(images), 256):
                pixels = images.read(np.arange(start, min(start + 256, len(images))))
                shown = prepare.train(pixels, generator) if view else prepare.test(pixels)
                found.append(captioner.look(backbone, shown.to(backbone.device), "student").cpu())
                tick(len(pixels))
    return torch.cat(found).unflatten(0, (views, len(images)))


def align(
    captioner: Captioner,
    tokens: torch.Tensor,
    labels: np.ndarray,
    captions: Sequence[str],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    noise: float,
    seed: int,
    scratch: Path,
) -> list[float]:
    """Train connector and language model; the mean loss a token of every epoch.

    tokens: (views, images, tokens, width), of which each epoch goes through all. captions: by label.
    noise:  standard deviation of what is added to standardised tokens, so that real images, which lie elsewhere, are
            still read.
    An interrupted training goes on after its last whole epoch.
    """
    device = captioner.prompt.device
    captioner.train_only("language")
    captioner.connector.standardise(tokens.flatten(0, 1))
    spread = noise / float(captioner.connector.scale)
    flat = tokens.flatten(0, 1)
    kinds = torch.from_numpy(np.tile(labels, len(tokens)))
    table = captioner.padded(captions)
    optimiser = precision.adamw(captioner.learning(), device, lr=lr, weight_decay=DECAY)
    losses = _taken_up(captioner, optimiser, scratch)
    steps = epochs * math.ceil(len(flat) / batch_size)
    rates = [lr * min(1, (k + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * k / steps)) for k in range(steps)]
    taken = len(losses) * (steps // max(1, epochs))
    with bar("pre-alignment", (epochs - len(losses)) * len(flat)) as tick:
        for epoch in range(len(losses), epochs):
            generator = torch.Generator().manual_seed(10_000 * seed + epoch)
            total = torch.zeros((), device=device)  # no step waits for the device
            for rows in transforms.batches(len(flat), batch_size, seed, epoch):
                for group in optimiser.param_groups:
                    group["lr"] = rates[taken]
                some = flat[rows]
                some = (some + spread * torch.randn(some.shape, generator=generator)).to(device)
                answers = table[kinds[rows].to(device)]
                loss = captioner.nll(some, answers).sum() / (answers >= 0).sum()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                total += loss.detach() * len(rows)
                taken += 1
                tick(len(rows))
            losses.append(float(total) / len(flat))
            if not math.isfinite(losses[-1]):
                raise UserError(f"the caption loss is {losses[-1]} in epoch {epoch + 1}; lower lr (now {lr:g})")
            _keep(captioner, optimiser, losses, scratch)
    captioner.requires_grad_(False)
    return losses


def _keep(captioner: Captioner, optimiser: torch.optim.Optimizer, losses: list[float], scratch: Path) -> None:
    from safetensors.torch import save

    state = {f"weights.{name}": value.detach() for name, value in captioner.learnt()}
    for place, values in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{place}.{name}": value for name, value in values.items()}
    state["losses"] = torch.tensor(losses, dtype=torch.float64)
    state = {name: value.cpu().contiguous() for name, value in state.items()}
    artifacts.atomic_write(scratch / EPOCH, save(state))


def _taken_up(captioner: Captioner, optimiser: torch.optim.Optimizer, scratch: Path) -> list[float]:
    """The epochs' losses that an interrupted training left, its weights and its optimiser put back."""
    from safetensors.torch import load_file

    if not (scratch / EPOCH).exists():
        return []
    state = load_file(scratch / EPOCH)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimiser."):
            _, place, what = name.split(".")
            moments.setdefault(int(place), {})[what] = value
    with torch.no_grad():
        for name, value in captioner.learnt():
            value.copy_(state[f"weights.{name}"])
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return state["losses"].tolist()
