"""Real images decoded once, into an image set that every run shares: by threads, in pieces, resumed after interruption.

How pixels are kept (`keep`):

original    as they are, decoded: exact.
short256    the shorter side at most 256 pixels: a named approximation for recipes that crop 224 from resized images.
square300   300 x 300, bicubic: exact for recipes that begin with Resize((300, 300)).
jpeg        the bytes of the files, decoded when they are read: exact, and at reduced scale where the reader says what
            suffices. For sets that would not fit a disk decoded.
auto        "original" up to 200,000 images and 64 GB of pixels, "jpeg" above.

A piece is a shard with its rows (`cilkit.data.shards`); it appears whole or not at all, and the manifest comes last.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cilkit import artifacts
from cilkit.data import decoding
from cilkit.data.imagesets import ImageSet
from cilkit.data.loading import in_order
from cilkit.data.shards import MANIFEST, ShardWriter, encode_png, open_set, write_flat, write_shard
from cilkit.errors import UserError
from cilkit.progress import bar

KEEPS = ("original", "short256", "square300", "jpeg", "auto")
CARD = "cache.json"
PIECE = 1000  # images a piece
PIECES = 200  # decoded pieces at most, because each of them stays open while it is mapped
MANY, LARGE = 200_000, 64_000_000_000  # images, and bytes of pixels, above which "auto" keeps the files' bytes
SAMPLE = 200  # images looked at to foretell the size


@dataclass(frozen=True)
class Raw:
    """Images where they came from, before they are kept. `read` is called by several threads at once.

    read(i):  the i-th image: encoded bytes, uint8 pixels or a PIL image. where(i): its file or place, for messages.
    ids:      one text an image, unique; labels: (n,) indices into class_names; domains: (n,) indices or None.
    """

    ids: Sequence[str]
    labels: np.ndarray
    class_names: Sequence[str]
    read: Callable[[int], object]
    where: Callable[[int], str]
    domains: np.ndarray | None = None
    domain_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)


def settle(raw: Raw, keep: str = "auto") -> tuple[str, int]:
    """How the images are kept, never "auto", and about how many bytes that takes. UserError for an unknown `keep`.

    Nothing but the images decides, so the answer may be part of an identity; the bytes come from 200 of them.
    """
    if keep not in KEEPS:
        raise UserError(f"keep {keep!r} is unknown; take one of {', '.join(KEEPS)}.")
    spread = np.unique(np.linspace(0, len(raw) - 1, SAMPLE).astype(int)) if len(raw) else ()
    sample = [found for i in spread if (found := _foretell(raw, int(i)))]
    decoded, encoded, short = np.mean(sample, axis=0) * len(raw) if sample else (0, 0, 0)
    if keep == "auto":
        keep = "jpeg" if len(raw) > MANY or decoded > LARGE else "original"
    size = {"original": decoded, "jpeg": encoded, "short256": short, "square300": len(raw) * 300 * 300 * 3}[keep]
    return keep, int(size)


def _foretell(raw: Raw, i: int) -> tuple[float, float, float] | None:
    """Bytes of one image decoded, encoded, and decoded at short side 256; None where it cannot be read."""
    try:
        data = raw.read(i)
        height, width = decoding.size_of(data)
    except Exception:  # a damaged image is judged when it is decoded
        return None
    pixels = 3 * height * width
    return pixels, len(data) if isinstance(data, bytes) else pixels, pixels * min(1, 256 / min(height, width)) ** 2


def build(
    raw: Raw,
    folder: str | Path,
    keep: str = "auto",
    bad_images: str = "error",
    workers: int = 0,
    announce: Callable[[str], None] = print,
) -> dict:
    """Keep the images in `folder`; pieces that are there already are kept. Equal bytes, interrupted or not.

    bad_images: "error" stops at the first unreadable image, by name; "skip" leaves such images out and reports them.
    workers: threads that read and decode (0: one a core). announce: told the size before anything is written.
    Returns {"keep", "images", "bytes", "skipped"}, the last a list of places. UserError for an unreadable image, a disk
    without room for the rest, a folder that holds another cache.
    """
    if bad_images not in ("error", "skip"):
        raise UserError(f"bad_images {bad_images!r} is unknown; take 'error' or 'skip'.")
    folder, (keep, size) = Path(folder), settle(raw, keep)
    _begin(raw, folder, {"keep": keep, "bad_images": bad_images})
    writer, workers = ShardWriter(folder), workers or os.cpu_count() or 1
    cuts = np.split(np.arange(len(raw)), np.arange(0, len(raw), _piece(len(raw), keep))[1:])
    finished = writer.finished if not (folder / MANIFEST).exists() else set(range(len(cuts)))
    todo = {number: rows for number, rows in enumerate(cuts) if number not in finished}
    if todo:
        _demand_room(folder, f"{len(raw):,} images kept as {keep!r}", size, _bytes_in(folder), announce)
    write = write_shard if keep == "jpeg" else write_flat
    kept = _keeper(raw, keep, bad_images)
    try:
        with bar("decoding", len(raw), len(raw) - sum(map(len, todo.values()))) as tick:
            for number, rows in todo.items():
                write(folder, number, filter(None, in_order(kept, rows.tolist(), workers, 4 * workers)))
                tick(len(rows))
        writer.close()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"the disk of {folder} is full; free some space and run again: whole pieces are kept") from None
    there = open_set(folder).source.columns("position")["position"].to_numpy()
    skipped = [raw.where(int(i)) for i in np.setdiff1d(np.arange(len(raw)), there)]
    return {"keep": keep, "images": len(there), "bytes": _bytes_in(folder), "skipped": skipped}


def open(folder: str | Path, class_names: Sequence[str] | None = None) -> ImageSet:
    """The image set that `build` made, with these class names in label order (None: those it was built with)."""
    path = Path(folder) / CARD
    if not path.exists():
        raise UserError(f"{folder} holds no {CARD}, so it is no cache of real images; build it first.")
    card = json.loads(path.read_text())
    images = open_set(folder, classes=card["class_names"] if class_names is None else class_names)
    if card["domain_names"]:
        images.source.domains = images.source.columns("domain_id")["domain_id"].to_numpy()
        images.source.domain_names = card["domain_names"]
    return images


def _begin(raw: Raw, folder: Path, choices: dict) -> None:
    """Write down what is being built, or compare it with what an earlier attempt wrote down."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)  # half a piece of an attempt that was killed
    names = {"class_names": list(raw.class_names), "domain_names": list(raw.domain_names)}
    card = {**choices, "images": len(raw), "piece": _piece(len(raw), choices["keep"]), **names}
    if not (folder / CARD).exists():
        artifacts.write_json(folder / CARD, card)
    there = json.loads((folder / CARD).read_text())
    for name, value in card.items():
        if there.get(name) != value:
            raise UserError(
                f"{folder} was begun with another {name} ({there.get(name)!r:.60}, not {value!r:.60}); "
                "build into another folder, or delete that one first"
            )


