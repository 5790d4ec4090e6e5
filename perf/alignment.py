"""Classifier alignment against one `MultivariateNormal` a class an epoch, as in SLCA's code.

    python perf/alignment.py [--classes 100] [--dim 768] [--samples 256] [--epochs 5] [--share 8] [--threads 2]

The reference builds a float32 `MultivariateNormal` from mean and covariance for every class in every epoch, draws from
it, and trains one linear layer a task. Of its draws and of its steps only a share is timed (`--share` classes and five
times as many steps, in turn with ours) and multiplied by their whole number. Ours is timed whole, with and without the
factors of all classes, which a run makes once, when a class is new. Best of some repetitions each. Then the moments of both, and packed
factors beside full ones: same samples, half the bytes. The last line is JSON. About a minute on two cores.
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


def made_up(classes: int, dim: int) -> tuple[ClassStatistics, float]:
    """Statistics of correlated features, and the seconds a factor takes."""
    statistics, random = ClassStatistics(dim), np.random.default_rng(0)
    mixing = random.normal(size=(dim, dim)).astype(np.float32) / dim**0.5
    for _ in range(classes):
        turned = mixing * random.uniform(0.3, 1.7, dim).astype(np.float32)
        features = random.normal(size=(IMAGES, dim)).astype(np.float32) @ turned.T
        statistics.add(features + random.normal(size=dim).astype(np.float32))
    seconds = []
    for c in range(min(10, classes)):
        covariance = statistics.covariance(c)
        began = time.perf_counter()
        pack(cholesky(covariance))
        seconds.append(time.perf_counter() - began)
    return statistics, min(seconds)


def draws(gaussians: list[tuple[torch.Tensor, torch.Tensor]], samples: int) -> tuple[float, list[torch.Tensor]]:
    """Seconds a class of the reference's sampling, and the samples."""
    began = time.perf_counter()
    found = [MultivariateNormal(mean, covariance).sample((samples,)) for mean, covariance in gaussians]
    return (time.perf_counter() - began) / len(gaussians), found


def steps(raw: TaskHeads, samples: int, count: int) -> float:
    """Seconds a step of the reference's training."""
    heads = raw.trainable_copy()
    features = torch.randn(sum(raw.sizes) * samples, raw.dim)
    labels = torch.arange(sum(raw.sizes)).repeat_interleave(samples)
    rows = torch.randperm(len(labels)).split(samples)[:count]
    optimiser = torch.optim.SGD(heads.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    began = time.perf_counter()
    for some in rows:
        logits = normalised_logits(heads(features[some]), raw.sizes, 0.1)
        loss = torch.nn.functional.cross_entropy(logits, labels[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
    return (time.perf_counter() - began) / len(rows)


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

    statistics, factor = made_up(a.classes, a.dim)
    raw = TaskHeads(a.dim)
    for _ in range(10):
        raw.grow(a.classes // 10, seed=0, freeze_old=True)
    scales = mean_scales(raw.sizes)
    gaussians = [
        (torch.from_numpy(statistics.means[c] * scales[c]).float(), torch.from_numpy(statistics.covariance(c)).float())
        for c in range(a.share)
    ]
    drawing, stepping, ours = [], [], []
    for _ in range(a.repeats):
        drawing.append(draws(gaussians, a.samples)[0])
        stepping.append(steps(raw, a.samples, 5 * a.share))
        began = time.perf_counter()
        align(raw, statistics, epochs=a.epochs, per_class=a.samples)
        ours.append(time.perf_counter() - began)
    count = a.classes * a.epochs
    reference, own = count * (min(drawing) + min(stepping)), min(ours)
    factorising = a.classes * factor
    whole = own + factorising

    sampler = GaussianSampler(statistics, scales)
    mine, labels = sampler.draw(a.samples, torch.Generator().manual_seed(0))
    theirs = draws(gaussians, a.samples)[1]
    far = []
    for c, (mean, covariance) in enumerate(gaussians):
        far.append((*moments(mine[labels == c], mean, covariance), *moments(theirs[c], mean, covariance)))
    far = np.max(far, axis=0)

    noise = torch.randn((a.classes, a.samples, a.dim), generator=torch.Generator().manual_seed(0))
    worst = 0.0
    for c in range(a.share):  # a full float32 matrix a class instead of its packed half
        full = torch.from_numpy(unpack(statistics.factors[c], a.dim)).float()
        expected = torch.from_numpy(statistics.means[c] * scales[c]).float() + noise[c] @ full.T
        worst = max(worst, float((mine[labels == c] - expected).abs().max()))
    packed, full_bytes = sum(f.nbytes for f in statistics.factors), a.classes * a.dim**2 * 4

    title = f"{a.classes} classes x {a.dim} features x {a.samples} samples x {a.epochs} epochs, {a.threads} threads"
    print(f"{title}; best of {a.repeats}, load {os.getloadavg()[0]:.1f}")
    rows = {
        "reference, sampling (share x count)": count * min(drawing),
        "reference, steps (share x count)": count * min(stepping),
        "reference": reference,
        "ours, whole alignment": own,
        "ours, factors of all classes (once a run; share x count)": factorising,
        "ours, both": whole,
    }
    for name, seconds in rows.items():
        print(f"{name:60s}{seconds:10.2f} s")
    print(
        f"reference / ours: {reference / own:.1f}; with the factors of all classes on our side: {reference / whole:.1f}"
    )
    print(
        f"largest deviation in {a.share} classes, in standard errors: means {far[0]:.2f} (reference {far[2]:.2f}), "
        f"variances {far[1]:.2f} (reference {far[3]:.2f})"
    )
    share = packed / full_bytes
    print(f"factors: packed {packed:,} bytes, full {full_bytes:,} ({share:.3f}); samples differ by {worst:.1e}")
    print(json.dumps({"name": "alignment_speedup", "value": round(reference / own, 1), "unit": "times",
                      "with_factors": round(reference / whole, 1), "seconds": round(own, 2),
                      "packed_share": round(share, 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
