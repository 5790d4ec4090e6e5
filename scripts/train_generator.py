"""Train the embedded text-to-image generator from nothing and write it as a Stable Diffusion folder.

    python scripts/train_generator.py                     # everything, with the settings of the committed weights
    python scripts/train_generator.py --steps 200 --vae-steps 100 --per-class 20 --out /tmp/tiny     # a smoke run

What it costs with the defaults: about 70 minutes on one thread of a 2023 server core (rendering 2, autoencoder 6,
diffusion 60), 1.5 GB of memory. Nothing is downloaded and no real image is seen: the training images are captioned
renderings of the fonts that matplotlib ships (cilkit/synthesis/glyphs.py). Interrupted, it goes on from the last
checkpoint under --work; every batch depends on (seed, step) alone, so a resumed run walks the same road.

Stages: tokenizer -> pool of renderings -> autoencoder -> latents -> text encoder and U-Net together -> folder.
"""

import argparse
import json
import shutil
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cilkit.synthesis import glyphs

LENGTH = 40  # tokens of a prompt, start and end included; longer prompts are cut
WIDTH = 96  # of the text encoder
LATENTS = 6  # channels of the 8 x 8 latents
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",  # ends at a signal-to-noise ratio near 0, so that the ground's brightness is free
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
}
SETTINGS = {"size": glyphs.SIZE, "steps": 10, "guidance": 2.0, "negative_prompt": None, "batch_size": 32}
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def make_tokenizer(seed: int = 0) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the captions is one token and unknown words fall to pieces."""
    rng = np.random.default_rng([seed, 1])
    words = set(" ".join(glyphs.vocabulary()).lower().split()) | {chr(97 + i) for i in range(26)}
    corpus = sorted(words) + [str(i) for i in range(10)] + list(".,:;'\"()-/!?&")
    rng.shuffle(corpus)
    blank = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[], **SPECIAL)
    tokenizer = blank.train_new_from_iterator([corpus], 4000, show_progress=False)
    tokenizer.model_max_length = LENGTH
    return tokenizer


def build_vae() -> AutoencoderKL:
    """32 x 32 RGB to 8 x 8 latents and back, 0.43 million weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=glyphs.SIZE,
        scaling_factor=1.0,  # the latents' means and deviations are folded into the weights, see `normalise`
    )


