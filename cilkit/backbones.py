"""Backbones: timm models by name, without their head, that count every image they are shown.

A backbone on disk is a folder in timm's own layout, `config.json` and `model.safetensors`, so that plain timm reads it:
`timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)`. What hooks bring in (`cilkit.attachments`) lies
beside them in `attached.safetensors`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from cilkit import architectures, artifacts, precision
from cilkit.data.transforms import Input
from cilkit.errors import UserError, near_name, reason_of

if TYPE_CHECKING:
    from cilkit.data import ImageSet
    from cilkit.data.transforms import Recipe

# Batch normalisation (our decision): in a trial, one-group normalisation in its place was 30 points behind after as
# many epochs of joint training, and 15 (nearest class mean) after as long a pre-training on letters.
DEFAULT_ARCH = "small_resnet"  # a preset of cilkit.architectures
KINDS = ("student", "teacher", "query", "fisher", "statistics", "test", "probe")
WEIGHTS, CONFIG, ATTACHED = "model.safetensors", "config.json", "attached.safetensors"
CUTTING = ("interpolation", "crop_pct", "crop_mode")  # timm's names for how an image comes to the input's size
FILES = (".safetensors", ".pth", ".pt", ".bin", ".tar")  # single files of weights; all but the first by weights_only
STEMS = ("act1", "bn1", "conv_stem", "features.norm0", "stem")  # what timm calls a map before the first stage


class Backbone(nn.Module):
    """A timm model without head, and the count of what it was shown.

    dim:        number of features.
    input:      size, normalisation, interpolation and crop that belong to the weights, from timm's configuration.
    arch:       timm's name; `model_args` are what it was created with.
    tag:        which weights these are, for result rows: "vit_base_patch16_224.augreg_in21k", "resnet10t.random", or
                for a file "name@" with the beginning of its sha256.
    fresh_norm: whether the final LayerNorm was replaced (see `architectures.Weights`).
    precision:  "float32", or "bf16" for a forward pass under autocast (see `cilkit.precision`).
    attached:   what `cilkit.attachments` brought in by hooks; the model's own state_dict knows nothing of it.
    forwarded:  images by kind of pass, one of KINDS.
    elsewhere:  whether its weights lie in another library's format where they came from; then no run writes them.
    """

    elsewhere = False

    def __init__(self, model: nn.Module, arch: str, model_args: dict[str, Any], tag: str = "") -> None:
        super().__init__()
        self.model = model
        self.arch, self.model_args = arch, dict(model_args)
        self.tag = tag or f"{arch}.random"
        self.dim: int = getattr(model, "head_hidden_size", None) or model.num_features
        self.input = _input_of(model, self.model_args)
        self.fresh_norm = False
        self.precision = "float32"
        self.attached = nn.ModuleDict()
        self.forwarded: Counter[str] = Counter()
        if any(isinstance(module, nn.Conv2d) and module.kernel_size[0] == 3 for module in model.modules()):
            self.to(memory_format=torch.channels_last)  # a third faster on a CPU; the values' meaning is the same

    @property
    def mean(self) -> tuple[float, ...]:
        """A value a channel, for pixels in 0 … 1."""
        return self.input.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.input.std

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        """Features, float32 (float64 of a float64 model), (batch, dim), of normalised images (batch, 3, h, w); `kind`
        says in whose name they are counted."""
        self._count(images, kind)
        with precision.autocast(self.precision, images.device):
            found = self.model(images)
        return found if found.dtype == torch.float64 else found.float()

    def maps(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        """`forward` up to its last part, which `rest` is: the last maps (batch, channels, h, w) of a convolutional
        network, or the tokens (batch, tokens, width) that enter the last block of timm's VisionTransformer."""
        self._count(images, kind)
        with precision.autocast(self.precision, images.device):
            if self.transformer:
                tokens = self.model.patch_drop(self.model._pos_embed(self.model.patch_embed(images)))
                return self.model.blocks[:-1](self.model.norm_pre(tokens))
            maps = self.model.forward_features(images)
        if maps.ndim != 4 or maps.shape[1] != self.model.num_features:
            raise UserError(
                f"{self.arch!r} ends in {tuple(maps.shape)}, not in maps (batch, channels, h, w); take a convolutional "
                "network or a plain vision transformer, such as arch small_resnet or small_vit"
            )
        return maps

    def rest(self, maps: torch.Tensor) -> torch.Tensor:
        """Features (batch, dim) of what `maps` gave. Can be differentiated twice: attention by the plain kernel, as the
        fused ones have no second derivative, and the last block past what compiled it, which has none either."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with precision.autocast(self.precision, maps.device), sdpa_kernel(SDPBackend.MATH):
            if self.transformer:
                maps = self.model.norm(self.model.blocks[-1]._call_impl(maps))
            found = self.model.forward_head(maps, pre_logits=True)
        return found if found.dtype == torch.float64 else found.float()

    def stages(self, images: torch.Tensor, kind: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`forward`'s features (batch, dim) and, of the same pass, the maps (batch, channels, h, w) after every stage
        of a convolutional network, first stage first. Never compiled: the maps lie inside."""
        infos = enumerate(getattr(self.model, "feature_info", []))
        chosen = [place for place, info in infos if not info["module"].startswith(STEMS)]
        if self.blocks or not chosen or not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"{self.arch!r} gives no maps by stage; take a convolutional network, such as small_resnet")
        self._count(images, kind)
        with precision.autocast(self.precision, images.device):
            last, maps = self.model.forward_intermediates(images, indices=chosen)
            features = self.model.forward_head(last)
        kept = torch.promote_types(features.dtype, torch.float32)
        return features.to(kept), [one.to(kept) for one in maps]

    def _count(self, images: torch.Tensor, kind: str) -> None:
        if kind not in KINDS:
            raise UserError(f"{kind!r} is no kind of forward pass; one of {', '.join(KINDS)}")
        self.forwarded[kind] += len(images)

    @property
    def transformer(self) -> bool:
        """Whether this is timm's own VisionTransformer."""
        from timm.models import VisionTransformer

        return isinstance(self.model, VisionTransformer)

    @property
    def blocks(self) -> list[nn.Module]:
        """A vision transformer's blocks, in order; none of another network."""
        blocks = list(getattr(self.model, "blocks", []))
        fit = all(hasattr(block, name) for block in blocks for name in ("attn", "norm2", "mlp"))
        return blocks if fit else []

    @property
    def norms(self) -> list[nn.Module]:
        """Its batch normalisations; a transformer has none."""
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def learning(self, norm_statistics: str) -> None:
        """Training mode; "frozen": batch normalisation keeps using, and does not change, its running statistics."""
        self.train()
        if norm_statistics == "frozen":
            for module in self.norms:
                module.eval()

    def mark_trained(self) -> None:
        """Weights that come trained bring running statistics, even where a conversion did not count the batches."""
        for module in self.norms:
            if module.num_batches_tracked is not None:
                module.num_batches_tracked.clamp_(min=1)

    def renew_final_norm(self) -> None:
        """A new final LayerNorm, weight 1, bias 0, eps 1e-5: SLCA's quirk (read in its convs/vits.py)."""
        norm = getattr(self.model, "norm", None)
        if not isinstance(norm, nn.LayerNorm):
            raise UserError(f"{self.arch!r} has no final LayerNorm to renew; use a vision transformer")
        self.model.norm = nn.LayerNorm(norm.normalized_shape).to(self.device)
        self.fresh_norm = True

    def frozen_copy(self) -> Backbone:
        """A copy for teaching: eval mode, no gradients, counting into the same counter."""
        twin = copy.deepcopy(self).eval().requires_grad_(False)
        twin.forwarded = self.forwarded
        return twin


