"""What is attached to a backbone without editing it: LoRA, adapters, prompts, SSF.

Forward hooks add the new parameters' share, so the model's modules and the names in its own `state_dict` stay as they
are. The parts live in `backbone.attached` under a name: they train, copy and move with the backbone, and are saved
beside its weights.

    attachments.lora(backbone, "lora", rank=4, targets=("attn.qkv", "mlp.fc1", "mlp.fc2"))
    optimiser = torch.optim.SGD(backbone.attached["lora"].parameters(), lr=0.01)
    attachments.detach(backbone, "lora")

LoRA and adapters leave the features as they are until they are trained; prompts, which every token attends to, and
SSF's random start do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from cilkit.errors import UserError

if TYPE_CHECKING:
    from cilkit.backbones import Backbone


class Attachment(nn.Module):
    """Parameters and the hooks that bring them into a model.

    facts: what it was made with, enough to make it again.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        self.facts = facts
        self.handles: list[Any] = []  # hooks are bound methods, so that a copy of the backbone has its own


class LowRank(nn.Module):
    """scale * B A x beside one linear layer W x (Hu et al. 2022, Sec. 4.1)."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, start: str, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        if start == "svd":
            directions = torch.linalg.svd(linear.weight.detach(), full_matrices=False).Vh[:rank]
        else:
            directions = uniform((rank, linear.in_features), 1 / math.sqrt(linear.in_features), generator)
        self.A = nn.Parameter(directions.clone().to(linear.weight))  # (rank, in)
        self.B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))  # (out, rank)

    def add(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + self.scale * F.linear(F.linear(inputs[0], self.A), self.B)


def lora(
    backbone: Backbone,
    name: str,
    rank: int = 4,
    targets: Sequence[str] = ("attn.qkv",),
    scale: float = 1.0,
    start: str = "random",
    seed: int = 0,
) -> Attachment:
    """W + scale * B A in every linear layer whose name ends in one of `targets`; B = 0 at first.

    start: "random": A uniform as in the LoRA authors' code (remembered); "svd": the right singular vectors of W with
           the largest singular values. SLCA++ has rank 4, scale 0.8 and "svd" on qkv, fc1 and fc2 (read in its code).
    UserError for a target that ends no linear layer's name, or a rank that does not fit.
    """
    facts = {"kind": "lora", "rank": rank, "targets": list(targets), "scale": scale, "start": start, "seed": seed}
    if start not in ("random", "svd"):
        raise UserError(f"LoRA start {start!r} is unknown; take 'random' or 'svd'")
    linear = {path: module for path, module in backbone.model.named_modules() if isinstance(module, nn.Linear)}
    for target in targets:
        if not any(_ends(path, target) for path in linear):
            have = sorted({".".join(path.split(".")[-2:]) for path in linear})
            raise UserError(f"no linear layer of {backbone.arch!r} is called {target!r}; it has {', '.join(have)}")
    chosen = [module for path, module in linear.items() if any(_ends(path, target) for target in targets)]
    most = min(min(module.weight.shape) for module in chosen)
    if not 1 <= rank <= most:
        raise UserError(f"LoRA rank {rank} does not fit these layers; take 1 … {most}")
    part = _attach(backbone, name, facts)
    generator = torch.Generator().manual_seed(seed)
    part.layers = nn.ModuleList(LowRank(module, rank, scale, start, generator) for module in chosen)
    part.handles = [m.register_forward_hook(low.add) for m, low in zip(chosen, part.layers, strict=True)]
    return part


class Parallel(nn.Module):
    """scale * up(ReLU(down(x))) beside a block's MLP, x its input before the norm (AdaptFormer, Chen et al. 2022)."""

    def __init__(self, dim: int, bottleneck: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale, self._seen = scale, None
        self.down, self.up = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        with torch.no_grad():
            self.down.weight.copy_(uniform((bottleneck, dim), 1 / math.sqrt(dim), generator))
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def keep(self, norm: nn.Module, inputs: tuple) -> None:
        self._seen = inputs[0]

    def add(self, mlp: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        seen, self._seen = self._seen, None
        return output + self.scale * self.up(F.relu(self.down(seen)))


def adapter(backbone: Backbone, name: str, bottleneck: int = 64, scale: float = 0.1, seed: int = 0) -> Attachment:
    """AdaptFormer's parallel adapter in every block of a vision transformer; `up` is 0 at first.

    Bottleneck 64, scale 0.1 and LoRA's initialisation as RanPAC uses it (read in its code). UserError for a backbone
    without transformer blocks.
    """
    blocks = _blocks(backbone)
    part = _attach(backbone, name, {"kind": "adapter", "bottleneck": bottleneck, "scale": scale, "seed": seed})
    generator = torch.Generator().manual_seed(seed)
    part.layers = nn.ModuleList(Parallel(_dim(backbone), bottleneck, scale, generator) for _ in blocks)
    part.to(backbone.device)
    for block, beside in zip(blocks, part.layers, strict=True):
        part.handles += [
            block.norm2.register_forward_pre_hook(beside.keep),
            block.mlp.register_forward_hook(beside.add),
        ]
    return part


class Tokens(nn.Module):
    """Learnt tokens, (length, dim), that stand behind the class token of every image in a batch."""

    def __init__(self, length: int, dim: int, bound: float, place: int, generator: torch.Generator) -> None:
        super().__init__()
        self.place = place
        self.tokens = nn.Parameter(uniform((length, dim), bound, generator))

    def insert(self, block: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0]  # (batch, n, dim)
        tokens = self.tokens.expand(len(x), -1, -1)
        return torch.cat([x[:, : self.place], tokens, x[:, self.place :]], dim=1), *inputs[1:]

    def remove(self, block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, : self.place], output[:, self.place + len(self.tokens) :]], dim=1)


