"""The answer generator: a causal language model that reads an image's tokens between the words of its prompt.

    words of the prompt, image tokens, words | answer, end

Every image has the same prompt and as many tokens, so nothing is padded on the left and an image's answer does not
depend on the others of its batch. Prompt and answer are tokenised apart, as in the released code (read).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cilkit import precision
from cilkit.captioning.trie import Trie
from cilkit.errors import UserError

if TYPE_CHECKING:
    from cilkit.backbones import Backbone

IGNORED = -100  # stands in answers where there is no token
NUMBERS = 1 << 26  # logits held at a time: 256 MB
PLACES = 1 << 14  # of prompts and answers whose keys and values are held at a time: 8 GiB of a 7B model's
TAIL = 8  # tokens in which a stop mark is looked for
PARTS = {  # what is trained -> the modules that hold it
    "projection": ("connector",),
    "lora": ("connector", "decoder"),  # of the decoder, its LoRAs alone
    "language": ("connector", "embed", "decoder", "head"),
}


class Captioner(nn.Module):
    """What turns an image's tokens, (batch, tokens, width), into text.

    look:      (backbone, images, kind of pass) -> those tokens.
    connector: (batch, tokens, width) -> (batch, slots, dim), a vector for each place in the prompt.
    decoder:   the language model without its output layer `head`; `embed` gives words their vectors.
    prompt:    its token numbers; slots: the places in it where image tokens stand.
    positions: of the prompt, int64 (length,) or (axes, length); None: 0, 1, 2 …
    stop:      a mark that ends an answer, as the tokenizer's end token does; "": that one alone.
    longest:   tokens that an answer may have.
    tag:       which model this is, for result rows.
    """

    def __init__(
        self,
        connector: nn.Module,
        language_model: nn.Module,
        tokenizer: Any,
        look: Callable[[Backbone, torch.Tensor, str], torch.Tensor],
        prompt: Sequence[int],
        slots: Sequence[int],
        *,
        positions: torch.Tensor | None = None,
        head: nn.Module | None = None,
        stop: str = "",
        longest: int = 40,
        tag: str = "",
    ) -> None:
        super().__init__()
        self.connector, self.decoder = connector, language_model.get_decoder()
        self.embed = language_model.get_input_embeddings()
        self.head = head or language_model.get_output_embeddings()
        self.tokenizer, self.look, self.stop, self.longest, self.tag = tokenizer, look, stop, longest, tag
        self.precision = "float32"
        self.recomputed: list[nn.Module] = []  # layers whose activations the backward pass computes again
        positions = torch.arange(len(prompt)) if positions is None else positions
        self.register_buffer("prompt", torch.tensor(prompt), persistent=False)
        self.register_buffer("slots", torch.tensor(slots), persistent=False)
        self.register_buffer("positions", positions, persistent=False)
        self.start = int(positions.max()) + 1  # position of an answer's first token
        ends = getattr(getattr(language_model, "generation_config", None), "eos_token_id", None)
        self.ends = sorted({*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None})
        if not self.ends:
            raise UserError(f"the tokenizer of {tag} has no end token, so no answer would end; set its eos_token")
        self.end = self.ends[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id  # the one that is learnt
        self.eval().requires_grad_(False)

    # ------------------------------------------------------------ what is trained

    def train_only(self, part: str, rank: int = 8, recompute: bool = False) -> None:
        """Let one of PARTS learn and nothing else. rank: of the LoRAs; recompute: activation checkpointing."""
        if part not in PARTS:
            raise UserError(f"train is {part!r}; expected one of {', '.join(map(repr, PARTS))}")
        self.requires_grad_(False)
        for module in (getattr(self, name) for name in PARTS[part]):
            module.requires_grad_(part != "lora" or module is self.connector)
        if part == "lora":
            from cilkit.synthesis.pipelines import demand_peft

            demand_peft()
            from peft import LoraConfig, inject_adapter_in_model

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
                inject_adapter_in_model(config, self.decoder)
        for parameter in self.learning():
            parameter.data = parameter.data.float()  # what learns is kept in float32, whatever the rest is in
        if recompute:
            self._recompute()

    def _recompute(self) -> None:
        """transformers' layers recompute in training mode alone. `_decode` puts them in it, but not their parts, whose
        dropout sleeps; the layers' own is taken out here."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        enable = getattr(self.decoder, "activation_checkpointing_enable", self.decoder.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
        self.recomputed = [layer for layer in self.decoder.modules() if isinstance(layer, GradientCheckpointingLayer)]
        for layer in self.recomputed:
            for name in [name for name, value in vars(layer).items() if "drop" in name and isinstance(value, float)]:
                setattr(layer, name, 0.0)

    def learnt(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that learn, by name."""
        return ((name, value) for name, value in self.named_parameters() if value.requires_grad)

    def learning(self) -> list[nn.Parameter]:
        return [value for _, value in self.learnt()]

    # ------------------------------------------------------------ training

    def tokens_of(self, answers: Sequence[str]) -> list[list[int]]:
        """Token numbers of each answer, its end among them. UserError for one that is longer than `longest`."""
        found = []
        for answer in answers:
            ids = list(self.tokenizer(answer + self.stop, add_special_tokens=False)["input_ids"])
            ids += [] if self.stop else [self.end]
            if len(ids) > self.longest:
                raise UserError(
                    f"the answer {answer[:60]!r} has {len(ids)} tokens and {self.tag} writes {self.longest} at most; "
                    "shorten the sentence or the name"
                )
            found.append(ids)
        return found

    def padded(self, answers: Sequence[str]) -> torch.Tensor:
        """int64 (answers, longest), IGNORED beyond each answer's end."""
        rows = self.tokens_of(answers)
        length = max(map(len, rows))
        table = [row + [IGNORED] * (length - len(row)) for row in rows]
        return torch.tensor(table, device=self.prompt.device)

    def nll(self, tokens: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """-log p(answer | image), float32 (batch,): of the answer's tokens and its end alone, not of the prompt.

        tokens: (batch, tokens, width); answers: rows of `padded`, (batch, length).
        """
        words = self.embed(answers[:, :-1].clamp(min=0))  # (batch, length - 1, dim)
        places = self.start + torch.arange(words.shape[1], device=words.device)
        with precision.autocast(self.precision, words.device):
            inputs = torch.cat([self._prefix(tokens), words], 1)
            hidden = self._decode(inputs, torch.cat([self.positions, self._at(places)], -1)).last_hidden_state
            logits = self.head(hidden[:, len(self.prompt) - 1 :])  # (batch, length, words)
        logits = _precise(logits).transpose(1, 2)
        return cross_entropy(logits, answers, ignore_index=IGNORED, reduction="none").sum(1)

    # ------------------------------------------------------------ answering

    @torch.no_grad()
    def write(self, tokens: torch.Tensor) -> list[str]:
        """Greedy answers, each ended at its own end token or stop mark, whatever the others do."""
        step = max(1, PLACES // (len(self.prompt) + self.longest))
        return [text for some in tokens.split(step) for text in self._write(some)]

    def _write(self, tokens: torch.Tensor) -> list[str]:
        with precision.autocast(self.precision, tokens.device):
            found = self._decode(self._prefix(tokens), self.positions, use_cache=True)
            written, done = [], torch.zeros(len(tokens), dtype=torch.bool)
            while True:
                logits = self.head(found.last_hidden_state[:, -1:])[..., : len(self.tokenizer)]
                written.append(logits.argmax(-1))  # (batch, 1)
                done |= self._ended(torch.cat(written[-TAIL:], 1).tolist())
                if done.all() or len(written) == self.longest:
                    break
                place = torch.full((1,), self.start + len(written) - 1, device=tokens.device)
                found = self._decode(
                    self.embed(written[-1]), self._at(place), use_cache=True, past_key_values=found.past_key_values
                )
        return [self._text(row) for row in torch.cat(written, 1).tolist()]

    def _ended(self, tails: list[list[int]]) -> torch.Tensor:
        """bool (batch,): whose last tokens hold an end or a stop mark."""
        marks = self.tokenizer.batch_decode(tails) if self.stop else [""] * len(tails)
        found = [
            tail[-1] in self.ends or bool(self.stop and self.stop in mark)
            for tail, mark in zip(tails, marks, strict=True)
        ]
        return torch.tensor(found)

    def _text(self, row: list[int]) -> str:
        ends = [row.index(end) for end in self.ends if end in row]
        text = self.tokenizer.decode(row[: min(ends, default=None)], skip_special_tokens=True)
        return (text.split(self.stop)[0] if self.stop else text).strip()

    def trie_of(self, answers: Sequence[str]) -> Trie:
        return Trie.of(self.tokens_of(answers), self.prompt.device)

    @torch.no_grad()
    def score(self, tokens: torch.Tensor, trie: Trie) -> torch.Tensor:
        """log p(answer | image) of every answer of a trie, float32 (batch, answers).

        The prompt with the image is computed once, and the trie's nodes in one further pass over its keys and values,
        each node looking at its ancestors only.
        """
        step = max(1, NUMBERS // ((len(trie) + 1) * self.head.weight.shape[0]))
        return torch.cat([self._score(some, trie) for some in tokens.split(step)])

    def _score(self, tokens: torch.Tensor, trie: Trie) -> torch.Tensor:
        with precision.autocast(self.precision, tokens.device):
            found = self._decode(self._prefix(tokens), self.positions, use_cache=True)
            hidden = found.last_hidden_state[:, -1:]  # (batch, 1, dim): the root
            if len(trie):
                free = torch.ones(len(trie), len(self.prompt), dtype=torch.bool, device=tokens.device)
                allowed = torch.cat([free, trie.ancestors], 1)  # (nodes, prompt + nodes)
                mask = torch.zeros(allowed.shape, dtype=hidden.dtype, device=tokens.device)
                mask = mask.masked_fill(~allowed, torch.finfo(hidden.dtype).min)
                nodes = self._decode(
                    self.embed(trie.tokens).expand(len(tokens), -1, -1),
                    self._at(self.start + trie.depth),
                    attention_mask=mask.expand(len(tokens), 1, -1, -1),
                    use_cache=True,
                    past_key_values=found.past_key_values,
                )
                hidden = torch.cat([hidden, nodes.last_hidden_state], 1)  # (batch, 1 + nodes, dim)
            logits = _precise(self.head(hidden))
        chosen = logits[:, trie.before, trie.next] - logits.logsumexp(-1)[:, trie.before]
        return (chosen * trie.inside).sum(-1)  # (batch, answers)

    # ------------------------------------------------------------ parts

    def _prefix(self, tokens: torch.Tensor) -> torch.Tensor:
        """The prompt with the image in it, (batch, length, dim)."""
        words = self.embed(self.prompt).expand(len(tokens), -1, -1)
        image = self.connector(tokens.to(next(self.connector.parameters()).dtype))
        if image.shape[1] != len(self.slots):
            raise UserError(
                f"an image came as {image.shape[1]} tokens and {self.tag} has places for {len(self.slots)}; show "
                "images of the size that it was made for, or set grid, which averages to as many whatever the size"
            )
        return words.index_copy(1, self.slots, image.to(words.dtype))

    def _at(self, places: torch.Tensor) -> torch.Tensor:
        """Positions (n,) on every axis of the prompt's."""
        return places.expand(*self.positions.shape[:-1], -1)

    def _decode(self, inputs: torch.Tensor, positions: torch.Tensor, **more: Any) -> Any:
        for layer in self.recomputed:
            layer.training = torch.is_grad_enabled()  # else they would keep no cache
        axes = positions[..., None, :].expand(*positions.shape[:-1], len(inputs), -1)  # (axes, batch, length)
        return self.decoder(inputs_embeds=inputs, position_ids=axes, return_dict=True, **more)


def _precise(logits: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
