"""Jobs as Ray tasks: a laptop, an allocation of machines or a cluster, with the same sweep.

Ray starts, places and watches the tasks; each executes one notebook, and what is done stands in files. The machine of
the driver is home. With artifacts "shared", all machines see its folders. With "fetched", another machine has a folder
of its own (`CILKIT_ARTIFACTS` there, else a temporary one): what a job reads is fetched from home before it, and what
it left is taken home after it, before its status says that it is ok.
"""

from __future__ import annotations

import importlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cilkit import artifacts, clusters
from cilkit.errors import Stopped, UserError, reason_of
from cilkit.workbook import transfer
from cilkit.workbook.execute import (
    Status,
    book_folder,
    interrupt_all,
    read_status,
    run_notebook,
    status_path,
    write_status,
)
from cilkit.workbook.fingerprint import code_digest, fingerprint
from cilkit.workbook.jobs import Job, Needs
from cilkit.workbook.kernels import GRACE
from cilkit.workbook.start import shown, versions

BEAT = 0.5  # seconds between two looks of a task at whether it shall stop
FRESH = 1.0  # seconds for which the list of nodes is good


class Bell:
    """An actor at home: tells the running tasks to stop, and writes there how far those elsewhere are."""

    def __init__(self) -> None:
        self.reason = ""

    def ring(self, reason: str) -> None:
        self.reason = reason

    def hear(self, output: Path | None = None, status: str = "") -> str:
        """Why to stop, "" to go on; `status` is written beside `output`."""
        if output is not None:
            with suppress(OSError):  # a full disk; the job's end will tell
                artifacts.atomic_write(status_path(output), status)
        return self.reason


@dataclass(frozen=True)
class Home:
    """What a task knows of the driver."""

    node: str  # Ray's name of it
    folder: Path  # in which the driver runs, by which it knows its repository
    root: Path  # of the artifacts
    fetched: bool
    finish: str  # "module:function", called with the book folder of a job that ended well; "" for none
    bell: Any


@dataclass(frozen=True)
class Order:
    """A job as it is sent to a node."""

    job: Job
    given: dict[str, Any]
    attempt: int
    notebook: str = ""  # in the repository, where it lies there
    now: dict[str, Any] = field(default_factory=dict)  # the job's fingerprint at home
    reads: dict[str, str] = field(default_factory=dict)  # name -> digest of artifacts at home


