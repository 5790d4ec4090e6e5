"""The cache of real images: kept exactly or by a named approximation, whole after any interruption, never too large."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_decoding import encoded, ramp

from cilkit.data import cache, shards
from cilkit.data.decoding import decode, shrunk
from cilkit.data.shards import open_set
from cilkit.errors import UserError

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(cache, "PIECE", 10)


def jpegs(n=35) -> list[bytes]:
    """Two sizes in turn, each image another."""
    random = np.random.default_rng(0)
    files = []
    for k in range(n):
        coarse = random.integers(0, 256, ((5, 4), (4, 5))[k % 2] + (3,), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((300, 400) if k % 2 else (400, 300), Image.Resampling.BICUBIC)
        files.append(encoded(picture, "JPEG", quality=90))
    return files


def raw_of(files, **more) -> cache.Raw:
    labels = np.arange(len(files)) % 3
    ids = [f"{NAMES[label]}/{k}" for k, label in enumerate(labels)]
    return cache.Raw(ids, labels, NAMES, files.__getitem__, lambda i: f"raw/{i}.jpg", **more)


def build(raw, folder, keep="original", **more) -> dict:
    return cache.build(raw, folder, keep, announce=lambda _: None, **more)


def bytes_of(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


KEPT = {
    "original": lambda data: decode(data, ""),
    "jpeg": lambda data: decode(data, ""),
    "short256": lambda data: shrunk(decode(data, "", 256), short=256),
    "square300": lambda data: shrunk(decode(data, ""), square=300),
}


@pytest.mark.parametrize("keep", KEPT)
def test_what_is_kept_is_what_comes_back(keep, tmp_path):
    files, places = jpegs(), np.arange(35) // 18
    report = build(raw_of(files, domains=places, domain_names=["photo", "sketch", "art"]), tmp_path, keep)
    assert report["keep"] == keep and report["images"] == 35 and report["skipped"] == []
    assert report["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    images = cache.open(tmp_path, NAMES[::-1])
    assert images.ids[5] == "owl/5" and images.labels.tolist() == (2 - np.arange(35) % 3).tolist()
    assert images.domains.tolist() == places.tolist() and images.domain_names == ["photo", "sketch", "art"]
    expected = [KEPT[keep](data) for data in files]
    assert images.sizes.tolist() == [list(one.shape[:2]) for one in expected]
    for have, want in zip(images.read(), expected, strict=True):
        np.testing.assert_array_equal(have, want)
    assert isinstance(images.read([0]), np.ndarray) == (keep == "square300")
    open_set(tmp_path, verify=True)
    suffix = "tar" if keep == "jpeg" else "rgb"
    assert sorted(bytes_of(tmp_path)) == [*(f"0000{k}.{suffix}" for k in range(4)), "cache.json", "manifest.parquet"]


def test_jpegs_keep_the_bytes_of_their_files(tmp_path):
    files = [*jpegs(4), ramp(), Image.fromarray(ramp())]  # what has no file becomes a PNG, which loses nothing
    build(raw_of(files), tmp_path, "jpeg")
    rows = cache.open(tmp_path).manifest
    tar = (tmp_path / "00000.tar").read_bytes()
    stored = [tar[at : at + size] for at, size in zip(rows["offset"], rows["size"], strict=True)]
    assert stored[:4] == files[:4]
    for data in stored[4:]:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), ramp())


def test_a_streamed_set_of_jpegs_is_decoded_when_read_at_reduced_scale_if_that_suffices(tmp_path, monkeypatch):
    files = jpegs()
    build(raw_of(files), tmp_path, "jpeg")
    monkeypatch.setattr(shards, "IN_MEMORY", 1000)
    images = cache.open(tmp_path, NAMES)
    assert images.streamed
    for rows, shortest in (([3, 20], 0), ([20, 3], 150), ([1], 151)):
        for have, row in zip(images.read(rows, shortest), rows, strict=True):
            np.testing.assert_array_equal(have, decode(files[row], "", shortest))
    assert images.read([3], 150)[0].shape == (200, 150, 3)
    (tmp_path / "00001.tar").write_bytes(b"\0" * (tmp_path / "00001.tar").stat().st_size)
    with pytest.raises(UserError, match=r"image dog/13 in shard .*00001\.tar is not the one that the manifest"):
        images.read([13])


def test_pages_of_a_mapped_set_are_given_back(tmp_path, monkeypatch):
    files = [np.full((64, 64, 3), k, np.uint8) if k else np.zeros((64, 65, 3), np.uint8) for k in range(35)]
    build(raw_of(files), tmp_path)
    monkeypatch.setattr(shards, "MAPPED", 5 * 64 * 64 * 3)
    images = cache.open(tmp_path, NAMES)
    held = [images.read([k])[0] for k in range(35)]  # views outlive it
    assert [one[0, 0, 0] for one in held] == list(range(35))
    assert images.source._looked_at <= shards.MAPPED and len(images.source._maps) == 4


def test_auto_keeps_decoded_what_is_small_and_the_files_of_what_is_not(monkeypatch):
    raw = raw_of(jpegs())
    assert cache.settle(raw)[0] == "original"
    monkeypatch.setattr(cache, "MANY", 34)
    assert cache.settle(raw)[0] == "jpeg" and cache.settle(raw, "short256")[0] == "short256"
    monkeypatch.setattr(cache, "MANY", 35)
    monkeypatch.setattr(cache, "LARGE", 35 * 400 * 300 * 3 - 1)
    assert cache.settle(raw)[0] == "jpeg"
    with pytest.raises(UserError, match="keep 'short265' is unknown; take one of original, short256"):
        cache.settle(raw, "short265")


@pytest.mark.parametrize("keep", KEPT)
def test_the_size_is_announced_before_anything_is_written(keep, tmp_path):
    said = []

    def announce(sentence):
        said.append(sentence)
        assert not list(tmp_path.glob("*.rgb")) + list(tmp_path.glob("*.tar"))

    size = cache.settle(raw_of(jpegs()), keep)[1]
    report = cache.build(raw_of(jpegs()), tmp_path, keep, announce=announce)
    payload = sum(len(data) for name, data in bytes_of(tmp_path).items() if name[0] == "0")
    assert abs(payload - size) < 0.02 * size + 2 * 10240 * 4 and report["bytes"] >= payload
    assert len(said) == 1 and f"35 images kept as {keep!r}: about" in said[0] and "GB are free" in said[0]
    build(raw_of(jpegs()), tmp_path, keep)
    assert len(said) == 1  # nothing to write, nothing to say


def test_more_than_the_disk_has_free_is_refused(tmp_path, monkeypatch):
    raw = raw_of(jpegs())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=35 * 400 * 300 * 3 - 1000))
    with pytest.raises(UserError, match=r"35 images kept as 'original' need about 0\.01 GB more.*keep='jpeg'"):
        build(raw, tmp_path / "a")
    assert not list((tmp_path / "a").glob("0*"))
    build(raw, tmp_path / "b", "jpeg")
    with monkeypatch.context() as full:  # a piece is there already: only the rest needs room
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
        with pytest.raises(KeyboardInterrupt):
            build(stopping(raw, 15), tmp_path / "c")
    build(raw, tmp_path / "c")


def stopping(raw: cache.Raw, at: int, error: BaseException | None = None) -> cache.Raw:
    """The same images, of which one interrupts when it is to be kept (the main thread only foretells the size)."""

    def read(i):
        if i == at and threading.current_thread() is not threading.main_thread():
            raise error or KeyboardInterrupt
        return raw.read(i)

    return cache.Raw(raw.ids, raw.labels, raw.class_names, read, raw.where)


@pytest.mark.parametrize("keep", ["original", "jpeg"])
def test_an_interrupted_build_goes_on_to_the_same_bytes(keep, tmp_path):
    raw, read = raw_of(jpegs()), []
    build(raw, tmp_path / "whole", keep)
    with pytest.raises(KeyboardInterrupt):
        build(stopping(raw, 25), tmp_path / "parts", keep)
    assert {path.name[:5] for path in (tmp_path / "parts").glob("0*")} == {"00000", "00001"}
    (tmp_path / "parts" / ".00002.rgb.1.tmp").write_bytes(b"half")
    counted = cache.Raw(raw.ids, raw.labels, NAMES, lambda i: read.append(i) or raw.read(i), raw.where)
    build(counted, tmp_path / "parts", keep)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
    assert len(read) == 35 + 15  # 35 to foretell the size, then the images of the missing pieces
    with pytest.raises(UserError, match=r"was begun with another images \(35, not 34\)"):
        build(raw_of(jpegs(34)), tmp_path / "parts", keep)
    with pytest.raises(UserError, match=r"another keep \('\w+', not 'short256'\); build into another folder"):
        build(raw, tmp_path / "parts", "short256")


SLOW = """
import sys, threading, time
sys.path.insert(0, "tests")
import test_cache as t