def _input_of(model: nn.Module, model_args: dict[str, Any], trained: bool = False) -> Input:
    """timm's data configuration of a model; `img_size` among its arguments is its size.

    Untrained, a network that takes any size has none of its own (0); `trained` says that the weights are timm's.
    """
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    fixed = trained or model.pretrained_cfg.get("fixed_input_size", False)
    size = model_args.get("img_size") or (config["input_size"][-1] if fixed else 0)
    size = size if isinstance(size, int) else size[-1]
    config |= {"size": size, "mean": tuple(config["mean"]), "std": tuple(config["std"])}
    return Input(**{name: config[name] for name in asdict(Input())})


def _timm() -> Any:
    """timm, which knows the CIFAR networks from here on."""
    import timm

    from cilkit import cifar_resnets  # noqa: F401

    return timm


def create(arch: str = DEFAULT_ARCH, seed: int = 0, model_args: dict[str, Any] | None = None) -> Backbone:
    """A backbone with random weights that depend on (arch, model_args, seed) alone.

    arch: a preset of `cilkit.architectures` ("" is DEFAULT_ARCH), over which `model_args` are laid, or a timm name.
    UserError for an unknown name or an argument that the model does not take.
    """
    timm = _timm()
    arch, model_args = architectures.resolve(arch or DEFAULT_ARCH, model_args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = timm.create_model(arch, pretrained=False, num_classes=0, **model_args)
        except RuntimeError as error:
            raise UserError(_unknown(arch, error)) from error
        except TypeError as error:
            raise UserError(f"timm's {arch!r} does not take model_args {model_args}: {error}") from error
    return Backbone(model, arch, model_args)


def _unknown(arch: str, error: Exception) -> str:
    """One sentence on a name that timm does not know, or on a weight tag that its architecture does not have."""
    timm = _timm()
    name, _, tag = str(arch).partition(".")
    known = timm.list_pretrained(f"{name}.*") if timm.is_model(name) else timm.list_models()
    if timm.is_model(name) and (not tag or arch in known):
        return f"timm cannot build {arch!r}: {error}"
    meant = near_name(arch if timm.is_model(name) else name, known)
    if timm.is_model(name):
        return f"timm knows no weights {tag!r} of {name!r}{meant}; timm.list_pretrained({name + '.*'!r}) lists them"
    return f"timm knows no architecture {arch!r}{meant}; timm.list_models() lists them"


def save(backbone: Backbone, folder: str | Path, meta: dict[str, Any] | None = None, tag: str = "") -> None:
    """Write timm's local layout: `config.json` and `model.safetensors`, byte-deterministic; `meta` goes along.

    tag: what these weights are to be called in result rows; "" names them by their sha256.
    Attachments go into `attached.safetensors`.
    """
    if backbone.elsewhere:
        raise UserError(f"{backbone.tag} is no model of timm's and is not saved as one; start from one of timm's")
    own = backbone.model.pretrained_cfg
    pretrained_cfg = {
        "input_size": list(own["input_size"]),
        "fixed_input_size": bool(own.get("fixed_input_size", False)),
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "num_classes": 0,
        "classifier": own.get("classifier"),
        "first_conv": own.get("first_conv"),
    }
    given, untrained = asdict(backbone.input), asdict(_input_of(backbone.model, backbone.model_args))
    given = {name: given[name] for name in ("size", *CUTTING) if given[name] != untrained[name]}
    if "size" in given:
        pretrained_cfg["input_size"] = [3, given["size"], given["size"]]
    pretrained_cfg |= {name: given[name] for name in CUTTING if name in given}
    card = {
        "architecture": backbone.arch,
        "num_classes": 0,
        "num_features": backbone.dim,
        "model_args": backbone.model_args,
        "pretrained_cfg": pretrained_cfg | ({"tag": tag} if tag else {}),
        "cilkit": meta or {},
    }
    card |= {"input": given} if given else {}
    if backbone.fresh_norm:
        card["fresh_norm"] = True
    if backbone.attached:
        card["attached"] = {name: part.facts for name, part in backbone.attached.items()}
        artifacts.atomic_write(Path(folder) / ATTACHED, _bytes_of(backbone.attached))
    artifacts.atomic_write(Path(folder) / WEIGHTS, _bytes_of(backbone.model))
    artifacts.write_json(Path(folder) / CONFIG, card)


def _bytes_of(module: nn.Module) -> bytes:
    from safetensors.torch import save as to_bytes

    weights = {name: value.detach().cpu().contiguous() for name, value in sorted(module.state_dict().items())}
    return to_bytes(weights, metadata={"format": "pt"})


def load(spec: Any, seed: int = 0, arch: str = "", model_args: dict[str, Any] | None = None) -> Backbone:
    """A backbone from whatever names one:

    "none":                        random weights of `arch` ("" is DEFAULT_ARCH), drawn from `seed`;
    a folder or artifact:          timm's local layout, which says its architecture itself;
    "vit_base_patch16_224.augreg_in21k", "hf-hub:owner/name": timm fetches the weights of that tag;
    a file of weights:             .safetensors (or .pth, read as plain tensors), whose architecture is `arch`;
    "slca_vit_b16_in21k":          a preset of `architectures.WEIGHTS`; with ":FILE" behind it, from that file.

    model_args: laid over the architecture's own, for all but a folder.
    UserError for an unknown name (with a near one), a damaged file, or weights that do not fit (the first difference).
    """
    if isinstance(spec, str) and spec == "none":
        return create(arch, seed, model_args)
    if isinstance(spec, str) and spec.partition(":")[0] in architectures.WEIGHTS:
        return _load_preset(spec, model_args)
    if isinstance(spec, str) and spec.startswith("local-dir:"):
        spec = spec.removeprefix("local-dir:")
    path = Path(getattr(spec, "path", spec))
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _load_file(path, arch, model_args)
    if isinstance(spec, str) and not spec.startswith((".", "/")) and not spec.endswith(FILES):
        return _load_named(spec, model_args)
    raise UserError(
        f"no backbone at {path}; expected a folder with {CONFIG} and {WEIGHTS}, or a file that ends in {FILES[0]}"
    )


def _load_folder(folder: Path) -> Backbone:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no {name}; a backbone's folder has {CONFIG} and {WEIGHTS}")
    try:
        card = json.loads((folder / CONFIG).read_text())
        arch, cfg = card["architecture"], card.get("pretrained_cfg", {})
    except (ValueError, KeyError) as error:
        raise _damaged(folder, error) from error
    weights, digest = _read(folder / WEIGHTS)
    backbone = create(arch, 0, _headless(card.get("model_args")))
    backbone.tag = f"{arch.partition('.')[0]}.{cfg['tag']}" if cfg.get("tag") else f"{arch}@{digest}"
    if card.get("fresh_norm"):
        backbone.renew_final_norm()
    _fit(backbone, weights, folder)
    backbone.input = _input_in(card, backbone.input)
    if "cilkit" not in card:
        backbone.mark_trained()
    if card.get("attached"):
        from cilkit import attachments

        attachments.restore(backbone, card["attached"], _read(folder / ATTACHED)[0])
    return backbone


def _headless(model_args: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (model_args or {}).items() if name != "num_classes"}


def _input_in(card: dict[str, Any], untrained: Input) -> Input:
    """What a saved folder says of its input; timm's own folders say it in `pretrained_cfg` alone."""
    cfg = card.get("pretrained_cfg", {})
    given = {name: tuple(cfg[name]) for name in ("mean", "std") if name in cfg}
    if "cilkit" in card:
        return replace(untrained, **given, **card.get("input", {}))
    given |= {name: cfg[name] for name in CUTTING if name in cfg}
    if "input_size" in cfg and "img_size" not in card.get("model_args", {}):
        given["size"] = cfg["input_size"][-1]
    return replace(untrained, **given)


def _load_file(path: Path, arch: str, model_args: dict[str, Any] | None) -> Backbone:
    if not arch:
        raise UserError(f"{path} holds weights but no architecture; say which with `arch`, e.g. vit_base_patch16_224")
    weights, digest = _read(path)
    backbone = create(arch, 0, model_args)
    _fit(backbone, weights, path)
    backbone.input = _input_of(backbone.model, backbone.model_args, trained=True)
    backbone.mark_trained()
    backbone.tag = f"{path.name}@{digest}"
    return backbone


def _load_preset(spec: str, model_args: dict[str, Any] | None) -> Backbone:
    name, _, file = spec.partition(":")
    preset = architectures.WEIGHTS[name]
    if (file or preset.file) and not Path(file).is_file():
        needed = (
            f"the weights {preset.file}, which timm does not have" if preset.file else f"{file}, which is not there"
        )
        raise UserError(f"{spec!r} needs {needed}; write '{name}:FILE'")
    backbone = _load_file(Path(file), preset.arch, model_args) if file else _load_named(preset.arch, model_args)
    backbone.tag = f"{name}:{backbone.tag}" if file else name
    if preset.fresh_norm:
        backbone.renew_final_norm()
    return backbone


def _load_named(name: str, model_args: dict[str, Any] | None = None) -> Backbone:
    timm = _timm()
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **(model_args or {}))
    except (RuntimeError, OSError, ValueError) as error:
        if ":" not in name and "/" not in name and name not in timm.list_pretrained(f"{name.partition('.')[0]}*"):
            raise UserError(_unknown(name, error)) from error
        raise UserError(
            f"the weights of {name!r} cannot be had ({reason_of(error)}); "
            "check the name and the network, or give a folder or a file"
        ) from error
    cfg = model.pretrained_cfg
    tag = ".".join(part for part in (cfg["architecture"], cfg.get("tag")) if part)
    stored = {} if timm.is_model(name) else getattr(model, "_model_args", {})  # of a hub's own configuration
    stored = _headless(stored) | (model_args or {})
    backbone = Backbone(model, name if timm.is_model(name) else cfg["architecture"], stored, tag)
    backbone.input = _input_of(model, stored, trained=True)
    backbone.mark_trained()
    return backbone