class RayExecutor:
    """Jobs on a Ray cluster, each on a node that has room for it.

    address:   of a running cluster ("auto" finds this machine's); "" starts one here, which ends with `close`.
    artifacts: "shared" (all machines see this one's folders), or "fetched".
    finish:    "module:function", called with the folder of each job that ended well, before its status says so.
    limit:     jobs at a time; None: as many as there is room for.
    """

    def __init__(self, address: str = "", artifacts: str = "shared", finish: str = "", limit: int | None = None):
        from cilkit.artifacts import root

        if artifacts not in ("shared", "fetched"):
            raise UserError(f"artifacts is {artifacts!r}; expected 'shared' or 'fetched'.")
        if limit is not None and limit < 1:
            raise UserError(f"workers is {limit}; expected 1 or more.")
        if address.startswith("ray://"):
            raise UserError(
                f"a sweep is started on a machine of its cluster, not through {address!r}: log in there and "
                'give the address "auto".'
            )
        self._ray, self.limit, folder = clusters.ray_module("local"), limit, root()
        self._ours = clusters.connect(self._ray, address)
        home = self._ray.get_runtime_context().get_node_id()
        bell = self._ray.remote(Bell).options(num_cpus=0, **_at(home)).remote()
        self._home = Home(home, Path.cwd(), folder, artifacts == "fetched", finish or "", bell)
        self._running: dict[Any, tuple[Job, str]] = {}  # Ray's reference -> (job, node)
        self._same, self._lost, self._seen, self._looked = {home}, set(), {}, -FRESH

    @property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def room(self, needs: Needs) -> bool:
        if needs.gpus and needs.gpus > 1 and needs.gpus % 1:
            raise UserError(f"a job needs {needs.gpus:g} GPUs; expected a share of one (0.5), or whole ones (2).")
        place = self._place(needs)
        return place is not None and (self.limit is None or len(self._running) < self.limit)

    def submit(self, job: Job, given: dict[str, Any], attempt: int) -> None:
        node = self._place(job.needs)
        order = Order(job, given, attempt)
        if self._home.fetched:
            books = [book_folder(job.output.with_name(f"{name}.ipynb")) / "book.json" for name in job.after]
            reads = {name: digest for book in books for name, digest in transfer.read_by(book).items()}
            order = Order(job, given, attempt, shown(job.notebook), _now(job.notebook, given), reads)
        task = self._ray.remote(_execute).options(
            num_cpus=job.needs.cpus, num_gpus=job.needs.gpus or 0, max_retries=0, **(_at(node) if node else {})
        )
        self._running[task.remote(self._home, order)] = (job, node or "")

    def finished(self, timeout: float) -> list[tuple[Job, Status]]:
        if not self._running:
            time.sleep(timeout)
            return []
        self._ray.wait(list(self._running), timeout=timeout)
        ended, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [(job, self._status(one, job, node)) for one in ended for job, node in [self._running.pop(one)]]

    def stop(self, reason: str = "interrupted") -> None:
        self._ray.get(self._home.bell.ring.remote(reason))

    def close(self) -> None:
        with suppress(self._ray.exceptions.RayError):  # the cluster may be what has gone
            if self._running:
                self.stop()
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=GRACE + 5)
            for task in self._running:
                self._ray.cancel(task, force=True)  # the kernel ends when it sees that its parent is gone
            self._ray.kill(self._home.bell)
        if self._ours:
            self._ray.shutdown()

    # ------------------------------------------------------------ where

    def _nodes(self) -> dict[str, dict]:
        """The nodes that are there, by Ray's names. UserError for one whose code or packages are not those at home."""
        if time.monotonic() - self._looked > FRESH:
            self._seen = self._alive()
            self._looked = time.monotonic()
            for name in set(self._seen) - self._same:
                self._compare(name)
        return self._seen

    def _alive(self) -> dict[str, dict]:
        nodes = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        return {name: node for name, node in nodes.items() if name not in self._lost}

    def _compare(self, name: str) -> None:
        here = _environment()
        try:
            look = self._ray.remote(_environment).options(num_cpus=0, max_retries=0, **_at(name))
            there = self._ray.get(look.remote())
            differ = [
                f"{what} {there.get(what)}" for what in sorted({*here, *there}) if here.get(what) != there.get(what)
            ]
        except self._ray.exceptions.RayTaskError as error:
            differ = [reason_of(error.cause)]
        except self._ray.exceptions.RayError:
            del self._seen[name]  # it went while we asked
            return
        if differ:
            raise UserError(
                f"{self._words(name)} has other software than this machine ({', '.join(differ)}): "
                "install the same commit and packages there."
            )
        self._same.add(name)

    def _place(self, needs: Needs) -> str | None:
        """The node with most cores left of those that have room, None while there is none."""
        wanted = {"CPU": needs.cpus, "GPU": needs.gpus or 0}
        nodes = {
            name: {what: node["Resources"].get(what, 0) for what in wanted} for name, node in self._nodes().items()
        }
        if not any(_fits(wanted, total) for total in nodes.values()):
            have = ", ".join(sorted({f"{total['CPU']:g} cores and {total['GPU']:g} GPUs" for total in nodes.values()}))
            raise UserError(
                f"a job needs {needs.cpus:g} cores and {wanted['GPU']:g} GPUs of one machine, and those of the Ray "
                f"cluster have {have}: change `needs` in the sweep, or add a machine."
            )
        for job, name in self._running.values():
            if name in nodes:
                nodes[name]["CPU"] -= job.needs.cpus
                nodes[name]["GPU"] -= job.needs.gpus or 0
        free = {name: left for name, left in nodes.items() if _fits(wanted, left)}
        return max(free, key=lambda name: (free[name]["CPU"], name), default=None)

    def _words(self, name: str) -> str:
        """A node for people; two on one machine differ in the beginning of Ray's name."""
        node = next((node for node in self._ray.nodes() if node["NodeID"] == name), {})
        return f"{node.get('NodeManagerHostname', 'a machine')} ({node.get('NodeManagerAddress', '?')}, {name[:8]})"

    # ------------------------------------------------------------ what came out

    def _status(self, task: Any, job: Job, node: str) -> Status:
        errors = self._ray.exceptions
        state, sentence = "", ""
        try:
            status = Status(**self._ray.get(task))
        except errors.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, errors.OutOfMemoryError):
                state, sentence = "memory", f"memory ran out on {self._words(node)}, so Ray ended the job."
            elif isinstance(cause, errors.RaySystemError):  # such as a package that its worker does not find
                state, sentence = "failed", f"Ray could not run it on {self._words(node)}: {reason_of(cause)}"
            elif isinstance(cause, errors.RayError):
                gone = isinstance(cause, errors.NodeDiedError) or node not in self._alive()
                if gone:  # which may come before the list of nodes says so
                    self._lost.add(node)
                    self._seen.pop(node, None)
                what = f"{self._words(node)} was lost" if gone else f"its Ray worker on {self._words(node)} died"
                state, sentence = "dead", f"{what} while the job ran ({type(cause).__name__})."
            else:
                state, sentence = "failed", _reason(cause)
            status = Status(state, shown(job.notebook), job.output.name, job.given, sentence=sentence)
        left = read_status(job.output)
        if left is not None and left.state == "running":  # its last word, of a task that did not end by itself
            status = left if state else status
            status.state, status.sentence, status.left = state or status.state, sentence or status.sentence, None
            with suppress(OSError):  # the driver has it anyway
                write_status(job.output, status)
        return status


