"""Images painted a second, beside the published loop: one prompt a call, its text encoded each time, PNGs saved inline.

    python perf/synthesis.py [--repeats 5] [--random]    # two CPU cores; --random: a pipeline of random parts
    python perf/synthesis.py --gpu [--compile]           # Stable Diffusion 1.x in size, 256 pixels, 40 steps, guided
    python perf/synthesis.py --gpu --tiny                # anywhere, in a minute: the same code, toy sizes

CPU: the embedded generator. The loop is run on one thread and on all cores, with two ways of waiting for each other,
and the fastest counts; painting has a worker of one thread a core. All have painted once before. Two settings:
diversified prompts, where the loop paints 1 image a call, and the paper's, 20 images a prompt and call. Aims: at least
2 times, and never slower. Then what writing (PNG, hashes, tar, manifest rows) adds to one worker's painting. Aim: at
most 5 %.
GPU: random weights (speed, not beauty), half precision, 20 images a call beside our batches and the fast presets of
cilkit/assets/generators.yaml. Aims: 1.8 times and 60,000 images an hour on an H200; 4 times with a fast preset.
Arms take turns; medians. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

# As published (remembered): the U-Net, autoencoder and text encoder of Stable Diffusion 1.x; latents of 256 pixels.
SD1 = {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "layers": 2, "text": (768, 12, 12), "size": 256}
TOY = {"unet": (32, 64, 64, 64), "vae": (32, 32, 32, 32), "layers": 1, "text": (32, 2, 2), "size": 64}
PER_PROMPT = 20  # images a prompt and call of the published loop


def write_pipeline(folder: Path, parts: dict, device: str = "cpu", half: bool = False) -> Path:
    """A Stable-Diffusion-shaped pipeline of random weights, in the real format."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from cilkit.synthesis.generators import EMBEDDED

    width, layers, heads = parts["text"]
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "vocab_size": 49408}
    cross, groups = ("CrossAttnDownBlock2D",) * 3, min(32, parts["vae"][0])
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=parts["size"] // 8,
            block_out_channels=parts["unet"],
            layers_per_block=parts["layers"],
            down_block_types=(*cross, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            cross_attention_dim=width,
            attention_head_dim=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=parts["vae"],
            layers_per_block=parts["layers"],
            norm_num_groups=groups,
        )
        encoder = CLIPTextModel(CLIPTextConfig(num_attention_heads=heads, max_position_embeddings=77, **text))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer"),
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16 if half else torch.float32).save_pretrained(folder)
    return folder


class Loop:
    """The published loop, in the process where it is made."""

    def __init__(self, folder: Path, settings: dict, threads: int, device: str = "cpu"):
        import torch
        from diffusers import StableDiffusionPipeline

        torch.set_num_threads(threads)
        kind = torch.float16 if device == "cuda" else torch.float32
        self.pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=kind).to(
            device
        )
        self.pipeline.set_progress_bar_config(disable=True)
        size = settings["size"]
        self.arguments = {"height": size, "width": size, "num_inference_steps": settings["steps"]}
        self.arguments["guidance_scale"] = settings["guidance"]

    def rate(self, prompts: list[str], per_call: int) -> float:
        """Images a second."""
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for number, prompt in enumerate(prompts):
                images = self.pipeline(prompt, num_images_per_prompt=per_call, **self.arguments).images
                for i, image in enumerate(images):
                    image.save(Path(folder) / f"{number:04d}-{i:04d}.png")
            return len(prompts) * per_call / (time.perf_counter() - start)


class Ours:
    """One worker, in the process where it is made."""

    def __init__(self, spec: str, **settings):
        import torch

        from cilkit.synthesis import load_generator

        torch.set_num_threads(1)
        self.painter = load_generator(spec, **settings)

    def work(self, job: str) -> tuple[int, float, float]:
        """Images, seconds, and seconds of the processor."""
        from cilkit.synthesis.job import Job, work

        start, busy = time.perf_counter(), time.process_time()
        images = sum(work(Job(job), self.painter))
        return images, time.perf_counter() - start, time.process_time() - busy

    def paint_only(self, job: str) -> tuple[int, float, float]:
        """The same for the whole plan, nothing written."""
        from cilkit.synthesis.job import Brush, Job

        plan, brush, start, busy = Job(job).plan, Brush(self.painter), time.perf_counter(), time.process_time()
        for shard in range(plan.n_shards):
            for _, rows in plan.rows(shard).groupby("batch_id"):
                brush.paint(rows)
        return len(plan), time.perf_counter() - start, time.process_time() - busy


