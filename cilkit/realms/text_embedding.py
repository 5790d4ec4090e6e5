"""How alike names are: by what they mean (a text encoder) or, without any model, by the letters that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cilkit.errors import UserError, reason_of

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


class TextEncoder:
    """A text encoder of transformers, by its name on the hub or a folder that holds it.

    CLIP: the projected text embedding. Any other encoder: the mean of the last hidden states over the words' tokens,
    as sentence encoders are read. template: what is encoded for a name. threshold: our decision, unmeasured; encoders
    spread their cosines differently, so look at the audit's scores before trusting it.
    """

    kind, threshold = "embedding", 0.9

    def __init__(
        self,
        name: str,
        template: str = "{name}",
        revision: str | None = None,
        device: str = "",
        truncate: bool = False,
    ):
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

        try:
            config = AutoConfig.from_pretrained(name, revision=revision)
            self._clip = config.model_type in ("clip", "clip_text_model")
            if self._clip:
                text = getattr(config, "text_config", config)
                text.projection_dim = config.projection_dim  # of the whole model: its text part often names another
                model = CLIPTextModelWithProjection.from_pretrained(name, revision=revision, config=text)
            else:
                model = AutoModel.from_pretrained(name, revision=revision)
            self._tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        except Exception as error:  # the hub's client and broken folders raise many unrelated classes
            raise UserError(
                f"{name!r} is no text encoder that can be loaded ({reason_of(error)}); give a name on the hub, a "
                f"folder with model and tokenizer, or {NGRAMS!r}, which needs no model"
            ) from error
        if not self._clip and hasattr(config, "vision_config"):
            raise UserError(
                f"{name!r} reads images and text ({config.model_type}); give a CLIP or a model of text only"
            )
        model = model.get_encoder() if config.is_encoder_decoder else model
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = model.to(self._device, torch.float32).eval()
        self._limit = getattr(getattr(config, "text_config", config), "max_position_embeddings", 0)
        self.id, self._template = f"{name}@{revision}" if revision else str(name), template
        self._truncate = truncate and self._limit

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
                vectors = (found.last_hidden_state * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def likeness(spec: str | Likeness) -> Likeness:
    """ "n-grams" -> NGrams(); a hub name or folder -> TextEncoder; an object with `cosines` -> itself."""
    if not isinstance(spec, str):
        return spec
    return NGrams() if spec == NGRAMS else TextEncoder(spec)