def _read(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of a file by name, and the beginning of its sha256."""
    from io import BytesIO

    from safetensors.torch import load as from_bytes

    content = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            weights = from_bytes(content)
        else:
            weights = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise several unrelated classes for a damaged file
        raise _damaged(path, error) from error
    for name in ("model", "state_dict"):  # where training scripts put the weights beside other things
        weights = weights[name] if isinstance(weights.get(name), dict) else weights
    return weights, hashlib.sha256(content).hexdigest()[:8]


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"the backbone in {path} is damaged ({reason_of(error)}); get or make it again")


def _fit(backbone: Backbone, weights: dict[str, torch.Tensor], where: Path) -> None:
    """Load weights, all of them and nothing else; a classifier among them is left out."""
    own = backbone.model.state_dict()
    heads = backbone.model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([heads] if isinstance(heads, str) else heads))
    weights = {name: value for name, value in weights.items() if name in own or not name.startswith(heads)}
    wrong = [f"{name!r} is missing" for name in own if name not in weights]
    wrong += [f"{name!r} is unexpected" for name in weights if name not in own]
    wrong += [
        f"{name!r} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        count = f" (the first of {len(wrong)} differences)" if len(wrong) > 1 else ""
        raise UserError(f"the weights in {where} do not fit {backbone.arch!r}: {wrong[0]}{count}")
    backbone.model.load_state_dict(weights)


def extract(
    backbone: Backbone,
    images: ImageSet | np.ndarray,
    kind: str,
    recipe: Recipe | None = None,
    batch_size: int = 256,
    embed: Callable[[torch.Tensor, np.ndarray], torch.Tensor] | None = None,
) -> np.ndarray:
    """Features, float32 (n, dim), in eval mode, without gradients or augmentation.

    images: an image set, read batch by batch, or uint8 (n, h, w, 3).
    recipe: how they are resized and normalised (its test transform); None: their own size, the backbone's mean and std.
    embed:  from a batch (b, 3, h, w) and its positions in `images` (b,) to features (b, dim); the backbone by default.
    """
    features, filled = np.empty((0, backbone.dim), np.float32), 0
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        for batch in _batches(backbone, images, recipe, batch_size):
            batch, rows = batch.to(backbone.device), np.arange(filled, filled + len(batch))
            found = (backbone(batch, kind) if embed is None else embed(batch, rows)).float().cpu().numpy()
            if not filled:
                features = np.empty((len(images), found.shape[1]), np.float32)
            features[rows] = found
            filled += len(found)
    backbone.train(was_training)
    return features


def _batches(
    backbone: Backbone, images: ImageSet | np.ndarray, recipe: Recipe | None, batch_size: int
) -> Iterator[torch.Tensor]:
    from cilkit.data import loading
    from cilkit.data.transforms import recipe as recipe_of

    if recipe is None:
        recipe = recipe_of("none", replace(backbone.input, size=0))
    device = backbone.device
    cuts = [np.arange(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    if isinstance(images, np.ndarray):
        return (recipe.test(images[cut], device) for cut in cuts)
    ahead = loading.ahead_for(images, device)
    prepare = precision.on_own_stream(lambda pixels, _: recipe.test(pixels, device), device)
    return loading.prefetched(images, cuts, prepare, ahead, recipe.shortest)
