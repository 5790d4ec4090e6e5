"""Any image-text-to-text model of transformers, taken apart: an image encoder, which is a run's backbone, and a
captioner of its connector and language model.

    images | vision part | connector | language model
             tokens()      Captioner

It can be taken apart where the image's tokens stand in the prompt as words and are read causally: LLaVA, BLIP-2 with
OPT, Idefics3 and SmolVLM, Qwen2-VL. When a model is loaded, what its language model reads and its next word are
compared with what the parts make of them, and the scores of answers read together with those of each alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cilkit import precision
from cilkit.backbones import Backbone
from cilkit.captioning.assembled import IMAGE, QUESTION, whole
from cilkit.captioning.captioner import Captioner
from cilkit.captioning.trie import Trie
from cilkit.data.transforms import Input
from cilkit.errors import UserError, near_name, reason_of
from cilkit.progress import quietly

CONNECTORS = ("multi_modal_projector", "language_projection", "connector", "visual.merger")  # how their paths end
SUPPORTED = "LLaVA, BLIP-2 with OPT, Idefics3, SmolVLM and Qwen2-VL can, with the processor that they come with"
TOGETHER = "take model and processor from one place"
SIZE = 224  # pixels a side, of processors that take images as they are (ours)
# Between the parts and the whole, relative to how far numbers spread. In bfloat16, rounding alone moves the logits of
# 24 layers by 0.2 (measured).
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
FILTERS = {2: "bilinear"}  # Pillow's numbers; bicubic for any other


class _Reached(Exception):
    """An image's tokens have come to the connector; what a model makes of them is left to the captioner."""


