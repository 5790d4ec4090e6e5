"""One of several training processes: `python -m cilkit.pretraining.rank FOLDER`, started by torchrun.

It leaves when its input ends, so that no process outlives the notebook that asked for it.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from cilkit import artifacts
from cilkit.errors import UserError


def main(folder: Path) -> int:
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        run(folder, rank, size)
        return 0
    except Exception as error:  # whatever it is, the notebook shows one sentence
        answer = {**describe(error, rank, size), "when": time.time()}
        artifacts.write_json(folder / f"error-{rank}.json", answer)
        print(f"process {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1


def run(folder: Path, rank: int, size: int) -> None:
    """This process's part of the job in `folder`."""
    import torch
    import torch.distributed

    from cilkit import backbones
    from cilkit.pretraining import launch
    from cilkit.pretraining.crew import Crew
    from cilkit.pretraining.settings import Settings
    from cilkit.pretraining.trainer import Data, Trainer

    job = json.loads((folder / launch.JOB).read_text())
    torch.set_num_threads(job["threads"])
    gpu = job["device"] == "cuda"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=size)
    try:
        data = Data(launch.reopen(job["images"]), launch.reopen(job["real"]), Settings(**job["settings"]))
        network, crew = backbones.load(folder / launch.START), Crew(rank, size)
        trainer = Trainer(data, data.settings, network, device, crew, Path(job["scratch"]), job["every"])
        torch.distributed.barrier()  # all have read the checkpoint before the first writes another
        trainer.run(_tell if crew.leads else None)
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def _tell(*told) -> None:
    print(json.dumps({"told": told}), flush=True)


def describe(error: Exception, rank: int, size: int) -> dict:
    """An exception as the sentence that the notebook shows; `own`: no mere consequence of another process's end."""
    if isinstance(error, UserError):
        return {"error": str(error), "own": True}
    if isinstance(error, OSError) and error.errno:
        return {"error": str(error), "own": True, "errno": error.errno}
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    memory = "out of memory" in reason
    words = f"pre-training failed in process {rank + 1} of {size} ({type(error).__name__}: {reason})"
    return {"error": words + "; lower batch_size" * memory, "own": memory}


def _leave_with_the_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock an ending interpreter waits for
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
