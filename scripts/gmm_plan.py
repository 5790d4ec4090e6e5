"""A model that writes labels, at 7B scale, on paper: operations counted without computing, memory, hours.

    python scripts/gmm_plan.py [params/06_generative_classifier/gmm_imagenet_r.yaml …]

Image encoder and language model are built from their configurations on torch's meta device, where nothing is computed,
and go through `Captioner`'s own code: a multiplication and an addition are two operations. Each file is planned for its
model and for the paper's, MiniGPT-4 with Vicuna-7B. A table, and a last line of JSON. Nothing here is a measurement.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cilkit.answers import Sentence
from cilkit.captioning import vlm
from cilkit.captioning.captioner import PLACES, Captioner
from cilkit.learners.base import Learner

PEAK = 989e12  # operations a second of an H200 in bfloat16, dense [remembered]
SHARE = 0.3  # of it [ours]; a batch of 2 fills such a device badly
PIECE = 5  # letters a token [ours]: no tokenizer is here. ImageNet-R's answers: 10.6 tokens in the mean, 15 in the
# longest, 521 nodes in the trie of all; by GPT-2's own tokenizer 10.3, 14, 647 [derived]
PAPER = "MiniGPT-4 with Vicuna-7B"
PROMPT = {"prompt": "{image}What is this photo of? ", "stop": "", "longest": 40}  # where a file has none
KINDS = ("look", "forward", "backward", "write", "score")  # passes, of one image


class Pieces:
    """In place of a tokenizer: a word, with the space before it, in pieces of PIECE letters; a token each."""

    eos_token_id = 2

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        words = re.findall(r" ?[^\W\d_]+| ?\d+| ?[^\w\s]+|\s|_", text)
        pieces = [word[i : i + PIECE] for word in words for i in range(0, len(word), PIECE)]
        return {"input_ids": [self.known.setdefault(piece, len(self.known) + 3) for piece in pieces]}


def config_of(name: str) -> Any:
    """A model's configuration. Sizes of BLIP-2's image part, LLaVA and Llama-7B: transformers' defaults [read]; of
    OPT-6.7B [remembered]."""
    from transformers import Blip2Config, LlamaConfig, LlavaConfig, OPTConfig

    opt = {"hidden_size": 4096, "word_embed_proj_dim": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    more = {"ffn_dim": 16384, "vocab_size": 50304}
    made = {
        "vlm:Salesforce/blip2-opt-6.7b": lambda: Blip2Config(text_config=OPTConfig(**opt, **more)),
        "vlm:llava-hf/llava-1.5-7b-hf": LlavaConfig,
        PAPER: lambda: Blip2Config(text_config=LlamaConfig()),
    }
    return made[name]() if name in made else None


# ---------------------------------------------------------------- counting


def operations(passes: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        passes()
    return counter.get_total_flops()


def built(config: Any) -> Any:
    """A whole model without numbers, in bfloat16."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def look(model: Any) -> torch.Tensor:
    """What the image part gives the connector, (1, tokens, width)."""
    side = model.config.vision_config.image_size
    pixels = torch.zeros(1, 3, side, side, device="meta", dtype=torch.bfloat16)
    if not hasattr(model, "qformer"):
        return vlm._reaching(model, vlm._connector(model, "", "model"), {"pixel_values": pixels})
    seen = model.vision_model(pixels).last_hidden_state  # the model's own way asks masks for their numbers
    return model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen).last_hidden_state


def captioner_of(model: Any, image: torch.Tensor, prompt: str, stop: str, longest: int) -> Captioner:
    """The rest of a model, for a prompt with {image} in it and a first token of its own."""
    words, connector, whole = Pieces(), vlm._connector(model, "", "model"), model.get_decoder()
    before, after = (words(part)["input_ids"] for part in prompt.split(vlm.IMAGE))
    slots = range(1 + len(before), 1 + len(before) + image.shape[1])
    ids = [1, *before, *[0] * len(slots), *after]
    speaker = model if whole.get_output_embeddings() is None else whole
    return Captioner(connector, speaker, words, look, ids, slots, stop=stop, longest=longest).to("meta")


def teach(captioner: Captioner, image: torch.Tensor, length: int) -> torch.Tensor:
    answers = torch.zeros(len(image), length, dtype=torch.int64, device="meta")
    return captioner.nll(image, answers).sum()


@torch.no_grad()
def write(captioner: Captioner, image: torch.Tensor, length: int) -> None:
    """As `Captioner.write` does, which looks at what it has written."""
    word = captioner.embed(torch.zeros(len(image), 1, dtype=torch.int64, device="meta"))
    found = captioner._decode(captioner._prefix(image), captioner.positions, use_cache=True)
    captioner.head(found.last_hidden_state[:, -1:])
    for place in range(captioner.start, captioner.start + length - 1):
        at = captioner._at(torch.full((1,), place, device="meta"))
        found = captioner._decode(word, at, use_cache=True, past_key_values=found.past_key_values)
        captioner.head(found.last_hidden_state)