def _reaching(model: Any, connector: nn.Module, shown: dict[str, Any]) -> torch.Tensor:
    """What comes to the connector, (batch, tokens, width) or (batch * tokens, width)."""

    def stop(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    handle = connector.register_forward_pre_hook(stop)
    try:
        model.get_image_features(**shown)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise ValueError("get_image_features passes the connector by")


class Tower(Backbone):
    """A model's vision part: `tokens` are what its connector reads, features their mean.

    captioner: the rest of the model. No part of the tower: it is not in its state_dict, and does not move with it.
    places:    tokens of an image.
    """

    elsewhere = True

    def __init__(self, model: Any, connector: nn.Module, eyes: Any, tag: str, args: dict[str, Any], side: int) -> None:
        nn.Module.__init__(self)
        self.model, self.end, self.eyes = model, connector, eyes
        self.arch, self.model_args, self.tag = model.config.model_type, args, tag
        self.input = _input_of(eyes, side)
        self.fresh_norm, self.precision = False, "float32"
        self.attached = nn.ModuleDict()
        self.forwarded: Counter[str] = Counter()
        with torch.no_grad():
            found = _reaching(model, connector, self.shown(_noise(side)))
        self.flat, self.dim = found.ndim == 2, found.shape[-1]
        self.places = found.numel() // self.dim

    def forward(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        return self.tokens(images, kind).mean(1)

    def tokens(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        """float32 (batch, tokens, width), of images (batch, 3, h, w) normalised as `input` says."""
        self._count(images, kind)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        with precision.autocast(self.precision, images.device):
            found = _reaching(self.model, self.end, self.shown(images * std + mean))
        if found.numel() != len(images) * self.places * self.dim:
            raise UserError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels give tokens {tuple(found.shape)}, and "
                f"{self.tag} was loaded for {self.places} an image; show it images of {self.input.size} pixels a side, "
                "or load it with another image_size"
            )
        return found.reshape(len(images), self.places, self.dim).float()

    def shown(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the vision part reads of pixels in 0 … 1, (batch, 3, h, w): resized, normalised, perhaps in patches."""
        shown = self.eyes(images=list(pixels), return_tensors="pt")
        return {name: _placed(value, self.model) for name, value in shown.items()}

    def maps(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        raise UserError(f"{self.tag} is taken apart before its connector alone; take a backbone of timm's here")

    def train(self, mode: bool = True) -> Tower:
        """Always in eval mode: an encoder that stays as it is drops nothing."""
        return super().train(False)

    def leave(self) -> None:
        """Leave out of `model` what is the captioner's; where the connector was, an empty `end` stands."""
        old, self.end, gone = self.end, nn.Identity(), []
        others = (old, self.captioner.decoder, self.captioner.embed, self.captioner.head)
        for path, module in list(self.model.named_modules(remove_duplicate=False)):
            inside = any(path.startswith(f"{outer}.") for outer in gone)
            if not inside and any(module is other for other in others):
                parent, _, name = path.rpartition(".")
                setattr(self.model.get_submodule(parent), name, self.end if module is old else nn.Identity())
                gone.append(path)


class Connector(nn.Module):
    """A model's own connector, (batch, tokens, width) -> (batch, slots, dim).

    flat: whether it reads (batch * tokens, width).
    """

    def __init__(self, inner: nn.Module, flat: bool) -> None:
        super().__init__()
        self.inner, self.flat = inner, flat

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.inner(tokens.flatten(0, 1) if self.flat else tokens)
        return found.reshape(len(tokens), -1, found.shape[-1])


def load(
    name: str,
    /,
    *,
    prompt: str = "",
    question: str = QUESTION,
    connector: str = "",
    stop: str = "",
    image_size: int = 0,
    dtype: str = "float32",
    longest: int = 40,
    **unknown: Any,
) -> Tower:
    """A model's vision part as a backbone; its `captioner` is the rest.

    name:       a folder, or a name on the hub.
    prompt:     with "{image}" where the image stands; "": the processor's chat template around `question`.
    connector:  its dotted path in the model, of a family that CONNECTORS does not know.
    stop:       a mark that ends an answer, beside the end token.
    image_size: pixels a side that images come in; 0: the processor's own, or SIZE where it takes any.
    dtype:      "float32" or "bfloat16", of what is frozen.
    longest:    tokens that an answer may have.
    UserError for what cannot be loaded or taken apart, and for a processor that disagrees with its model.
    """
    known = {"prompt": prompt, "question": question, "connector": connector, "stop": stop}
    known |= {"image_size": image_size, "dtype": dtype, "longest": longest}
    for argument in unknown:
        raise UserError(
            f"a vision-language model takes no model_args {argument!r}{near_name(argument, known)}; it takes "
            f"{', '.join(known)}"
        )
    if dtype not in TOLERANCE:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(map(repr, TOLERANCE))}")
    model, processor = _loaded(name, dtype)
    tag, side = Path(name).name, image_size or _side(processor.image_processor)
    found = _connector(model, connector, tag)
    with _taking_apart(tag):
        text, more = _text(processor, prompt, question, tag)
        tower = Tower(model, found, processor.image_processor, tag, known, side)
        asked = processor(text=[text], images=list(_noise(side)), return_tensors="pt", **more)
        asked = {key: _placed(value, model) for key, value in asked.items()}
        made = _captioner(tower, processor.tokenizer, asked, stop, longest)
    tower.__dict__["captioner"] = made  # past nn.Module, which would make it a part of the tower
    tower.leave()
    return tower


@contextmanager
def _taking_apart(tag: str) -> Iterator[None]:
    """Families differ in what they ask for, and each fails in its own way."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _whole(tag, reason_of(error)) from error


@quietly("transformers")
def _loaded(name: str, dtype: str) -> tuple[Any, Any]:
    """Model and processor; its image processor takes pixels in 0 … 1, and cuts no image into several."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        eyes = processor.image_processor
        model = whole(AutoModelForImageTextToText, name, dtype)
    except Exception as error:  # broken folders and unknown formats raise many unrelated classes
        raise UserError(
            f"vision-language model {name!r} cannot be loaded ({reason_of(error)}); give a folder with an "
            "image-text-to-text model and its processor as transformers saves them, or such a name on the hub"
        ) from error
    speaker = model.config.get_text_config()
    if model.config.is_encoder_decoder or speaker.is_encoder_decoder:
        raise UserError(
            f"the language model of {name!r} is an encoder-decoder ({speaker.model_type}), which reads its prompt "
            "apart from the answer; take a model with a causal one, such as BLIP-2 with OPT"
        )
    words, rows = processor.tokenizer, model.get_input_embeddings().num_embeddings
    if len(words) > rows:
        raise UserError(
            f"the tokenizer of {name!r} has {len(words)} tokens and the model vectors for {rows}; {TOGETHER}"
        )
    mark = str(getattr(processor, "image_token", ""))
    theirs, ours = words.get_vocab().get(mark, "unknown"), getattr(model.config, "image_token_id", None)
    if mark and theirs != ours:
        raise UserError(
            f"the image token {mark!r} is {theirs} to the tokenizer of {name!r} and {ours} to the model; {TOGETHER}"
        )
    eyes.do_rescale = eyes.do_image_splitting = False
    if getattr(eyes, "max_image_size", None):
        eyes.size = eyes.max_image_size  # unsplit, an image would be made larger first, and then this small
    return model, processor


def _connector(model: Any, path: str, tag: str) -> nn.Module:
    modules = dict(model.named_modules())
    if path and path not in modules:
        raise UserError(f"{tag} has no part {path!r}{near_name(path, modules)}; set connector to what maps its image")
    paths = [path] if path else [one for end in CONNECTORS for one in modules if f".{one}".endswith(f".{end}")]
    if not paths:
        raise UserError(
            f"no connector of {tag} ({model.config.model_type}) is known; set connector to the dotted path of the part "
            "that maps the image's tokens to the language model's vectors, as model.named_modules() has it"
        )
    return modules[paths[0]]


def _text(processor: Any, prompt: str, question: str, tag: str) -> tuple[str, dict[str, bool]]:
    """The prompt as the processor takes it, and how it is to be tokenised."""
    if not prompt:
        template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
        if not template:
            raise UserError(
                f"{tag} has no chat template; set prompt, with {IMAGE} where the image stands, such as "
                f"'{IMAGE}Question: {QUESTION} Answer:'"
            )
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], template, add_generation_prompt=True, tokenize=False
        )
        begin = processor.tokenizer.bos_token
        return text, {"add_special_tokens": False} if begin and text.startswith(begin) else {}
    if prompt.count(IMAGE) != 1:
        raise UserError(f"the prompt {prompt!r} has {prompt.count(IMAGE)} places {IMAGE}; expected one")
    if hasattr(processor, "num_query_tokens"):  # BLIP-2's puts the image first by itself
        if not prompt.startswith(IMAGE):
            raise UserError(f"{tag} reads its image before all words; let the prompt {prompt!r} begin with {IMAGE}")
        return prompt.removeprefix(IMAGE), {}
    return prompt.replace(IMAGE, str(getattr(processor, "image_token", IMAGE))), {}


