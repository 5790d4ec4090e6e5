"""What a person sees of a run that is being made, and how it is stopped without losing anything."""

import asyncio
import math
import os
import signal
import threading
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import tiny
import torch

import cilkit
from cilkit import artifacts, incremental, learners, progress, stopping
from cilkit.errors import Stopped, UserError
from cilkit.incremental import CHECKPOINT, WITHIN
from cilkit.progress import Block, Pace, watched
from cilkit.road import background
from cilkit.road.inputs import threads_set_to
from cilkit.widgets.live import Left, Live, curves, matrix

SMALL = {"epochs": 3, "milestones": (2,), "batch_size": 8, "recipe": "shift", "lr": 0.05}


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand: clock[0] += seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def seen(monkeypatch):
    """What a watched notebook is sent: [(bundle, display id, whether it replaces what is there)]."""
    sent = []
    for module in (progress, background):
        monkeypatch.setattr(module, "watched", lambda: True)
        monkeypatch.setattr(module, "publish", lambda *message: sent.append(message))
    return sent


class Page(HTMLParser):
    """Tags, labels and text of some HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.labels, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.labels += [value for name, value in attrs if name == "aria-label"]

    def handle_data(self, data):
        self.text += data


def create(name="finetune", **hyper):
    return learners.create(name, tiny.backbone(), **{**SMALL, **hyper})


def payload(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class FakeLearner:
    default_head = "aligned"

    def __init__(self, epochs):
        self.epochs = epochs

    def epochs_of(self, task):
        return self.epochs[task.index]


class FakeStream(list):
    def __init__(self, images, tested):
        super().__init__(
            SimpleNamespace(index=i, train=range(n), seen=2 * i + 2, name=f"task {i + 1}") for i, n in enumerate(images)
        )
        self.tested = tested

    def test_after(self, task):
        return range(self.tested[task.index])


def follow(what, epochs, terms=("classification",), images=None, seconds=0.005, clock=None):
    """A run in simulated time, as the loop tells of it; yields the watcher after each moment and each task."""
    images = images or [100] * len(epochs)
    stream = FakeStream(images, [20 * (i + 1) for i in range(len(epochs))])
    losses, accuracy = [], {"raw": [], "aligned": []}
    with Live(what, FakeLearner(epochs), stream) as live:
        live.task(losses, accuracy)
        for task in stream:
            losses.append([])
            for epoch in range(epochs[task.index]):
                clock[0] += seconds * images[task.index] / 100
                losses[-1].append(dict.fromkeys(terms, 2.0 / (epoch + 1)))
                live.moment(SimpleNamespace(task=task, epoch=epoch, epochs=epochs[task.index], losses=losses[-1][-1]))
                yield live
            for head, value in (("raw", 40.0), ("aligned", 60.0)):
                row = [value + 10 * i if i <= task.index else math.nan for i in range(len(epochs))]
                accuracy[head].append(row)
            live.task(losses, accuracy)
            yield live


# ---------------------------------------------------------------- one output, replaced in place


def test_ten_thousand_epochs_are_few_updates_of_one_small_output(clock, seen):
    for _ in follow("a run", [1000] * 10, clock=clock):
        pass
    assert 90 <= len(seen) <= 105  # 50 s of simulated time, two a second at most
    assert len({name for _, name, _ in seen}) == 1 and [again for *_, again in seen] == [False] + [True] * (
        len(seen) - 1
    )
    assert max(len(bundle["text/html"]) for bundle, *_ in seen) < 20_000
    page = Page(seen[-1][0]["text/html"])
    assert "a run: done in 50 s; accuracy after all tasks: 105.0 %, head aligned" in page.text  # (60 + 150) / 2
    assert page.tags.count("details") == 1  # folded: one line until it is clicked


def test_a_night_of_epochs_is_no_flood(clock, seen):
    block = Block(patience=0.0)
    for _ in range(36_000):
        clock[0] += 1.0
        block.show(lambda: ("", ""))
    assert 3000 < len(seen) < 6000  # for a server that buffers for a browser that is closed


def test_short_work_leaves_no_block_and_longer_work_one_line(clock, seen):
    for seconds in (0.1, 1.0):
        with Pace("features") as pace:
            for done in range(5):
                clock[0] += seconds
                pace(100 * done, 400)
    assert [bundle["text/plain"] for bundle, *_ in seen if "done" in bundle["text/plain"]] == [
        "features: done in 5.0 s"
    ]
    assert "features: 200 of 400 images, 100 images/s, 2 s left" in [bundle["text/plain"] for bundle, *_ in seen]
    bar = Page(seen[1][0]["text/html"])
    assert bar.labels == ["features"] and "25 %" in bar.text


def test_losses_and_accuracy_so_far_are_shown_in_words_and_figures_too(clock, seen):
    run = follow("slca", [2, 2, 2], ("classification", "distillation"), seconds=100, clock=clock)
    for _ in range(4):  # the first task, and an epoch of the next
        next(run)
    page = Page(seen[-1][0]["text/html"])
    assert "task 2 of 3, 3 of 6 epochs, 5 min 00 s so far, about 5 min left" in page.text
    assert "Loss over 3 epochs, now classification 2.000, distillation 2.000" in page.labels
    assert "60.0" in page.text and "head aligned; chance now 50.0 %" in page.text
    assert seen[-1][0]["text/plain"].startswith("slca: task 2 of 3, 3 of 6 epochs") and "img" not in page.tags


def test_markup_in_names_is_shown_as_text(clock, seen):
    bad = '<script>alert("x")</script>'
    for _ in follow(bad, [2], (bad, "&amp;"), seconds=1.0, clock=clock):
        pass
    with Pace(bad) as pace:
        clock[0] += 2
        pace(1, 2, bad)
    for bundle, *_ in seen:
        page = Page(bundle["text/html"])
        assert "script" not in page.tags and bad in page.text
    assert any(
        f"{bad} 1.000, &amp; 1.000" in label for bundle, *_ in seen for label in Page(bundle["text/html"]).labels
    )


def test_curves_and_matrices_of_any_size_stay_small_and_whole():
    many = [[{f"term {k}": 1.0 / (epoch + 1) for k in range(9)} for epoch in range(500)] for _ in range(100)]
    assert len(curves(many)) < 25_000 and curves([[{}], []]) == "" == matrix([], "raw", 10.0)
    odd = Page(curves([[{"loss": math.nan}, {"loss": math.inf}, {"loss": 3.0}]]))
    assert "Loss over 3 epochs, now loss 3.000" in odd.labels and "nan" not in curves([[{"loss": math.nan}]])
    rows = [[50.0 + i if i <= t else math.nan for i in range(100)] for t in range(58)]
    page = Page(matrix(rows, "raw", 1.0))
    assert "after task 1" in page.text and "after task 58" in page.text and "Some of 100 tasks" in page.text
    assert "nan" not in page.text and len(matrix(rows, "raw", 1.0)) < 20_000


def test_the_time_left_knows_that_tasks_differ(clock):
    """10 s an epoch of 100 images, 1 s for 10 tested: what is left of a stream whose first task is the largest."""
    images, tested, epochs = [500, 100, 100, 200], [50, 60, 70, 90], [2, 3, 3, 3]
    left = Left(images, tested, epochs)
    assert left.seconds is None and left.words == "time left not known yet"
    for task in range(4):
        for epoch in range(epochs[task]):
            clock[0] += images[task] / 10
            left.epoch_over(task, epochs[task])
            rest = sum(images[i] / 10 * (epochs[i] - (epoch + 1) * (i == task)) for i in range(task, 4))
            ends = sum(tested[task:]) / 10 if task else 0  # not known in the first task
            assert left.seconds == pytest.approx(rest + ends)
            assert left.words.startswith("about" if task else "at least")
        clock[0] += tested[task] / 10
        left.task_over()
    assert left.seconds == 0
    resumed = Left(images, tested, epochs)
    resumed.begin(2, 1)  # tasks and epochs of an earlier attempt, whose seconds nobody knows
    clock[0] += 10
    resumed.epoch_over(2, 3)
    assert resumed.seconds == pytest.approx(10 + 3 * 20)


def test_a_watched_run_shows_what_is_on_disk(tmp_path, seen):
    stream, learner = tiny.stream(), create(epochs=1)
    with Live("finetune", learner, stream) as live:
        incremental.run_stream(learner, stream, tmp_path, on_moment=live.moment, on_task=live.task)
    whole = cilkit.Run(tmp_path).summary()["last accuracy"]
    assert f"accuracy after all tasks: {whole:.1f} %, head raw" in seen[-1][0]["text/plain"]


# ---------------------------------------------------------------- who watches


@pytest.mark.parametrize(
    ("around", "names", "expected"),
    [
        ({"JPY_SESSION_NAME": "/a/b.ipynb"}, {}, True),
        ({}, {"__vsc_ipynb_file__": "b.ipynb"}, True),
        ({}, {}, False),  # nbval, papermill, nbconvert
        ({"JPY_SESSION_NAME": "/a/b.ipynb", "CILKIT_RUN": "b"}, {}, False),
        ({"JPY_SESSION_NAME": "/a/b.ipynb", "CILKIT_NOTEBOOK": "b"}, {}, False),
        ({"JPY_SESSION_NAME": "/a/b.ipynb", "CILKIT_LIVE": "0"}, {}, False),
        ({"CILKIT_RUN": "b", "CILKIT_LIVE": "1"}, {}, True),
    ],
)
def test_a_kernel_is_watched_where_a_frontend_says_so(monkeypatch, around, names, expected):
    for name in ("JPY_SESSION_NAME", "CILKIT_RUN", "CILKIT_NOTEBOOK", "CILKIT_LIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    import IPython

    for kernel in (object(), None):  # without a kernel, a terminal's IPython, there is nothing to replace
        shell = SimpleNamespace(kernel=kernel, user_ns=names)
        monkeypatch.setattr(IPython, "get_ipython", lambda shell=shell: shell)
        assert watched() is (expected and kernel is not None)
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    assert not watched()


# ---------------------------------------------------------------- stopping


def interrupt(number=1):
    for _ in range(number):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_mid_epoch_loses_no_epoch_and_the_end_is_the_same(tmp_path, capfd):
    stream = tiny.stream()
    incremental.run_stream(create(), stream, tmp_path / "whole")
    learner, steps = create(), []
    learner.after_step = lambda batch: steps.append(batch) or (interrupt() if len(steps) == 5 else None)
    with pytest.raises(Stopped, match="interrupted in task 1 of 3; no finished tasks and 3 epochs of the next kept"):
        incremental.run_stream(learner, stream, tmp_path / "part", scratch=tmp_path / "scratch")
    assert len(steps) == 6 and (tmp_path / "scratch" / WITHIN).exists()  # two batches an epoch: it was the third
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, more = create(), []
    again.after_step = more.append
    incremental.run_stream(again, stream, tmp_path / "part", scratch=tmp_path / "scratch")
    assert len(more) == 2 * 6 and payload(tmp_path / "part") == payload(tmp_path / "whole")
    assert "interrupt once more to stop at once" in capfd.readouterr().err


def test_a_second_interrupt_or_no_patience_stops_at_once(tmp_path, monkeypatch):
    stream, learner, steps = tiny.stream(), create(), []
    learner.after_step = lambda batch: steps.append(batch) or (interrupt(2) if len(steps) == 3 else None)
    with pytest.raises(Stopped, match="no finished tasks kept, run again to start over"):
        incremental.run_stream(learner, stream, tmp_path / "part", scratch=tmp_path / "scratch")
    assert len(steps) == 3 and not (tmp_path / "scratch" / WITHIN).exists()
    monkeypatch.setattr(stopping, "PATIENCE", 0.05)
    with pytest.raises(KeyboardInterrupt), stopping.politely():
        interrupt()
        began = time.monotonic()
        while time.monotonic() - began < 5:
            time.sleep(0.01)
        pytest.fail("it was never interrupted")


def test_interrupts_that_others_handle_are_left_to_them():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with stopping.politely():
            interrupt()
            assert heard == [1] and not stopping.asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_pretraining_keeps_every_batch(tmp_path):
    from cilkit.pretraining import pretrain, trainer

    images, how = tiny.image_set(), {"arch": "small_resnet", "model_args": tiny.ARGS, "epochs": 2, "batch_size": 8}
    whole, report = pretrain(images, **how)
    steps, step = [], trainer.Trainer._step

    def counted(self, *arguments):
        step(self, *arguments)
        steps.append(1)
        if len(steps) == 3:
            interrupt()

    trainer.Trainer._step = counted
    try:
        with pytest.raises(KeyboardInterrupt):
            pretrain(images, **how, scratch=tmp_path)
        assert len(steps) == 3
        resumed, again = pretrain(images, **how, scratch=tmp_path)
    finally:
        trainer.Trainer._step = step
    assert len(steps) == 2 * math.ceil(report["train_images"] / 8) and again == report
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


# ---------------------------------------------------------------- in the background


@pytest.fixture
def artifacts_at(tmp_path, monkeypatch):
    def at(name):
        monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / name))
        return tmp_path / name

    return at


def learn(threads=1):
    """A run of the tiny stream, as the road's verbs make theirs."""

    def make(work):
        with threads_set_to(threads):
            seen_by.append((threading.current_thread().name, torch.get_num_threads()))
            incremental.run_stream(create(), tiny.stream()[:2], work.path, scratch=work.scratch)

    return artifacts.obtain("run", 1, {"threads": threads}, {}, make)