def kept(loss: Callable[[], torch.Tensor], parts: torch.nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights aside."""
    weights = {value.untyped_storage()._cdata for value in (*parts.parameters(), *parts.buffers())}
    found: dict[int, int] = {}
    alive = []  # else another would come to lie where one was

    def note(value: torch.Tensor) -> torch.Tensor:
        alive.append(value)
        found[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        made = loss()
    del made
    return sum(size for place, size in found.items() if place not in weights)


# ---------------------------------------------------------------- planning


@dataclass(frozen=True)
class Work:
    """What a file asks for.

    names:  of all classes, in the order of learning.
    seen:   classes after each task; tests: test images that are answered then.
    taught: images through the language model while tuning.
    looks:  images through the encoder, tests included, with training images "anew" in every epoch or "cached".
    held:   images whose tokens are kept at once: "tests", and a task's training images if they are "cached".
    """

    names: Sequence[str]
    sentence: str
    prompt: str
    stop: str
    longest: int
    batch_size: int
    constrained: bool
    augment: bool
    seen: Sequence[int]
    tests: Sequence[int]
    taught: int
    looks: dict[str, int]
    held: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """flops: of one image, by KINDS; "score" among all names. stages: of all images. bytes: what memory holds.
    total, hours: by way of encoding, "anew" or "cached"."""

    tokens: dict[str, int]
    flops: dict[str, int]
    stages: dict[str, int]
    total: dict[str, int]
    parameters: dict[str, int]
    bytes: dict[str, int]
    steps: int
    hours: dict[str, float]


def plan(config: Any, work: Work) -> Plan:
    images: list[torch.Tensor] = []
    flops = {"look": operations(lambda: images.append(look(built(_deep(config, 1)))))}
    one, two = (measured(_deep(config, depth), images[0], work) for depth in (1, 2))
    more = config.get_text_config().num_hidden_layers - 1  # layers are alike: what is counted grows evenly with them
    n = {key: one[key] + more * (two[key] - one[key]) for key in one}
    looks = {f"encode {way}": count * flops["look"] for way, count in work.looks.items()}
    stages = looks | {
        "tune": work.taught * (n["forward"] + n["backward"]),
        "write": sum(work.tests) * n["write"],
        "score": sum(count * n.get(f"score {seen}", 0) for count, seen in zip(work.tests, work.seen, strict=True)),
    }
    speaking = stages["tune"] + stages["write"] + stages["score"]
    total = {way: speaking + stages[f"encode {way}"] for way in work.looks}
    return Plan(
        tokens={name: n[name] for name in ("image tokens", "prompt", "answer", "trie", "all", "at once")},
        flops=flops | {kind: n[kind] for kind in KINDS[1:]},
        stages=stages,
        total=total,
        parameters={name: n[name] for name in ("image", "projection", "language")},
        bytes={
            "weights": 2 * (n["image"] + n["language"]) + 4 * n["projection"],
            "optimiser": 12 * n["projection"],  # gradient and two moments, float32
            **{name: n[name] for name in ("activations", "recomputed", "keys and values")},
            **{name: 4 * count * images[0].numel() for name, count in work.held.items()},
        },
        steps=work.taught // work.batch_size,
        hours={way: count / PEAK / SHARE / 3600 for way, count in total.items()},
    )


def measured(config: Any, image: torch.Tensor, work: Work) -> dict[str, int]:
    """Everything that is counted for a language model of so many layers."""
    model, answers = built(config), [Sentence(work.sentence).fill(name) for name in work.names]
    captioner = captioner_of(model, image, work.prompt, work.stop, work.longest)
    heads = [] if captioner.head.weight is captioner.embed.weight else [captioner.head]
    found = {"language": sum(p.numel() for part in (captioner.decoder, *heads) for p in part.parameters())}
    captioner.train_only("projection")
    found["projection"] = sum(p.numel() for p in captioner.learning())
    found["image"] = sum(p.numel() for p in model.parameters()) - found["projection"] - found["language"]
    found |= spoken(captioner, image, answers, work.seen if work.constrained else ())
    length, before = found["answer"], len(captioner.prompt)
    found |= {"image tokens": image.shape[1], "prompt": before - image.shape[1]}
    found |= {"trie": len(captioner.trie_of(answers)), "all": work.taught * (before + length - 1)}
    batch = image.expand(work.batch_size, -1, -1)
    found["activations"] = kept(lambda: teach(captioner, batch, length), captioner)
    captioner.train_only("projection", recompute=True)
    found["recomputed"] = kept(lambda: teach(captioner, batch, length), captioner)
    speaker = model.config.get_text_config()
    width = speaker.hidden_size * getattr(speaker, "num_key_value_heads", speaker.num_attention_heads)
    each = 4 * speaker.num_hidden_layers * width // speaker.num_attention_heads  # keys and values, bfloat16
    found["at once"] = min(Learner.test_batch, max(1, PLACES // (before + captioner.longest)))  # answers, as written
    return found | {"keys and values": each * (before + length - 1) * found["at once"]}


def spoken(captioner: Captioner, image: torch.Tensor, answers: Sequence[str], seen: Sequence[int]) -> dict[str, int]:
    """Operations of one image in the language model: its answer, as long as the longest, learnt and written, and scored
    among so many first ones ("score 20"; "score" among all)."""
    length = captioner.padded(answers).shape[1]
    forward = operations(lambda: teach(captioner, image, length))
    found = {"answer": length, "forward": forward, "write": operations(lambda: write(captioner, image, length))}
    found["backward"] = operations(lambda: teach(captioner, image, length).backward()) - forward
    for count in seen:
        trie = captioner.trie_of(answers[:count])
        found[f"score {count}"] = operations(lambda trie=trie: captioner.score(image, trie))
    return found | {"score": found.get(f"score {len(answers)}", 0)}


def _deep(config: Any, layers: int) -> Any:
    changed = copy.deepcopy(config)
    changed.get_text_config().num_hidden_layers = layers
    return changed


# ---------------------------------------------------------------- showing


def shown(name: str, made: Plan, work: Work) -> list[str]:
    """Sentences for a file's header; every number with its unit."""
    f, t, p, b = made.flops, made.tokens, made.parameters, made.bytes
    score = f", {f['score'] / 1e12:.2f} T to score all names by a trie of {t['trie']} nodes" if f["score"] else ""
    chosen, other = ("anew", "cached")[:: 1 if work.augment else -1]
    ways = {"anew": "anew in every epoch", "cached": "cached, once a task"}
    scored = f", score {made.stages['score']:.2e}" if f["score"] else ""
    per_step = made.hours[chosen] * 3600e3 / max(1, made.steps)
    return [
        f"{name}: parameters {p['image'] / 1e9:.2f} G image part, {p['language'] / 1e9:.2f} G language model, "
        f"{p['projection']:,} projection. Tokens: {t['image tokens']} of the image, {t['prompt']} of the prompt, "
        f"{t['answer']} of the longest answer; {t['all'] / 1e6:.2f} M in all while tuning.",
        f"An image: {f['look'] / 1e12:.3f} T to encode, {f['forward'] / 1e12:.3f} T forward and "
        f"{f['backward'] / 1e12:.3f} T backward to tune, {f['write'] / 1e12:.3f} T to write an answer{score}.",
        f"Memory: weights {b['weights'] / 1e9:.1f} GB (bfloat16), activations {b['activations'] / 1e9:.2f} GB a batch "
        f"({b['recomputed'] / 1e9:.2f} recomputed), optimiser {b['optimiser'] / 1e9:.2f} GB, keys and values "
        f"{b['keys and values'] / 1e9:.1f} GB for {t['at once']} answers; beside the device, tokens of the test "
        f"images {b['tests'] / 1e9:.2f} GB and of a task's images, where they are cached, {b['cached'] / 1e9:.2f} GB.",
        f"In all {made.total[chosen]:.2e}: encode {made.stages[f'encode {chosen}']:.2e} ({ways[chosen]}; {other} "
        f"{made.stages[f'encode {other}']:.2e}), tune {made.stages['tune']:.2e}, write {made.stages['write']:.2e}"
        f"{scored}. Hours on one H200 at {SHARE:.0%} [ours] of {PEAK / 1e12:.0f} TFLOP/s [remembered]: "
        f"{made.hours[chosen]:.2f}, {other} {made.hours[other]:.2f} [derived]; {made.steps:,} steps in {per_step:.0f} "
        "ms each, tests included: a bound from below, since small batches leave such a device waiting.",
    ]


def main() -> None:
    import presets

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = presets.ROOT / "params" / "06_generative_classifier" / "gmm_imagenet_r.yaml"
    parser.add_argument("files", nargs="*", type=Path, default=[default])
    found = []
    for path in parser.parse_args().files:
        values = presets.parameters_of(path)
        work = presets.work_of(values)
        for name in dict.fromkeys((values["backbone"], PAPER)):
            made = plan(config_of(name), work)
            found.append({"file": path.name, "model": name, **asdict(made)})
            print(path.name, *shown(name, made, work), sep="\n  ", flush=True)
    print(json.dumps({"share": SHARE, "peak": PEAK, "plans": found}))


if __name__ == "__main__":
    main()