def _at(node: str) -> dict[str, Any]:
    """Options that place a task or an actor on this node and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _fits(wanted: dict[str, float], left: dict[str, float]) -> bool:
    return all(amount <= left[what] + 1e-6 for what, amount in wanted.items())


# ---------------------------------------------------------------- in a task


def _environment() -> dict[str, str]:
    return versions() | {"code": code_digest()[:12]}


def _execute(home: Home, order: Order) -> dict[str, Any]:
    """The task: one notebook, wherever this is; whatever happens in it, the job ends with a status."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    with _rooted(_root(home, node)) as root, tempfile.TemporaryDirectory(prefix="ck") as folder:
        away = home.fetched and (node, root) != (home.node, home.root)
        if not away:
            os.chdir(home.folder)  # what the notebook names is found, and its files digested, as in the driver
        output = Path(folder) / "cells" / order.job.output.name if away else order.job.output
        try:
            with _Ear(home, order.job.output, output if away else None) as ear:
                for name, digest in order.reads.items() if away else ():
                    _fetch(home, name, digest, ear)
                signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C means the driver, which tells us
                with ThreadPoolExecutor(1, initializer=_hear_interrupts) as thread:
                    status = thread.submit(_run, home, order, output, away).result()
            if away:
                status.fingerprint["artifacts_root"] = order.now["artifacts_root"]  # where all of it lies from now on
                write_status(output, status)
                _take_home(home, order, output, node)
        except Stopped:
            status = _ended(order, "interrupted", "stopped before it began.")
        except (UserError, OSError) as error:
            status = _ended(order, "failed", _reason(getattr(error, "cause", error)))
    return asdict(status)


def _run(home: Home, order: Order, output: Path, away: bool) -> Status:
    job, path = order.job, order.job.notebook
    if away:
        path = (artifacts.repository() or Path.cwd()) / order.notebook
        now = _now(path, order.given)
        if differ := [name for name, was in order.now.items() if now[name] != was and name != "artifacts_root"]:
            raise UserError(
                f"{order.notebook} is not here ({os.uname().nodename}) what it was where the sweep was started "
                f"(its {', '.join(differ)}): bring all machines to one commit, and run again."
            )
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "") if job.needs.gpus else ""  # as Ray gave them
    threads = {"OMP_NUM_THREADS": str(max(1, int(job.needs.cpus))), "OMP_WAIT_POLICY": "PASSIVE"}
    module, _, function = home.finish.partition(":")
    return run_notebook(
        path,
        order.given,
        output,
        timeout=job.needs.timeout,
        memory=job.needs.memory,
        again=True,
        environment=threads | {"CUDA_VISIBLE_DEVICES": cards},
        finish=getattr(importlib.import_module(module), function) if module else None,
        attempt=order.attempt,
    )


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {reason_of(error)}"


