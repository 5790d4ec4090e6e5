"""Cutting and resizing uint8 images as Pillow does: image by image on CPU threads, or a batch at once on a device.

A `Plan` says, for each image, `crop → resize → window → flip → brightness`; both ways follow it. Either stays within
one or two of 255 levels of `PIL.Image.resize` (tested), whose filter widens when an image shrinks ("antialias").
"""

import math
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn.functional import interpolate

from cilkit.data.recipes import Plan


def apply(images, plan: Plan, mean: Sequence[float], std: Sequence[float], device="cpu") -> torch.Tensor:
    """Normalised float32 (n, 3, size, size) on the device, from uint8 (n, h, w, 3) or a list of uint8 (h, w, 3).

    mean, std: for values in 0 … 1, a value a channel.
    """
    device = torch.device(device)
    mean, std = (np.asarray(values, np.float64).reshape(3, 1, 1) for values in (mean, std))
    scale, offset = (torch.tensor(a, dtype=torch.float32, device=device) for a in (1 / (255 * std), -mean / std))
    way = _on_threads if device.type == "cpu" else _on_device
    return way(images, plan, scale, offset)


def _finished(levels: torch.Tensor, brightness: np.ndarray | None, scale, offset) -> torch.Tensor:
    """Float levels (n, 3, h, w), in place: brightness as Pillow blends with black (clamped, cut to whole levels)."""
    if brightness is not None:
        levels.mul_(torch.from_numpy(brightness).to(levels.device).view(-1, 1, 1, 1)).clamp_(max=255).floor_()
    return levels.mul_(scale).add_(offset)


# ---------------------------------------------------------------- image by image


def workers() -> int:
    """Threads that work on one batch: the cores this process may use; beyond eight they wait for the interpreter."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


_free: list[np.ndarray] = []  # memory of batches that no tensor refers to any more
_lending = threading.Lock()


def _memory(shape: tuple[int, ...]) -> torch.Tensor:
    """An uninitialised float32 batch. Fresh pages cost as much time as the filter: memory is used again once free."""
    count = math.prod(shape)
    with _lending:
        fits = [place for place, memory in enumerate(_free) if memory.size >= count]
        if not fits:
            _free.clear()  # too small for what comes now
        memory = _free.pop(fits[0]) if fits else np.empty(count, np.float32)
    lent = memory[:count]  # lives as long as any tensor that shows it
    weakref.finalize(lent, _take_back, memory).atexit = False
    return torch.from_numpy(lent).view(shape)


def _take_back(memory: np.ndarray) -> None:
    if len(_free) < 4:  # what a consumer keeps beyond this is not lent again
        _free.append(memory)


def _on_threads(images, plan: Plan, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Torch and NumPy release the interpreter's lock while they copy and filter, so threads add up."""
    n, threads = len(images), workers()
    out = _memory((n, 3, plan.size, plan.size))

    def work(start: int) -> None:
        for row in range(start, n, threads):
            out[row].copy_(_cut(images[row], plan, row))
            brightness = None if plan.brightness is None else plan.brightness[row : row + 1]
            _finished(out[row : row + 1], brightness, scale, offset)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(min(n, threads))))
    return out


def _cut(image: np.ndarray, plan: Plan, row: int) -> torch.Tensor:
    """uint8 (3, size, size)."""
    (top, left, height, width), size = plan.crop[row].tolist(), plan.size
    resized, (down, right) = plan.resized[row].tolist(), plan.window[row].tolist()
    levels = torch.from_numpy(image[top : top + height, left : left + width].copy())  # a memory map may be read-only
    levels = levels.permute(2, 0, 1)  # channels last in memory: the fast path for uint8
    if [height, width] != resized:
        levels = interpolate(levels[None], resized, mode=plan.interpolation, antialias=True)[0]
    shown = levels[:, max(down, 0) : max(down + size, 0), max(right, 0) : max(right + size, 0)]
    if shown.shape[1:] != (size, size):
        levels = torch.tensor(plan.fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, size, size)
        high, wide = shown.shape[1:]
        levels[:, max(-down, 0) : max(-down, 0) + high, max(-right, 0) : max(-right, 0) + wide] = shown
        shown = levels
    return shown.flip(-1) if plan.flip[row] else shown


# ---------------------------------------------------------------- a batch at once


def _on_device(images, plan: Plan, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Images of one size are filtered there; others on this machine's threads, then sent as uint8."""
    if len({image.shape for image in images}) == 1:
        levels = batched(_upload(torch.from_numpy(np.array(images)), scale.device), plan)
    else:
        with ThreadPoolExecutor(workers()) as pool:
            cuts = list(pool.map(lambda row: _cut(images[row], plan, row), range(len(images))))
        levels = _upload(torch.stack(cuts), scale.device).float()
    return _finished(levels, plan.brightness, scale, offset)


def _upload(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    return (pixels.pin_memory() if device.type == "cuda" else pixels).to(device, non_blocking=True)


def batched(pixels: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Whole levels as float32 (n, 3, size, size) from uint8 (n, h, w, 3), on their device: two matrix products.

    Columns first, then rows, rounded and clamped to 0 … 255 after each, as Pillow does.
    """
    n, height, width, _ = pixels.shape
    down = weights(plan, 0, height, pixels.device)  # (n, size, h)
    across = weights(plan, 1, width, pixels.device)  # (n, size, w)
    levels = pixels.float().permute(0, 3, 1, 2).reshape(n, 3 * height, width)
    levels = torch.bmm(levels, across.transpose(1, 2)).round_().clamp_(0, 255).view(n, 3, height, plan.size)
    levels = torch.matmul(down[:, None], levels).round_().clamp_(0, 255)  # (n, 3, size, size)
    inside = (down.sum(2)[:, None, :, None] * across.sum(2)[:, None, None, :]).round_()  # 1 in the crop, 0 beyond it
    return levels + (1 - inside) * torch.tensor(plan.fill, device=pixels.device).view(3, 1, 1)


def weights(plan: Plan, axis: int, length: int, device="cpu") -> torch.Tensor:
    """float32 (n, size, length): what each source pixel counts for each pixel of the output, along one axis."""
    columns = (plan.crop[:, axis], plan.crop[:, 2 + axis], plan.resized[:, axis], plan.window[:, axis])
    start, extent, resized, window = (torch.as_tensor(a, device=device)[:, None] for a in columns)  # (n, 1)
    place = torch.arange(plan.size, device=device).expand(len(start), -1)  # (n, size)
    if axis == 1:
        place = torch.where(torch.as_tensor(plan.flip, device=device)[:, None], plan.size - 1 - place, place)
    place = place + window  # in the resized crop
    step = extent.float() / resized  # source pixels a resized pixel
    centre = (place + 0.5) * step + start
    source = torch.arange(length, device=device) + 0.5
    near = ((source - centre[..., None]) / step.clamp(min=1)[..., None]).abs()  # (n, size, length)
    weight = _cubic(near) if plan.interpolation == "bicubic" else (1 - near).clamp_(min=0)
    used = (source > start) & (source < start + extent)  # (n, length): the filter stops at the crop's border
    weight = weight * used[:, None] * ((place >= 0) & (place < resized))[..., None]
    return weight / weight.sum(-1, keepdim=True).clamp_(min=1e-6)


def _cubic(x: torch.Tensor, a: float = -0.5) -> torch.Tensor:
    """Keys' cubic kernel for distances x >= 0, with Pillow's a."""
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