def read(i):  # slowly from the second piece on; the main thread only foretells the size
    time.sleep(0.5 if i > 12 and threading.current_thread() is not threading.main_thread() else 0)
    return files[i]

t.cache.PIECE, files = 10, t.jpegs()
raw = t.raw_of(files)
t.build(t.cache.Raw(raw.ids, raw.labels, t.NAMES, read, raw.where), t.Path(sys.argv[1]), "original", workers=1)
"""


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build(raw_of(jpegs()), whole)
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(parts)], cwd=Path(__file__).parent.parent)
    while not list(parts.glob("*00001.rgb*")):  # in the middle of the second piece
        assert process.poll() is None, "the build ended before it was killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (parts / "00000.rgb").exists() and not (parts / "manifest.parquet").exists()
    with pytest.raises(UserError, match="no finished image set"):
        cache.open(parts, NAMES)
    build(raw_of(jpegs()), parts)
    assert bytes_of(parts) == bytes_of(whole)


def test_a_full_disk_is_one_sentence_and_the_rest_is_built_later(tmp_path, monkeypatch):
    raw, real, calls = raw_of(jpegs()), os.fsync, []
    build(raw, tmp_path / "whole")

    def full(handle):
        calls.append(handle)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="is full; free some space and run again"):
        patch.setattr(os, "fsync", full)
        build(raw, tmp_path / "parts")
    assert (tmp_path / "parts" / "00000.rgb").exists() and not list((tmp_path / "parts").glob(".*"))
    build(raw, tmp_path / "parts")
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("keep", ["original", "jpeg"])
def test_unreadable_images_stop_the_build_or_are_left_out_by_name(keep, tmp_path):
    files = jpegs()
    files[4], files[22], files[31] = b"", files[22][:-400], b"no image"
    with pytest.raises(UserError, match=r"raw/4\.jpg is not a readable image: it is empty \(0 bytes\)"):
        build(raw_of(files), tmp_path / "strict", keep)
    gone = stopping(raw_of(files), 9, FileNotFoundError("gone"))
    with pytest.raises(UserError, match=r"raw/4\.jpg"):  # the first in order, whichever thread finds one first
        build(gone, tmp_path / "strict", keep, workers=4)
    report = build(gone, tmp_path / "lenient", keep, bad_images="skip")
    assert report["skipped"] == [f"raw/{k}.jpg" for k in (4, 9, 22, 31)] and report["images"] == 31
    assert build(gone, tmp_path / "lenient", keep, bad_images="skip") == report  # found again, reported again
    images = cache.open(tmp_path / "lenient", NAMES)
    good = np.setdiff1d(np.arange(35), [4, 9, 22, 31])
    assert images.ids.tolist() == [f"{NAMES[k % 3]}/{k}" for k in good]
    np.testing.assert_array_equal(images.read([20])[0], decode(files[good[20]], ""))
    with pytest.raises(UserError, match="bad_images 'ignore' is unknown"):
        build(gone, tmp_path / "x", keep, bad_images="ignore")


def test_a_piece_without_a_single_readable_image_is_no_obstacle(tmp_path):
    files = [b""] * 10 + jpegs(5)
    assert build(raw_of(files), tmp_path / "a", bad_images="skip")["images"] == 5
    assert len(cache.open(tmp_path / "a", NAMES).read()) == 5
    with pytest.raises(UserError, match="has no images"):
        build(raw_of([b""] * 3), tmp_path / "b", bad_images="skip")


def test_threads_read_and_decode_at_the_same_time(tmp_path):
    files, together = jpegs(20), threading.Barrier(3, timeout=20)
    raw = raw_of(files)

    def read(i):
        if threading.current_thread() is not threading.main_thread() and i < 9:
            together.wait()  # three at once, or a broken barrier
        return files[i]

    build(cache.Raw(raw.ids, raw.labels, NAMES, read, raw.where), tmp_path, workers=3)


def test_a_folder_that_is_no_cache_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no cache\.json"):
        cache.open(tmp_path, NAMES)
