"""Text encoders by name: texts -> unit vectors, each text's the same whatever it is encoded with.

"embedded":          the text encoder of the embedded generator: what it was trained to paint lies apart;
a name or folder:    a CLIP's projected text embedding, or any other encoder as sentence encoders are read (pooling as
                     its `1_Pooling/config.json` says, else the mean of the words' tokens);
a pipeline's folder: the text encoder of any diffusers pipeline that has a CLIP one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cilkit.errors import UserError, reason_of
from cilkit.realms.text_embedding import TextEncoder

EMBEDDED = "embedded"
TOGETHER = {"cpu": 1, "cuda": 8}  # texts encoded at once: so many always, so that a text's numbers are its own


class PipelineEncoder:
    """The CLIP text encoder of a diffusers pipeline: its last hidden state at the end token, without the projection,
    which such pipelines leave out."""

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPTextModel

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
            model = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True)
        except Exception as error:  # broken folders raise many unrelated classes
            raise UserError(f"{folder} holds no CLIP text encoder that can be loaded ({reason_of(error)})") from error
        self.model, self.device = model.to(device, torch.float32).eval(), device

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            pooled = self.model(tokens["input_ids"].to(self.device)).pooler_output  # (n, dim)
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


class Encoder:
    """Texts -> float32 (n, dim) of length one. `spec` is what it was asked for by."""

    def __init__(self, spec: str, device: str = "cpu") -> None:
        from cilkit.synthesis.generators import EMBEDDED as EMBEDDED_FOLDER

        folder = EMBEDDED_FOLDER if spec == EMBEDDED else Path(spec).expanduser()
        self.spec, self.together = spec, TOGETHER.get(str(device).partition(":")[0], 1)
        if (folder / "text_encoder").is_dir():
            self._inner = PipelineEncoder(folder, str(device))
        else:
            self._inner = TextEncoder(spec, template="{name}", device=str(device), truncate=True)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = []
        for start in range(0, len(texts), self.together):
            some = list(texts[start : start + self.together])
            filled = some + some[-1:] * (self.together - len(some))
            rows.append(self._inner.embed(filled)[: len(some)])
        return np.concatenate(rows)
