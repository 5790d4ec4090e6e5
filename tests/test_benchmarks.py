"""Benchmarks from raw files: what is loaded, what is refused, what is found again."""

import numpy as np
import pytest

from cilkit.data import benchmarks
from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"'digit_photos' is unknown \(did you mean 'digits_photo'\?\)"):
        benchmarks.load("digit_photos")


def test_benchmark_from_memory_is_identified_by_its_content():
    def made(value):
        images = np.full((4, 8, 8, 3), value, np.uint8)
        return benchmarks.Benchmark("mine", *(ImageSet.from_arrays(images, [0, 1, 0, 1], ["a", "b"]) for _ in "xy"))

    assert made(1).digest == made(1).digest != made(2).digest
    with pytest.raises(UserError, match="different classes"):
        benchmarks.Benchmark("mine", made(1).train, made(1).test.keep_classes(["b", "a"]))
