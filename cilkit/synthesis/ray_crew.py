"""The same workers as Ray actors, on one machine or many that see the job's folder; one pipeline loaded in each.

Ray starts, places and watches them; what is done and who is at it stands in the job's folder, so that nothing is lost
with an actor, a machine or the driver.
"""

import math
from collections.abc import Iterator

from cilkit import clusters
from cilkit.errors import UserError, reason_of
from cilkit.synthesis.crew import RESTARTS, describe, images_of, worker_environment
from cilkit.synthesis.job import Job, work


class Hand:
    """A worker: each call of `paint` is one more batch."""

    def __init__(self, folder: str):
        self._painted = self._work(folder)

    def _work(self, folder: str) -> Iterator[int]:
        job = Job(folder)
        yield from work(job, job.load())

    def paint(self) -> dict:
        """{"images": painted now}, {} when no shard is left, or {"error": …}."""
        try:
            images = next(self._painted, None)
        except Exception as error:  # the driver decides what it means
            return describe(error)
        return {} if images is None else {"images": images}


class RayCrew:
    """Workers for one job. address: of a running Ray cluster ("auto" finds this machine's), "" starts one here."""

    def __init__(self, job: Job, address: str = ""):
        job.demand_spec()
        self.job, self.address = job, address

    def paint(self, workers: int) -> Iterator[int]:
        """Yields the images of every batch painted; closing the iterator ends the workers."""
        ray = clusters.ray_module("processes")
        ours = clusters.connect(ray, self.address)
        hire = self._hand(ray, workers)
        left, waiting = RESTARTS * workers, {}
        try:
            for hand in [hire() for _ in range(workers)]:
                waiting[hand.paint.remote()] = hand
            while waiting:
                (ready,), _ = ray.wait(list(waiting))
                hand = waiting.pop(ready)
                try:
                    answer = ray.get(ready)
                except ray.exceptions.RayActorError as error:
                    if left == 0:
                        raise UserError(_why(error, RESTARTS * workers + 1)) from None
                    left, hand = left - 1, hire()
                else:
                    if not answer:
                        ray.kill(hand)  # what it occupied goes to an actor that waits for a place
                        continue
                    yield images_of(answer)
                waiting[hand.paint.remote()] = hand
        finally:
            for hand in waiting.values():
                ray.kill(hand)
            if ours:
                ray.shutdown()

    def _hand(self, ray, workers: int):
        """Starts an actor: with an equal share of the GPUs, where there are any and the generator may use them."""
        cards = int(ray.cluster_resources().get("GPU", 0)) if self.job.order["given"].get("device") != "cpu" else 0
        share = 1 / math.ceil(workers / cards) if cards else 0
        kind = ray.remote(Hand).options(num_cpus=1, num_gpus=share, runtime_env={"env_vars": worker_environment()})
        return lambda: kind.remote(str(self.job.path.resolve()))


def _why(error: Exception, times: int) -> str:
    return (
        f"Ray actors ended {times} times, the last one by {reason_of(error)}; what is painted is kept, paint it again"
    )