seen_by = []  # (thread, torch's threads) of each run


def test_in_the_background_the_bytes_are_the_same_and_the_loop_is_free(artifacts_at, seen, monkeypatch):
    artifacts_at("here")
    here = learn()
    artifacts_at("there")
    monkeypatch.setattr(background, "PROMPT", 0.0)
    ticks = []

    async def cell():
        async def other():
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0.01)

        beside = asyncio.ensure_future(other())
        try:
            return await cilkit.background(learn)
        finally:
            beside.cancel()

    there = asyncio.run(cell())
    assert there.path != here.path and there.digest == here.digest
    assert len(ticks) > 3 and seen_by[-1] == ("cilkit-background", 1)
    buttons = [message for message in seen if "application/vnd.jupyter.widget-view+json" in message[0]]
    assert len(buttons) == 1 and (({"text/plain": ""}, buttons[0][1], True)) in seen  # it came, and went


def test_threads_are_set_where_the_sums_are_made(seen):
    """torch counts threads for each thread that calls it: those of the main thread do not matter, nor change."""

    def add(threads):
        with threads_set_to(threads):
            return torch.get_num_threads(), torch.linspace(0, 1, 300_000).pow(0.3).sum()

    before = torch.get_num_threads()
    for threads in (1, 2):
        assert asyncio.run(cilkit.background(add, threads)) == add(threads)
    assert torch.get_num_threads() == before


