"""RanPAC's search over 17 ridge values: one eigendecomposition against one solve a value.

    python perf/ridge.py [--width 3000] [--images 1200] [--classes 100] [--threads 2] [--repeats 3]

Features are ReLU of a random projection, as RanPAC has them; 80 % of the images are fitted, the rest choose. The
reference is the released procedure: H^T H and a general solve of size M for each of the 17 values, in float64 as ours;
a further row has it in float32, as released. Each is timed whole, in turns; the shortest time counts, because others'
load only lengthens it, and the processor's seconds stand beside it. Then the sequential solution beside the joint one.
The last line is JSON. One minute of processor time.
"""

import argparse
import json
import os
import time

import torch
from torch.nn.functional import mse_loss

from cilkit.learners import ridge


def problem(width: int, images: int, classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """H, Y of the images fitted and of those held out; 768 features around class means."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=generator)
    features = torch.randn(classes, 768, generator=generator)[labels] + 4 * torch.randn(
        images, 768, generator=generator
    )
    inputs = torch.relu(features @ torch.randn(768, width, generator=generator)).to(dtype)
    targets, cut = ridge.one_hot(labels, classes, dtype), int(0.8 * images)
    return inputs[:cut], targets[:cut], inputs[cut:], targets[cut:]


def solves(inputs, targets, held_inputs, held_targets) -> torch.Tensor:
    gram, cross = inputs.T @ inputs, inputs.T @ targets
    eye = torch.eye(len(gram), dtype=gram.dtype)
    fits = (held_inputs @ torch.linalg.solve(gram + value * eye, cross) for value in ridge.GRID)
    return torch.stack([mse_loss(fit, held_targets) for fit in fits])


def timed(way, data) -> tuple[tuple[float, float], torch.Tensor]:
    """(seconds, processor's seconds) and the losses."""
    start = time.perf_counter(), time.process_time()
    errors = way(*data)
    return (time.perf_counter() - start[0], time.process_time() - start[1]), errors


def sequential_beside_joint(data, value: float = 1e4) -> float:
    """Relative difference of W after five tasks in batches and of W from everything at once."""
    inputs, targets = data[:2]
    width, classes = inputs.shape[1], targets.shape[1]
    gram, cross = inputs.new_zeros(width, width), inputs.new_zeros(width, classes)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
    for task in order.tensor_split(5):
        for rows in task.split(48):
            gram.addmm_(inputs[rows].T, inputs[rows])
            cross.addmm_(inputs[rows].T, targets[rows])
    ours = ridge.solve(gram, cross, value)
    joint = torch.linalg.solve(inputs.T @ inputs + value * torch.eye(width, dtype=inputs.dtype), inputs.T @ targets)
    return float((ours - joint).norm() / joint.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=3000, help="M")
    parser.add_argument("--images", type=int, default=1200, help="of a task; 80 %% of them are fitted")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.width, arguments.images, arguments.classes
    data, single = problem(*size, torch.float64), problem(*size, torch.float32)
    ways = {
        "a solve a value": (solves, data),
        "the same, float32": (solves, single),
        "one eigendecomposition": (ridge.losses_dual, data),
    }
    times, found = {name: [] for name in ways}, {}
    ridge.losses_dual(*data)  # the libraries wake up
    for _ in range(arguments.repeats):
        for name, (way, given) in ways.items():
            spent, found[name] = timed(way, given)
            times[name].append(spent)
    best = {name: min(spent) for name, spent in times.items()}
    print("| search over 17 values | seconds | processor's seconds | lambda |\n|---|---|---|---|")
    for name, errors in found.items():
        print(f"| {name} | {best[name][0]:.2f} | {best[name][1]:.2f} | {ridge.GRID[int(errors.argmin())]:g} |")
    theirs, ours = found["a solve a value"], found["one eigendecomposition"]
    apart = (ours / theirs - 1).abs()[6:].max()
    print(
        f"losses apart, at lambda 0.01 and above: {apart:.1e} (below, solves of a singular matrix are rounding noise)"
    )
    print(f"sequential beside joint, relative: {sequential_beside_joint(data):.1e}")
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others' load lowers these numbers)")
    ratio = best["a solve a value"][0] / best["one eigendecomposition"][0]
    same = bool(ours.argmin() == theirs.argmin())
    print(json.dumps({"name": "ridge_search", "value": round(ratio, 1), "unit": "times faster", "same_choice": same}))


if __name__ == "__main__":
    main()
