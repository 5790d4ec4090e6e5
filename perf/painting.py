"""Images painted a second by the embedded generator at its default size, steps and guidance on two cores.

    python perf/painting.py [--seconds 8]

Two processes of one thread each paint batches of the recommended size; beside them one process of two threads, and the
straightforward loop, one image a call on two threads, which the ratio is against. Last line: JSON.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "cilkit" / "assets" / "generator"


def paint_for(seconds: float, threads: int, batch: int | None) -> float:
    """Images a second of this process after one call to warm up; `batch` None is the recommended size."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(threads)
    card = json.loads((FOLDER / "paintable.json").read_text())
    settings, names = card["settings"], card["concepts"]["characters"]
    batch = batch or settings["batch_size"]
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"A photograph of the {names[k % len(names)]}: thin strokes" for k in range(batch)]

    def call(seed: int) -> None:
        seeds = [torch.Generator().manual_seed(seed * batch + k) for k in range(batch)]
        pipeline(
            prompts,
            height=settings["size"],
            width=settings["size"],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"],
            generator=seeds,
        )

    call(0)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        calls += 1
        call(calls)
    return calls * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    seconds = parser.parse_args().seconds
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        two = sum(pool.starmap(paint_for, [(seconds, 1, None)] * 2))
        threads = pool.apply(paint_for, (seconds, 2, None))
        single = pool.apply(paint_for, (seconds, 2, 1))
    print("| how | images/s |\n|---|---|")
    print(f"| two processes of one thread, recommended batch | {two:.1f} |")
    print(f"| one process of two threads, recommended batch | {threads:.1f} |")
    print(f"| one process of two threads, one image a call | {single:.1f} |")
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (others' load lowers these numbers)")
    best = max(two, threads)
    print(
        json.dumps({"name": "painting", "value": round(best, 1), "unit": "images/s", "ratio": round(best / single, 2)})
    )


if __name__ == "__main__":
    main()