def prompts(backbone: Backbone, name: str, length: int = 5, deep: bool = False, seed: int = 0) -> Attachment:
    """Learnt tokens among the tokens of a vision transformer (VPT, Jia et al. 2022); its output keeps its length.

    deep: new tokens before every block, whose outputs are dropped ("VPT-deep", 5 tokens in RanPAC on Cars, read in its
    code); else one set before the first block that stays until the last. Initialisation remembered from VPT's code:
    uniform within sqrt(6 / (3 patch^2 + dim)). UserError for a backbone without transformer blocks.
    """
    blocks, model, dim = _blocks(backbone), backbone.model, _dim(backbone)
    patch = model.patch_embed.patch_size
    bound = math.sqrt(6 / (3 * math.prod(patch if isinstance(patch, Sequence) else (patch, patch)) + dim))
    part = _attach(backbone, name, {"kind": "prompts", "length": length, "deep": deep, "seed": seed})
    generator = torch.Generator().manual_seed(seed)
    spans = [(block, block) for block in blocks] if deep else [(blocks[0], blocks[-1])]
    part.layers = nn.ModuleList(Tokens(length, dim, bound, model.num_prefix_tokens, generator) for _ in spans)
    part.to(backbone.device)
    for (first, last), tokens in zip(spans, part.layers, strict=True):
        part.handles += [first.register_forward_pre_hook(tokens.insert), last.register_forward_hook(tokens.remove)]
    return part


class ScaleShift(nn.Module):
    """scale * y + shift, a factor and a term a channel, on one operation's output y (SSF, Lian et al. 2022)."""

    def __init__(self, channels: int, std: float, spatial: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = (-1, 1, 1) if spatial else (-1,)  # channels before rows and columns, or last
        self.scale = nn.Parameter(1 + std * torch.randn(channels, generator=generator))
        self.shift = nn.Parameter(std * torch.randn(channels, generator=generator))

    def change(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        scale, shift = (part.to(output.dtype).view(self.shape) for part in (self.scale, self.shift))
        return output * scale + shift


def ssf(backbone: Backbone, name: str, std: float = 0.02, seed: int = 0) -> Attachment:
    """Scale and shift behind every linear layer, convolution and layer normalisation of any backbone.

    In a vision transformer these are the places of SSF's code: patch embedding, qkv, proj, fc1, fc2 and all norms.
    Start (read in copies of it): scale normal around 1, shift around 0, with `std`; 0 leaves the features as they are.
    Batch normalisation is left out (our decision): with frozen statistics the convolution before it reaches the same.
    """
    from timm.layers import LayerNorm2d

    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    chosen = [module for module in backbone.model.modules() if isinstance(module, kinds)]
    part = _attach(backbone, name, {"kind": "ssf", "std": std, "seed": seed})
    generator = torch.Generator().manual_seed(seed)
    part.layers = nn.ModuleList(
        ScaleShift(_channels(module), std, isinstance(module, (nn.Conv2d, LayerNorm2d)), generator) for module in chosen
    )
    part.to(backbone.device)
    part.handles = [m.register_forward_hook(layer.change) for m, layer in zip(chosen, part.layers, strict=True)]
    return part


def _channels(module: nn.Module) -> int:
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    return module.out_channels if isinstance(module, nn.Conv2d) else module.out_features


def detach(backbone: Backbone, name: str) -> None:
    """Take an attachment off; the backbone is what it was before. UserError for an unknown name."""
    if name not in backbone.attached:
        have = ", ".join(backbone.attached) or "nothing"
        raise UserError(f"no attachment {name!r}; this backbone carries {have}")
    for handle in backbone.attached.pop(name).handles:
        handle.remove()


KINDS = {"lora": lora, "adapter": adapter, "prompts": prompts, "ssf": ssf}


def restore(backbone: Backbone, facts: dict[str, dict], weights: dict[str, torch.Tensor]) -> None:
    """Attach again what a saved backbone carried: facts by name, weights as in `backbone.attached.state_dict()`."""
    for name, settings in facts.items():
        KINDS[settings["kind"]](backbone, name, **{key: value for key, value in settings.items() if key != "kind"})
    try:
        backbone.attached.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"the attachments saved with {backbone.arch!r} do not fit it: {first}") from error


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    """Uniform in -bound … bound, drawn on the CPU."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


def _attach(backbone: Backbone, name: str, facts: dict[str, Any]) -> Attachment:
    if not name or "." in name or name in backbone.attached:
        raise UserError(f"an attachment cannot be called {name!r}: give each a name of its own, without a dot")
    backbone.attached[name] = part = Attachment(facts)
    return part


def _ends(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _blocks(backbone: Backbone) -> list[nn.Module]:
    if not (blocks := backbone.blocks):
        raise UserError(f"{backbone.arch!r} has no transformer blocks to attach to; take a vision transformer")
    return blocks


def _dim(backbone: Backbone) -> int:
    return backbone.model.embed_dim
