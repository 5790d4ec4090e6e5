"""A training on disk, in the middle of an epoch: everything that its next batch needs, in one file replaced at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from cilkit import artifacts
from cilkit.errors import UserError

if TYPE_CHECKING:
    from cilkit.pretraining.trainer import Trainer

FILE = "pretraining.safetensors"


def save(trainer: Trainer) -> None:
    """Weights, the optimiser's state, sums and the generator's state after the last batch."""
    from safetensors.torch import save as to_bytes

    tensors = {f"network.{name}": value for name, value in trainer.network.state_dict().items()}
    for index, state in trainer.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items() if value is not None}
    tensors["sums"] = trainer.sums
    if trainer.generator is not None:
        tensors["generator"] = torch.from_numpy(trainer.generator)
    facts = {
        "rows": trainer.rows,
        "batch": trainer.batch,
        "steps": trainer.schedule.last_epoch,
        "forwarded": trainer.backbone.forwarded,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    artifacts.atomic_write(trainer.scratch / FILE, to_bytes(tensors, metadata={"facts": json.dumps(facts)}))


def load(trainer: Trainer) -> None:
    """Go on from the last checkpoint, if there is one."""
    if trainer.scratch is None or not (trainer.scratch / FILE).exists():
        return
    from safetensors import SafetensorError, safe_open

    path = trainer.scratch / FILE
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"the checkpoint {path} is damaged ({error}); delete it and run again") from error
    under = lambda start: {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}  # noqa: E731
    trainer.network.load_state_dict(under("network."))
    state: dict[int, dict] = {}
    for name, value in under("optimiser.").items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    trainer.optimiser.load_state_dict({**trainer.optimiser.state_dict(), "state": state})
    trainer.schedule.last_epoch = facts["steps"]
    for group in trainer.optimiser.param_groups:
        group["lr"] = group["initial_lr"] * trainer.factor(facts["steps"])
    trainer.backbone.forwarded.update(facts["forwarded"])
    trainer.rows, trainer.batch = facts["rows"], facts["batch"]
    trainer.sums = tensors["sums"].to(trainer.device)
    trainer.generator = tensors["generator"].numpy() if "generator" in tensors else None
