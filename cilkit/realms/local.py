"""A causal language model of transformers on this machine, its JSON constrained by Outlines with xgrammar."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilkit.artifacts import canonical, sha256_of
from cilkit.errors import UserError
from cilkit.realms.models import NoReply, Sampling, missing_extra
from cilkit.realms.prompts import Message

if TYPE_CHECKING:
    import torch

NEXT_SPEAKER = "\nUser:"  # where a model without a chat template starts to invent the other side


class Local:
    """`name`: a folder that transformers saved (safetensors), or a hub name with its `revision` (branch, tag, commit).

    A reply depends on the model, the sampling with its seed, and the messages only, not on what was asked before; the
    same on one machine and thread count. The global random state is left as it was. Weights load at the first question.
    device: "auto" takes a GPU where there is one. dtype: "auto" is the model's own, or e.g. "bfloat16".
    """

    def __init__(self, name: str, revision: str = "", device: str = "auto", dtype: str = "auto", **sampling: Any):
        self.sampling, self.device, self.dtype = Sampling(**sampling), device, dtype
        self.cut, self._model, self._tokenizer, self._xgrammar = False, None, None, None
        folder = Path(name).expanduser()
        if folder.is_dir():
            self._source, shown, revision = str(folder), folder.resolve().name, _hash_of(folder, revision)
        else:
            self._source, shown, revision = name, name, _commit_of(name, revision)
        self._revision = revision
        self.id = f"local:{shown}@{revision[:16]}"
        known = {"backend": "local", "model": shown, "revision": revision, "licence": ""}
        self.card: dict[str, Any] = {**known, "sampling": asdict(self.sampling)}

    def reply(self, messages: Sequence[Message], schema: type | None = None) -> str:
        """The text. UserError: the messages do not fit the model's context; NoReply: it ends before its first word."""
        import torch

        self._load()
        tokens = self._encode(messages).to(self._model.device)  # (1, prompt length)
        room = self._room(tokens.shape[1])
        with torch.inference_mode(), _seeded(self._seed(messages, schema), self._model.device):
            written = self._model.generate(
                tokens, attention_mask=torch.ones_like(tokens), **self._how(schema), max_new_tokens=room
            )
        new = written[0, tokens.shape[1] :]
        self.cut = len(new) == room and int(new[-1]) not in self._ends
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        text = text if self._chats else text.split(NEXT_SPEAKER)[0]
        parts = ("torch", "transformers", *(("outlines", "xgrammar") if schema is not None else ()))
        structured = "" if schema is None else "xgrammar"
        self.card = {**self.card, "structured": structured, "versions": {part: version(part) for part in parts}}
        if not text.strip():
            raise NoReply(f"{self.id} answered with no text to {messages[-1]['content']!r:.80}; ask in other words")
        return text

    def _load(self) -> None:
        if self._model is not None:
            return
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        hub = {} if Path(self._source).is_dir() else {"revision": self._revision}
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._source, **hub)
            model = AutoModelForCausalLM.from_pretrained(
                self._source, dtype=self.dtype, use_safetensors=True, trust_remote_code=False, **hub
            ).to(device)
        except Exception as error:  # broken folders, unknown formats and devices raise many unrelated classes
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.id} cannot be loaded on {device!r} ({type(error).__name__}: {why}); expected a device that is "
                "there, and a causal language model with its tokenizer as transformers saves them, in safetensors"
            ) from None
        self._model = model.eval()
        self._chats = bool(self._tokenizer.chat_template)
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = sorted({*ends, self._tokenizer.eos_token_id} - {None})
        self.card = {
            **self.card,
            "licence": _licence(self._source, self._revision),
            "dtype": str(model.dtype).removeprefix("torch."),
            "template": "the model's chat template" if self._chats else "plain transcript: it has no chat template",
        }

    def _encode(self, messages: Sequence[Message]) -> "torch.Tensor":
        """Token ids, (1, length)."""
        if not self._chats:
            lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
            return self._tokenizer("\n\n".join([*lines, "Assistant:"]), return_tensors="pt")["input_ids"]
        from jinja2 import TemplateError

        for asked in (list(messages), _without_system(messages)):  # some templates know no system message
            try:
                return self._tokenizer.apply_chat_template(
                    asked,
                    add_generation_prompt=True,
                    return_tensors="pt",
                    return_dict=True,
                    enable_thinking=False,  # read by the templates of models that think aloud first
                )["input_ids"]
            except TemplateError as error:
                refused = error
        raise UserError(f"the chat template of {self.id} refuses the question: {refused}; take another model")

    def _room(self, used: int) -> int:
        """How many tokens the reply may have: max_tokens, or what the context leaves."""
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or 10**9
        if used >= context:
            raise UserError(
                f"the question has {used} tokens and {self.id} has a context of {context}; ask for fewer classes at a "
                "time, or take a model with a longer context"
            )
        return min(self.sampling.max_tokens, context - used)

    def _how(self, schema: type | None) -> dict[str, Any]:
        """The arguments of `generate`: all of the sampling, so that none of it comes from the model's own defaults."""
        how: dict[str, Any] = {"do_sample": self.sampling.temperature > 0, "num_beams": 1, "repetition_penalty": 1.0}
        if how["do_sample"]:
            how |= {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p, "top_k": 0}
        how |= {"eos_token_id": self._ends or None, "pad_token_id": self._ends[0] if self._ends else None}
        never = list(range(len(self._tokenizer), self._model.config.get_text_config().vocab_size))  # no token at all
        if schema is not None:
            constraint, outside = self._constraint(schema)
            how["logits_processor"], never = [constraint], never + outside
        elif not self._chats:
            how |= {"stop_strings": [NEXT_SPEAKER], "tokenizer": self._tokenizer}
        return how | ({"suppress_tokens": never} if never else {})

    def _constraint(self, schema: type) -> tuple[Any, list[int]]:
        """A logits processor for one reply (they are single-use), and tokens that it lets through against the rules.

        Free white space, in which a weak model can spend all its tokens, is left out; Outlines' own call allows it.
        Control characters, which JSON forbids in strings, pass xgrammar 0.2 where a string has a maximal length.
        """
        try:
            import outlines
            import xgrammar
            from outlines.backends.xgrammar import XGrammarBackend, XGrammarLogitsProcessor
        except ImportError:
            raise missing_extra("outlines (with xgrammar)") from None
        if self._xgrammar is None:
            self._xgrammar = XGrammarBackend(outlines.from_transformers(self._model, self._tokenizer))
            words = xgrammar.TokenizerInfo.from_huggingface(self._tokenizer).decoded_vocab
            self._control = [token for token, word in enumerate(words) if any(byte < 32 for byte in word)]
        compiled = self._xgrammar.grammar_compiler.compile_json_schema(schema, any_whitespace=False)
        return XGrammarLogitsProcessor(compiled, "torch"), self._control

    def _seed(self, messages: Sequence[Message], schema: type | None) -> int:
        asked = [self.sampling.seed, list(messages), None if schema is None else schema.model_json_schema()]
        return int(hashlib.sha256(canonical(asked).encode()).hexdigest()[:15], 16)


