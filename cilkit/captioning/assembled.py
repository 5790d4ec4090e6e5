"""A captioner assembled of a timm backbone, a linear projection, and a causal language model of transformers.

On disk a folder: `captioner.json`, `connector.safetensors`, and `language_model/`, as transformers saves model and
tokenizer. The backbone lies elsewhere: it is the run's own.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cilkit import artifacts
from cilkit.captioning.captioner import Captioner
from cilkit.errors import UserError, reason_of
from cilkit.progress import quietly

if TYPE_CHECKING:
    from cilkit.backbones import Backbone

CARD, CONNECTOR, LANGUAGE = "captioner.json", "connector.safetensors", "language_model"
QUESTION = "What is this photo of?"  # read in the released prompt
IMAGE = "{image}"  # in a prompt, where the image's tokens stand
TINY = "tiny"  # a language model made here, of random weights
WORDS = 2000  # at most, of the tiny one's tokenizer
END = "<end>"


class Projection(nn.Module):
    """Tokens, brought to mean 0 and spread 1 as measured on the images of the pre-alignment, times a matrix."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def standardise(self, tokens: torch.Tensor) -> None:
        """By tokens (images, tokens, width)."""
        self.mean.copy_(tokens.mean((0, 1)))
        self.scale.copy_(1 / (tokens - self.mean).std().clamp(min=1e-6))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.linear((tokens - self.mean) * self.scale)


def look(backbone: Backbone, images: torch.Tensor, kind: str, grid: int) -> torch.Tensor:
    """A backbone's tokens (batch, tokens, width): a convolutional network's last maps, averaged to grid x grid places
    where grid is not 0, or what enters a vision transformer's last block, as LLaVA reads it (remembered)."""
    maps = backbone.maps(images, kind)
    if maps.ndim == 3:
        return maps.float()
    maps = torch.nn.functional.adaptive_avg_pool2d(maps, grid) if grid else maps
    return maps.flatten(2).transpose(1, 2).float()


def create(
    backbone: Backbone,
    captions: Sequence[str],
    *,
    lm: str = TINY,
    dim: int = 96,
    depth: int = 2,
    grid: int = 2,
    question: str = QUESTION,
    longest: int = 40,
    seed: int = 0,
) -> Captioner:
    """A captioner that is yet to be aligned; all chance comes from `seed`.

    lm:       "tiny" (a Llama of `depth` layers of `dim` numbers), a folder, or a name on the hub.
    captions: whose words the tiny one knows as a whole; any other text it writes byte by byte.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prompt = f"{IMAGE}{question} "
        if lm == TINY:
            tokenizer = _tokenizer([prompt.removeprefix(IMAGE), *captions])
            model = _tiny(len(tokenizer), tokenizer.eos_token_id, dim, depth)
        else:
            model, tokenizer = _loaded(lm)
            _check_parts(model, tokenizer, lm)
        side = backbone.input.size or 32
        with torch.no_grad():
            twin = copy.deepcopy(backbone).eval()  # what is no image leaves neither a count nor a statistic
            tokens = look(twin, torch.zeros(1, 3, side, side, device=backbone.device), "probe", grid)
        connector = Projection(tokens.shape[2], model.get_input_embeddings().weight.shape[1])
    card = {"grid": grid, "longest": longest, "prompt": prompt, "tag": Path(lm).name}
    card |= {"slots": tokens.shape[1], "width": tokens.shape[2]}
    return _assembled(connector, model, tokenizer, card)


def _assembled(connector: nn.Module, model: Any, tokenizer: Any, card: dict[str, Any]) -> Captioner:
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in card["prompt"].split(IMAGE, 1))
    before = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id][:1] + before
    filler = [tokenizer.eos_token_id] * card["slots"]
    slots = range(len(before), len(before) + card["slots"])
    seen = functools.partial(look, grid=card["grid"])
    more = {"tag": card["tag"], "longest": card["longest"]}
    made = Captioner(connector, model, tokenizer, seen, [*before, *filler, *after], slots, **more)
    made.parts = {"card": card, "language_model": model}  # what `save` writes
    return made


@quietly("transformers")
def save(captioner: Captioner, folder: str | Path) -> None:
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    captioner.parts["language_model"].save_pretrained(folder / LANGUAGE)
    captioner.tokenizer.save_pretrained(folder / LANGUAGE)
    weights = {name: value.detach().cpu().contiguous() for name, value in captioner.connector.state_dict().items()}
    artifacts.atomic_write(folder / CONNECTOR, to_bytes(weights, metadata={"format": "pt"}))
    artifacts.write_json(folder / CARD, captioner.parts["card"])


def load(folder: str | Path, dtype: str = "float32") -> Captioner:
    """What `save` wrote; the language model in `dtype`. UserError for a folder that is none, or a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        model, tokenizer = _loaded(str(folder / LANGUAGE), dtype)
        connector = Projection(card["width"], model.get_input_embeddings().embedding_dim)
        connector.load_state_dict(load_file(folder / CONNECTOR))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} holds no captioner that can be read ({reason_of(error)}); expected {CARD}, {CONNECTOR} and "
            f"{LANGUAGE}/, as cilkit.prealign writes them"
        ) from error
    return _assembled(connector, model, tokenizer, card)