def _hear_interrupts() -> None:
    """Ray's processes block SIGINT, and so would the kernel that this thread starts: it could only be killed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _now(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    import nbformat

    return fingerprint(nbformat.read(notebook, as_version=4), given)


def _ended(order: Order, state: str, sentence: str) -> Status:
    status = Status(state, shown(order.job.notebook), order.job.output.name, order.given, sentence=sentence)
    status.attempt = order.attempt
    return status


def _root(home: Home, node: str) -> Path:
    """The artifacts folder to use on this node."""
    if not home.fetched or node == home.node and "CILKIT_ARTIFACTS" not in os.environ:
        return home.root
    if "CILKIT_ARTIFACTS" in os.environ:
        return artifacts.root()
    own = Path(tempfile.gettempdir()) / f"cilkit-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise UserError(f"{own} belongs to somebody else: set CILKIT_ARTIFACTS on this machine to a folder of yours.")
    return own / "artifacts"


@contextmanager
def _rooted(root: Path) -> Iterator[Path]:
    """Artifacts lie in `root` meanwhile, for this process and its kernels (Ray uses a process again)."""
    before = os.environ.get("CILKIT_ARTIFACTS")
    os.environ["CILKIT_ARTIFACTS"] = str(root)
    try:
        yield root
    finally:
        del os.environ["CILKIT_ARTIFACTS"]
        if before is not None:
            os.environ["CILKIT_ARTIFACTS"] = before


class _Ear:
    """While a task runs: asks at home whether to stop, and interrupts the notebook then; tells how far it is."""

    def __init__(self, home: Home, output: Path, local: Path | None):
        self._bell, self._output, self._local, self._told = home.bell, output, local, ""
        self._over = threading.Event()
        self.reason = ""

    def __enter__(self) -> _Ear:
        self._listen()
        self.check()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        if self.reason:
            raise Stopped("stopped by hand.")

    def _beat(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # the driver has gone, and Ray ends this process
            while not self._over.wait(BEAT):
                self._listen()
                if self.reason:
                    interrupt_all(self.reason)  # again and again: a kernel may only now be starting

    def _listen(self) -> None:
        import ray

        news = ""
        if self._local is not None:
            with suppress(OSError):
                news = status_path(self._local).read_text()
        tell = (self._output, news) if news != self._told else ()
        self.reason, self._told = ray.get(self._bell.hear.remote(*tell)), news


# ---------------------------------------------------------------- between two nodes


def _asker(node: str, folder: Path, check: Callable[[], None] = lambda: None) -> transfer.Ask:
    """Asks `node` for the stream of a folder there, a few pieces ahead."""
    import ray

    options = {"num_returns": "streaming", "num_cpus": 0, "max_retries": 0, "_generator_backpressure_num_objects": 4}

    def ask(have: dict[str, str]) -> Iterator[bytes]:
        for piece in ray.remote(transfer.send).options(**options, **_at(node)).remote(folder, have):
            check()
            yield ray.get(piece)

    return ask


def _fetch(home: Home, name: str, digest: str, ear: _Ear) -> None:
    came = transfer.receive_artifact(name, digest, _asker(home.node, home.root / name, ear.check))
    if came.name != name:
        raise UserError(
            f"another {name} than the one that this sweep reads was made on {os.uname().nodename}: remove it from "
            f"{artifacts.root()} there."
        )


def _take_home(home: Home, order: Order, output: Path, node: str) -> None:
    import ray

    made = {
        name: (artifacts.root() / name, digest)
        for name, digest in transfer.read_by(book_folder(output) / "book.json").items()
    }
    task = ray.remote(_collect).options(num_cpus=0, max_retries=0, **_at(home.node))
    ray.get(task.remote(home, order.job.output, node, output.parent, made))


def _collect(home: Home, output: Path, node: str, folder: Path, made: dict[str, tuple[Path, str]]) -> None:
    """At home: fetch what a job made and left on `node`, the artifacts first and its status last."""
    with _rooted(home.root):
        renamed = {}
        for name, (path, digest) in made.items():
            renamed[name] = transfer.receive_artifact(name, digest, _asker(node, path)).name
        part = output.with_suffix(".part")
        transfer.receive(part, _asker(node, folder))
        transfer.put_in_place(part, output, {name: here for name, here in renamed.items() if here != name})
