"""Progress of long work: few lines in a log, a bar in a terminal."""

import io
import sys

from cilkit.progress import Progress, bar, describe


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
    assert lines.getvalue().splitlines() == [
        "decoding: 1,001 of 1,200 images",
        "decoding: 1,151 of 1,200 images",
    ]
