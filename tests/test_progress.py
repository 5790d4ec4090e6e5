"""Progress of long work: few lines in a log, a bar in a terminal."""

import io
import re
import sys

from cilkit.progress import Pace, Progress, bar, describe, left


def test_a_line_is_printed_only_when_its_time_has_come():
    stream = io.StringIO()
    progress = Progress("counting", stream, every=0.0)
    progress("3 of 7")
    assert stream.getvalue() == "counting: 3 of 7\n"
    quiet = Progress("counting", stream, every=60.0)
    quiet("4 of 7")
    assert "4 of 7" not in stream.getvalue() and describe("5 of 7") == "5 of 7"


def test_a_bar_is_lines_where_no_terminal_is(monkeypatch):
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stderr", lines)
    monkeypatch.setattr("cilkit.progress.Progress.__init__.__defaults__", (None, 0.0))
    with bar("decoding", 1200, 1000) as tick:
        tick()
        tick(150)
    first, second = lines.getvalue().splitlines()
    assert first == "decoding: 1,001 of 1,200 images"  # no rate yet
    assert re.fullmatch(r"decoding: 1,151 of 1,200 images, [\d,]+ images/s, 1 s left", second)


def test_pace_is_that_of_this_attempt(monkeypatch):
    lines, now = io.StringIO(), [100.0]
    monkeypatch.setattr("cilkit.progress.time.monotonic", lambda: now[0])
    pace = Pace("pre-training", lines, every=0.0)
    for seconds, done in ((0, 5000), (10, 5600), (200, 6000)):  # 5,000 were there when it began
        now[0] = 100.0 + seconds
        pace(done, 12000, "epoch 3 of 5")
    assert lines.getvalue().splitlines() == [
        "pre-training: epoch 3 of 5",
        "pre-training: epoch 3 of 5, 60 images/s, 2 min left",  # 6,400 / 60 = 107 s
        "pre-training: epoch 3 of 5, 5.0 images/s, 20 min left",
    ]
    assert [left(s) for s in (0.2, 59, 61, 3599, 3601, 90000)] == [
        "1 s left", "59 s left", "2 min left", "1 h 00 min left", "1 h 01 min left", "25 h 00 min left"
    ]  # fmt: skip
