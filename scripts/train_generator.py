"""Train the embedded text-to-image generator from nothing and write it as a Stable Diffusion folder.

    python scripts/train_generator.py                     # everything, with the settings of the committed weights
    python scripts/train_generator.py --steps 200 --vae-steps 100 --per-class 20 --out /tmp/tiny     # a smoke run

What it costs with the defaults: about 70 minutes on one thread of a 2023 server core (rendering 2, autoencoder 6,
diffusion 60), 1.5 GB of memory. Nothing is downloaded and no real image is seen: the training images are captioned
renderings of the fonts that matplotlib ships (cilkit/synthesis/glyphs.py). Interrupted, it goes on from the last
checkpoint under --work; every batch depends on (seed, step) alone, so a resumed run walks the same road.

Stages: tokenizer -> pool of renderings -> autoencoder -> latents -> text encoder -> U-Net -> folder.
"""

import argparse
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from generator_parts import (
    LATENTS,
    SCHEDULE,
    WIDTH,
    build_text_encoder,
    build_unet,
    build_vae,
    make_tokenizer,
    tokenize,
    write_folder,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from cilkit.synthesis import glyphs


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
    parts = np.array_split(images, max(len(images) // 256, 1))
    return torch.cat([vae.encode(to_tensor(part)).latent_dist.mean for part in parts])


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


def attributes(text: str, name: str, style: glyphs.Style) -> list[int]:
    """What the caption says: the concept, and each attribute of the style, the last index where it is not said."""
    said = {"weight": f"{style.weight} strokes", "slant": style.slant, "ground": f"on {style.ground} {style.colour}"}
    tables = {"weight": glyphs.WEIGHTS, "slant": glyphs.SLANTS, "ground": glyphs.GROUNDS, "colour": glyphs.COLOURS}
    labels = [list(glyphs.CONCEPTS).index(name)]
    for attribute, table in tables.items():
        known = said["ground" if attribute == "colour" else attribute] in text
        labels.append(list(table).index(getattr(style, attribute)) if known else len(table))
    return labels


def train_text_encoder(tokenizer, draw, sizes: list[int], steps: int, seed: int, batch: int = 128) -> CLIPTextModel:
    """Teach the text encoder to carry what a caption names to the end token and to all the padding after it, by linear
    readings that are then thrown away. It stays frozen afterwards, as in Stable Diffusion; trained through the U-Net
    alone, the names were not found among the other words in 2,500 steps.

    draw:  rng, batch -> captions, and of each its labels, one an attribute, the concept first.
    sizes: labels of each attribute.
    """
    torch.manual_seed(seed + 2)
    text = build_text_encoder(tokenizer)
    reading = torch.nn.Linear(WIDTH, sum(sizes))
    optimiser = torch.optim.AdamW([*text.parameters(), *reading.parameters()], 2e-3, weight_decay=0.0)
    for step in range(steps):
        captions, labels = draw(np.random.default_rng([seed, 6, step]), batch)
        tokens = tokenize(tokenizer, captions)
        ends = tokens == tokenizer.eos_token_id  # (batch, LENGTH): the end and the padding
        readings = reading(text(tokens)[0][ends]).split(sizes, dim=-1)  # (ends, size) an attribute
        targets = torch.tensor(labels)[torch.nonzero(ends)[:, 0]]  # (ends, attributes)
        loss = sum(F.cross_entropy(part, targets[:, k]) for k, part in enumerate(readings))
        set_rate(optimiser, rate(step, steps, 2e-3))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step + 1 == steps:
            right = (readings[0].argmax(-1) == targets[:, 0]).float().mean().item()
            print(f"text {step} loss {loss.item():.4f} concept read at {right:.3f} of the positions", flush=True)
    return text.eval().requires_grad_(False)


def diffusion_batch(state: list[int], batch: int, latents: torch.Tensor, caption, tokenizer):
    """Latents (batch, LATENTS, 8, 8), noise, times (batch,) and tokens (batch, LENGTH); (seed, step, rank) decide all.
    One caption in ten is empty: the unconditional half of classifier-free guidance. caption: image number, rng -> text.
    """
    rng = np.random.default_rng([4, *state])
    index = rng.integers(len(latents), size=batch)
    captions = ["" if rng.random() < 0.1 else caption(i, rng) for i in index]
    tokens = tokenize(tokenizer, captions)
    random = generator_at(5, *state)
    clean = latents[index]
    times = torch.from_numpy((1000 * rng.beta(1.6, 2.0, batch)).astype(np.int64))  # densest where shapes are decided
    return clean, torch.randn(clean.shape, generator=random), times, tokens


def save_state(path: Path, model: UNet2DConditionModel, ema: dict, optimiser: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in ema.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{k}": v for k, v in moments.items()}
    beside = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, beside, {"step": str(step)})
    beside.replace(path)


def load_state(path: Path, model: UNet2DConditionModel, optimiser: torch.optim.Optimizer) -> tuple[dict, int]:
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


def train_diffusion(rank: int, args, materials) -> None:
    """v-prediction, unweighted; the exponential moving average of the weights is what is kept.

    materials: args -> autoencoder, text encoder, latents, caption (image number, rng -> text), tokenizer, and what
    paintable.json says of the generator.
    With several processes each draws its own batch of every step and the gradients are averaged: two processes of one
    thread do half as much again as one process of two.
    """
    torch.set_num_threads(args.threads)
    if args.processes > 1:
        store = f"file://{(args.work / 'rendezvous').absolute()}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=args.processes)
    vae, text, latents, caption, tokenizer, paintable = materials(args)
    torch.manual_seed(args.seed + 1)
    model = build_unet()
    if args.warm_start:
        kept = load_file(args.warm_start)
        model.load_state_dict({k[6:]: v for k, v in kept.items() if k.startswith("model.")}, strict=False)
    ema, first = {k: v.clone() for k, v in model.state_dict().items()}, 0
    optimiser = torch.optim.AdamW(model.parameters(), args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    checkpoint = args.work / "diffusion.safetensors"
    if checkpoint.exists():
        ema, first = load_state(checkpoint, model, optimiser)
    schedule = DDPMScheduler(**SCHEDULE)
    start, running = time.perf_counter(), 0.0
    for step in range(first, args.steps):
        drawn = diffusion_batch([args.seed, step, rank], args.batch, latents, caption, tokenizer)
        clean, noise, times, tokens = drawn
        target = schedule.get_velocity(clean, noise, times)
        painted = model(schedule.add_noise(clean, noise, times), times, text(tokens)[0]).sample
        loss = F.mse_loss(painted, target)
        set_rate(optimiser, rate(step, args.steps, args.rate))
        optimiser.zero_grad()
        loss.backward()
        if args.processes > 1:
            average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if rank:
            continue
        decay = min(0.998, (step + 1) / (step + 10))
        for key, value in model.state_dict().items():
            ema[key].lerp_(value, 1 - decay) if value.is_floating_point() else ema[key].copy_(value)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"unet {step} loss {running:.4f} {time.perf_counter() - start:.0f} s", flush=True)
        late = args.processes == 1 and time.perf_counter() - start > 60 * args.minutes
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps or late:
            save_state(checkpoint, model, ema, optimiser, step + 1)
            made = {"steps_trained": step + 1, "seed": args.seed}
            write_folder(args.out, vae, text, ema, tokenizer, paintable | {"made": made | paintable.get("made", {})})
        if late:
            break


def average_gradients(model: UNet2DConditionModel) -> None:
    """One sum over the processes for all gradients together."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def main() -> None:
    here = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=here / "cilkit" / "assets" / "generator")
    parser.add_argument("--work", type=Path, default=here / "build" / "generator", help="checkpoints; kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-class", type=int, default=500, help="renderings a concept in the pool")
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--text-steps", type=int, default=700)
    parser.add_argument("--steps", type=int, default=5000, help="steps of the U-Net")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop the diffusion stage early; one process only")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--warm-start", type=Path, help="U-Net weights of another run, as far as they fit")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--processes", type=int, default=1, help="of the diffusion stage")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    materials(args)  # the earlier stages, once
    (args.work / "rendezvous").unlink(missing_ok=True)
    if args.processes > 1:
        torch.multiprocessing.spawn(train_diffusion, (args, materials), args.processes)
    else:
        train_diffusion(0, args, materials)


def materials(args) -> tuple:
    """What `train_diffusion` asks for, from the renderings; what is made once is read back from --work."""
    images, names, styles = make_pool(args.work / "pool.npy", args.per_class, args.seed, args.threads)

    def draw(rng: np.random.Generator, batch: int) -> tuple[list[str], list[list[int]]]:
        index = rng.integers(len(names), size=batch)
        captions = [glyphs.caption(names[i], styles[i], rng) for i in index]
        return captions, [attributes(caption, names[i], styles[i]) for caption, i in zip(captions, index, strict=True)]

    sizes = [len(glyphs.CONCEPTS), *(len(table) + 1 for table in (glyphs.WEIGHTS, glyphs.SLANTS, glyphs.GROUNDS))]
    sizes.append(len(glyphs.COLOURS) + 1)
    vae, text, latents, tokenizer = early_stages(args, images, glyphs.vocabulary(), draw, sizes)
    paintable = {"concepts": {family: list(names) for family, names in glyphs.FAMILIES.items()}}
    paintable["settings"] = {"template": glyphs.TEMPLATE}
    return vae, text, latents, lambda i, rng: glyphs.caption(names[i], styles[i], rng), tokenizer, paintable


def early_stages(args, images: np.ndarray, texts: list[str], draw, sizes: list[int]) -> tuple:
    """Autoencoder, text encoder, latents, tokenizer: made, or read back from --work. texts: all words of the captions;
    draw, sizes: see `train_text_encoder`."""
    # Kept, because ties between rare tokens are broken differently in every process.
    if not (args.work / "tokenizer").exists():
        make_tokenizer(texts, args.seed).save_pretrained(args.work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    print(f"{len(tokenizer)} tokens, {len(images)} images", flush=True)
    file, vae = args.work / "vae.safetensors", build_vae().eval()
    if not file.exists():
        vae = train_vae(images, args.vae_steps, args.seed)
        normalise(vae, encode(vae, images))
        save_file(vae.state_dict(), file)
    vae.load_state_dict(load_file(file))
    latents = encode(vae, images)
    print(f"latents: deviation {latents.std().item():.3f}", flush=True)
    file, text = args.work / "text.safetensors", build_text_encoder(tokenizer).eval().requires_grad_(False)
    if not file.exists():
        save_file(train_text_encoder(tokenizer, draw, sizes, args.text_steps, args.seed).state_dict(), file)
    text.load_state_dict(load_file(file))
    return vae, text, latents, tokenizer


if __name__ == "__main__":
    main()