def whole(kind: Any, name: str, dtype: str) -> Any:
    """A model by one of the automatic classes. ValueError where weights are missing: they would be random."""
    model, found = kind.from_pretrained(
        name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    if found["missing_keys"]:
        raise ValueError(f"its weights lack {', '.join(sorted(found['missing_keys'])[:3])}")
    return model


@quietly("transformers")
def _loaded(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Model and tokenizer of a folder or a name on the hub. UserError for what is no causal language model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        for fact in ("is_local", "local_files_only"):  # where it was read from would be saved with it
            tokenizer.init_kwargs.pop(fact, None)
        model = whole(AutoModelForCausalLM, name, dtype)
    except Exception as error:  # broken folders and unknown formats raise many unrelated classes
        raise UserError(
            f"language model {name!r} cannot be loaded ({reason_of(error)}); give {TINY!r}, a folder with a causal "
            "language model and its tokenizer as transformers saves them, or such a name on the hub"
        ) from error
    return model, tokenizer


@torch.no_grad()
def _check_parts(model: Any, tokenizer: Any, name: str) -> None:
    """UserError for a model whose parts do not come to its own logits, read with a mask and positions of ours."""
    ids = torch.tensor([tokenizer(QUESTION, add_special_tokens=False)["input_ids"]])
    whole = model(ids).logits  # (1, length, words)
    back = torch.arange(ids.shape[1]).flip(0)  # the text from its end
    mask = torch.zeros(2 * back.shape).masked_fill(back[:, None] < back, torch.finfo(torch.float32).min)
    try:
        words = model.get_input_embeddings()(ids[:, back])
        read = model.get_decoder()(inputs_embeds=words, position_ids=back[None], attention_mask=mask[None, None])
        gap = float((model.get_output_embeddings()(read.last_hidden_state) - whole[:, back]).abs().max())
    except (AttributeError, RuntimeError, TypeError, ValueError):
        gap = math.inf
    if not gap <= 1e-3 * float(whole.abs().max()):
        raise UserError(
            f"language model {name!r} cannot be read part by part: it scales its logits, as Gemma 2, Cohere and "
            "Granite do, looks ahead, as BERT does, or has no positions to set, as BLOOM; take another family, such as "
            "Llama, Qwen, GPT-2 or OPT"
        )


def _tiny(words: int, end: int, dim: int, depth: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    if dim % 4:
        raise UserError(f"dim is {dim}; expected a multiple of 4, the heads of the tiny language model")
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words, hidden_size=dim, intermediate_size=2 * dim, num_hidden_layers=depth,
            num_attention_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip


def _tokenizer(texts: Iterable[str]) -> Any:
    """Bytes, merged to the words of these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        min_frequency=1,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(sorted(set(texts)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=END)
