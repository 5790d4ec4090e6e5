"""Phases: seconds and peaks of nested, repeated, interrupted and resumed phases."""

import subprocess
import sys
import time

import numpy as np
import pytest

from cilkit import phases, precision
from cilkit.phases import Phases

MIB = 2**20


def test_seconds_and_calls_add_up_and_an_outer_phase_contains_the_inner_one():
    measured = Phases()
    with measured("train"):
        for _ in range(3):
            with measured("alignment"):
                time.sleep(0.01)
    table = measured.table()
    assert table["alignment"]["calls"] == 3 and table["train"]["calls"] == 1
    assert 0.03 <= table["alignment"]["seconds"] <= table["train"]["seconds"] < 5
    assert table["train"]["peak_bytes"] >= table["alignment"]["peak_bytes"] > 0


def test_each_phase_has_its_own_peak():
    if not phases.reset_process_peak():
        pytest.skip("this system does not let a process reset its peak")
    precision.keep_freed_memory()  # as every run does: what was freed must not count for the next phase
    measured = Phases()
    with measured("outer"):
        with measured("large"):
            np.ones(200 * MIB, np.uint8).sum()
        with measured("small"):
            np.ones(MIB, np.uint8).sum()
    table = measured.table()
    assert table["large"]["peak_bytes"] - table["small"]["peak_bytes"] > 150 * MIB
    assert table["outer"]["peak_bytes"] >= table["large"]["peak_bytes"]


def test_a_phase_that_fails_is_measured_all_the_same():
    measured = Phases()
    with pytest.raises(KeyboardInterrupt), measured("train"):
        raise KeyboardInterrupt
    with measured("test"):
        pass
    assert list(measured.table()) == ["train", "test"] and measured.table()["train"]["calls"] == 1


def test_a_resumed_run_counts_what_was_measured_before():
    measured = Phases()
    measured.add({"train": {"seconds": 10.0, "peak_bytes": 2**50, "calls": 2}})
    with measured("train"):
        pass
    row = measured.table()["train"]
    assert 10.0 <= row["seconds"] < 11 and row["peak_bytes"] == 2**50 and row["calls"] == 3


def test_a_table_is_a_copy():
    measured = Phases()
    with measured("train"):
        pass
    measured.table()["train"]["calls"] = 99
    assert measured.table()["train"]["calls"] == 1


def test_the_device_is_waited_for_and_its_memory_read(monkeypatch):
    """Without a GPU: the calls that a CUDA phase must make, in their order."""
    import torch

    calls = []
    for name, value in {"synchronize": None, "max_memory_allocated": 7, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name, value=value: (calls.append(name), value)[1])
    measured = Phases("cuda:0")
    with measured("train"):
        calls.append("work")
    assert calls.index("synchronize") < calls.index("work") < len(calls) - 1 - calls[::-1].index("synchronize")
    assert calls.index("reset_peak_memory_stats") < calls.index("work")
    assert measured.table()["train"]["peak_bytes"] == 7


def test_measuring_on_the_cpu_loads_no_torch():
    code = "import sys; from cilkit.phases import Phases\nwith Phases()('a'): pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
