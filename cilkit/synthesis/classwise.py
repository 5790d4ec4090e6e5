"""A small diffusion model in pixel space that paints classes by number, fitted on the images of each task as it comes.

The stand-in for the GAN of deep generative replay (Shin et al., NeurIPS 2017) and for DDGR's guided diffusion (Gao and
Liu, ICML 2023: 64 pixels, 15,000 steps a task, read in its code): diffusers' stock U-Net with a class embedding,
v-prediction on a cosine schedule, DDIM without noise of its own. No classifier guides it, and nothing but its own
samples keeps it from forgetting. All sizes are ours, for 32 x 32 pixels and a minute on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cilkit import precision
from cilkit.data.decoding import shrunk
from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DModel

HALVINGS = 2  # of the image's side, inside the network
AT_ONCE = 256  # images painted together


@dataclass
class Classwise:
    """It `fit`s, `paint`s, and is kept as a `state`: the moving average of its weights, and the images' shape.

    steps, batch, lr: of fitting, anew in every task. width: channels at full size; twice as many below.
    size: pixels on a side that it works in, a multiple of 4; 0: the images' own. What it paints is as large as they.
    sampling: DDIM steps. ema: the moving average's share of what it was.
    """

    steps: int
    batch: int
    lr: float
    width: int
    size: int
    sampling: int
    ema: float
    device: torch.device | str = "cpu"

    network: UNet2DModel | None = None  # until the first task is over
    shape: tuple[int, int, int] = (0, 0, 0)  # pixels on a side inside, and height and width of the images

    @property
    def bytes(self) -> int:
        return sum(value.nbytes for value in self.state().values())

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        weights = {} if self.network is None else self.network.state_dict()
        return {**weights, "shape": torch.tensor(self.shape)} if weights else {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.network, state = None, dict(state)
        if state:
            self.shape = tuple(state.pop("shape").tolist())
            self._grow(len(state["class_embedding.weight"]), 0)
            self.network.load_state_dict(state)

    # ------------------------------------------------------------ fitting

    def fit(self, sets: Sequence[ImageSet], names: Sequence[str], seed: int) -> None:
        """Learn all images of these sets, whose labels count in `names`. The classes known before keep their places."""
        import torch
        from torch.nn.functional import mse_loss

        pixels, labels = self._pixels(sets)  # uint8 (n, 3, size, size), (n,)
        self._grow(len(names), seed)
        with _own_chance(seed):
            network, schedule = self.network, self._schedule()
            mean = {name: value.clone() for name, value in network.state_dict().items()}
            optimiser = precision.adamw(network.parameters(), self.device, lr=self.lr)
            network.train()
            for step in range(self.steps):
                rows = torch.randint(len(labels), (self.batch,))
                clean = pixels[rows].to(self.device) / 127.5 - 1
                noise, times = torch.randn(clean.shape).to(self.device), torch.randint(1000, (self.batch,))
                times = times.to(self.device)
                noisy, target = schedule.add_noise(clean, noise, times), schedule.get_velocity(clean, noise, times)
                loss = mse_loss(network(noisy, times, labels[rows].to(self.device)).sample, target)
                for group in optimiser.param_groups:
                    group["lr"] = self.lr * min(1.0, 4 * (1 - step / self.steps))  # falls in the last quarter
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                decay = min(self.ema, (step + 1) / (step + 10))
                for name, value in network.state_dict().items():
                    mean[name].lerp_(value, 1 - decay)
            network.load_state_dict(mean)
        if self.steps and not bool(loss.isfinite()):
            raise UserError(f"the painter's loss is {float(loss)} after {self.steps} steps; lower painter_lr")

    def _pixels(self, sets: Sequence[ImageSet]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        sizes = np.concatenate([images.sizes for images in sets])
        own = sizes[0] if (sizes == sizes[0]).all() else None
        side = self.size or (int(own[0]) if own is not None and own[0] == own[1] else 0)
        if not side or side % 2**HALVINGS:
            raise UserError(
                f"the painter works in squares of a multiple of {2**HALVINGS} pixels, and the images are "
                f"{'of several sizes' if own is None else f'{own[1]} x {own[0]}'} (painter_size {self.size}); set "
                "painter_size to such a number, e.g. 32"
            )
        self.shape = (side, side, side) if own is None else (side, *own.tolist())
        small = np.stack([shrunk(image, square=side) for images in sets for image in images.read()])
        labels = np.concatenate([images.labels for images in sets])
        return torch.from_numpy(small).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)

    def _grow(self, classes: int, seed: int) -> None:
        """A network for so many classes, with what was known before."""
        from diffusers import UNet2DModel

        before = {} if self.network is None else self.network.state_dict()
        with _own_chance(seed):
            self.network = UNet2DModel(
                in_channels=3,
                out_channels=3,
                block_out_channels=(self.width,) + (2 * self.width,) * HALVINGS,
                down_block_types=("DownBlock2D",) * (HALVINGS + 1),
                up_block_types=("UpBlock2D",) * (HALVINGS + 1),
                layers_per_block=1,
                norm_num_groups=8,
                attention_head_dim=8,
                num_class_embeds=classes,
            ).to(self.device)
        for name, value in self.network.state_dict().items():
            if name in before:
                value[: len(before[name])] = before[name]

    def _schedule(self):
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
        )

    # ------------------------------------------------------------ painting

    def paint(self, names: Sequence[str], per_class: int, seed: int) -> ImageSet:
        """So many images of each class; `names` are the first of those that it was fitted on."""
        import torch

        labels = torch.arange(len(names)).repeat_interleave(per_class)
        painted = []
        with torch.no_grad(), _own_chance(seed):
            network, schedule = self.network.eval(), self._schedule()
            schedule.set_timesteps(self.sampling)
            for some in labels.split(AT_ONCE):
                image = torch.randn(len(some), 3, *2 * self.shape[:1]).to(self.device)
                for time in schedule.timesteps:
                    image = schedule.step(network(image, time, some.to(self.device)).sample, time, image).prev_sample
                pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
                painted += [self._enlarged(one) for one in pixels]
        return ImageSet.from_arrays(np.stack(painted), labels.numpy(), list(names))

    def _enlarged(self, pixels: np.ndarray) -> np.ndarray:
        size = self.shape[:0:-1]  # width and height
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))  # as it is at its own size


@contextmanager
def _own_chance(seed: int) -> Iterator[None]:
    """Chance from this seed, on the CPU for every device, that leaves everybody else's as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
