"""Text encoders by name: texts -> unit vectors, each text's the same whatever it is encoded with.

"embedded":          the text encoder of the embedded generator: what it was trained to paint lies apart;
a name or folder:    a CLIP's projected text embedding, or any other encoder as sentence encoders are read
                     (`cilkit.realms.text_embedding`);
a pipeline's folder: the text encoder of any diffusers pipeline that has a CLIP one.

Of a text with more tokens than they read, all read the beginning. The released code cuts at 76 characters (read).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cilkit.errors import UserError, reason_of
from cilkit.progress import quietly
from cilkit.realms.text_embedding import TextEncoder

EMBEDDED = "embedded"


class PipelineEncoder:
    """The CLIP text encoder of a diffusers pipeline: its last hidden state at the end token, without the projection,
    which such pipelines leave out."""

    @quietly("transformers")
    def __init__(self, folder: Path, device: str) -> None:
        import torch
        from transformers import AutoConfig, AutoTokenizer, CLIPTextModel

        try:
            config = AutoConfig.from_pretrained(folder / "text_encoder")
            if not config.model_type.startswith("clip"):  # its weights would be left out, and others drawn
                raise ValueError(f"its text encoder is a {config.model_type}")
            self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
            model = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True)
        except Exception as error:  # broken folders raise many unrelated classes
            raise UserError(
                f"{folder} holds no CLIP text encoder that can be loaded ({reason_of(error)}); give another text "
                f"encoder, or {EMBEDDED!r}"
            ) from error
        self.model, self.device = model.to(device, torch.float32).eval(), device
        self.cut = {"truncation": True, "max_length": config.max_position_embeddings}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt", **self.cut)
        with torch.no_grad():
            pooled = self.model(tokens["input_ids"].to(self.device)).pooler_output  # (n, dim)
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


class NamedEncoder(TextEncoder):
    instead = f"{EMBEDDED!r}, which comes with cilkit"


class Encoder:
    """Texts -> float32 (n, dim) of length one. `spec` is what it was asked for by.

    One text at a time: padding and the other texts of a batch would change its last bits.
    """

    def __init__(self, spec: str, device: str = "cpu") -> None:
        from cilkit.synthesis.generators import EMBEDDED as EMBEDDED_FOLDER

        folder = EMBEDDED_FOLDER if spec == EMBEDDED else Path(spec).expanduser()
        self.spec = spec
        if (folder / "text_encoder").is_dir():
            self._inner = PipelineEncoder(folder, str(device))
        else:
            name = str(folder) if folder.is_dir() else spec
            self._inner = NamedEncoder(name, device=str(device), truncate=True)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([self._inner.embed([text]) for text in texts])