def _piece(images: int, keep: str) -> int:
    return PIECE if keep == "jpeg" else max(PIECE, -(-images // PIECES))


def _demand_room(folder: Path, what: str, size: int, have: int, announce: Callable[[str], None]) -> None:
    free, more = shutil.disk_usage(folder).free, max(0, size - have)
    announce(f"{what}: about {more / 1e9:.2f} GB to write in {folder}, {free / 1e9:.2f} GB are free")
    if more > free:
        raise UserError(
            f"{what} need about {more / 1e9:.2f} GB more in {folder}, but only {free / 1e9:.2f} GB are free; free some "
            "space, set CILKIT_ARTIFACTS to a folder on another disk, or take keep='short256' or keep='jpeg'"
        )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _keeper(raw: Raw, keep: str, bad_images: str) -> Callable[[int], tuple | None]:
    """i -> (what is stored of image i, its row), or None for a bad image that may be skipped."""
    shortest = {"jpeg": 1, "short256": 256}.get(keep, 0)  # jpeg: decoded only to see that all of it is there

    def kept(i: int) -> tuple | None:
        where = raw.where(i)
        try:
            data = raw.read(i)
            pixels = decoding.decode(data, where, shortest)
        except (UserError, OSError) as error:
            if bad_images == "skip":
                return None
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where} cannot be read ({error}); restore it, or take bad_images='skip'") from error
        if keep in ("short256", "square300"):
            pixels = decoding.shrunk(pixels, **{"short256": {"short": 256}, "square300": {"square": 300}}[keep])
        height, width = decoding.size_of(data) if keep == "jpeg" else pixels.shape[:2]
        label = int(raw.labels[i])
        row = {"image_id": str(raw.ids[i]), "class_id": label, "class_name": raw.class_names[label], "position": i}
        if raw.domains is not None:
            row |= {"domain_id": int(raw.domains[i]), "domain_name": raw.domain_names[raw.domains[i]]}
        if keep == "jpeg":
            pixels = data if isinstance(data, bytes) else encode_png(pixels)
        return pixels, row | {"width": width, "height": height}

    return kept
