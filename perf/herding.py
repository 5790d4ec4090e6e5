"""Herding of 500 images x 100 classes x 512 features: 20 exemplars a class, and the whole rank of 500.

    OMP_NUM_THREADS=2 python perf/herding.py [--classes 100] [--images 500] [--width 512] [--repeats 3]

Features are what a network with a last ReLU gives: float32, of unit length, around class means. Beside it, class by
class, the released loop (iCaRL's main_cifar_100_theano.py, read): a product of all features with w, and an arg-max, a
try. Both must pick the same. Each is timed whole, in turns; the shortest time counts, because others' load only
lengthens it, and the processor's seconds stand beside it. The last line is JSON. One minute of processor time.
"""

import argparse
import json
import os
import time

import numpy as np

from cilkit.learners.memory import herd


def problem(classes: int, images: int, width: int) -> list[np.ndarray]:
    """Of each class, features (images, width)."""
    random, found = np.random.default_rng(0), []
    for _ in range(classes):
        features = np.maximum(random.normal(size=width) + 2 * random.normal(size=(images, width)), 0)
        found.append((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32))
    return found


def released(features: np.ndarray, count: int) -> np.ndarray:
    columns = features.astype(np.float64).T  # (width, n)
    mean, rank, tries = columns.mean(1), np.zeros(len(features), np.int64), 0
    w = mean
    while np.count_nonzero(rank) < min(count, len(rank)) and tries < 1000:
        best = np.argmax(np.dot(w, columns))
        tries += 1
        if rank[best] == 0:
            rank[best] = np.count_nonzero(rank) + 1
        w = w + mean - columns[:, best]
    return np.argsort(rank)[np.count_nonzero(rank == 0) :]


def timed(way, data: list[np.ndarray], count: int) -> tuple[tuple[float, float], list[np.ndarray]]:
    """(seconds, processor's seconds) and the picks of each class."""
    start = time.perf_counter(), time.process_time()
    picks = [way(features, count) for features in data]
    return (time.perf_counter() - start[0], time.process_time() - start[1]), picks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", type=int, default=500, help="of a class")
    parser.add_argument("--width", type=int, default=512, help="features of an image")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    data, best, same = problem(arguments.classes, arguments.images, arguments.width), {}, 0
    for count in (20, arguments.images):
        times: dict[str, list] = {"the released loop": [], "ours": []}
        for _ in range(arguments.repeats):
            spent, theirs = timed(released, data, count)
            times["the released loop"].append(spent)
            spent, ours = timed(herd, data, count)
            times["ours"].append(spent)
        # where 1,000 tries do not suffice, ours lists the rest behind
        assert all(np.array_equal(own[: len(one)], one) for own, one in zip(ours, theirs, strict=True)), "other picks"
        same += sum(map(len, theirs))
        best |= {(count, name): min(spent) for name, spent in times.items()}
    print("| exemplars a class | way | seconds | processor's seconds |\n|---|---|---|---|")
    for (count, name), (seconds, processor) in best.items():
        print(f"| {count} | {name} | {seconds:.2f} | {processor:.2f} |")
    print(f"the same {same} picks; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    few, whole = best[20, "ours"][0], best[arguments.images, "ours"][0]
    facts = {"name": "herding", "value": round(few, 2), "unit": "s", "whole_rank": round(whole, 2), "same_picks": same}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