_here: object = None  # what this process was started for


def _start(make: Callable) -> None:
    global _here
    _here = make()


def _call(name: str, *arguments):
    return getattr(_here, name)(*arguments)


def process(make: Callable) -> ProcessPoolExecutor:
    """A process that makes one Loop or Ours, and calls its methods."""
    return ProcessPoolExecutor(1, get_context("spawn"), _start, (make,))


def ways(cores: int) -> list[tuple[int, str]]:
    """How the loop is run: threads, and how these wait ("": as OpenMP does by itself). Which is fastest depends."""
    return [(1, "PASSIVE"), (cores, "PASSIVE"), (cores, "")]


def started(make: Callable, policy: str) -> ProcessPoolExecutor:
    """As `process`, its threads waiting by this policy, which is read when the process starts."""
    before = os.environ.pop("OMP_WAIT_POLICY", "")
    os.environ |= {"OMP_WAIT_POLICY": policy} if policy else {}
    one = process(make)
    one.submit(_call, "rate", [], 1).result()
    os.environ["OMP_WAIT_POLICY"] = before or "PASSIVE"
    return one


def plan_of(painter, images: int, style: str, batch: int):
    from cilkit.realms import foresee
    from cilkit.synthesis import make_plan
    from cilkit.synthesis.styles import STYLES, Style

    realm = foresee("handwritten characters")[0]
    if style == "paper":
        return make_plan(realm, PER_PROMPT, 0, batch, painter).head(images)
    short = Style("diversified", "{name}", STYLES["diversified"].parts)  # the embedded reads 40 tokens
    return make_plan(realm, -(-images // len(realm)), 0, batch, painter, short).head(images)


def begun(plan, painter, folder: str):
    """A job of one batch a shard, in an empty folder."""
    from cilkit.synthesis.job import Job

    return Job.begin(plan, painter, Path(folder) / "set", Path(folder) / "scratch", shard_size=1)


def crew_rate(crew: list[ProcessPoolExecutor], plan, painter) -> float:
    """Images a second from the empty folder to the finished set."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        job = begun(plan, painter, folder)
        done = sum(hand.result()[0] for hand in [one.submit(_call, "work", str(job.path)) for one in crew])
        job.close()
        assert done == len(plan)
        return done / (time.perf_counter() - start)


def writing(one: ProcessPoolExecutor, plan, painter) -> tuple[float, float]:
    """The shares that writing adds to one worker's painting: of its seconds, and of the processor's."""
    with tempfile.TemporaryDirectory() as folder:
        job = begun(plan, painter, folder)
        alone, whole = (one.submit(_call, name, str(job.path)).result() for name in ("paint_only", "work"))
        return whole[1] / alone[1] - 1, whole[2] / alone[2] - 1


def on_cpu(repeats: int, random: bool) -> dict:
    from cilkit.synthesis import load_generator
    from cilkit.synthesis.generators import EMBEDDED

    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as made:
        source = write_pipeline(Path(made) / "random", TOY) if random else EMBEDDED
        spec, settings = (str(source), {"steps": 10, "batch_size": PER_PROMPT}) if random else ("embedded", {})
        painter = load_generator(spec, **settings)
        batch, images = painter.batch_size, cores * 4 * painter.batch_size
        plans = {style: plan_of(painter, images, style, batch) for style in ("diversified", "paper")}
        loops = [started(partial(Loop, source, painter.settings, threads), policy) for threads, policy in ways(cores)]
        crew = [process(partial(Ours, spec, **settings)) for _ in range(cores)]
        rates = {(who, style): [] for who in ("loop", "ours") for style in plans}
        added = []
        crew_rate(crew, plans["paper"].head(cores * batch), painter)
        for loop in loops:
            loop.submit(_call, "rate", ["A photograph of the digit one"], 1).result()
        for _ in range(repeats):
            for style, plan in plans.items():
                prompts = plan["prompt"].unique().tolist()
                of_loop = (prompts[:20], 1) if style == "diversified" else (prompts[:3], PER_PROMPT)
                rates["loop", style].append(max(loop.submit(_call, "rate", *of_loop).result() for loop in loops))
                rates["ours", style].append(crew_rate(crew, plan, painter))
            added.append(writing(crew[0], plans["diversified"].head(3 * batch), painter))
        for one in [*loops, *crew]:
            one.shutdown()
    middle = {key: median(values) for key, values in rates.items()}
    print(f"{painter.id}, {painter.size} pixels, {painter.settings['steps']} steps, medians of {repeats}\n")
    print("| prompts | loop, images/s | ours, images/s | times | aim |\n|---|---|---|---|---|")
    times = {}
    for style, aim in {"diversified": 2.0, "paper": 1.0}.items():
        times[style] = middle["ours", style] / middle["loop", style]
        images = f"{'1 image' if style == 'diversified' else f'{PER_PROMPT} images'} a prompt"
        row = f"{middle['loop', style]:.1f} | {middle['ours', style]:.1f} | {times[style]:.2f} | {aim}"
        print(f"| {style}, {images} | {row} |")
    seconds, busy = (median(shares) for shares in zip(*added, strict=True))
    print(f"\nwriting adds {100 * seconds:.1f} % to the seconds of one worker's painting (aim: at most 5 %),")
    print(f"{100 * busy:.1f} % to its processor time (which others' load changes less)")
    return {
        "name": "synthesis",
        "ratio": round(times["diversified"], 2),
        "ratio_20_a_prompt": round(times["paper"], 2),
        "images_per_second": round(middle["ours", "diversified"], 1),
        "writing": round(seconds, 3),
        "writing_processor": round(busy, 3),
    }


def on_gpu(repeats: int, tiny: bool, compiled: bool, batch: int) -> dict:
    from cilkit.synthesis import load_generator

    device, parts, steps = ("cpu", TOY, 4) if tiny else ("cuda", SD1, 40)
    prompts, batch = (2, 8) if tiny else (16, batch)
    asked = {"preset": "minisd", "size": parts["size"], "steps": steps, "guidance": 2.0, "device": device}
    fast = {key: value for key, value in asked.items() if key != "steps"}
    with tempfile.TemporaryDirectory() as made:
        folder = str(write_pipeline(Path(made) / "sd1", parts, device, half=not tiny))
        ours = {
            "ours, 20 a call": Ours(folder, **asked, batch_size=PER_PROMPT),
            f"ours, {batch} a call": Ours(folder, **asked, batch_size=batch, compile=compiled),
            "fast: steps": Ours(folder, **fast, fast="steps", batch_size=batch, compile=compiled),
            "fast: cache": Ours(folder, **fast, fast="cache", batch_size=batch, **({} if not tiny else {"steps": 4})),
        }
        settings = load_generator(folder, **asked).settings
        loop = Loop(Path(folder), settings, len(os.sched_getaffinity(0)), device)
        texts = plan_of(None, prompts * PER_PROMPT, "paper", batch)["prompt"].unique().tolist()
        rates = {name: [] for name in ("published loop, 20 a call", *ours)}
        for _ in range(repeats + 1):  # the first is to warm up
            rates["published loop, 20 a call"].append(loop.rate(texts, PER_PROMPT))
            for name, one in ours.items():
                rates[name].append(_rate(one, prompts * PER_PROMPT))
    middle = {name: median(values[1:]) for name, values in rates.items()}
    base = middle["published loop, 20 a call"]
    print(f"{device}, {parts['size']} pixels, {steps} steps, medians of {repeats}, compiled: {compiled}\n")
    print("| how | images/hour | times |\n|---|---|---|")
    for name, rate in middle.items():
        print(f"| {name} | {3600 * rate:,.0f} | {rate / base:.2f} |")
    best = max(rate for name, rate in middle.items() if name.startswith("ours"))
    quick = max(rate for name, rate in middle.items() if name.startswith("fast"))
    return {
        "name": "synthesis on a GPU" if not tiny else "synthesis on a GPU, dry run",
        "ratio": round(best / base, 2),
        "fast": round(quick / base, 2),
        "images_per_hour": round(3600 * best),
    }


def _rate(one: Ours, images: int) -> float:
    plan = plan_of(None, images, "paper", one.painter.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        job = begun(plan, one.painter, folder)
        one.work(str(job.path))
        job.close()
        return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--random", action="store_true", help="random parts instead of the embedded generator")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="with --gpu: toy sizes, on the CPU")
    parser.add_argument("--compile", action="store_true", help="with --gpu: compile the U-Net")
    parser.add_argument("--batch", type=int, default=80, help="with --gpu: our images a call")
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.pop("OMP_NUM_THREADS", None)  # the loop's cores; a worker takes one thread by itself
    if given.gpu:
        found = on_gpu(given.repeats, given.tiny, given.compile, given.batch)
    else:
        found = on_cpu(given.repeats, given.random)
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others' load lowers these numbers)")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