def build_unet() -> UNet2DConditionModel:
    """2.5 million weights; attention to the prompt at 4 x 4, convolutions alone at 8 x 8, which halves the cost."""
    return UNet2DConditionModel(
        sample_size=glyphs.SIZE // 4,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two causal transformer layers; the U-Net reads the last hidden states of all LENGTH positions."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def rendering_random(seed: int, concept: int, k: int) -> tuple[np.random.Generator, glyphs.Style]:
    """The random state of rendering k of a concept, and the style that is the first thing drawn from it."""
    rng = np.random.default_rng([seed, concept, k])
    return rng, glyphs.draw_style(rng)


def _render_class(job: tuple[int, str, int, int]) -> np.ndarray:
    index, name, per_class, seed = job
    states = [rendering_random(seed, index, k) for k in range(per_class)]
    return np.stack([glyphs.render(name, rng, style=style) for rng, style in states])


def make_pool(file: Path, per_class: int, seed: int, workers: int) -> tuple[np.ndarray, list[str], list[glyphs.Style]]:
    """The training renderings: images uint8 (n, 32, 32, 3), kept in `file`, their concepts, their styles."""
    if not file.exists():
        jobs = [(index, name, per_class, seed) for index, name in enumerate(glyphs.CONCEPTS)]
        with Pool(workers) as pool:
            np.save(file, np.concatenate(pool.map(_render_class, jobs, chunksize=1)))
    which = [(index, name, k) for index, name in enumerate(glyphs.CONCEPTS) for k in range(per_class)]
    styles = [rendering_random(seed, index, k)[1] for index, _, k in which]
    return np.load(file), [name for _, name, _ in which], styles


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def generator_at(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def rate(step: int, steps: int, peak: float) -> float:
    """The learning rate: 100 steps up, constant, and a linear way down over the last 30 %."""
    return peak * min((step + 1) / 100, 1.0) * min((steps - step) / (0.3 * steps), 1.0)


def set_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = value


def train_vae(images: np.ndarray, steps: int, seed: int, batch: int = 32) -> AutoencoderKL:
    """Squared and absolute error with a light KL term, so that the latents bear few-step sampling's errors."""
    torch.manual_seed(seed)
    vae = build_vae()
    optimiser = torch.optim.AdamW(vae.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    start = time.perf_counter()
    for step in range(steps):
        rng = np.random.default_rng([seed, 2, step])
        real = to_tensor(images[rng.integers(len(images), size=batch)])
        posterior = vae.encode(real).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator_at(seed, 3, step))
        painted = vae.decode(posterior.mean + posterior.std * noise).sample
        error = F.mse_loss(painted, real) + 0.2 * F.l1_loss(painted, real)
        loss = error + 3e-4 * posterior.kl().sum() / posterior.mean.numel()
        set_rate(optimiser, rate(step, steps, 2e-3))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            mse = F.mse_loss(painted, real).item()
            print(f"vae {step} loss {loss.item():.4f} mse {mse:.4f} {time.perf_counter() - start:.0f} s", flush=True)
    return vae.eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Posterior means of all images: float32 (n, LATENTS, 8, 8)."""
    return torch.cat(
        [vae.encode(to_tensor(part)).latent_dist.mean for part in np.array_split(images, len(images) // 256)]
    )


@torch.no_grad()
def normalise(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Fold every latent channel's mean and deviation into the two 1 x 1 convolutions around the latents, so that the
    latents themselves have mean 0 and deviation 1. Returns the latents so normalised."""
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
    before.weight[:LATENTS] /= std[:, None, None, None]
    before.bias[:LATENTS] = (before.bias[:LATENTS] - mean) / std
    before.bias[LATENTS:] -= 2 * std.log()
    return (latents - mean[:, None, None]) / std[:, None, None]


class Diffusion(torch.nn.Module):
    """The text encoder and the U-Net, trained as one."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.text, self.unet = build_text_encoder(tokenizer), build_unet()

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, time, self.text(tokens)[0]).sample  # (batch, LATENTS, 8, 8)


def diffusion_batch(step: int, seed: int, batch: int, latents: torch.Tensor, names: list, styles: list, tokenizer):
    """Latents (batch, LATENTS, 8, 8), noise, times (batch,) and tokens (batch, LENGTH) of one step.
    One caption in ten is empty: the unconditional half of classifier-free guidance."""
    rng = np.random.default_rng([seed, 4, step])
    index = rng.integers(len(latents), size=batch)
    captions = ["" if rng.random() < 0.1 else glyphs.caption(names[i], styles[i], rng) for i in index]
    tokens = tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    random = generator_at(seed, 5, step)
    clean = latents[index]
    return clean, torch.randn(clean.shape, generator=random), torch.randint(0, 1000, (batch,), generator=random), tokens


def save_state(path: Path, model: Diffusion, ema: dict, optimiser: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in ema.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{k}": v for k, v in moments.items()}
    beside = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, beside, {"step": str(step)})
    beside.replace(path)


def load_state(path: Path, model: Diffusion, optimiser: torch.optim.Optimizer) -> tuple[dict, int]:
    from safetensors import safe_open

    tensors = load_file(path)
    part = lambda head: {k[len(head) :]: v for k, v in tensors.items() if k.startswith(head)}  # noqa: E731
    model.load_state_dict(part("model."))
    moments: dict[int, dict] = {}
    for key, value in part("adam.").items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    with safe_open(path, "pt") as file:
        return part("ema."), int(file.metadata()["step"])


def train_diffusion(args, vae, latents, names, styles, tokenizer) -> None:
    """v-prediction with min-SNR weights (gamma 5); the exponential moving average of the weights is what is kept."""
    torch.manual_seed(args.seed + 1)
    model = Diffusion(tokenizer)
    ema, first = {k: v.clone() for k, v in model.state_dict().items()}, 0
    optimiser = torch.optim.AdamW(model.parameters(), args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    checkpoint = args.work / "diffusion.safetensors"
    if checkpoint.exists():
        ema, first = load_state(checkpoint, model, optimiser)
    schedule = DDPMScheduler(**SCHEDULE)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weights = snr.clamp(max=5.0) / (snr + 1.0)
    start, running = time.perf_counter(), 0.0
    for step in range(first, args.steps):
        clean, noise, times, tokens = diffusion_batch(step, args.seed, args.batch, latents, names, styles, tokenizer)
        target = schedule.get_velocity(clean, noise, times)
        painted = model(schedule.add_noise(clean, noise, times), times, tokens)
        loss = (weights[times] * (painted - target).square().mean((1, 2, 3))).mean()
        set_rate(optimiser, rate(step, args.steps, args.rate))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(0.999, (step + 1) / (step + 10))
        for key, value in model.state_dict().items():
            ema[key].lerp_(value, 1 - decay) if value.is_floating_point() else ema[key].copy_(value)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"unet {step} loss {running:.4f} {time.perf_counter() - start:.0f} s", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save_state(checkpoint, model, ema, optimiser, step + 1)
            write_folder(args.out, vae, ema, tokenizer, {"steps_trained": step + 1, "seed": args.seed})
        if time.perf_counter() - start > 60 * args.minutes:
            save_state(checkpoint, model, ema, optimiser, step + 1)
            break


def write_folder(out: Path, vae: AutoencoderKL, ema: dict, tokenizer: CLIPTokenizer, made: dict) -> None:
    """The pipeline as Stable Diffusion's folder layout, weights in half precision, written beside and then renamed."""
    model = Diffusion(tokenizer)
    model.load_state_dict(ema)
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing", steps_offset=1)
    half = AutoencoderKL.from_config(vae.config)
    half.load_state_dict(vae.state_dict())
    parts = half.half(), model.text.half(), tokenizer, model.unet.half(), scheduler, None, None
    pipeline = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.save_pretrained(beside)
    paintable = {"concepts": {family: list(names) for family, names in glyphs.FAMILIES.items()}, "made": made}
    paintable["settings"] = SETTINGS | {"scheduler": type(scheduler).__name__, "template": glyphs.TEMPLATE}
    (beside / "paintable.json").write_text(json.dumps(paintable, indent=1, ensure_ascii=False) + "\n")
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", beside / "README.md")
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    here = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=here / "cilkit" / "assets" / "generator")
    parser.add_argument("--work", type=Path, default=here / "build" / "generator", help="checkpoints; kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-class", type=int, default=500, help="renderings a concept in the pool")
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=8000, help="steps of the U-Net and the text encoder")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop the diffusion stage after so many minutes")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    tokenizer = make_tokenizer(args.seed)
    images, names, styles = make_pool(args.work / "pool.npy", args.per_class, args.seed, args.threads)
    print(f"{len(tokenizer)} tokens, {len(images)} renderings", flush=True)
    file, vae = args.work / "vae.safetensors", build_vae().eval()
    if not file.exists():
        vae = train_vae(images, args.vae_steps, args.seed)
        normalise(vae, encode(vae, images))
        save_file(vae.state_dict(), file)
    vae.load_state_dict(load_file(file))
    latents = encode(vae, images)
    print(f"latents: deviation {latents.std().item():.3f}", flush=True)
    train_diffusion(args, vae, latents, names, styles, tokenizer)


if __name__ == "__main__":
    main()
