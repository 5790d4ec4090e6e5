"""What MAE-CIL's exemplars look like when they come back: rebuilt from a quarter of their patches, on held-out images.

    python perf/reconstruction.py [--benchmark digits] [--epochs 20] [--images 270] [--seed 0] [--threads 1]

The learner trains both of its objectives on all training images at once (one joint task), then rebuilds test images
behind random masks, a mask each. Beside it, for the same masks: bilinear in-painting (hidden pixels interpolated
linearly over the Delaunay triangles of the visible pixels' centres, `scipy.interpolate.griddata`; outside their hull
the nearest visible pixel), the mean colour of the visible pixels, and the mean training image, which is what a decoder
that ignores the visible patches would learn. PSNR is over the whole image, with the visible pixels true in all of them.
The last line is JSON. Some four minutes of processor time.
"""

import argparse
import json
import math
import os
import time

import numpy as np
import torch

from cilkit import backbones, learners, masked
from cilkit.data import Stream, benchmarks


def bilinear(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """image (h, w, 3) with its hidden pixels (h, w) interpolated from the others."""
    from scipy.interpolate import griddata

    known, wanted, values = np.argwhere(~hidden), np.argwhere(hidden), image[~hidden]
    linear, nearest = (griddata(known, values, wanted, method) for method in ("linear", "nearest"))
    filled = image.copy()
    filled[hidden] = np.where(np.isnan(linear), nearest, linear)
    return filled


def mean_colour(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """image (h, w, 3) with the visible pixels' mean in its hidden pixels (h, w)."""
    return np.where(hidden[:, :, None], image[~hidden].mean(0), image)


def psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """Mean over images (n, h, w, 3), levels 0 … 255, of 10 log10(255^2 / mean squared error)."""
    errors = np.maximum(((images - truth) ** 2).mean((1, 2, 3)), 1e-6)
    return float((10 * np.log10(255**2 / errors)).mean())


def table(
    rebuilt: np.ndarray, truth: np.ndarray, order: np.ndarray, visible: int, mean: np.ndarray
) -> dict[str, float]:
    """PSNR of each way to fill images: `rebuilt` and `truth` (n, h, w, 3); of each image's `order` of its patches
    (n, patches) the first `visible` are shown; `mean` is the mean training image (h, w, 3)."""
    grid = math.isqrt(order.shape[1])
    side = truth.shape[1] // grid
    hidden, truth = np.ones(order.shape, bool), truth.astype(np.float64)
    np.put_along_axis(hidden, order[:, :visible], False, axis=1)
    hidden = hidden.reshape(-1, grid, grid).repeat(side, axis=1).repeat(side, axis=2)  # (n, h, w)
    found = {"rebuilt": rebuilt}
    for name, way in {"bilinear": bilinear, "mean colour": mean_colour}.items():
        found[name] = np.stack([way(*one) for one in zip(truth, hidden, strict=True)])
    found["mean image"] = np.where(hidden[..., None], mean, truth)
    return {name: psnr(filled, truth) for name, filled in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", default="digits", help="digits or digits_photo")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=270, help="held-out images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    benchmark = benchmarks.load(arguments.benchmark)
    learner = learners.create(
        "mae_cil", backbones.create("small_vit", arguments.seed), seed=arguments.seed, epochs=arguments.epochs
    )
    (task,), test = Stream(benchmark, order_seed=1993, increments=2).joint(), benchmark.test.images()
    test = test[np.random.default_rng(arguments.seed).permutation(len(test))[: arguments.images]]
    begun, spent, every = time.perf_counter(), time.process_time(), max(1, arguments.epochs // 5)
    order = masked.orders(len(test), learner.patches, torch.Generator().manual_seed(arguments.seed)).numpy()
    mean = benchmark.train.images().mean(0)
    print("| epochs | rebuilt | bilinear | mean colour | mean image | seconds | processor's seconds |")
    print("|---|---|---|---|---|---|---|")
    for moment in learner.learn(task):
        if (moment.epoch + 1) % every == 0 or moment.epoch + 1 == arguments.epochs:
            rebuilt = learner.rebuilt(test.transpose(0, 3, 1, 2), order).transpose(0, 2, 3, 1)
            found = table(rebuilt, test, order, learner.visible, mean)
            numbers = " | ".join(f"{found[name]:.2f}" for name in found)
            seconds = time.perf_counter() - begun, time.process_time() - spent
            print(f"| {moment.epoch + 1} | {numbers} | {seconds[0]:.0f} | {seconds[1]:.0f} |", flush=True)
    kept, whole = learner.memory.each, test[0].nbytes
    print(f"an exemplar: {kept} bytes, {whole} whole ({whole / kept:.2f} times)")
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others' load lengthens the seconds)")
    gain = found["rebuilt"] - found["bilinear"]
    print(json.dumps({"name": "reconstruction", "value": round(gain, 2), "unit": "dB above bilinear in-painting"}))


if __name__ == "__main__":
    main()
