"""Fetching raw files: resumed where the server allows it, checked, unpacked whole or not at all.

torchvision's own downloader would leave half a file under the final name and start again from nothing; here a file
grows as `<name>.part` and gets its name when its length and md5 are right.
"""

import hashlib
import http.client
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from cilkit.data.catalogue import Download
from cilkit.errors import UserError

CHUNK = 1 << 20  # bytes
ATTEMPTS = 3  # connections for one file, before what came is kept for the next time


def fetch(downloads: Iterable[Download], home: Path, announce: Callable[[str], None] = print) -> None:
    """Fetch and unpack what `home` lacks. UserError for a server, checksum, length or disk that does not fit."""
    for one in downloads:
        if (home / one.leaves).exists():
            continue
        archive = download(one.url, home / one.file, one.md5, announce)
        if one.gives:
            unpack(archive, home, one.gives)
            archive.unlink()


def download(url: str, target: Path, md5: str = "", announce: Callable[[str], None] = print) -> Path:
    """The file at `url` as `target`; an earlier attempt's `.part` is continued (HTTP Range) or, if not, begun again."""
    part = target.with_name(target.name + ".part")
    if target.exists():  # laid here by hand
        _check(target, target, url, md5)
        return target
    for attempt in range(ATTEMPTS):
        try:
            if _receive(url, part, announce if attempt == 0 else None):
                _check(part, target, url, md5)
                return part.replace(target)
        except urllib.error.HTTPError as error:
            raise UserError(f"{url} answered {error.code} ({error.reason}); fetch {target.name} by hand.") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if not part.exists() or attempt == ATTEMPTS - 1:
                raise UserError(f"{url} cannot be reached ({reason}); fetch {target.name} by hand.") from error
    kept = f"{part.stat().st_size} bytes are kept, run again to go on" if part.exists() else "nothing of it is kept"
    raise UserError(f"the download of {url} was cut {ATTEMPTS} times; {kept}.")


def _receive(url: str, part: Path, announce: Callable[[str], None] | None) -> bool:
    """One connection; True when the file is whole. What cannot be continued is removed."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    wanted = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "cilkit"} | wanted)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # more than the server has: another file, or already whole
            whole = (error.headers.get("Content-Range") or "").endswith(f"/{have}")
            part.unlink() if not whole else None
            return whole
        raise
    with answer:
        if answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        part.parent.mkdir(parents=True, exist_ok=True)
        if announce:
            announce(f"downloading {url} ({_size(total)}) to {part.parent}")
        free = shutil.disk_usage(part.parent).free
        if total and total - have > free:
            raise UserError(f"{url} needs {_size(total - have)} more, {part.parent} has {_size(free)} free; free some.")
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
        ):
            while chunk := _next(answer):
                file.write(chunk)
                bar.update(len(chunk))
    if total is None or part.stat().st_size == total:
        return True
    if "bytes" not in (answer.headers.get("Accept-Ranges") or "") and answer.status != 206:
        part.unlink()
    return False


def _next(answer: http.client.HTTPResponse) -> bytes:
    """The next bytes; none at the end or when the connection is cut, which the length then shows."""
    try:
        return answer.read(CHUNK)
    except http.client.IncompleteRead as cut:
        return cut.partial
    except (ConnectionError, TimeoutError):
        return b""


def _check(path: Path, target: Path, url: str, md5: str) -> None:
    if not md5:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        if path != target:
            path.unlink()
        kept = "" if path != target else f"; remove {target}"
        raise UserError(f"{target.name} from {url} has the md5 {found}, expected {md5}: damaged or changed{kept}.")


def unpack(archive: Path, home: Path, gives: str) -> None:
    """Unpack beside, then move `gives` (and what lies beside it) into `home`: whole or not at all."""
    beside = home / f".{archive.name}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)
    safe = {} if archive.suffix == ".zip" else {"filter": "data"}  # no absolute paths, no links outwards
    try:
        shutil.unpack_archive(archive, beside, **safe)
        found = sorted(beside.iterdir(), key=lambda path: path.name == gives)  # the one that says "done" comes last
        if not (beside / gives).exists():
            raise UserError(f"{archive.name} holds {', '.join(p.name for p in found[:5])} and no {gives}; it changed.")
        for path in found:
            if not (home / path.name).exists():
                path.rename(home / path.name)
    except UserError:
        raise
    except Exception as error:  # tarfile, zipfile and zlib raise unrelated classes for a damaged file
        raise UserError(f"{archive} cannot be unpacked ({error}); remove it and run again.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _size(count: int | None) -> str:
    return "size unknown" if count is None else f"{count / 1e6:,.1f} MB"
