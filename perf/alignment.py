"""Classifier alignment against one `MultivariateNormal` a class an epoch, as in SLCA's code.

    python perf/alignment.py [--classes 100] [--dim 768] [--samples 256] [--epochs 5] [--share 8] [--threads 2]

The reference builds a float32 `MultivariateNormal` from mean and covariance for every class in every epoch, draws from
it, and trains one linear layer a task. Of its draws and steps only a share is timed (`--share` classes, five times as
many steps, in turn with ours) and multiplied by their number. Ours is timed whole, with and without the factors of all
classes, which a run makes once, when a class is new (of a share too). Best of some repetitions each, in seconds and in
seconds of all cores. Then the moments of both, and packed factors beside full ones: same samples, half the bytes. The
last line is JSON. About a minute on two quiet cores.
"""

import argparse
import json
import os
import time

import numpy as np
import torch
from torch.distributions import MultivariateNormal

from cilkit.learners.alignment import align, mean_scales, normalised_logits
from cilkit.learners.heads import TaskHeads
from cilkit.learners.sampling import GaussianSampler
from cilkit.learners.statistics import ClassStatistics, cholesky, pack, unpack

IMAGES = 500  # a class, as in CIFAR-100


class Best:
    """The least seconds, and seconds of all cores, that pieces of work took."""

    def __init__(self) -> None:
        self.wall, self.cores = float("inf"), float("inf")

    def time(self, call, pieces: int = 1):
        wall, cores = time.perf_counter(), time.process_time()
        found = call()
        self.wall = min(self.wall, (time.perf_counter() - wall) / pieces)
        self.cores = min(self.cores, (time.process_time() - cores) / pieces)
        return found

    @property
    def both(self) -> np.ndarray:
        return np.array([self.wall, self.cores])


def made_up(classes: int, dim: int) -> ClassStatistics:
    """Statistics of correlated features."""
    statistics, generator = ClassStatistics(dim), torch.Generator().manual_seed(0)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5
    for _ in range(classes):
        spread = 0.3 + 1.4 * torch.rand(dim, generator=generator)
        features = torch.randn(IMAGES, dim, generator=generator) @ (mixing * spread).T
        statistics.add((features + torch.randn(dim, generator=generator)).numpy())
    return statistics


def draws(gaussians: list[tuple[torch.Tensor, torch.Tensor]], samples: int) -> list[torch.Tensor]:
    """The reference's samples."""
    return [MultivariateNormal(mean, covariance).sample((samples,)) for mean, covariance in gaussians]


def steps(raw: TaskHeads, features: torch.Tensor, labels: torch.Tensor, batch: int) -> None:
    """The reference's training on these samples."""
    heads = raw.trainable_copy()
    optimiser = torch.optim.SGD(heads.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for rows in torch.randperm(len(labels)).split(batch):
        logits = normalised_logits(heads(features[rows]), raw.sizes, 0.1)
        loss = torch.nn.functional.cross_entropy(logits, labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()


def moments(samples: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> tuple[float, float]:
    """Largest deviation of the mean in its standard errors, and of the variances relative to their own."""
    samples, n = samples.double(), len(samples)
    of_mean = ((samples.mean(0) - mean) / (covariance.diagonal() / n).sqrt()).abs().max()
    of_variance = ((samples.var(0) / covariance.diagonal() - 1) / (2 / (n - 1)) ** 0.5).abs().max()
    return float(of_mean), float(of_variance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("classes", 100), ("dim", 768), ("samples", 256), ("epochs", 5), ("share", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)

    statistics = made_up(a.classes, a.dim)
    raw = TaskHeads(a.dim)
    for _ in range(10):
        raw.grow(a.classes // 10, seed=0, freeze_old=True)
    scales = mean_scales(raw.sizes)
    covariances = [statistics.covariance(c) for c in range(a.share)]
    means = [torch.from_numpy(statistics.means[c] * scales[c]) for c in range(a.share)]
    gaussians = [(m.float(), torch.from_numpy(s).float()) for m, s in zip(means, covariances, strict=True)]
    n = 5 * a.share
    features, labels = torch.randn(n * a.samples, a.dim), torch.arange(n * a.samples) % a.classes
    drawing, stepping, factor, ours = Best(), Best(), Best(), Best()
    for _ in range(a.repeats):
        theirs = drawing.time(lambda: draws(gaussians, a.samples), a.share)
        stepping.time(lambda: steps(raw, features, labels, a.samples), n)
        factor.time(lambda: [pack(cholesky(covariance)) for covariance in covariances], a.share)
        ours.time(lambda: align(raw, statistics, epochs=a.epochs, per_class=a.samples))

    sampler = GaussianSampler(statistics, scales)
    mine, labels = sampler.draw(a.samples, torch.Generator().manual_seed(0))
    far = np.max(
        [
            (*moments(mine[labels == c], mean, covariance), *moments(theirs[c], mean, covariance))
            for c, (mean, covariance) in enumerate(gaussians)
        ],
        axis=0,
    )

    noise = torch.randn((a.classes, a.samples, a.dim), generator=torch.Generator().manual_seed(0))
    worst = 0.0
    for c in range(a.share):  # a full float32 matrix a class instead of its packed half
        full = torch.from_numpy(unpack(statistics.factors[c], a.dim)).float()
        expected = torch.from_numpy(statistics.means[c] * scales[c]).float() + noise[c] @ full.T
        worst = max(worst, float((mine[labels == c] - expected).abs().max()))
    packed, full_bytes = sum(f.nbytes for f in statistics.factors), a.classes * a.dim**2 * 4

    title = f"{a.classes} classes x {a.dim} features x {a.samples} samples x {a.epochs} epochs, {a.threads} threads"
    print(f"{title}; best of {a.repeats}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':54s}{'seconds':>10s}{'of all cores':>14s}")
    count = a.classes * a.epochs
    reference, whole = count * (drawing.both + stepping.both), ours.both + a.classes * factor.both
    rows = {
        "reference, sampling (share x count)": count * drawing.both,
        "reference, steps (share x count)": count * stepping.both,
        "reference": reference,
        "ours, alignment": ours.both,
        "ours, factors of all classes (once; share x count)": a.classes * factor.both,
        "reference / alignment": reference / ours.both,
        "reference / (alignment + factors)": reference / whole,
    }
    for name, (wall, cores) in rows.items():
        print(f"{name:54s}{wall:10.2f}{cores:14.2f}")
    print(
        f"largest deviation in {a.share} classes, in standard errors: means {far[0]:.2f} (reference {far[2]:.2f}), "
        f"variances {far[1]:.2f} (reference {far[3]:.2f})"
    )
    share = packed / full_bytes
    print(f"factors: packed {packed:,} bytes, full {full_bytes:,} ({share:.3f}); samples differ by {worst:.1e}")
    speedup, with_factors = rows["reference / alignment"], rows["reference / (alignment + factors)"]
    print(json.dumps({"name": "alignment_speedup", "value": round(speedup[0], 1), "unit": "times",
                      "of_all_cores": round(speedup[1], 1), "with_factors": round(with_factors[0], 1),
                      "seconds": round(ours.wall, 2), "packed_share": round(share, 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
