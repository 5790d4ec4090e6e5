"""What a captioner saves: names scored over one prefix an image, answers written with a cache, images encoded once.

    OMP_NUM_THREADS=1 python perf/decoding.py [--names 100] [--images 8] [--rounds 5]

Scores: log p(name | image) of 100 names of 4 to 6 tokens, their end among them, after 36 image tokens and the question.
From the start means a batch of all names an image, padded on the right, image and question in each of its rows, and
logits at the answers' places alone. Ours computes image and question once an image and every beginning of a name once.
The names are of 3 to 5 of 40 syllables, a token each: few begin alike, so that little of the ratio comes from the trie.
Beside it: answers of 16 tokens written greedily with keys and values kept, and with all computed anew for each token;
and GMM's four epochs of a task with each image encoded in every epoch, and once. In two sizes: a Llama of width 256 and
depth 4, and the embedded default's. Times are the processor's seconds of one thread, the shortest of several rounds in
turns, because others' load only lengthens them. Both ways must come to the same numbers. The last line is JSON; its
ratio is the lower of the two. A minute of processor time.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import numpy as np
import torch

from cilkit import backbones, learners, precision
from cilkit.captioning import assembled
from cilkit.captioning.captioner import Captioner
from cilkit.data import Benchmark, ImageSet, Stream

SIZES = {"width 256, depth 4": (256, 4), "the default's, 96 and 2": (96, 2)}
WORDS = 1500  # besides syllables, so that the output layer is as large as the default's may become
EPOCHS = 4  # GMM's own


def syllables_and_names(count: int) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmn" for b in "aeiou"]
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(random.choice(syllables, random.integers(3, 6)))] = None
    return syllables, list(names)


def made(dim: int, depth: int, syllables: list[str]) -> tuple[backbones.Backbone, Captioner]:
    """A captioner of 36 tokens an image: time does not depend on what the weights are."""
    random, letters = np.random.default_rng(1), list("chjpqrstvwxyz")
    words = {"".join(random.choice(letters, 7)) for _ in range(WORDS)}
    backbone = backbones.create("small_resnet").eval()
    return backbone, assembled.create(backbone, [*syllables, *sorted(words)], dim=dim, depth=depth, grid=6)


@torch.no_grad()
def from_the_start(captioner: Captioner, tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Scores (images, names): each pair with its own prefix, an image's names in one batch."""
    return torch.stack([-captioner.nll(image.expand(len(table), -1, -1), table) for image in tokens])


@torch.no_grad()
def anew(captioner: Captioner, tokens: torch.Tensor) -> list[str]:
    """Greedy answers, all computed again for every token."""
    prefix, ids = captioner._prefix(tokens), torch.zeros(len(tokens), 0, dtype=torch.int64)
    for _ in range(captioner.longest):
        inputs = torch.cat([prefix, captioner.embed(ids)], 1)
        hidden = captioner.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1:]
        ids = torch.cat([ids, captioner.head(hidden)[..., : len(captioner.tokenizer)].argmax(-1)], 1)
    return [captioner._text(row) for row in ids.tolist()]


def made_up(per_class: int, seed: int) -> ImageSet:
    random, labels = np.random.default_rng(seed), np.repeat(np.arange(4), per_class)
    pixels = random.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    return ImageSet.from_arrays(pixels, labels, [f"class {label}" for label in range(4)])


def tuned(dim: int, depth: int, augment: bool) -> Callable[[], int]:
    """GMM's only task on 128 images, ready to be learnt: how many images it encodes."""
    stream = Stream(Benchmark("made up", made_up(32, 0), made_up(1, 1)), increments=4)
    backbone = backbones.create("small_resnet").eval()
    captioner = assembled.create(backbone, [f"this is a photo of a class {c}." for c in range(4)], dim=dim, depth=depth)
    learner = learners.create(
        "gmm", backbone, captioner=captioner, text_encoder=lambda texts: np.eye(len(texts), 8), epochs=EPOCHS,
        augment=augment, per_class=0,
    )  # fmt: skip
    return lambda: len(list(learner.learn(stream[0]))) and sum(backbone.forwarded.values())


def shortest(rounds: int, **ways: Callable) -> tuple[dict[str, float], dict]:
    """Seconds and results of each way, which a call without arguments makes ready."""
    seconds, results = {name: [] for name in ways}, {}
    for _ in range(rounds):
        for name, way in ways.items():
            ready = way()
            begun = time.process_time()
            results[name] = ready()
            seconds[name].append(time.process_time() - begun)
    return {name: min(spent) for name, spent in seconds.items()}, results


def line(what: str, seconds: dict[str, float]) -> float:
    """Prints a row of two ways; how often the second goes into the first."""
    slow, fast = seconds.values()
    print(f"| {what} | {slow:.3f} | {fast:.3f} | {slow / fast:.1f} |", flush=True)
    return slow / fast


def compared(size: str, names: int, images: int, rounds: int) -> dict[str, float]:
    dim, depth = SIZES[size]
    syllables, texts = syllables_and_names(names)
    backbone, captioner = made(dim, depth, syllables)
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = captioner.look(backbone, pixels, "probe")
    table, trie = captioner.padded(texts), captioner.trie_of(texts)
    tokens_a_name = (table >= 0).sum(1)
    assert tokens.shape[1] >= 32 and tokens_a_name.max() <= 6, "not the task that is to be measured"
    seconds, scores = shortest(
        rounds,
        slow=lambda: lambda: from_the_start(captioner, tokens, table),
        fast=lambda: lambda: captioner.score(tokens, trie),
    )
    what = f"{images} images x {names} names, {int(tokens_a_name.sum())} tokens, {len(trie)} shown"
    print(f"| {size}: prefix {len(captioner.prompt)}, {len(captioner.tokenizer)} words in the output layer | | | |")
    found = {"ratio": line(what, seconds)}
    found["max difference"] = float((scores["slow"] - scores["fast"]).abs().max())
    captioner.double()
    exact = from_the_start(captioner, tokens.double(), table) - captioner.score(tokens.double(), trie)
    found["in float64"] = float(exact.abs().max())
    captioner.float()

    captioner.longest, captioner.ends = 16, []
    seconds, answers = shortest(
        rounds, slow=lambda: lambda: anew(captioner, tokens), fast=lambda: lambda: captioner.write(tokens)
    )
    assert answers["slow"] == answers["fast"], "other answers"
    found["writing"] = line(f"{images} answers of 16 tokens", seconds)

    seconds, encoded = shortest(rounds, slow=lambda: tuned(dim, depth, True), fast=lambda: tuned(dim, depth, False))
    assert encoded["slow"] == EPOCHS * encoded["fast"], "images encoded more or less often than said"
    found["tuning"] = line(f"{EPOCHS} epochs of {encoded['fast']} images", seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=100)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    precision.keep_freed_memory()  # as every run does
    print("| size: what | anew, seconds | ours, seconds | ratio |\n|---|---|---|---|")
    found = {size: compared(size, arguments.names, arguments.images, arguments.rounds) for size in SIZES}
    print(f"one thread of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others' load disturbs the times)")
    lowest = {name: round(min(one[name] for one in found.values()), 2) for name in ("ratio", "writing", "tuning")}
    highest = {
        name: float(f"{max(one[name] for one in found.values()):.1e}") for name in ("max difference", "in float64")
    }
    print(json.dumps({"name": "decoding", **lowest, **highest, "unit": "times faster, the lower of two sizes"}))


if __name__ == "__main__":
    main()
