"""What synthetic replay costs an epoch, beside what its own forward and backward passes cost by arithmetic.

    OMP_NUM_THREADS=1 python perf/replay.py [--arch small_resnet …] [--batch 32] [--batches 4] [--rounds 9]

iCaRL in its second task, without the plug-in and in its four arms (ratio 1), on images of 32 x 32 in memory: one epoch
of each in turn, round after round. The arithmetic ratio is that of the floating-point operations counted of the passes
that an epoch makes: student forward and backward, teacher forward. Times are the processor's seconds of one thread, as
others share the machine; a ratio is the median over rounds of the arm's seconds over the learner's in the same round.
Excess is that ratio over the arithmetic one, less 1, all included: reading and augmenting the synthetic images, too,
which is no pass of the network; its microseconds an image stand apart. So does the ratio of the same passes timed
alone: a teacher's pass, in eval mode, takes less than its share of the operations. The arm "none" computes the same
as the learner alone, so that its excess is the measurement's noise. The last line is JSON. Three minutes of processor
time.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch

from cilkit import backbones, costs, learners, precision
from cilkit.data import Benchmark, ImageSet, Stream

ARMS = {"none": (0.0, 0.0), "distillation": (0.0, 1.0), "replay": (1.0, 0.0), "both": (1.0, 1.0)}
CLASSES = 10


def made_up(per_class: int, seed: int) -> ImageSet:
    random, labels = np.random.default_rng(seed), np.repeat(np.arange(CLASSES), per_class)
    pixels = random.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    return ImageSet.from_arrays(pixels, labels, [f"class {label}" for label in range(CLASSES)])


class Run:
    """A learner in its second task, epoch after epoch."""

    def __init__(self, arch: str, stream: Stream, epochs: int, arm: str = "", **hyper) -> None:
        weights = dict(zip("ab", ARMS[arm], strict=True)) | {"images": made_up(50, 2)} if arm else {}
        name = "icarl+synthetic_replay" if arm else "icarl"
        make = lambda: learners.create(name, backbones.create(arch), epochs=epochs, **weights, **hyper)  # noqa: E731
        self.flops = costs.per_image(make(), stream[0], 32)
        self.learner, self.task = make(), stream[1]
        self.learner.epochs_of = lambda task: epochs if task.index else 0  # the first task: exemplars alone
        list(self.learner.learn(stream[0]))
        self.moments: Iterator = self.learner.learn(self.task)
        self.seconds: list[float] = []
        self.epoch()  # the libraries wake up
        self.seconds.clear()

    def epoch(self) -> None:
        before, begun = self.learner.backbone.forwarded.copy(), time.process_time()
        next(self.moments)
        self.seconds.append(time.process_time() - begun)
        self.passes = self.learner.backbone.forwarded - before

    def due(self, each: dict[str, float]) -> float:
        """What an epoch's passes cost, by the cost of an image in each."""
        return sum(count * each[kind] for kind, count in self.passes.items())

    def timed(self, batch: int, repeats: int = 9) -> dict[str, float]:
        """Seconds of an image in each pass, alone: student forward and backward, teacher forward."""
        images, times = torch.randn(batch, 3, 32, 32), {"student": [], "teacher": []}
        for _ in range(repeats):
            begun = time.process_time()
            self.learner.backbone(images, "student").sum().backward()
            times["student"].append(time.process_time() - begun)
            begun = time.process_time()
            with torch.no_grad():
                self.learner.teacher.network(images, "teacher")
            times["teacher"].append(time.process_time() - begun)
        return {kind: median(seconds) / batch for kind, seconds in times.items()}

    def reading(self, repeats: int = 5) -> float:
        """Seconds that an epoch's batches take to be read and augmented."""
        times = []
        for _ in range(repeats):
            begun = time.process_time()
            for _ in self.learner.batches(self.task, 0):
                pass
            times.append(time.process_time() - begun)
        return median(times)


def compared(arch: str, rounds: int, batches: int, **hyper) -> dict[str, float]:
    """Prints a line an arm; the excess of each."""
    stream = Stream(Benchmark("made up", made_up(hyper["batch_size"] * batches // 5, 0), made_up(2, 1)), increments=5)
    runs = {arm: Run(arch, stream, rounds + 1, arm, **hyper) for arm in ("", *ARMS)}
    for _ in range(rounds):
        for run in runs.values():
            run.epoch()
    base, excess = runs[""], {}
    images, each = len(base.learner.training_set(base.task)), base.timed(hyper["batch_size"])
    for arm, run in runs.items():
        ratio = median(mine / its for mine, its in zip(run.seconds, base.seconds, strict=True))
        due, timed = (run.due(cost) / base.due(cost) for cost in (base.flops, each))
        excess[arm] = ratio / due - 1
        extra = 1e6 * (run.reading() - base.reading()) / max(images, 1)
        speed = images / median(run.seconds)
        name = f"{arch}, {arm or 'iCaRL alone'}"
        numbers = f"{speed:.0f} | {ratio:.3f} | {due:.3f} | {excess[arm]:+.1%} | {timed:.3f} | {extra:.0f}"
        print(f"| {name} | {numbers} |", flush=True)
    return excess


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["small_resnet", "cifar_resnet32"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=4, help="of the task's images, without exemplars, an epoch")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    precision.keep_freed_memory()  # as every run does
    print(
        "| network, arm | images/s | ratio of seconds | of operations | excess | of passes timed alone | us to read |"
    )
    print("|---|---|---|---|---|---|---|")
    hyper = {"batch_size": arguments.batch, "per_class": 20}
    found = [compared(arch, arguments.rounds, arguments.batches, **hyper) for arch in arguments.arch]
    print(f"one thread of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others' load disturbs the ratios)")
    value = max(excess[arm] for excess in found for arm in ("distillation", "replay", "both"))
    noise = max(abs(excess["none"]) for excess in found)
    facts = {"value": round(value, 3), "unit": "worst relative excess over the arithmetic ratio"}
    print(json.dumps({"name": "replay"} | facts | {"noise": round(noise, 3)}))


if __name__ == "__main__":
    main()