def test_errors_come_through(seen):
    def wrong():
        raise UserError("lr is -1; expected more than 0")

    with pytest.raises(UserError, match="lr is -1; expected more than 0"):
        asyncio.run(cilkit.background(wrong))


@pytest.mark.parametrize("how", ["button", "interrupt"])
def test_stopping_in_the_background_keeps_the_epoch_and_frees_the_lock(artifacts_at, seen, monkeypatch, how):
    artifacts_at("whole")
    whole = learn()
    root = artifacts_at("stopped")
    monkeypatch.setattr(background, "PROMPT", 0.0)
    stop, tick = threading.Event(), incremental._Record.tick

    def slowly(self, *arguments, **settings):
        stop.set()
        time.sleep(0.2)
        tick(self, *arguments, **settings)

    monkeypatch.setattr(incremental._Record, "tick", slowly)

    async def cell():
        work = asyncio.ensure_future(caught())
        while not stop.is_set():
            await asyncio.sleep(0.01)
        if how == "button":
            [button] = [b for b in made if not b.disabled]
            button.click()
            assert button.disabled and "Stopping" in button.description
        else:
            work.cancel()
        return await work

    async def caught():
        try:
            await cilkit.background(learn)
        except KeyboardInterrupt as error:  # which would end the loop, as it would not in a kernel
            return error

    import ipywidgets

    made, init = [], ipywidgets.Button.__init__
    monkeypatch.setattr(ipywidgets.Button, "__init__", lambda self, **t: (init(self, **t), made.append(self))[0])
    error = asyncio.run(cell())
    assert isinstance(error, Stopped) and "epoch" in str(error) and "run again to go on" in str(error)
    assert not list(root.rglob("*.lock"))
    assert [path.name for path in root.rglob("*.safetensors")] in ([WITHIN], [CHECKPOINT])
    monkeypatch.setattr(incremental._Record, "tick", tick)
    assert learn().digest == whole.digest