@contextmanager
def _seeded(seed: int, device: "torch.device") -> Iterator[None]:
    """The generators that `generate` draws from, seeded inside and put back after."""
    import torch

    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The system messages' text in front of the first user message."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    first, *rest = [message for message in messages if message["role"] != "system"]
    return [{**first, "content": f"{system}\n\n{first['content']}"}, *rest]


def _hash_of(folder: Path, revision: str) -> str:
    """sha256 over the names and contents of what transformers reads: weights, configuration, tokenizer."""
    if revision:
        raise UserError(f"a folder has no revisions, got {revision!r} for {folder.name}; leave revision out")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; expected a causal language model that transformers saved")
    files = sorted(
        path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt")
    )
    return hashlib.sha256(canonical([[path.name, sha256_of(path)] for path in files]).encode()).hexdigest()


def _commit_of(name: str, revision: str) -> str:
    """The commit that a hub name stands for now, from the hub or, where that cannot be reached, from its cache."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return _hub_file(name, "config.json", revision).parent.name


def _hub_file(name: str, file: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, file, revision=revision or None))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"language model {name!r} ({revision or 'newest'}) is neither a folder nor to be had from the Hugging Face "
            f"hub or its cache ({type(error).__name__}); correct the name, log in, or give a folder"
        ) from None


def _licence(source: str, revision: str) -> str:
    """What the model card's header says, "" where there is none."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        path = Path(source, "README.md") if Path(source).is_dir() else _hub_file(source, "README.md", revision)
        return str(ModelCard(path.read_text(encoding="utf-8")).data.license or "")[:80]
    except (OSError, ValueError, AttributeError, yaml.YAMLError):  # UserError and UnicodeDecodeError are ValueErrors
        return ""
