"""How alike names are: by what they mean (a text encoder) or, without any model, by the letters that they share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cilkit.errors import UserError, reason_of

if TYPE_CHECKING:
    import torch

NGRAMS = "n-grams"
BATCH = 256  # names encoded at once


class Likeness(Protocol):
    """id: what compares; kind: what the audit calls its matches; threshold: least cosine that is one, by default."""

    id: str
    kind: str
    threshold: float

    def cosines(self, one: Sequence[str], other: Sequence[str]) -> np.ndarray:
        """float32 (len(one), len(other)), in [-1, 1]."""


class NGrams:
    """Character n-grams (2 to 4, within words), weighted by TF-IDF over the names compared: spelling, not meaning.

    "buffalo wings" and "chicken wings" are somewhat alike here, "aubergine" and "eggplant" not at all. Our decision.
    """

    id, kind, threshold = "character n-grams (TF-IDF)", NGRAMS, 0.7

    def cosines(self, one: Sequence[str], other: Sequence[str]) -> np.ndarray:
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not (len(one) and len(other)):
            return np.zeros((len(one), len(other)), np.float32)
        weights = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), dtype=np.float32).fit([*one, *other])
        return (weights.transform(one) @ weights.transform(other).T).toarray()  # rows have length one


# Of sentence-transformers (read): hidden (n, length, dim), mask (n, length, 1) -> (n, dim). Flags join in this order.
POOLINGS = {
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -np.inf).amax(1),
    "mean": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1),
    "lasttoken": lambda hidden, mask: hidden[range(len(hidden)), mask[..., 0].sum(1).long() - 1],
}


class TextEncoder:
    """A text encoder of transformers, by its name on the hub or a folder that holds it.

    CLIP: the projected text embedding. Any other encoder: what its modules.json lists, as sentence-transformers writes
    it (pooling, dense layers); without one, the mean of the last hidden states over the words' tokens. template: what
    is encoded for a name. threshold: our decision, unmeasured; encoders spread their cosines differently, so look at
    the audit's scores before trusting it. truncate: cut what is longer than the encoder reads.
    """

    kind, threshold = "embedding", 0.9
    instead = f"{NGRAMS!r}, which needs no model"

    def __init__(
        self,
        name: str,
        template: str = "{name}",
        revision: str | None = None,
        device: str = "",
        truncate: bool = False,
    ):
        import torch

        self.id, self._template = f"{name}@{revision}" if revision else str(name), template
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            self._load(name, revision)
            self._truncate = truncate and self._limit
            self._batch(["a"])  # do the parts fit together?
        except UserError:
            raise
        except Exception as error:  # the hub's client and broken folders raise many unrelated classes
            raise UserError(
                f"{name!r} is no text encoder that can be loaded ({reason_of(error)}); give a name on the hub, a "
                f"folder with model and tokenizer, or {self.instead}"
            ) from error

    def _load(self, name: str, revision: str | None) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

        config = AutoConfig.from_pretrained(name, revision=revision)
        self._clip = config.model_type in ("clip", "clip_text_model")
        if not self._clip and hasattr(config, "vision_config"):
            raise UserError(
                f"{name!r} reads images and text ({config.model_type}); give a CLIP or a model of text only"
            )
        if self._clip:
            text = getattr(config, "text_config", config)
            text.projection_dim = config.projection_dim  # of the whole model: its text part often names another
            model = CLIPTextModelWithProjection.from_pretrained(name, revision=revision, config=text)
        else:
            model = AutoModel.from_pretrained(name, revision=revision)
        model = model.get_encoder() if config.is_encoder_decoder else model
        self._poolings, layers = _modules(name, revision)
        self._model, self._layers = (part.to(self._device, torch.float32).eval() for part in (model, layers))
        self._tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._tokenizer.padding_side = "right"
        positions = getattr(getattr(config, "text_config", config), "max_position_embeddings", 0)
        limits = (positions, self._tokenizer.model_max_length)  # the second is huge where nobody has said
        self._limit = min((limit for limit in limits if 0 < limit < 1e9), default=0)

    def embed(self, names: Sequence[str]) -> np.ndarray:
        """Embeddings of length one, float32 (n, dim). UserError for a name of more tokens than the encoder reads,
        unless it truncates."""
        texts = [self._template.format(name=name) for name in names]
        parts = [self._batch(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def cosines(self, one: Sequence[str], other: Sequence[str]) -> np.ndarray:
        if not (len(one) and len(other)):
            return np.zeros((len(one), len(other)), np.float32)
        return self.embed(one) @ self.embed(other).T

    def _batch(self, texts: list[str]) -> np.ndarray:
        import torch

        cut = {"truncation": True, "max_length": self._limit} if self._truncate else {}
        tokens = self._tokenizer(texts, return_tensors="pt", padding=True, **cut)
        lengths = tokens["attention_mask"].sum(1)  # (n,)
        if 0 < self._limit < lengths.max():
            longest = texts[int(lengths.argmax())]
            raise UserError(f"{longest!r} has {lengths.max()} tokens, {self.id} reads {self._limit}; shorten it")
        tokens = {key: tokens[key].to(self._device) for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            found = self._model(**tokens)
            if self._clip:
                vectors = found.text_embeds  # (n, dim)
            else:
                mask = tokens["attention_mask"][..., None].float()  # (n, length, 1)
                vectors = torch.cat([POOLINGS[by](found.last_hidden_state, mask) for by in self._poolings], -1)
            vectors = self._layers(vectors)
            return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def _modules(name: str, revision: str | None) -> tuple[list[str], torch.nn.Module]:
    """What the modules.json of a sentence encoder lists behind the network: POOLINGS, then layers."""
    from safetensors.torch import load_file
    from torch import nn
    from transformers.utils import cached_file

    def read(file: str) -> dict | list:
        return json.loads(Path(cached_file(name, file, revision=revision)).read_text())

    listed = cached_file(name, "modules.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    modules = read("modules.json") if listed else []
    poolings, layers = ["mean"], nn.Sequential()
    for place, module in enumerate(modules[1:], 1):
        kind, folder = module["type"].rpartition(".")[2], module["path"]
        if kind == "Normalize" and module is modules[-1]:
            continue  # as everything is in the end
        settings = read(f"{folder}/config.json") if kind in ("Pooling", "Dense") else {}
        made = settings.get("activation_function", kind).rpartition(".")[2]
        if kind == "Pooling" and place == 1:
            poolings = _poolings(name, settings)
        elif kind == "Dense" and made in ("Identity", "Tanh") and not settings.get("use_residual"):
            sizes = settings["in_features"], settings["out_features"], settings.get("bias", True)
            layer = nn.Linear(*sizes, device="meta")  # draws no random numbers
            weights = load_file(cached_file(name, f"{folder}/model.safetensors", revision=revision))
            layer.load_state_dict({key.removeprefix("linear."): weights[key] for key in weights}, assign=True)
            layers.extend([layer, getattr(nn, made)()])
        else:
            raise UserError(
                f"{name!r} has a {kind} ({made}) as module {place} of its modules.json; expected a Pooling, then Dense "
                "layers with Identity or Tanh and without residual, then a Normalize; give another text encoder"
            )
    return poolings, layers


def _poolings(name: str, settings: dict) -> list[str]:
    """Of a Pooling's config.json: the key pooling_mode; older versions of sentence-transformers wrote a flag a mode."""
    flags = [key.removeprefix("pooling_mode_") for key in settings if key.startswith("pooling_mode_") and settings[key]]
    flags = [flag.removesuffix("_tokens").removesuffix("_token") for flag in flags]
    given = settings.get("pooling_mode") or sorted(flags, key=[*POOLINGS, *flags].index) or "mean"
    given = [given] if isinstance(given, str) else given
    if unknown := [mode for mode in given if mode not in POOLINGS]:
        expected = ", ".join(POOLINGS)
        raise UserError(f"{name!r} pools by {', '.join(unknown)}; expected {expected}; give another text encoder")
    return given


def likeness(spec: str | Likeness) -> Likeness:
    """ "n-grams" -> NGrams(); a hub name or folder -> TextEncoder; an object with `cosines` -> itself."""
    if not isinstance(spec, str):
        return spec
    return NGrams() if spec == NGRAMS else TextEncoder(spec)
