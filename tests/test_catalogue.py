"""The catalogue: entries that are whole, class names that can be told apart, the papers' lists."""

import re

import numpy as np
import pytest

from cilkit.data import benchmarks, catalogue, sources
from cilkit.errors import UserError

ENTRIES = catalogue.entries()


def test_the_benchmarks_that_are_promised_are_there():
    promised = """digits digits_photo fashion_mnist omniglot cifar10 cifar100 cub200 cars196 imagenet_r food101
    flowers102 pets imagenet100 imagenet1k inat_plants pacs domainnet core50"""
    assert set(promised.split()) <= set(benchmarks.names())


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_entries_are_whole(entry):
    assert callable(getattr(sources, entry.reader))
    for text in (entry.title, entry.layout, entry.split, entry.licence, entry.citation):
        assert len(text) > 2
    assert entry.classes > 1 and entry.images
    for one in entry.download:
        assert re.fullmatch(r"https?://\S+", one.url) and re.fullmatch(r"([0-9a-f]{32})?", one.md5)
        assert one.gives or not one.file.endswith((".tar", ".tgz", ".zip", ".tar.gz"))
    table = entry.class_table()
    if table is not None:
        assert len(table) == entry.classes
        assert len({name.casefold() for name in table.values()}) == len(table)  # each can be told from the others
        assert all(name == name.strip() and "_" not in name for name in table.values())


def test_names_say_which_of_two_meanings():
    cifar, imagenet = (list(ENTRIES[name].class_table().values()) for name in ("cifar100", "imagenet1k"))
    assert {"ray (fish)", "seal (animal)", "orange (fruit)", "maple tree"} <= set(cifar)
    assert {"crane (bird)", "crane (machine)", "mouse (computer)", "kite (bird of prey)", "tench"} <= set(imagenet)
    assert len(imagenet) == 1000


def test_imagenet_lists_are_the_papers():
    """LUCIR: 100 wnids drawn with np.random.seed(1993) from the 1,000 sorted ones, in sorted order again."""
    wnids = list(ENTRIES["imagenet1k"].class_table())
    assert wnids == sorted(wnids)
    np.random.seed(1993)
    drawn = np.random.choice(wnids, 100, replace=False)
    assert list(ENTRIES["imagenet100"].class_table()) == sorted(drawn)
    assert list(ENTRIES["imagenet100_first"].class_table()) == wnids[:100]
    rendition = ENTRIES["imagenet_r"].class_table()
    assert len(rendition) == 200 and set(rendition) < set(wnids) and rendition["n01443537"] == "goldfish"


def test_tidy_reads_like_a_name():
    assert catalogue.tidy("001.Black_footed_Albatross") == "Black footed Albatross"
    assert catalogue.tidy("12_red_fox") == "red fox" and catalogue.tidy("007") == "007"


def test_unknown_benchmark_names_what_there_is():
    with pytest.raises(UserError, match=r"'cub20' is unknown \(did you mean 'cub200'\?\); known are .*folder:PATH"):
        catalogue.find("cub20")