@torch.no_grad()
def _captioner(tower: Tower, tokenizer: Any, asked: dict[str, torch.Tensor], stop: str, longest: int) -> Captioner:
    """What answers the prompt in `asked`, the whole model's inputs for one image, as the whole model does."""
    model, tag, prompt = tower.model, tower.tag, asked["input_ids"][0]
    slots = (prompt == model.config.image_token_id).nonzero()[:, 0].tolist()
    tokens = _reaching(model, tower.end, tower.shown(_noise(tower.input.size))).reshape(1, -1, tower.dim)
    connector = Connector(tower.end, tower.flat)
    given = connector(tokens).shape[1]
    if given != len(slots):
        raise UserError(
            f"the processor of {tag} makes room for {len(slots)} image tokens, and the model's connector gives "
            f"{given}; {TOGETHER}, of a family that cuts no image into several"
        )
    whole = model.get_decoder()
    speaker = (
        model if whole.get_output_embeddings() is None else whole
    )  # BLIP-2 holds a language model with its own head
    seen: dict[str, Any] = {}
    handle = speaker.get_decoder().register_forward_pre_hook(lambda _, __, named: seen.update(named), with_kwargs=True)
    theirs = model(**asked).logits[0, -1].float()  # (words,)
    handle.remove()
    places = seen.get("position_ids")  # None, (batch, length) or (axes, batch, length)
    made = Captioner(
        connector, speaker, tokenizer, Tower.tokens, prompt.tolist(), slots,
        positions=None if places is None else places[..., 0, :], stop=stop, longest=longest, tag=tag,
    )  # fmt: skip
    vectors, read = made._prefix(tokens), seen["inputs_embeds"]  # (1, length, dim)
    ours = made.head(made._decode(vectors, made.positions).last_hidden_state[0, -1]).float()
    rows = torch.tensor([[1, 2, 3], [1, 4, 5]])  # two answers that share their beginning
    alone, together = made.nll(tokens.expand(2, -1, -1), rows), made.score(tokens, Trie.of(rows.tolist()))[0]
    gaps = {
        "the prompt's vectors": (vectors - read).abs().max() / read.std(),
        "the next word's logits": (ours - theirs).abs().max() / theirs.std(),
        "answers scored together": (together / alone + 1).abs().max(),
    }
    for what, gap in gaps.items():
        if not gap <= TOLERANCE[tower.model_args["dtype"]]:
            raise _whole(tag, f"{what} are {float(gap):.2g} off")
    return made


def _whole(tag: str, why: str) -> UserError:
    return UserError(
        f"{tag} cannot be taken apart into image encoder, connector and language model ({why}); {SUPPORTED}"
    )


def _placed(value: torch.Tensor, model: Any) -> torch.Tensor:
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def _noise(side: int) -> torch.Tensor:
    """One synthetic image, (1, 3, side, side) in 0 … 1."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def _side(eyes: Any) -> int:
    """Pixels a side in which an image processor takes images without losing any."""
    size = {name: value for name, value in dict(eyes.size).items() if value}
    if "shortest_edge" in size and "longest_edge" in size:  # Qwen's bounds, in pixels an image
        return SIZE
    return next(iter(size.values()), SIZE)


def _input_of(eyes: Any, side: int) -> Input:
    mean, std = (tuple(getattr(eyes, name, None) or (0.5,) * 3) for name in ("image_mean", "image_std"))
    mode = "squash" if dict(eyes.size).get("height") else "center"
    return Input(side, mean, std, FILTERS.get(int(getattr(eyes, "resample", 3)), "bicubic"), 1.0, mode)