def test_where_nobody_watches_it_is_a_call_that_can_be_interrupted(monkeypatch):
    monkeypatch.setattr(background, "watched", lambda: False)
    names = []

    async def cell():
        await cilkit.background(lambda: names.append(threading.current_thread()))
        signal.signal(signal.SIGINT, lambda *_: None)  # as a kernel has it while a cell awaits
        try:
            await cilkit.background(interrupt)
        except KeyboardInterrupt:
            names.append("interrupted")
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    asyncio.run(cell())
    assert names == [threading.main_thread(), "interrupted"]


def test_a_wish_stops_a_bar_where_nothing_has_to_be_kept():
    wish = stopping.Wish()
    with pytest.raises(KeyboardInterrupt), stopping.heeding(wish), progress.bar("features", 10) as tick:
        tick(5)
        wish.make()
        tick(1)
    assert not stopping.asked()
    stopping.check()
    assert os.environ.get("CILKIT_LIVE") is None


def test_showing_takes_a_hundredth_of_the_time_however_slow_it_is(clock, seen):
    block, spent, began = Block(patience=0.0), 0.0, clock[0]

    def slowly():
        nonlocal spent
        clock[0] += 0.2
        spent += 0.2
        return "", ""

    for _ in range(40_000):
        clock[0] += 0.005
        block.show(slowly)
    assert 0.005 < spent / (clock[0] - began) <= 0.012 and len(seen) > 5
